"""Whether this machine is ready, and the cure where it is not: the recipe behind `backend doctor`.

A package that is missing or broken is what this looks for, so everything but the standard library
is imported late, and an import that fails is a finding.
"""

from __future__ import annotations

import base64
import importlib
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import tomllib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import backend
from backend.errors import UserError

SCHEMA = 1
"""Version of the JSON report."""

Level = Literal["ok", "warning", "missing"]

_DISTRIBUTION = "sslsegmentation"
_MODULES = {"pillow": "PIL", "python-gdcm": "gdcm", "pyyaml": "yaml", "simpleitk": "SimpleITK"}
_FOUNDATIONS = ("numpy", "torch")
_TORCH_INDEX = "https://download.pytorch.org/whl/"
# CUDA builds that PyTorch offers; a driver runs those of its own and of earlier versions.
_CUDA_BUILDS = ((13, 0), (12, 8), (12, 6))
_OLDEST_CUDA = (12, 0)
_LITTLE_MEMORY_MB = 8 * 1024
_LITTLE_DISK_MB = 10 * 1024
_NO_DISK_MB = 1024

_TITLES = {
    "python": "Python",
    "packages": "Packages",
    "devices": "Devices",
    "processor": "Processor",
    "memory": "Memory",
    "disk": "Disk",
    "dicom": "DICOM",
}

