import csv
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch
from tiny_network import ARCHITECTURE

from backend.data.index import read_index
from backend.data.labels import Label
from backend.errors import ScanError, UserError
from backend.models.segmentation import build_segmentation
from backend.segment import chosen_labels, run, scan_names
from backend.weights import WeightsHeader, load_weights, save_weights

SPACING_XYZ = (3.0, 2.0, 4.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    file = tmp_path_factory.mktemp("run") / "model.safetensors"
    header = WeightsHeader(
        kind="segmentation",
        method="smit",
        preset="tiny",
        preprocessing={
            "spacing_mm": [4.0, 4.0, 4.0],
            "orientation": "LPS",
            "hu_window": [-175, 250],
            "intensity": "window",
            "body_margin_mm": 8.0,
            "body_threshold_hu": -350,
        },
        architecture=ARCHITECTURE,
        labels=(
            {"value": 1, "name": "liver", "color": [221, 130, 101], "terminology": ""},
            {"value": 2, "name": "spleen", "color": [157, 108, 162], "terminology": ""},
        ),
    )
    save_weights(file, build_segmentation(ARCHITECTURE).state_dict(), header)
    return file


def _write_scan(path: Path, seed: int = 0) -> Path:
    """Noise like a CT in an air frame, oblique and anisotropic."""
    noise = np.random.default_rng(seed).normal(40, 60, (20, 26, 24))
    noise[:, :3] = -1000
    image = SimpleITK.GetImageFromArray(noise.astype(np.int16))
    image.SetSpacing(SPACING_XYZ)
    image.SetOrigin((-40.0, 12.0, 99.5))
    image.SetDirection((0.96, -0.28, 0.0, 0.28, 0.96, 0.0, 0.0, 0.0, 1.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(image, str(path))
    return path


def test_one_scan_gives_labels_on_its_grid_and_volumes_in_ml(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = _write_scan(tmp_path / "in" / "head.nii.gz")
    target = tmp_path / "out" / "head.seg.nrrd"
    run(model, scan, target, device="cpu")
    source, labels = (SimpleITK.ReadImage(str(path)) for path in (scan, target))
    voxels = SimpleITK.GetArrayFromImage(labels)
    assert labels.GetSize() == source.GetSize()
    for get in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert np.allclose(getattr(labels, get)(), getattr(source, get)(), atol=1e-5)
    report = json.loads((tmp_path / "out" / "head.json").read_text(encoding="utf-8"))
    for entry in report["structures"]:
        count = int((voxels == entry["value"]).sum())
        assert entry["voxels"] == count
        assert entry["ml"] == pytest.approx(count * np.prod(SPACING_XYZ) / 1000)
    assert sum(entry["voxels"] for entry in report["structures"]) > 0
    assert "liver" in capsys.readouterr().out
    assert sorted(p.name for p in target.parent.iterdir()) == ["head.json", "head.seg.nrrd"]


def test_only_the_chosen_structures_are_written(tmp_path: Path, model: Path) -> None:
    scan = _write_scan(tmp_path / "head.nii.gz")
    files = [tmp_path / "all.nrrd", tmp_path / "spleen.nrrd"]
    run(model, scan, files[0], device="cpu")
    (result,) = run(model, scan, files[1], device="cpu", structures=["spleen"])
    every, one = (SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(f))) for f in files)
    assert (every == 2).any()
    assert np.array_equal(one, np.where(every == 2, 2, 0))
    assert [volume.name for volume in result.volumes] == ["spleen"]


def test_an_existing_file_is_refused_unless_overwriting_and_a_scan_always(
    tmp_path: Path, model: Path
) -> None:
    scan = _write_scan(tmp_path / "head.nii.gz")
    target = tmp_path / "labels.nii.gz"
    target.write_bytes(b"mine")
    with pytest.raises(UserError, match=r"There already: .*labels\.nii\.gz"):
        run(model, scan, target, device="cpu")
    assert target.read_bytes() == b"mine"
    run(model, scan, target, device="cpu", overwrite=True)
    assert SimpleITK.ReadImage(str(target)).GetSize() == (24, 26, 20)
    before = scan.read_bytes()
    with pytest.raises(UserError, match="one of the scans"):
        run(model, scan, scan, device="cpu", overwrite=True)
    assert scan.read_bytes() == before


def _table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def _folder(tmp_path: Path) -> Path:
    for index, name in enumerate(("a/ct.nii.gz", "b/ct.nii.gz")):
        _write_scan(tmp_path / "scans" / name, seed=index)
    return tmp_path / "scans"


def test_a_folder_gives_a_file_per_scan_and_a_table_and_goes_on_after_an_interruption(
    tmp_path: Path, model: Path
) -> None:
    scans, output = _folder(tmp_path), tmp_path / "out"
    run(model, scans, output, device="cpu")
    names = sorted(p.name for p in output.iterdir())
    expected = [f"{case}.{end}" for case in "ab" for end in ("json", "labels.json", "nii.gz")]
    assert names == sorted([*expected, "index.csv", "index.files.jsonl", "volumes.csv"])
    rows = _table(output / "volumes.csv")
    assert [(row["case"], row["structure"]) for row in rows] == [
        (case, name) for case in "ab" for name in ("liver", "spleen")
    ]
    kept, lost = (output / f"{case}.nii.gz" for case in "ab")
    stamp, whole = kept.stat().st_mtime_ns, lost.read_bytes()
    lost.unlink()
    results = run(model, scans, output, device="cpu")
    assert [result.reused for result in results] == [True, False]
    assert kept.stat().st_mtime_ns == stamp
    assert lost.read_bytes() == whole
    # Other settings give other labels: then what is there is in the way.
    with pytest.raises(UserError, match="There already"):
        run(model, scans, output, device="cpu", structures=["liver"])


def test_one_broken_scan_does_not_stop_the_others_but_is_told_at_the_end(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans, output = _folder(tmp_path), tmp_path / "out"
    import backend.segment as recipe

    found = recipe.find_scans(scans, single=False)
    # The file is damaged between the search and its turn.
    monkeypatch.setattr(recipe, "find_scans", lambda *_args, **_options: found)
    (scans / "a" / "ct.nii.gz").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"1 of 2 scans could not be segmented\. a: "):
        run(model, scans, output, device="cpu")
    assert (output / "b.nii.gz").is_file()
    assert not (output / "a.nii.gz").exists()
    assert {row["case"] for row in _table(output / "volumes.csv")} == {"b"}


def test_a_single_broken_scan_is_told_as_it_is(tmp_path: Path, model: Path) -> None:
    (tmp_path / "x.nii.gz").write_bytes(b"broken")
    with pytest.raises(ScanError):
        run(model, tmp_path / "x.nii.gz", tmp_path / "out.nrrd", device="cpu")
    assert not (tmp_path / "out.nrrd").exists()


def test_several_series_into_one_file_are_named_and_refused(tmp_path: Path, model: Path) -> None:
    with pytest.raises(UserError, match="2 usable series"):
        run(model, _folder(tmp_path), tmp_path / "out.nrrd", device="cpu")


def test_an_unknown_output_ending_and_a_missing_input_are_refused(
    tmp_path: Path, model: Path
) -> None:
    scan = _write_scan(tmp_path / "head.nii.gz")
    with pytest.raises(UserError, match="End it in"):
        run(model, scan, tmp_path / "out.dcm", device="cpu")
    with pytest.raises(UserError, match="no such file"):
        run(model, tmp_path / "nowhere", tmp_path / "out.nrrd", device="cpu")


def test_an_unknown_structure_is_refused_with_the_nearest_name() -> None:
    labels = [Label(value=i, name=n, color=(0, 0, 0)) for i, n in enumerate(("liver", "spleen"), 1)]
    with pytest.raises(UserError, match="Did you mean 'spleen'"):
        chosen_labels(labels, ["splen"])
    with pytest.raises(UserError, match="It knows: liver, spleen"):
        chosen_labels(labels, ["xyz"])


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["p.nii.gz", "q.seg.nrrd"], ["p", "q"]),
        (["c1_0000.nii.gz", "c2_0000.nii.gz"], ["c1", "c2"]),
        (["a/ct.nii.gz", "b/ct.nii.gz"], ["a", "b"]),
        (["a/x.nii.gz", "b/x.nii.gz"], ["a", "b"]),
        (["s1/a/x.nrrd", "s2/a/x.nrrd"], ["s1_a_x", "s2_a_x"]),
        (["x.nii.gz", "x.nrrd"], ["x_0", "x_1"]),
        (["x.nii.gz", "x.labels.nii.gz"], ["x_0", "x.labels_1"]),
        (["A.nii.gz", "s/a.nii.gz"], ["root", "s"]),
    ],
)
def test_scans_are_named_by_the_shortest_kind_that_tells_them_apart(
    files: list[str], expected: list[str]
) -> None:
    root = Path("/root")
    rows = [(str(index), (root / file,)) for index, file in enumerate(files)]
    assert scan_names(rows, root=root) == expected


