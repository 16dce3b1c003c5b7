"""The shipped codes and colours, read by Slicer's own classes."""

from __future__ import annotations

from typing import Any

import pytest
from scene_geometry import NEEDS_MRML

from SSLPretrainLogic.errors import LogicError
from SSLPretrainLogic.scene import terminology

BTCV = (
    "spleen",
    "right kidney",
    "left kidney",
    "gallbladder",
    "esophagus",
    "liver",
    "stomach",
    "aorta",
    "inferior vena cava",
    "portal vein and splenic vein",
    "pancreas",
    "right adrenal gland",
    "left adrenal gland",
)


@pytest.fixture
def logic(scene: Any) -> Any:
    slicer = pytest.importorskip("slicer", reason=NEEDS_MRML)
    logic = slicer.vtkSlicerTerminologiesModuleLogic()
    logic.SetMRMLScene(scene)
    return logic


def test_slicer_loads_the_terms_and_finds_each_by_its_name(logic: Any) -> None:
    import slicer

    context = terminology.register(logic)
    assert logic.IsTerminologyContextLoaded(context)
    assert len(terminology.terms()) == 42
    for term in terminology.terms():
        entry = slicer.vtkSlicerTerminologyEntry()
        assert logic.FindTypeInTerminologyBy3dSlicerLabel(context, term.name, entry)
        has_side = term.name.split()[0] in ("left", "right")
        coded = entry.GetTypeModifierObject() if has_side else entry.GetTypeObject()
        assert tuple(coded.GetRecommendedDisplayRGBValue()) == term.color
        found = logic.SerializeTerminologyEntry(entry).split("~")[:4]
        assert found == term.entry.split("~")[:4]
        assert logic.DeserializeTerminologyEntry(term.entry, slicer.vtkSlicerTerminologyEntry())


def test_slicer_reads_the_colour_table_with_the_same_names_and_colours(scene: Any) -> None:
    import slicer

    node = scene.AddNewNodeByClass("vtkMRMLColorTableNode")
    storage = slicer.vtkMRMLColorTableStorageNode()
    storage.SetFileName(str(terminology.COLORS))
    assert storage.ReadData(node)
    found = {}
    for value in range(1, node.GetNumberOfColors()):
        color = [0.0] * 4
        node.GetColor(value, color)
        found[node.GetColorName(value)] = tuple(round(255 * channel) for channel in color[:3])
    assert found == {term.name: term.color for term in terminology.terms()}
    assert tuple(found)[:13] == BTCV


def test_no_code_and_no_name_stands_twice() -> None:
    terms = terminology.terms()
    assert len({term.entry for term in terms}) == len({term.name for term in terms}) == len(terms)


@pytest.mark.parametrize(
    ("written", "code"),
    [
        ("Spleen", "~SCT^78961009^Spleen~^^~"),
        ("left_kidney", "~SCT^64033007^Kidney~SCT^7771000^Left~"),
        ("Kidney (right)", ""),
        ("kidney R", "~SCT^64033007^Kidney~SCT^24028007^Right~"),
        ("parotid_right", "~SCT^45289007^Parotid gland~SCT^24028007^Right~"),
        ("Oesophagus", "~SCT^32849002^Esophagus~^^~"),
        ("Brain-Stem", "~SCT^15926001^Brainstem~^^~"),
        ("spinal_cord", "~SCT^2748008^Spinal cord~^^~"),
        ("postcava", "~SCT^64131007^Inferior vena cava~^^~"),
        ("portal_vein_and_splenic_vein", "~SCT^110765007^Portal vein and splenic vein~^^~"),
        ("kidney", ""),
        ("liver tumour", ""),
        ("Segment_1", ""),
    ],
)
def test_a_name_finds_its_code_only_if_it_is_the_same_thing(written: str, code: str) -> None:
    found = terminology.code_for(written)
    assert (code in found) if code else (found == "")
    assert (terminology.color_for(written) is None) == (found == "")


def test_the_names_of_the_head_and_neck_models_have_codes() -> None:
    names = "brainstem spinal_cord parotid_right parotid_left esophagus larynx mandible"
    assert all(terminology.code_for(name) for name in names.split())


def test_codes_of_the_backend_become_whole_entries() -> None:
    whole = terminology.full_entry("SCT:10200004", "Leber")
    assert whole.split("~")[1:4] == [
        "SCT^123037004^Anatomical Structure",
        "SCT^10200004^Leber",
        "^^",
    ]
    assert terminology.full_entry(whole, "x") == whole
    assert terminology.full_entry("", "no such thing") == ""
    with pytest.raises(LogicError, match="'10200004' of 'Leber' is no code"):
        terminology.full_entry("10200004", "Leber")


def test_the_tissue_of_new_segments_says_nothing() -> None:
    slicer = pytest.importorskip("slicer", reason=NEEDS_MRML)
    assert terminology.is_unspecific(slicer.vtkSegment().GetTerminology())
    assert terminology.is_unspecific("")
    assert not terminology.is_unspecific(terminology.code_for("liver"))
