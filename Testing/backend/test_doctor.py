import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from backend import doctor


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return doctor.examine()


def levels(report: dict[str, Any], topic: str) -> list[str]:
    return [f["level"] for f in report["findings"] if f["topic"] == topic]


def test_the_report_has_the_keys_that_a_gui_reads_and_survives_json(
    report: dict[str, Any],
) -> None:
    assert json.loads(json.dumps(report)) == report
    assert report["schema"] == 1
    assert report.keys() == {
        *("schema", "ok", "version", "python", "platform", "packages", "torch"),
        *("devices", "processor", "memory", "disk", "dicom", "findings", "install"),
    }
    assert {frozenset(f) for f in report["findings"]} == {
        frozenset({"topic", "level", "what", "cure"})
    }
    assert {"name", "version", "required", "ok"} <= report["packages"][0].keys()


def test_this_machine_is_described_as_it_is(report: dict[str, Any]) -> None:
    assert report["ok"]
    assert report["python"]["executable"] == sys.executable
    packages = {p["name"]: p for p in report["packages"]}
    assert packages["torch"]["version"] == torch.__version__
    assert packages["torch"]["required"] == ">=2.5"
    assert all(p["ok"] for p in packages.values())
    assert len(packages) >= 20
    assert "pytest" not in packages
    assert report["devices"][0]["name"] == "cpu"
    assert report["devices"][0]["ms"] > 0
    assert report["torch"]["threads"] == torch.get_num_threads()
    assert 0 < report["memory"]["available_mb"] <= report["memory"]["total_mb"]
    assert report["memory"]["total_mb"] <= psutil.virtual_memory().total >> 20
    assert 1 <= report["processor"]["usable_cores"] <= (os.cpu_count() or 1)
    assert [d["name"] for d in report["dicom"] if d["ok"]] == [
        *("RLE", "JPEG lossless", "JPEG 2000", "JPEG-LS")
    ]


def test_the_text_names_everything_once_and_ends_with_the_verdict(report: dict[str, Any]) -> None:
    text = doctor.told(report)
    for finding in report["findings"]:
        assert text.count(f"{finding['level']:<8} {finding['what']}\n") == 1
    for title in ("Python", "Packages", "Devices", "Processor", "Memory", "Disk", "DICOM"):
        assert text.count(f"\n\n{title}\n") == 1
    assert text.splitlines()[-1].startswith("Ready, ")