def test_a_dicom_series_is_named_by_its_id() -> None:
    files = (Path("/data/NAME^OF/1.dcm"), Path("/data/NAME^OF/2.dcm"))
    assert scan_names([("ab12", files), ("cd34", (Path("/data/x.nrrd"),))], root=Path("/data")) == [
        "ab12",
        "x",
    ]


@pytest.mark.parametrize("ending", [".dcm", "nii.gz", "", "/x.nii.gz", "_seg.nii.gz", "..nrrd"])
def test_an_ending_that_is_no_format_is_refused(tmp_path: Path, model: Path, ending: str) -> None:
    scan = _write_scan(tmp_path / "in" / "a.nii.gz")
    with pytest.raises(UserError, match=r"--ending .* is no format .*\.seg\.nrrd"):
        run(model, scan.parent, tmp_path / "out", device="cpu", ending=ending)
    assert not (tmp_path / "out").exists()


def test_an_ending_that_contradicts_the_name_of_the_file_is_refused(
    tmp_path: Path, model: Path
) -> None:
    scan = _write_scan(tmp_path / "a.nii.gz")
    with pytest.raises(UserError, match=r"b\.nii\.gz: does not end in \.nrrd"):
        run(model, scan, tmp_path / "b.nii.gz", device="cpu", ending=".nrrd")


