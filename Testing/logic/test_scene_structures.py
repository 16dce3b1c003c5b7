"""One table says what every segment of every case means; it needs no scene."""

from __future__ import annotations

from pathlib import Path

import pytest

from backend.data.labels import read_labels as read_with_backend
from SSLPretrainLogic.errors import LogicError
from SSLPretrainLogic.scene.structures import (
    FoundSegment,
    Structure,
    StructureTable,
    proposed,
    read_labels,
    write_labels,
)

RED, BLUE = (255, 0, 0), (0, 0, 255)


def found(case: str, *names: str) -> list[FoundSegment]:
    return [FoundSegment(case=case, name=name, color=RED) for name in names]


TWO_CASES = [*found("a", "Liver", "Left_Kidney"), *found("b", "left kidney ", "Spleen")]


def values(table: StructureTable) -> dict[str, int]:
    return {entry.name: entry.value for entry in table.structures}


def test_equal_names_are_one_structure_however_they_are_written() -> None:
    table = proposed(TWO_CASES)
    assert values(table) == {"Left_Kidney": 1, "Liver": 2, "Spleen": 3}
    assert table.value_of("LEFT KIDNEY") == 1
    assert table.missing(TWO_CASES) == {"a": ("Spleen",), "b": ("Liver",)}


def test_the_order_of_cases_changes_no_value() -> None:
    turned = proposed(list(reversed(TWO_CASES)))
    for segment in TWO_CASES:
        assert turned.value_of(segment.name) == proposed(TWO_CASES).value_of(segment.name)


def test_known_structures_keep_their_values_and_new_ones_come_behind() -> None:
    known = [Structure(value=7, name="spleen", color=BLUE), Structure(value=2, name="Aorta")]
    table = proposed(TWO_CASES, known=known)
    assert values(table) == {"Aorta": 2, "spleen": 7, "Left_Kidney": 8, "Liver": 9}
    assert table.named("Spleen").color == BLUE
    assert proposed(TWO_CASES, known=table.structures).structures == table.structures


def test_merged_structures_share_the_value_of_the_first() -> None:
    table = proposed(TWO_CASES).merged(["Liver", "left kidney"], into="organs")
    assert values(table) == {"organs": 2, "Spleen": 3}
    assert [table.value_of(segment.name) for segment in TWO_CASES] == [2, 2, 2, 3]
    assert table.missing(TWO_CASES) == {"a": ("Spleen",), "b": ()}


def test_a_merged_structure_may_keep_the_name_of_any_of_its_parts() -> None:
    table = proposed(TWO_CASES).merged(["Liver", "Spleen"], into="Spleen")
    assert values(table) == {"Left_Kidney": 1, "Spleen": 2}


def test_a_renamed_structure_keeps_value_and_sources() -> None:
    table = proposed(TWO_CASES).renamed("left kidney", "Niere links")
    assert values(table) == {"Niere links": 1, "Liver": 2, "Spleen": 3}
    assert table.value_of("Left_Kidney") == 1
    with pytest.raises(LogicError, match="There is a structure 'LIVER' already"):
        table.renamed("Spleen", "LIVER")


def test_what_is_left_out_becomes_background_and_no_other_value_moves() -> None:
    table = proposed(TWO_CASES).without("Left_Kidney")
    assert values(table) == {"Liver": 2, "Spleen": 3}
    assert table.value_of("left kidney") == 0


def test_unknown_names_are_refused_with_those_that_are_known() -> None:
    table = proposed(TWO_CASES)
    with pytest.raises(LogicError, match="'Milz' stands in no row of the table"):
        table.value_of("Milz")
    with pytest.raises(LogicError, match=r"no structure 'Milz'\. There are: Left_Kidney, Liver"):
        table.without("Milz")


@pytest.mark.parametrize("name", ["", "  ", "a\x00b", "x" * 201])
def test_names_that_cannot_be_shown_are_refused(name: str) -> None:
    with pytest.raises(LogicError, match="is no name for a structure"):
        proposed(found("a", name))


def test_codes_that_differ_between_cases_are_told() -> None:
    def kidney(case: str, side: str) -> FoundSegment:
        entry = f"List~SCT^1^Structure~SCT^2^Kidney~SCT^{side}^Side~~^^~^^"
        return FoundSegment(case=case, name="kidney", color=RED, terminology=entry)

    assert proposed([kidney("a", "3"), kidney("b", "3")]).notes == ()
    table = proposed([kidney("a", "3"), kidney("b", "4"), kidney("c", "4")])
    assert table.notes == (
        "'kidney' has one code in case a and another in case b.",
        "'kidney' has one code in case a and another in case c.",
    )


def test_labels_are_written_as_the_backend_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "neu é" / "labels.json"
    entries = (
        Structure(value=1, name="Leber groß", color=RED, terminology="SCT^10200004^Liver"),
        Structure(value=300, name="no colour"),
    )
    write_labels(path, entries)
    one, two = read_with_backend(path)
    assert (one.value, one.name, one.color, one.terminology) == (
        (1, "Leber groß", RED, "SCT^10200004^Liver")
    )
    assert (two.value, two.name) == (300, "no colour")
    assert read_labels(path) == entries


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"labels": {}}',
        '{"labels": {"x": "liver"}}',
        '{"labels": {"1": 5}}',
        '{"labels": {"1": {"color": [0, 0, 0]}}}',
        '{"labels": {"1": {"name": "a", "color": [0, 0, 256]}}}',
        '{"labels": {"1": "liver", "2": "LIVER"}}',
    ],
)
def test_damaged_label_files_are_refused_by_path(text: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(LogicError, match=r"labels\.json"):
        read_labels(path)
