import json
import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from backend.data.label_files import (
    ENDINGS,
    segment_fields,
    split_ending,
    value_counts,
    write_labels_file,
)
from backend.data.labels import Label, read_labels
from backend.errors import ResourceError, UserError
from backend.geometry import Geometry, Volume, direction9

LIVER = "SCT^123037004^Anatomical Structure~SCT^10200004^Liver"
LABELS = (
    Label(value=2, name="Hühnerleber", color=(221, 130, 101), terminology="SCT^10200004^Liver"),
    Label(value=5, name="right kidney", color=(0, 128, 255)),
    Label(value=9, name="spleen", color=(157, 108, 162)),
)


def _geometry(*, left_handed: bool = False) -> Geometry:
    """Oblique in all three axes, anisotropic, far from the origin."""
    a, b = np.cos(0.2), np.sin(0.2)
    c, d = np.cos(-0.4), np.sin(-0.4)
    turn = np.array([[a, -b, 0], [b, a, 0], [0, 0, 1]]) @ np.array(
        [[1, 0, 0], [0, c, -d], [0, d, c]]
    )
    if left_handed:
        turn[:, 2] *= -1
    return Geometry(
        size=(5, 7, 6),
        spacing_mm=(3.27, 0.9765625, 1.1),
        origin_mm=(-249.51171875, 131.4, -1187.25),
        direction=direction9(turn.ravel().tolist()),
    )


def _map(geometry: Geometry) -> Volume:
    voxels = np.zeros(geometry.size, dtype=np.uint8)
    voxels[1:3, 2:6, 0:2] = 2
    voxels[4, 0, 5] = 5
    return Volume(voxels, geometry)


@pytest.mark.parametrize("left_handed", [False, True])
@pytest.mark.parametrize("ending", ENDINGS)
def test_voxels_and_oblique_geometry_come_back(
    tmp_path: Path, ending: str, left_handed: bool
) -> None:
    volume = _map(_geometry(left_handed=left_handed))
    path = tmp_path / "new" / f"case.1{ending}"
    write_labels_file(path, volume, LABELS)
    image = SimpleITK.ReadImage(str(path))
    assert np.array_equal(SimpleITK.GetArrayFromImage(image), volume.voxels)
    assert image.GetPixelID() == SimpleITK.sitkUInt8
    geometry = volume.geometry
    # NIfTI stores its matrix in float32: about seven digits of a metre.
    nifti = ".nii" in ending
    for stored, ours, tolerance in (
        (image.GetSpacing()[::-1], geometry.spacing_mm, 1e-6),
        (image.GetDirection(), geometry.direction, 1e-6),
        (image.GetOrigin(), geometry.origin_mm, 1e-4 if nifti else 1e-6),
    ):
        assert np.allclose(stored, ours, atol=tolerance, rtol=0)


@pytest.mark.parametrize("ending", [e for e in ENDINGS if e != ".seg.nrrd"])
def test_other_formats_have_names_and_colours_beside_them(tmp_path: Path, ending: str) -> None:
    write_labels_file(tmp_path / f"case{ending}", _map(_geometry()), LABELS)
    assert read_labels(tmp_path / "case.labels.json") == LABELS
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [f"case{ending}", "case.labels.json"]
    )


def test_values_above_255_are_kept(tmp_path: Path) -> None:
    volume = Volume(
        np.full((2, 2, 2), 300, dtype=np.int16), Geometry(size=(2, 2, 2), spacing_mm=(1, 1, 1))
    )
    write_labels_file(tmp_path / "x.nrrd", volume, [Label(value=300, name="x", color=(0, 0, 0))])
    image = SimpleITK.ReadImage(str(tmp_path / "x.nrrd"))
    assert np.array_equal(SimpleITK.GetArrayFromImage(image), volume.voxels)


def _header(path: Path) -> dict[str, str]:
    """Key/value pairs of an NRRD header, parsed as the format says."""
    text = path.read_bytes().split(b"\n\n", 1)[0].decode("utf-8")
    return dict(re.findall(r"^([^:#]+):=(.*)$", text, flags=re.MULTILINE))