@pytest.mark.parametrize(
    "failure",
    ["ModuleNotFoundError(\"No module named 'torch'\")", "OSError('libcudart is lost\\nand more')"],
)
def test_without_a_working_torch_the_report_comes_with_the_cure_and_exit_code_2(
    tmp_path: Path, failure: str
) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(f"raise {failure}")
    done = subprocess.run(
        [sys.executable, "-m", "backend", "doctor", "--json"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "not ready" in done.stderr
    assert "pip install" in done.stderr
    report = json.loads(done.stdout)
    assert not report["ok"]
    assert report["devices"] == []
    assert report["torch"]["error"] in failure
    lacking = [f for f in report["findings"] if f["level"] == "missing"]
    assert lacking[0]["what"].startswith("torch ")
    assert "pip install" in lacking[0]["cure"]
    # What fails only because torch does is not to be reinstalled.
    assert [f["cure"] for f in lacking[1:] if f["what"].endswith("without torch")] == [""]
    assert [p["ok"] for p in report["packages"] if p["name"] == "torch"] == [False]
    assert levels(report, "dicom") == ["ok"]


@pytest.mark.parametrize(
    ("version", "required", "met"),
    [
        ("2.13.0+cpu", ">=2.5", True),
        ("2.5", ">=2.5.0", True),
        ("2.4.9", ">=2.5", False),
        ("10.0", ">=9.1,<10", False),
        ("9.12.1", ">=9.1, <10", True),
        ("3.0.24", "==3.0.24", True),
        ("3.1rc1", "!=3.1", False),
        ("1.0", "", True),
        ("3.13.0", ">=3.11", True),
    ],
)
def test_versions_are_compared_as_numbers(version: str, required: str, met: bool) -> None:
    assert doctor.is_met(version, required) is met


def test_missing_old_and_broken_packages_are_told_apart_each_with_its_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "brokenthing-3.1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: brokenthing\nVersion: 3.1\n")
    (tmp_path / "brokenthing.py").write_text("raise RuntimeError('built for another numpy')")
    monkeypatch.syspath_prepend(str(tmp_path))
    packages, findings = doctor.look_at_packages(
        ["numpy>=1.26", "numpy>=999", "no-such-package>=1", "brokenthing>=2"]
    )
    assert [p.ok for p in packages] == [True, False, False, False]
    assert [f.level for f in findings] == ["ok", "missing", "missing", "missing"]
    assert "needs >=999" in findings[1].what
    assert findings[1].cure.endswith('pip install "numpy>=999"')
    assert "not installed" in findings[2].what
    assert "built for another numpy" in findings[3].what
    assert "--force-reinstall" in findings[3].cure
    command = doctor.install_command(packages)
    assert command == f'{sys.executable} -m pip install "numpy>=999" "no-such-package>=1"'
    assert doctor.install_command(packages[:1]) == ""


def test_a_device_is_tried_with_numbers_known_beforehand() -> None:
    ms, error = doctor.try_device(torch, "cpu")
    assert error == ""
    assert ms is not None
    assert ms > 0
    # Values on this device cannot be read back.
    ms, error = doctor.try_device(torch, "meta")
    assert ms is None
    assert error


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_every_gpu_computes_and_tells_its_memory(report: dict[str, Any]) -> None:
    gpus = [d for d in report["devices"] if d["name"].startswith("cuda")]
    assert len(gpus) == torch.cuda.device_count() > 0
    assert all(d["ms"] is not None and d["memory_mb"] > d["free_mb"] > 0 for d in gpus)


CARD = "NVIDIA RTX 4000 (driver for CUDA {})"


@pytest.mark.parametrize(
    ("cuda", "build", "visible", "what", "cure"),
    [
        ("12.4", None, None, "no build for it", "torch --index-url {}cu126"),
        ("12.9", None, None, "no build for it", "torch --index-url {}cu128"),
        ("13.2", None, None, "no build for it", "torch --index-url {}cu130"),
        ("11.4", None, None, "too old", "newest NVIDIA driver"),
        ("12.4", "13.0", None, "built for CUDA 13.0", "Update the NVIDIA driver"),
        ("12.4", "12.6", "", "CUDA_VISIBLE_DEVICES is ''", "Unset CUDA_VISIBLE_DEVICES"),
    ],
)
def test_a_gpu_that_torch_does_not_use_is_explained(
    cuda: str, build: str | None, visible: str | None, what: str, cure: str
) -> None:
    found = doctor.unused_gpu([CARD.format(cuda)], build=build, visible=visible)
    assert found.level == "warning"
    assert what in found.what
    assert "NVIDIA RTX 4000" in found.what
    assert cure.format("https://download.pytorch.org/whl/") in found.cure


@pytest.mark.skipif(os.name != "posix", reason="the stand-in is a shell script")
def test_gpus_are_read_from_the_drivers_own_tool(tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\n"
        'if [ "$1" ]; then echo "Quadro A"; echo "Quadro B"; exit; fi\n'
        'echo "| NVIDIA-SMI 550.54    Driver Version: 550.54    CUDA Version: 12.4   |"\n'
    )
    tool.chmod(0o755)
    assert doctor.nvidia_gpus(str(tool)) == [
        "Quadro A (driver for CUDA 12.4)",
        "Quadro B (driver for CUDA 12.4)",
    ]
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert doctor.nvidia_gpus(str(tool)) == []
    assert doctor.nvidia_gpus(str(tmp_path / "nothing")) == []


def group(root: Path, path: str, **files: str) -> None:
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def test_limits_of_control_groups_version_2_are_found_in_the_group_or_above(
    tmp_path: Path,
) -> None:
    root, member = tmp_path / "cgroup", tmp_path / "self"
    member.write_text("0::/job/step\n")
    group(root, "job", cpu__max="250000 100000", memory__max="8589934592")
    group(root, "job/step", cpu__max="max 100000", memory__max="max")
    assert doctor.cgroup_cores(root=root, membership=member) == 2.5
    assert doctor.cgroup_memory(root=root, membership=member) == 8 * 2**30
    member.write_text("0::/other\n")
    assert doctor.cgroup_cores(root=root, membership=member) is None
    assert doctor.cgroup_memory(root=root, membership=member) is None


def test_limits_of_control_groups_version_1_are_found_where_a_container_sees_them(
    tmp_path: Path,
) -> None:
    root, member = tmp_path / "cgroup", tmp_path / "self"
    # A container sees its own group as the root, under the path that the host gave it.
    member.write_text("5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/\n")
    group(root, "cpu,cpuacct", cpu__cfs_quota_us="400000", cpu__cfs_period_us="100000")
    group(root, "memory", memory__limit_in_bytes="1073741824")
    assert doctor.cgroup_cores(root=root, membership=member) == 4
    assert doctor.cgroup_memory(root=root, membership=member) == 2**30
    group(root, "cpu,cpuacct", cpu__cfs_quota_us="-1")
    group(root, "memory", memory__limit_in_bytes="9223372036854771712")
    assert doctor.cgroup_cores(root=root, membership=member) is None
    assert doctor.cgroup_memory(root=root, membership=member) is None


def test_a_system_without_control_groups_has_no_limits(tmp_path: Path) -> None:
    nowhere = tmp_path / "none"
    assert doctor.cgroup_cores(root=nowhere, membership=nowhere) is None
    assert doctor.cgroup_memory(root=nowhere, membership=nowhere) is None


def test_more_threads_than_cores_are_warned_of_with_the_number_to_set() -> None:
    facts, (finding,) = doctor.look_at_processor(threads=100_000)
    assert finding.level == "warning"
    assert f"OMP_NUM_THREADS={facts['usable_cores']}:" in finding.cure
    assert doctor.look_at_processor(threads=1)[1][0].level == "ok"


def test_disks_are_measured_where_cache_and_runs_will_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "not" / "yet"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "not" / "yet"))
    disks, findings = doctor.look_at_disks()
    assert [disk["what"] for disk in disks] == ["cache", "current folder"]
    assert disks[1]["path"] == str(tmp_path)
    assert len(findings) == 2
    assert not (tmp_path / "not").exists()