@pytest.mark.parametrize("output", ["scans", "scans/out", "scans/../scans/deep/out"])
def test_labels_are_not_written_among_the_scans(tmp_path: Path, model: Path, output: str) -> None:
    scan = _write_scan(tmp_path / "scans" / "a.nii.gz")
    with pytest.raises(UserError, match="lies in the folder of the scans"):
        run(model, scan.parent, tmp_path / output, device="cpu", ending=".nrrd")
    assert [path.name for path in scan.parent.iterdir()] == ["a.nii.gz"]


def test_a_file_of_an_unknown_kind_is_not_made_a_folder(tmp_path: Path, model: Path) -> None:
    scan = _write_scan(tmp_path / "a.nii.gz")
    with pytest.raises(UserError, match=r"labels\.txt: not the name of a label file"):
        run(model, scan, tmp_path / "labels.txt", device="cpu")
    assert not (tmp_path / "labels.txt").exists()


@pytest.mark.parametrize(
    "report",
    [
        {"structures": [{"bad": 1}]},
        {"structures": 3},
        {"structures": [{"value": 1, "name": "liver", "voxels": "many", "ml": 1.0}]},
        {"schema": 99},
    ],
)
def test_labels_whose_report_is_damaged_are_no_finished_ones(
    tmp_path: Path, model: Path, report: dict[str, object]
) -> None:
    scan = _write_scan(tmp_path / "in" / "a.nii.gz")
    run(model, scan.parent, tmp_path / "out", device="cpu")
    kept = tmp_path / "out" / "a.json"
    kept.write_text(json.dumps(json.loads(kept.read_text(encoding="utf-8")) | report))
    with pytest.raises(UserError, match=r"There already: .*a\.nii\.gz"):
        run(model, scan.parent, tmp_path / "out", device="cpu")


def test_structures_that_name_none_are_refused(tmp_path: Path, model: Path) -> None:
    scan = _write_scan(tmp_path / "a.nii.gz")
    with pytest.raises(UserError, match=r"No structure is chosen.*liver, spleen"):
        run(model, scan, tmp_path / "b.nii.gz", device="cpu", structures=())


