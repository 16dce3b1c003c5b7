"""Installing what an interpreter lacks: what it downloads, how it is started, how far it is."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import slicer
from slicer.i18n import tr as _

from SSLPretrainLogic import downloads, jobs
from SSLPretrainLogic.downloads import Download
from SSLPretrainLogic.environments import Interpreter, Report
from SSLPretrainLogic.errors import LogicError

WHAT = "install"
"""The word for it in the list of jobs."""

REQUESTER = "SSL Segmentation"

_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
_SLICERS = ("numpy", "requests", "simpleitk", "torch")
"""Other modules of Slicer stand on these: they stay as they are."""

_MODULES = {"pillow": "PIL", "python-gdcm": "gdcm", "pyyaml": "yaml", "simpleitk": "SimpleITK"}
_MB = {"kB": 1e-3, "MB": 1.0, "GB": 1e3}
_FILE = re.compile(r"(?:Downloading|Using cached) (?:\S*/)?([^\s-]+)-\S+ \(([\d.]+) (kB|MB|GB)\)")
_UNPACKING = 0.9
"""Share of the progress bar that belongs to downloads; files are unpacked after them."""


class ExtensionMissing(LogicError):
    """Slicer lacks the extension through which it gets PyTorch; a restart will be needed."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What an installation does.

    Attributes:
        words: what stands behind `pip install`.
        downloads: what comes, the largest first.
    """

    words: tuple[str, ...]
    downloads: tuple[Download, ...]

    @property
    def size(self) -> str:
        """All of it in a few words."""
        return downloads.told_size(self.downloads)

    @property
    def mb(self) -> int:
        """All of it in MB."""
        return sum(download.mb for download in self.downloads)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far an installation is.

    Attributes:
        fraction: of all, in [0, 1].
        what: it does now.
    """

    fraction: float
    what: str


def gpu_index(report: Report) -> str:
    """Where PyTorch for this machine's GPU is, "" if there is no GPU, or it is used already."""
    cures = (finding.cure for finding in report.findings if finding.topic == "devices")
    found = (re.search(r"--index-url (\S+)", cure) for cure in cures)
    return next((match.group(1) for match in found if match), "")


def make_plan(report: Report, *, gpu: bool, system: str = sys.platform) -> Plan | None:
    """What to install, None if nothing can be.

    Args:
        report: of the interpreter to install into.
        gpu: whether PyTorch is wanted for the GPU that `gpu_index` tells of.
        system: as `sys.platform` names it.
    """
    words = _requirements(report)
    index = gpu_index(report)
    if not words and report.ok and gpu and index:
        # All is there, but PyTorch is a build without the GPU.
        torch = Download(name="torch", mb=downloads.TORCH_CUDA_MB)
        again = ("--force-reinstall", "torch", "--index-url", index)
        return Plan(words=again, downloads=(torch,))
    if not words:
        return None
    source = index if gpu else _CPU_INDEX * (system == "linux")
    if source and any(_name(word) == "torch" for word in words):
        words += ("--extra-index-url", source)
    return Plan(words=words, downloads=downloads.downloads(report, gpu=gpu, system=system))


def _requirements(report: Report) -> tuple[str, ...]:
    # Each stands in quotes; the path of the Python before them may hold anything.
    return tuple(re.findall(r'"([^"]+)"', report.install.rpartition(" -m pip install ")[2]))


def _name(word: str) -> str:
    return re.split(r"[^\w.-]", word, maxsplit=1)[0].lower()


def question(plan: Plan, interpreter: Interpreter) -> str:
    """What a person is asked before anything is downloaded."""
    parts = [
        f"    {download.name}: {download.mb} MB" for download in plan.downloads if _is_big(download)
    ]
    small = [download for download in plan.downloads if not _is_big(download)]
    if small:
        told = _("    {count} small ones: {mb} MB")
        parts.append(told.format(count=len(small), mb=sum(download.mb for download in small)))
    text = _(
        "Download {size} and install into\n{path}?\n\n{parts}\n\n"
        "On the disk it takes up to four times as much."
    ).format(size=plan.size, path=interpreter.path, parts="\n".join(parts))
    if interpreter.kind == "slicer":
        text += _(
            " PyTorch comes through the extension PyTorch; Slicer stands still while it does. "
            "Slicer's own packages stay as they are."
        )
    return text


def _is_big(download: Download) -> bool:
    return download.mb > 5


def command(plan: Plan, interpreter: Interpreter, *, environment: dict[str, str]) -> jobs.Command:
    """The job that installs into an external interpreter."""
    words = ("-m", "pip", "install", "--no-input", "--disable-pip-version-check", *plan.words)
    return jobs.Command(
        argv=(str(interpreter.path), "-u", *words),
        environment=environment,
        what=WHAT,
        title=_("Install packages ({size})").format(size=plan.size),
    )