def test_a_slicer_file_names_and_colours_every_segment(tmp_path: Path) -> None:
    write_labels_file(tmp_path / "case.seg.nrrd", _map(_geometry()), LABELS)
    assert [p.name for p in tmp_path.iterdir()] == ["case.seg.nrrd"]
    header = _header(tmp_path / "case.seg.nrrd")
    assert header["Segmentation_ContainedRepresentationNames"] == "Binary labelmap|"
    assert header["Segmentation_SourceRepresentation"] == "Binary labelmap"
    assert header["Segment0_ID"] == "Segment_2"
    assert header["Segment0_Name"] == "Hühnerleber"
    assert header["Segment0_LabelValue"] == "2"
    assert header["Segment0_Layer"] == "0"
    assert header["Segment0_Color"] == "0.866667 0.509804 0.396078"
    assert f"~{LIVER}~^^~" in header["Segment0_Tags"]
    assert header["Segment0_Tags"].startswith("TerminologyEntry:")
    # Extents run x, y, z with the last voxel included; an empty segment has none.
    assert header["Segment0_Extent"] == "0 1 2 5 1 2"
    assert header["Segment1_Extent"] == "5 5 0 0 4 4"
    assert header["Segment2_Extent"] == "0 -1 0 -1 0 -1"
    assert "Segment1_Tags" not in header
    assert "Segment3_ID" not in header


@pytest.mark.parametrize("text", ["SCT:10200004", "SCT^10200004"])
def test_a_bare_code_becomes_an_entry_with_the_name_as_meaning(text: str) -> None:
    label = Label(value=1, name="Liver", color=(0, 0, 0), terminology=text)
    tags = segment_fields(np.zeros((1, 1, 1), np.uint8), [label])["Segment0_Tags"]
    assert f"~{LIVER}~" in tags


def test_an_entry_as_slicer_writes_it_is_kept_and_no_code_is_refused() -> None:
    entry = "list~SCT^1^A~SCT^2^B~^^~codes~^^~^^"
    label = Label(value=1, name="Liver", color=(0, 0, 0), terminology=entry)
    fields = segment_fields(np.zeros((1, 1, 1), np.uint8), [label])
    assert fields["Segment0_Tags"] == f"TerminologyEntry:{entry}|"
    wrong = Label(value=1, name="Liver", color=(0, 0, 0), terminology="liver")
    with pytest.raises(UserError, match="no code"):
        segment_fields(np.zeros((1, 1, 1), np.uint8), [wrong])


def test_extents_equal_those_of_a_search_through_all_voxels() -> None:
    voxels = np.random.default_rng(0).integers(0, 40, (6, 7, 8)).astype(np.int16)
    labels = [Label(value=v, name=str(v), color=(0, 0, 0)) for v in range(1, 40)]
    fields = segment_fields(voxels, labels)
    for index, label in enumerate(labels):
        z, y, x = np.nonzero(voxels == label.value)
        found = [int(edge) for axis in (x, y, z) for edge in (axis.min(), axis.max())]
        assert fields[f"Segment{index}_Extent"] == " ".join(map(str, found))
    assert value_counts(voxels).tolist() == np.bincount(voxels.ravel()).tolist()


def test_a_value_without_a_name_is_refused_and_nothing_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"without a name: \[5\]"):
        write_labels_file(tmp_path / "x.nii.gz", _map(_geometry()), LABELS[:1])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["x.dcm", "x", ".nrrd", "x.gz"])
def test_other_endings_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="End it in"):
        split_ending(Path(name))


def test_a_folder_that_cannot_be_written_is_told_and_an_old_file_survives_a_failed_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="a file stands"):
        write_labels_file(tmp_path / "file" / "x.nrrd", _map(_geometry()), LABELS)
    target = tmp_path / "x.nii.gz"
    write_labels_file(target, _map(_geometry()), LABELS)
    before = target.read_bytes()

    def cut_off(_image: object, name: str, **_options: object) -> None:
        # What ITK's NIfTI writer leaves behind on a full disk, without an error.
        Path(name).write_bytes(before[:100])

    monkeypatch.setattr(SimpleITK, "WriteImage", cut_off)
    with pytest.raises(ResourceError, match="cannot be written"):
        write_labels_file(target, _map(_geometry()), LABELS)
    assert target.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "x.labels.json", "x.nii.gz"]
    assert json.loads((tmp_path / "x.labels.json").read_text(encoding="utf-8"))