# One frame of 8 x 8 pixels under each compression that CT scanners and archives use.
_FRAMES = {
    "RLE": (
        "1.2.840.10008.1.2.5",
        "0ssI2KmY&$hyVZp000000000000000000000000000000000000000000000000000000000000000002LJ;A1ON"
        "m81P25F1ONm81ONvC1px&C1px&I2LlHK2LlHK2L=iT3I+-W3I`1d4G9ei4G9Mg5e*Ry5e*Rs77`W`77`W`2LSaN"
        "4>T!GLkCH2V~BmCm%Imrd7hKFt<uK_QFd#Pg{q&#2M`4+A4EA`QwL#&d!UuNuha*mnZC2w&GP35d7hKFt<uNr",
    ),
    "JPEG lossless": (
        "1.2.840.10008.1.2.4.70",
        "|JeV-01FTR2mlBH0TBTI!~hup0RRF60000000000000003I_`b3=sd?00;pA00961=jsU`s3d-%k^0z@2_L8=ex"
        "Q;1f<kotK_m49kJJ)BTXR7p^#qU95<gH$i|6VIAE+dLppp9Cq6r_UBz~Zg`hrOf`hrL52_L8=e!Ci=k@|v1>Iom"
        "HB>&j}",
    ),
    "JPEG 2000": (
        "1.2.840.10008.1.2.4.90",
        "|4;u>04V?f0000800008000000000000008000080000000000009pH0sm3}3;+NC0RRF71ONg5TmT9{fQX2Yh="
        "`E?WB@7v0Yh?SVRU6=AYyqSM?^zSFHdk~Zc0!^M<8}(a&u{KZXhx)GcGXykN^q*00000TmS+8lh6DxAP9lc$^dw"
        "(xWEDPgMt1601Wp13q3xyW~uv+zySFIKz|}o59Bx^7_Hv}f89l+Q4YAFI|;+XGe3Cj9}!Q4e104N0KXHLRFIed*"
        "#H",
    ),
    "JPEG-LS": (
        "1.2.840.10008.1.2.4.80",
        "|JeWc01FTR2mlBH0TBTI_y7$7|Nj6I07C&306_oR00;pA00000pQY`erR^V`?4P8PPi#pKvLt8MA|dT{_`x4cU{"
        "9h@2hSKya33_c&z4)q$t~0DX=$FH6weQaXJ^4QUCo~SH5a}*gWjDz^|6LM2faRf-XA&c!_S4P_eafpljc3a^50h"
        "f*#H",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the verdict.

    Attributes:
        topic: what it is about: python, packages, devices, processor, memory, disk, dicom.
        level: "missing" if nothing works without it, "warning" if something will not or slowly.
        what: what was found.
        cure: what to do about it, "" if nothing.
    """

    topic: str
    level: Level
    what: str
    cure: str = ""


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package that this program needs.

    Attributes:
        name: as the package index knows it.
        version: installed one, None if there is none.
        required: versions that will do, e.g. ">=2.5".
        ok: whether it is there, new enough and can be loaded.
        error: why it cannot be loaded, "" if it can.
        cause: the other package that must be mended first, "" if it is this one.
    """

    name: str
    version: str | None
    required: str
    ok: bool
    error: str = ""
    cause: str = ""


@dataclass(frozen=True, kw_only=True)
class Device:
    """Something to compute on.

    Attributes:
        name: as `--device` takes it.
        description: model.
        memory_mb: total memory.
        free_mb: of it free.
        bf16: whether `train.precision=auto` computes in bf16 there.
        ms: time of a small convolution, forward and backward; None if it failed.
        error: why it failed, "" if it did not.
    """

    name: str
    description: str
    memory_mb: int
    free_mb: int
    bf16: bool
    ms: float | None
    error: str = ""


def run(*, as_json: bool) -> None:
    """Examine this machine and write the result to standard output.

    Args:
        as_json: write one JSON object instead of text: `schema`, `ok`, `version`, `python`,
            `platform`, `packages`, `torch`, `devices`, `processor`, `memory`, `disk`, `dicom`,
            `findings` [{topic, level, what, cure}], `install` (one command for all packages that
            are absent or too old). Sizes are MB of 1024 squared.

    Raises:
        UserError: if something is missing without which nothing works.
    """
    report = examine()
    sys.stdout.write(json.dumps(report, indent=1) + "\n" if as_json else told(report))
    lacking = [f for f in report["findings"] if f["level"] == "missing"]
    if lacking:
        raise UserError(
            f"This machine is not ready: {len(lacking)} missing, first: {lacking[0]['what']}.",
            report["install"] or lacking[0]["cure"],
        )


def examine() -> dict[str, Any]:
    """Everything `backend doctor` tells, as plain values for JSON."""
    needed_python, requirements = declared_requirements()
    python, found = look_at_python(needed_python)
    packages, more = look_at_packages(requirements)
    found += more
    torch, devices, more = look_at_devices()
    found += more
    processor, more = look_at_processor(threads=torch["threads"])
    found += more
    memory, more = look_at_memory()
    found += more
    disks, more = look_at_disks()
    found += more
    decoders, more = look_at_decoders()
    found += more
    return {
        "schema": SCHEMA,
        "ok": all(f.level != "missing" for f in found),
        "version": backend.__version__,
        "python": python,
        "platform": {
            "system": platform.system(),
            "release": platform.release(),
            "machine": platform.machine(),
        },
        "packages": [asdict(p) for p in packages],
        "torch": torch,
        "devices": [asdict(d) for d in devices],
        "processor": processor,
        "memory": memory,
        "disk": disks,
        "dicom": decoders,
        "findings": [asdict(f) for f in found],
        "install": install_command(packages),
    }


def told(report: dict[str, Any]) -> str:
    """The report for people: one line per finding under its topic, the cure below it."""
    system = report["platform"]
    lines = [
        f"SSLSegmentation {report['version']} on {system['system']} {system['release']} "
        f"({system['machine']})"
    ]
    topic = ""
    for finding in report["findings"]:
        if finding["topic"] != topic:
            topic = finding["topic"]
            lines += ["", _TITLES[topic]]
        lines.append(f"  {finding['level']:<8} {finding['what']}")
        if finding["cure"]:
            lines.append(f"           -> {finding['cure']}")
    levels = [finding["level"] for finding in report["findings"]]
    count = {level: levels.count(level) for level in ("warning", "missing")}
    verdict = "Ready" if report["ok"] else f"Not ready: {count['missing']} missing"
    lines += ["", f"{verdict}, {count['warning']} warning(s)."]
    if report["install"]:
        lines += ["All packages at once:", f"  {report['install']}"]
    return "".join(f"{line}\n" for line in lines)


def declared_requirements() -> tuple[str, list[str]]:
    """The range of Python versions and the packages that this program needs, without extras.

    From the installed package, else from the pyproject.toml beside it; empty where neither is.
    """
    try:
        own = metadata.metadata(_DISTRIBUTION)
        texts = own.get_all("Requires-Dist") or []
        return own["Requires-Python"] or "", [t for t in texts if "extra ==" not in t]
    except metadata.PackageNotFoundError:
        project = Path(backend.__file__).parents[1] / "pyproject.toml"
    try:
        table = tomllib.loads(project.read_text("utf-8"))["project"]
    except (OSError, ValueError, KeyError):
        return "", []
    return table["requires-python"], list(table["dependencies"])


def look_at_python(required: str) -> tuple[dict[str, Any], list[Finding]]:
    """The interpreter, and whether its version will do."""
    version = platform.python_version()
    ok = is_met(version, required)
    facts = {"version": version, "required": required, "executable": sys.executable, "ok": ok}
    what = f"Python {version} (needs {required or 'any'}), {sys.executable}"
    cure = "" if ok else f"Install a Python {required} and this program into it."
    return facts, [Finding(topic="python", level="ok" if ok else "missing", what=what, cure=cure)]


def is_met(version: str, required: str) -> bool:
    """Whether a version lies in a range such as ">=2.5,<3".

    Judged by the numbers of the version alone, as the packaging library may be missing too.
    """
    ours = _numbers(version)
    compare: dict[str, Callable[[list[int], list[int]], bool]] = {
        ">=": lambda a, b: a >= b,
        "<=": lambda a, b: a <= b,
        ">": lambda a, b: a > b,
        "<": lambda a, b: a < b,
        "==": lambda a, b: a == b,
        "!=": lambda a, b: a != b,
    }
    for operator, bound in re.findall(r"([<>=!]=|[<>])\s*([\d.]+)", required):
        theirs = _numbers(bound)
        length = max(len(ours), len(theirs))
        padded = [n + [0] * (length - len(n)) for n in (ours, theirs)]
        if not compare[operator](*padded):
            return False
    return True


def _numbers(version: str) -> list[int]:
    found = re.match(r"\d+(?:\.\d+)*", version)
    return [int(number) for number in found.group().split(".")] if found else []


def look_at_packages(requirements: Sequence[str]) -> tuple[list[Package], list[Finding]]:
    """Each package that is needed: its version, and whether it can be loaded.

    Args:
        requirements: such as "torch>=2.5".
    """
    if not requirements:
        what = "the list of required packages was not found"
        cure = f"Install this program: {_pip()} {_DISTRIBUTION}"
        return [], [Finding(topic="packages", level="warning", what=what, cure=cure)]
    packages: list[Package] = []
    # Those that others are built on come first, so that a failure is told where it begins.
    for text in sorted(requirements, key=lambda text: not text.startswith(_FOUNDATIONS)):
        package = _package(text)
        packages.append(replace(package, cause=_cause(package, packages)))
    return packages, [_package_finding(package) for package in packages]


def install_command(packages: Sequence[Package]) -> str:
    """One command for all packages that are absent or too old, "" if there are none."""
    wanted = [f'"{p.name}{p.required}"' for p in packages if not p.ok and not p.error]
    return " ".join([_pip(), *wanted]) if wanted else ""


def _cause(package: Package, earlier: Sequence[Package]) -> str:
    """The package whose failure this package's failure repeats."""
    for other in earlier:
        same = bool(other.error) and other.error == package.error
        if not other.ok and (same or f"No module named '{_module(other.name)}'" in package.error):
            return other.name
    return ""


def _module(name: str) -> str:
    return _MODULES.get(name.lower(), name)


def _package(requirement: str) -> Package:
    name = re.split(r"[\s<>=!~;\[(]", requirement, maxsplit=1)[0]
    required = requirement.split(";")[0].removeprefix(name).strip(" ()")
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Package(name=name, version=None, required=required, ok=False)
    _, error = load(_module(name))
    ok = not error and is_met(version, required)
    return Package(name=name, version=version, required=required, ok=ok, error=error)


def _package_finding(package: Package) -> Finding:
    wanted = f"{package.name}{package.required}"
    level: Level = "ok" if package.ok else "missing"
    cure = "" if package.ok else f'{_pip()} "{wanted}"'
    if package.version is None:
        what = f"{package.name} is not installed (needs {package.required})"
    elif package.cause:
        what = f"{package.name} {package.version} cannot be loaded without {package.cause}"
        cure = ""
    elif package.error:
        what = f"{package.name} {package.version} cannot be loaded: {package.error}"
        cure = f'{_pip()} --force-reinstall "{wanted}"'
    else:
        what = f"{package.name:<12} {package.version:<14} needs {package.required or 'any'}"
    return Finding(topic="packages", level=level, what=what, cure=cure)


def load(module: str) -> tuple[Any, str]:
    """Import a module: the module and "", or None and what went wrong, in one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module), ""
    except Exception as error:  # A broken package may raise anything when it is loaded.
        return None, _one_line(error)


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


def _pip() -> str:
    python = f'"{sys.executable}"' if " " in sys.executable else sys.executable
    return f"{python} -m pip install"


def look_at_devices() -> tuple[dict[str, Any], list[Device], list[Finding]]:
    """PyTorch, and everything it can compute on, each tried with a small convolution."""
    torch, error = load("torch")
    facts: dict[str, Any] = {"version": None, "cuda": None, "hip": None, "threads": None}
    gpus = nvidia_gpus()
    if torch is None:
        # The finding about the package itself says so too, but not which build to get.
        return facts | {"error": error}, [], [build_for_gpu(gpus)] if gpus else []
    try:
        facts = {
            "version": str(torch.__version__),
            "cuda": torch.version.cuda,
            "hip": torch.version.hip,
            "threads": torch.get_num_threads(),
            "error": "",
        }
        available = bool(torch.cuda.is_available())
        devices = [_device(torch, name) for name in _device_names(torch, available=available)]
    except Exception as broken:  # What loads may still be broken inside.
        error = _one_line(broken)
        cure = f"{_pip()} --force-reinstall torch"
        what = f"PyTorch is damaged: {error}"
        finding = Finding(topic="devices", level="missing", what=what, cure=cure)
        return facts | {"error": error}, [], [finding]
    found = [_device_finding(device) for device in devices]
    if gpus and not available:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        found.append(unused_gpu(gpus, build=facts["cuda"], visible=visible))
    return facts, devices, found


def _device_names(torch: Any, *, available: bool) -> list[str]:
    cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if available else []
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return ["cpu", *cuda, *mps]


def _device(torch: Any, name: str) -> Device:
    description, total, free, bf16 = _processor_name(), 0, 0, False
    if name.startswith("cuda"):
        with torch.cuda.device(name):
            description = torch.cuda.get_device_name(name)
            free, total = torch.cuda.mem_get_info(name)
            bf16 = bool(torch.cuda.is_bf16_supported(including_emulation=False))
    elif name == "mps":
        description = "Apple GPU, shares the machine's memory"
    ms, error = try_device(torch, name)
    return Device(
        name=name,
        description=description,
        memory_mb=total >> 20,
        free_mb=free >> 20,
        bf16=bf16,
        ms=ms,
        error=error,
    )


def _processor_name() -> str:
    try:
        model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        model = None
    return model.group(1) if model else platform.processor() or platform.machine()


def try_device(torch: Any, name: str) -> tuple[float | None, str]:
    """Convolve a block of ones there and back, and check the numbers that must come out.

    Returns:
        Milliseconds of the second pass (the first one loads kernels) and "", or None and why not.
    """
    edge, kernel, channels = 32, 3, 8
    inner = edge - kernel + 1
    try:
        ones = torch.ones(1, 1, edge, edge, edge, device=name)
        weight = torch.ones(channels, 1, kernel, kernel, kernel, device=name, requires_grad=True)
        start = 0.0
        for _ in range(2):
            start = time.perf_counter()
            weight.grad = None
            result = torch.nn.functional.conv3d(ones, weight)
            result.sum().backward()
            # Copying to the processor waits for the device.
            ends = result.detach().min(), result.detach().max(), weight.grad.mean()
            values = [float(value) for value in ends]
        ms = (time.perf_counter() - start) * 1000
    except Exception as error:  # Drivers raise almost anything.
        return None, _one_line(error)
    wanted = [kernel**3, kernel**3, inner**3]
    # Fast algorithms of GPUs round a little.
    if not all(math.isclose(v, w, rel_tol=1e-3) for v, w in zip(values, wanted, strict=True)):
        return None, f"it computes wrongly: {values} instead of {wanted}"
    return round(ms, 2), ""


def _device_finding(device: Device) -> Finding:
    if device.error:
        return Finding(
            topic="devices",
            level="missing" if device.name == "cpu" else "warning",
            what=f"{device.name} ({device.description}) does not compute: {device.error}",
            cure=f"Update its driver, or {_pip()} --upgrade torch. Until then use --device cpu."
            if device.name != "cpu"
            else f"{_pip()} --force-reinstall torch",
        )
    memory = f", {device.free_mb} of {device.memory_mb} MB free" if device.memory_mb else ""
    precision = "bf16" if device.bf16 else "fp32"
    return Finding(
        topic="devices",
        level="ok",
        what=f"{device.name:<8} {device.description}{memory}, {precision}, "
        f"3D convolution {device.ms:.1f} ms",
    )


def nvidia_gpus(command: str = "nvidia-smi") -> list[str]:
    """What the NVIDIA driver's own tool prints, line by line; empty without GPU or driver."""
    program = shutil.which(command)
    if program is None:
        return []
    try:
        done = subprocess.run([program], capture_output=True, text=True, timeout=20, check=True)
        names = subprocess.run(
            [program, "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    version = re.search(r"CUDA Version:\s*(\d+\.\d+)", done.stdout)
    cuda = version.group(1) if version else ""
    return [
        f"{name.strip()} (driver for CUDA {cuda})" for name in names.stdout.splitlines() if name
    ]


def unused_gpu(gpus: Sequence[str], *, build: str | None, visible: str | None) -> Finding:
    """Why PyTorch does not see a GPU that the driver sees, and the exact cure.

    Args:
        gpus: as `nvidia_gpus` tells them.
        build: version of CUDA that PyTorch was built with, None for a build without it.
        visible: the variable CUDA_VISIBLE_DEVICES, None if it is not set.
    """
    what = f"{gpus[0]} is there, but PyTorch does not use it: "
    if build is None or _driver_cuda(gpus) < _OLDEST_CUDA:
        return build_for_gpu(gpus)
    if visible is not None:
        what += f"CUDA_VISIBLE_DEVICES is {visible!r}"
        cure = "Unset CUDA_VISIBLE_DEVICES, or ask your cluster for a GPU."
    else:
        what += f"it is built for CUDA {build}"
        cure = "Update the NVIDIA driver and restart the machine, then run this again."
    return Finding(topic="devices", level="warning", what=what, cure=cure)


def build_for_gpu(gpus: Sequence[str]) -> Finding:
    """Which build of PyTorch a GPU needs that is not used as yet, and how to get it."""
    driver = _driver_cuda(gpus)
    chosen = next((b for b in _CUDA_BUILDS if b <= driver), _CUDA_BUILDS[-1])
    what = f"{gpus[0]} is there, but PyTorch is no build for it"
    cure = f"{_pip()} --force-reinstall torch --index-url {_TORCH_INDEX}cu{chosen[0]}{chosen[1]}"
    if driver < _OLDEST_CUDA:
        what = f"{gpus[0]} is there, but its driver is too old for PyTorch"
        cure = "Install the newest NVIDIA driver, then run this again."
    return Finding(topic="devices", level="warning", what=what, cure=cure)


def _driver_cuda(gpus: Sequence[str]) -> tuple[int, int]:
    version = re.search(r"CUDA (\d+)\.(\d+)", gpus[0])
    return (int(version.group(1)), int(version.group(2))) if version else _CUDA_BUILDS[-1]


def look_at_processor(*, threads: int | None) -> tuple[dict[str, Any], list[Finding]]:
    """Cores of the machine, those this process may use, and PyTorch's threads."""
    psutil, _ = load("psutil")
    physical = psutil.cpu_count(logical=False) if psutil else None
    logical = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical
    limit = cgroup_cores()
    allowed = usable if limit is None else min(usable, max(1, round(limit)))
    facts = {
        "physical_cores": physical,
        "logical_cores": logical,
        "usable_cores": allowed,
        "container_limit": limit,
        "threads": threads,
    }
    what = f"{allowed} of {logical} cores usable"
    what += f" (container limit {limit:g})" if limit is not None else ""
    what += f", PyTorch takes {threads} thread{'s' * (threads != 1)}" if threads else ""
    if threads and threads > allowed:
        cure = f"Set OMP_NUM_THREADS={allowed}: more threads than cores slow each other down."
        return facts, [Finding(topic="processor", level="warning", what=what, cure=cure)]
    return facts, [Finding(topic="processor", level="ok", what=what)]


def cgroup_files(name: str, controller: str, *, root: Path, membership: Path) -> Iterator[str]:
    """Contents of a control group's file in this process's group and its parents.

    Args:
        name: of the file, e.g. "cpu.max".
        controller: of version 1, e.g. "cpu"; "" for version 2.
        root: where control groups are mounted.
        membership: the file that tells the groups of this process.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controller not in controllers.split(","):
            continue
        for base in (root / controllers, root / controller, root / "unified"):
            place = base / group.strip("/")
            for folder in (place, *place.parents):
                if not folder.is_relative_to(root):
                    break
                try:
                    yield (folder / name).read_text().strip()
                except OSError:
                    continue


_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def cgroup_cores(*, root: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> float | None:
    """Cores that the container, or job, of this process may use; None if not limited."""
    limits = []
    for text in cgroup_files("cpu.max", "", root=root, membership=membership):
        quota, _, period = text.partition(" ")
        if quota != "max":
            limits.append(int(quota) / int(period))
    quotas = list(cgroup_files("cpu.cfs_quota_us", "cpu", root=root, membership=membership))
    periods = list(cgroup_files("cpu.cfs_period_us", "cpu", root=root, membership=membership))
    for quota, period in zip(quotas, periods, strict=False):
        if int(quota) > 0:
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def cgroup_memory(*, root: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> int | None:
    """Bytes that the container, or job, of this process may use; None if not limited."""
    texts = [
        *cgroup_files("memory.max", "", root=root, membership=membership),
        *cgroup_files("memory.limit_in_bytes", "memory", root=root, membership=membership),
    ]
    # Version 1 writes a number near 2**63 for no limit.
    limits = [int(text) for text in texts if text.isdigit() and int(text) < 2**60]
    return min(limits, default=None)


def look_at_memory() -> tuple[dict[str, Any], list[Finding]]:
    """Memory of the machine and of the container, in MB of 1024 squared."""
    psutil, error = load("psutil")
    limit = cgroup_memory()
    if psutil is None:
        what = f"memory could not be measured: {error}"
        empty = {"total_mb": None, "available_mb": None, "container_limit_mb": None}
        return empty, [Finding(topic="memory", level="warning", what=what)]
    machine = psutil.virtual_memory()
    total = min(machine.total, limit or machine.total)
    available = min(machine.available, total)
    facts = {
        "total_mb": total >> 20,
        "available_mb": available >> 20,
        "container_limit_mb": None if limit is None else limit >> 20,
    }
    what = f"{available / 2**30:.1f} of {total / 2**30:.1f} GiB available"
    what += " (container limit)" if limit is not None and limit < machine.total else ""
    if facts["available_mb"] < _LITTLE_MEMORY_MB:
        cure = "Close other programs; lower train.batch_size and data.workers when it runs out."
        return facts, [Finding(topic="memory", level="warning", what=what, cure=cure)]
    return facts, [Finding(topic="memory", level="ok", what=what)]


def look_at_disks() -> tuple[list[dict[str, Any]], list[Finding]]:
    """Free space where the cache lies and where runs are written."""
    places = [("current folder", Path.cwd())]
    cache, error = load("backend.data.cache")
    found = []
    if cache is None:
        what = f"the cache's folder is unknown: {error}"
        found.append(Finding(topic="disk", level="warning", what=what))
    else:
        places.insert(0, ("cache", cache.default_cache_dir(None)))
    disks = [_disk(what, path) for what, path in places]
    return disks, [*found, *(disk_finding(disk) for disk in disks)]


def _disk(what: str, path: Path) -> dict[str, Any]:
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    usage = shutil.disk_usage(there)
    return {
        "what": what,
        "path": str(path),
        "free_mb": usage.free >> 20,
        "total_mb": usage.total >> 20,
        "writable": os.access(there, os.W_OK),
    }


def disk_finding(disk: dict[str, Any]) -> Finding:
    """Whether a place has room for a cache or for runs.

    Args:
        disk: `what`, `path`, `free_mb` and `writable`.
    """
    what = f"{disk['what']} {disk['path']}: {disk['free_mb'] / 1024:.1f} GiB free"
    other = (
        "Choose another place with --cache DIR."
        if disk["what"] == "cache"
        else "Write runs elsewhere with --output."
    )
    if not disk["writable"]:
        what += ", not writable"
        return Finding(topic="disk", level="warning", what=what, cure=other)
    if disk["free_mb"] < _LITTLE_DISK_MB:
        full = "almost full" if disk["free_mb"] < _NO_DISK_MB else "little for many scans"
        cure = f"Free some space, see `backend cache`. {other}"
        return Finding(topic="disk", level="warning", what=f"{what}, {full}", cure=cure)
    return Finding(topic="disk", level="ok", what=what)


def look_at_decoders() -> tuple[list[dict[str, Any]], list[Finding]]:
    """Whether compressed DICOM can be read: a known frame of each kind is decoded."""
    decoders: list[dict[str, Any]] = []
    for name, (syntax, frame) in _FRAMES.items():
        error = decoding_error(syntax, base64.b85decode(frame))
        decoders.append({"name": name, "uid": syntax, "ok": not error, "error": error})
    good = ", ".join(d["name"] for d in decoders if d["ok"])
    found = []
    if good:
        found.append(Finding(topic="dicom", level="ok", what=f"decodes {good}"))
    for error in dict.fromkeys(d["error"] for d in decoders if not d["ok"]):
        bad = ", ".join(d["name"] for d in decoders if d["error"] == error)
        what = f"compressed DICOM cannot be read ({bad}): {error}"
        cure = f"{_pip()} --force-reinstall python-gdcm pydicom"
        found.append(Finding(topic="dicom", level="warning", what=what, cure=cure))
    return decoders, found


def decoding_error(syntax: str, frame: bytes) -> str:
    """Why pydicom cannot decode the known frame, "" if every pixel is right.

    Args:
        syntax: UID of the transfer syntax.
        frame: the compressed pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pixels = _decoded(syntax, frame)
    except Exception as error:  # Decoders raise almost anything.
        return _one_line(error)
    expected = [[97 * y * y + 13 * x + 1000 * ((x + y) % 2) for x in range(8)] for y in range(8)]
    return "" if pixels == expected else "its pixels come out wrong"


def _decoded(syntax: str, frame: bytes) -> list[list[int]]:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.Rows = dataset.Columns = 8
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR = "OB"
    rows: list[list[int]] = dataset.pixel_array.tolist()
    return rows