@pytest.mark.parametrize("name", ["labels.json", "labels.labels.json"])
def test_what_is_beside_a_label_file_and_not_ours_is_refused_before_the_work(
    tmp_path: Path, model: Path, name: str
) -> None:
    scan = _write_scan(tmp_path / "ct.nii.gz")
    (tmp_path / name).write_text('{"labels": {"1": "liver"}}')
    with pytest.raises(UserError, match=rf"There already: .*{name}"):
        run(model, scan, tmp_path / "labels.nii.gz", device="cpu")
    assert (tmp_path / name).read_text() == '{"labels": {"1": "liver"}}'
    assert not (tmp_path / "labels.nii.gz").exists()
    run(model, scan, tmp_path / "labels.seg.nrrd", device="cpu", overwrite=True)


def test_a_run_that_was_killed_at_its_label_file_goes_on(tmp_path: Path, model: Path) -> None:
    scan, target = _write_scan(tmp_path / "in" / "a.nii.gz"), tmp_path / "out" / "a.nii.gz"
    run(model, scan.parent, target.parent, device="cpu")
    report = target.with_name("a.json")
    content = json.loads(report.read_text(encoding="utf-8"))
    del content["structures"]
    report.write_text(json.dumps(content), encoding="utf-8")
    target.unlink()
    (result,) = run(model, scan.parent, target.parent, device="cpu")
    assert not result.reused
    assert target.is_file()


def test_the_table_of_a_folder_keeps_the_rows_of_other_scans(tmp_path: Path, model: Path) -> None:
    output = tmp_path / "out"
    for number, name in enumerate("ba"):
        scan = _write_scan(tmp_path / name / f"{name}.nii.gz", seed=number)
        run(model, scan.parent, output, device="cpu")
    rows = _table(output / "volumes.csv")
    assert [row["case"] for row in rows] == ["b", "b", "a", "a"]


def test_the_index_of_a_folder_tells_which_scan_is_which_and_grows(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, scans = tmp_path / "out", [tmp_path / name / f"{name}.nii.gz" for name in "ba"]
    for number, scan in enumerate(scans):
        _write_scan(scan, seed=number)
        run(model, scan.parent, output, device="cpu", overwrite=bool(number))
    rows = read_index(output / "index.csv")
    assert [row.path for row in rows] == scans
    assert f"Which scan is which: {output / 'index.csv'}" in capsys.readouterr().out
    before = (output / "index.csv").read_bytes()
    run(model, scans[0], output, device="cpu")
    told = capsys.readouterr().out
    assert f"Kept, already there (1 of 1): {output / 'b.nii.gz'}" in told
    assert "Written" not in told
    run(model, scans[0].parent, output, device="cpu")
    assert (output / "index.csv").read_bytes() == before


@pytest.mark.parametrize("table", [True, False], ids=["no index", "of a project"])
def test_an_index_that_is_not_ours_is_refused_before_the_work(
    tmp_path: Path, model: Path, *, table: bool
) -> None:
    scan, output = _write_scan(tmp_path / "in" / "a.nii.gz"), tmp_path / "out"
    run(model, scan.parent, output, device="cpu")
    kept = output / "index.csv"
    if table:
        kept.write_text("my,own\n1,2\n")
    else:
        (output / "volumes.csv").unlink()
    before = kept.read_bytes()
    with pytest.raises(UserError, match=r"There already: .*index\.csv"):
        run(model, scan.parent, output, device="cpu")
    assert kept.read_bytes() == before


def test_a_structure_that_is_not_there_is_told_as_such(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors, header = load_weights(model)
    (last,) = [
        name for name, tensor in tensors.items() if name.endswith("bias") and len(tensor) == 3
    ]
    tensors[last][2] = -1e9
    save_weights(tmp_path / "model.safetensors", tensors, header)
    scan = _write_scan(tmp_path / "a.nii.gz")
    (result,) = run(tmp_path / "model.safetensors", scan, tmp_path / "b.nii.gz", device="cpu")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["liver", f"{result.volumes[0].ml:.2f}", "ml"]
    assert lines[1].split() == ["spleen", "not", "found"]


def test_a_table_that_is_not_ours_is_refused_before_the_work(tmp_path: Path, model: Path) -> None:
    scan, output = _write_scan(tmp_path / "in" / "a.nii.gz"), tmp_path / "out"
    output.mkdir()
    (output / "volumes.csv").write_text("my,own\n1,2\n")
    with pytest.raises(UserError, match=r"There already: .*volumes\.csv"):
        run(model, scan.parent, output, device="cpu")
    assert [path.name for path in output.iterdir()] == ["volumes.csv"]