def progress(lines: Iterable[str], *, mb: float) -> Progress:
    """How far pip is.

    Args:
        lines: all that it has written.
        mb: what it downloads in all, about.
    """
    come, coming, what = 0.0, 0.0, _("looks for the packages")
    for line in lines:
        file = _FILE.search(line)
        if file:
            come, coming = come + coming, float(file.group(2)) * _MB[file.group(3)]
            size = f"{file.group(2)} {file.group(3)}"
            what = _("downloads {name} ({size})").format(name=file.group(1), size=size)
        elif line.startswith("Installing collected packages"):
            return Progress(fraction=_UNPACKING, what=_("unpacks the packages"))
    return Progress(fraction=min(1.0, come / max(mb, 1.0)) * _UNPACKING, what=what)


def time_left(fraction: float, elapsed_s: float) -> str:
    """How long it may still take, "" while nobody can tell."""
    if fraction < 0.05 or elapsed_s < 3:
        return ""
    minutes = elapsed_s * (1 - fraction) / fraction / 60
    if minutes < 1:
        return _("less than a minute left")
    return _("about {minutes} min left").format(minutes=round(minutes))


# Into Slicer's own Python


def install_into_slicer(
    plan: Plan,
    *,
    gpu: bool,
    on_line: Callable[[str], None],
    on_end: Callable[[int], None],
) -> None:
    """Install into the Python that Slicer itself runs on; it may return before the end.

    Args:
        plan: what to install.
        gpu: whether PyTorch may use a GPU.
        on_line: is told what pip writes, where Slicer tells it.
        on_end: is told pip's exit code.

    Raises:
        ExtensionMissing: if the extension PyTorch is absent.
        LogicError: if an installation fails.
    """
    requirements = [word for word in _plain(plan.words) if _name(word) not in _SLICERS]
    torch = next((word for word in _plain(plan.words) if _name(word) == "torch"), "")
    if torch:
        _install_torch(torch.removeprefix("torch"), gpu=gpu)
    if not requirements:
        on_end(0)
        return
    _pip_install(requirements, _constraints(), on_line=on_line, on_end=on_end)


def _plain(words: tuple[str, ...]) -> tuple[str, ...]:
    """The requirements alone, without pip's options."""
    options = {i for i, word in enumerate(words) if word.startswith("-")}
    urls = {i for i, word in enumerate(words) if "://" in word}
    return tuple(word for i, word in enumerate(words) if i not in options | urls)


def _install_torch(requirement: str, *, gpu: bool) -> None:
    try:
        from PyTorchUtils import PyTorchUtilsLogic
    except ImportError:
        raise ExtensionMissing(
            _("The extension PyTorch is not there, through which Slicer gets PyTorch."),
            _("Install it in the Extensions Manager, restart Slicer, then press Install again."),
        ) from None
    try:
        torch = PyTorchUtilsLogic().installTorch(
            askConfirmation=False,
            forceComputationBackend=None if gpu else "cpu",
            torchVersionRequirement=requirement or None,
        )
    except (OSError, RuntimeError, ValueError, ImportError, subprocess.SubprocessError) as error:
        raise _failed(error) from error
    if torch is None:
        raise LogicError(_("PyTorch was not installed."), _("Try again, or choose another Python."))


def _constraints() -> Path:
    """A file that keeps pip from replacing what Slicer and other extensions stand on."""
    from importlib import metadata

    kept = []
    for name in _SLICERS:
        try:
            kept.append(f"{name}=={metadata.version(name)}\n")
        except metadata.PackageNotFoundError:
            continue
    path = Path(slicer.app.temporaryPath) / "SSLSegmentation-constraints.txt"
    path.write_text("".join(kept), "utf-8")
    return path


def _pip_install(
    requirements: list[str],
    constraints: Path,
    *,
    on_line: Callable[[str], None],
    on_end: Callable[[int], None],
) -> None:
    """The one place that knows that Slicer installs in the background since 5.12 only."""
    try:
        if hasattr(slicer, "packaging"):
            slicer.packaging.pip_install(
                requirements,
                constraints=str(constraints),
                blocking=False,
                requester=REQUESTER,
                logCallback=on_line,
                completedCallback=on_end,
            )
            return
        slicer.util.pip_install(["--constraint", str(constraints), *requirements])
    except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
        raise _failed(error) from error
    on_end(0)


def _failed(error: Exception) -> LogicError:
    return LogicError(
        _("The installation into Slicer failed ({error}).").format(error=error),
        _("See Slicer's log (View > Error Log). Check the network, or choose another Python."),
    )


def loaded(plan: Plan) -> tuple[str, ...]:
    """Packages of a plan that this Slicer has loaded, in versions it keeps until restarted."""
    names = map(_name, _plain(plan.words))
    return tuple(name for name in names if _MODULES.get(name, name) in sys.modules)