@pytest.mark.parametrize(
    ("free_mb", "writable", "level", "what"),
    [
        (500_000, True, "ok", "488.3 GiB free"),
        (5_000, True, "warning", "little for many scans"),
        (500, True, "warning", "almost full"),
        (500_000, False, "warning", "not writable"),
    ],
)
def test_little_room_and_closed_folders_are_warned_of(
    free_mb: int, writable: bool, level: str, what: str
) -> None:
    disk = {"what": "cache", "path": "/c", "free_mb": free_mb, "writable": writable}
    finding = doctor.disk_finding(disk)
    assert finding.level == level
    assert what in finding.what
    assert ("--cache" in finding.cure) == (level != "ok")


def test_a_decoder_that_gives_wrong_pixels_or_none_is_noticed() -> None:
    syntax, text = doctor._FRAMES["RLE"]
    frame = base64.b85decode(text)
    assert doctor.decoding_error(syntax, frame) == ""
    spoilt = frame[:70] + bytes([frame[70] ^ 1]) + frame[71:]
    assert doctor.decoding_error(syntax, spoilt) != ""
    assert doctor.decoding_error(syntax, frame[:64]) != ""
    assert doctor.decoding_error("1.2.840.10008.1.2.4.201", frame) != ""
    jpeg = doctor._FRAMES["JPEG-LS"][0]
    assert "\n" not in doctor.decoding_error(jpeg, frame)
    assert doctor.decoding_error(jpeg, frame) != ""


def test_requirements_come_from_the_package_or_its_project_file() -> None:
    python, requirements = doctor.declared_requirements()
    assert python == ">=3.11"
    assert "torch>=2.5" in requirements
    assert not any("pytest" in text for text in requirements)
