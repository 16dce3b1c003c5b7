"""Interpreters that can run the backend: found, examined in a child process, and told readably.

Nothing of the backend is imported here, nor torch: whether it is there is what a child finds out.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from SSLPretrainLogic.errors import LogicError
from SSLPretrainLogic.files import absolute, read_json, surely, write_json

Kind = Literal["slicer", "external"]
Level = Literal["ok", "warning", "missing"]

SCHEMA = 1
"""Version of the report of `backend doctor --json` that this program reads."""

_PRIVATE_FOLDER = "SSLSegmentationBackend"
_OLDEST_PYTHON = (3, 11)
_TIMEOUT_S = 180.0
_LEVELS = frozenset({"ok", "warning", "missing"})
_SEARCH_PATHS = frozenset({"PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FRAMEWORK_PATH"})

# The recipe behind `backend doctor --json`, which runs where the command line's own packages are
# missing. One line in the end, as packages may print when they are loaded.
_PROBE = f"""
import json, platform, sys
if sys.version_info < {_OLDEST_PYTHON}:
    what = "Python %s is too old" % platform.python_version()
    cure = "Choose a Python of version {".".join(map(str, _OLDEST_PYTHON))} or newer."
    told = dict(topic="python", level="missing", what=what, cure=cure)
    report = dict(schema={SCHEMA}, ok=False, version="", install="", packages=[], devices=[])
    python = dict(version=platform.python_version(), executable=sys.executable)
    report.update(findings=[told], python=python, torch=dict(version=None, cuda=None))
else:
    from backend.doctor import examine
    report = examine()
sys.stdout.write("\\n" + json.dumps(report) + "\\n")
"""


@dataclass(frozen=True, kw_only=True)
class Interpreter:
    """A Python that may run the backend.

    Attributes:
        path: absolute; links are kept, as a virtual environment is made of them.
        kind: "slicer" for Slicer's own, which needs Slicer's environment variables.
    """

    path: Path
    kind: Kind


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of a report: what was found, and the cure if it is not "ok"."""

    topic: str
    level: Level
    what: str
    cure: str


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package that the backend needs; `version` is None if it is not installed."""

    name: str
    version: str | None
    required: str
    ok: bool


@dataclass(frozen=True, kw_only=True)
class Device:
    """Something to compute on.

    Attributes:
        name: as `--device` takes it.
        description: model.
        memory_mb: total memory, 0 for the processor.
        free_mb: of it free when it was looked at.
        ms: time of a small convolution, None if it does not compute.
        error: why not, "" if it does.
    """

    name: str
    description: str
    memory_mb: int
    free_mb: int
    ms: float | None
    error: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `backend doctor` tells of an interpreter, checked.

    Attributes:
        ok: whether the backend runs there.
        version: of the backend.
        python: version of the interpreter.
        torch: version of PyTorch, "" if it is not there.
        cuda: version of CUDA that it was built with, "" without.
        packages: those that the backend needs.
        devices: those that there are, working or not.
        findings: everything in readable lines, in order.
        install: one command for all packages that are absent or too old, "" if none are.
        examined: when, ISO 8601, UTC.
    """

    ok: bool
    version: str
    python: str
    torch: str
    cuda: str
    packages: tuple[Package, ...]
    devices: tuple[Device, ...]
    findings: tuple[Finding, ...]
    install: str
    examined: str

    @property
    def missing(self) -> tuple[Finding, ...]:
        """What nothing works without."""
        return tuple(f for f in self.findings if f.level == "missing")

    @property
    def device_names(self) -> tuple[str, ...]:
        """What `--device` may be given there."""
        return ("auto", *(d.name for d in self.devices if not d.error))

    @property
    def summary(self) -> str:
        """One sentence for a panel."""
        if not self.ok:
            return f"Not ready: {len(self.missing)} missing, first: {self.missing[0].what}."
        build = f"CUDA {self.cuda}" if self.cuda else "no CUDA"
        names = ", ".join(self.device_names[1:])
        return f"Ready: Python {self.python}, PyTorch {self.torch} ({build}), {names}."


def backend_root(start: Path | None = None) -> Path:
    """The folder that a child needs on its path to import `backend`.

    Installed, it is the private folder that is not on Slicer's own path; in a source checkout, the
    checkout.

    Args:
        start: this package; left out, the one that runs.

    Raises:
        LogicError: if the backend is not there.
    """
    beside = (start or Path(__file__).parent).parent
    for root in (beside, beside / _PRIVATE_FOLDER):
        if (root / "backend" / "__main__.py").is_file():
            return root
    raise LogicError(
        f"{beside}: the backend is not there.", "Install the extension SSLSegmentation again."
    )


def backend_argv(interpreter: Interpreter, words: Sequence[str]) -> tuple[str, ...]:
    """Program and arguments of `backend WORDS`, unbuffered, for a child process."""
    return (str(interpreter.path), "-u", "-m", "backend", *words)


def child_environment(
    interpreter: Interpreter,
    *,
    base: Mapping[str, str] | None = None,
    slicer_home: Path | None = None,
    root: Path | None = None,
) -> dict[str, str]:
    """Environment variables for a child that runs the backend.

    An external Python gets nothing of Slicer's libraries and modules; Slicer's own keeps them.

    Args:
        interpreter: that of the child.
        base: what to start from; left out, this process's. For an external Python best what Slicer
            itself was started with (`slicer.util.startupEnvironment()`).
        slicer_home: Slicer's folder (`slicer.app.slicerHome`); paths in it are taken out of PATH
            and the like.
        root: as `backend_root` tells; left out, that.
    """
    given = os.environ if base is None else base
    variables = {key: value for key, value in given.items() if not key.startswith("QT_")}
    python_path = [str(root or backend_root())]
    if interpreter.kind == "slicer":
        python_path += [variables["PYTHONPATH"]] if variables.get("PYTHONPATH") else []
    else:
        variables = {k: v for k, v in variables.items() if not k.startswith("PYTHON")}
        if slicer_home is not None:
            variables = _without_folder(variables, slicer_home)
    return {
        **variables,
        "PYTHONPATH": os.pathsep.join(python_path),
        # A module that lies in the current folder must not stand in for one of Python's.
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",
        "PYTHONIOENCODING": "utf-8",
        # Slicer's readers would crash the SimpleITK of the child (Slicer#8947).
        "ITK_AUTOLOAD_PATH": "",
    }


def _without_folder(variables: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Variables whose search paths do not lead into a folder; those left empty are dropped."""
    kept = dict(variables)
    for name in _SEARCH_PATHS & variables.keys():
        paths = variables[name].split(os.pathsep)
        kept[name] = os.pathsep.join(p for p in paths if not Path(p).is_relative_to(folder))
        if not kept[name]:
            del kept[name]
    return kept


def find_interpreters(
    *, base: Mapping[str, str] | None = None, home: Path | None = None
) -> tuple[Interpreter, ...]:
    """Interpreters that are easy to find, Slicer's own first; none is started.

    Args:
        base: environment variables to look into; left out, this process's.
        home: the user's folder, where conda lists its environments; left out, that of the user.
    """
    found: dict[Path, Interpreter] = {}
    for candidate in _candidates(os.environ if base is None else base, home or Path.home()):
        found.setdefault(candidate.path, candidate)
    return tuple(found.values())


def _candidates(variables: Mapping[str, str], home: Path) -> Iterator[Interpreter]:
    search = variables.get("PATH", "")
    own = shutil.which("PythonSlicer", path=search)
    if own:
        yield Interpreter(path=absolute(Path(own)), kind="slicer")
    folders = [variables.get("VIRTUAL_ENV"), variables.get("CONDA_PREFIX")]
    with suppress(OSError, UnicodeDecodeError):
        folders += (home / ".conda" / "environments.txt").read_text("utf-8").splitlines()
    for folder in folders:
        python = _python_in(Path(folder)) if folder else None
        if python is not None:
            yield Interpreter(path=python, kind="external")
    for name in ("python3", "python"):
        there = shutil.which(name, path=search)
        if there:
            yield Interpreter(path=absolute(Path(there)), kind="external")


def chosen_interpreter(path: Path) -> Interpreter:
    """The interpreter that a person chose: the program, or the folder of an environment.

    Raises:
        LogicError: if there is none.
    """
    whole = absolute(path)
    program = _python_in(whole) if surely(whole.is_dir) else whole
    if program is None or not surely(program.is_file):
        raise LogicError(
            f"{path}: there is no Python.",
            "Choose python, python.exe, or the environment's folder.",
        )
    if not os.access(program, os.X_OK):
        raise LogicError(f"{program}: cannot be started.", "Choose the program python itself.")
    kind: Kind = "slicer" if program.stem == "PythonSlicer" else "external"
    return Interpreter(path=program, kind=kind)


def _python_in(folder: Path) -> Path | None:
    for name in ("bin/python3", "bin/python", "Scripts/python.exe", "python.exe"):
        if surely((folder / name).is_file):
            return absolute(folder / name)
    return None


def doctor_argv(interpreter: Interpreter) -> tuple[str, ...]:
    """Program and arguments that write a report for `parse_report` to standard output."""
    return (str(interpreter.path), "-c", _PROBE)


def examine(
    interpreter: Interpreter,
    *,
    environment: Mapping[str, str],
    cache: Path | None = None,
    refresh: bool = False,
    timeout_s: float = _TIMEOUT_S,
) -> Report:
    """Find out in a child process whether an interpreter can run the backend; takes seconds.

    Args:
        interpreter: which.
        environment: as `child_environment` makes it.
        cache: file that remembers reports until the interpreter, its packages or the backend
            change.
        refresh: look again in any case.
        timeout_s: a child that takes longer hangs.

    Raises:
        LogicError: if it cannot be started, hangs, or answers nothing readable.
    """
    if cache is not None and not refresh:
        known = cached_report(interpreter, environment=environment, cache=cache)
        if known is not None:
            return known
    told = _ask(interpreter, environment, timeout_s)
    report = parse_report(told)
    if cache is not None:
        remember(interpreter, told, environment=environment, cache=cache)
    return report


def cached_report(
    interpreter: Interpreter, *, environment: Mapping[str, str], cache: Path
) -> Report | None:
    """What is remembered of an interpreter, None if nothing is or it has changed since."""
    try:
        entry = _entries(cache)[_name(interpreter)]
        if entry["stamp"] == _stamp(interpreter, environment):
            return parse_report(entry["report"])
    except (KeyError, TypeError, LogicError):
        # It is no loss: the next examination writes it anew.
        return None
    return None


def remember(
    interpreter: Interpreter, report: str, *, environment: Mapping[str, str], cache: Path
) -> None:
    """Keep what a child answered.

    Raises:
        LogicError: if the file cannot be written.
    """
    now = {"examined": datetime.now(UTC).isoformat(timespec="seconds")}
    entry = {
        "stamp": _stamp(interpreter, environment),
        "report": json.dumps({**_last_object(report), **now}),
    }
    entries = {**_entries(cache), _name(interpreter): entry}
    write_json(cache, {"schema": SCHEMA, "entries": entries})


def _entries(cache: Path) -> dict[str, Any]:
    try:
        told = read_json(cache)
    except LogicError:
        return {}
    entries = told.get("entries")
    return entries if told.get("schema") == SCHEMA and isinstance(entries, dict) else {}


def _name(interpreter: Interpreter) -> str:
    # A project may be copied to a machine that has another Python at the same place.
    return f"{socket.gethostname()}:{interpreter.path}"


def _stamp(interpreter: Interpreter, environment: Mapping[str, str]) -> list[Any]:
    """What changes when the interpreter, its packages or the backend are others."""
    try:
        program = interpreter.path.stat()
    except OSError:
        return []
    root = Path(environment["PYTHONPATH"].split(os.pathsep)[0])
    watched = [root / "backend" / "doctor.py", root / "pyproject.toml", *_packages(interpreter)]
    times = [path.stat().st_mtime_ns for path in watched if path.exists()]
    return [str(interpreter.path), program.st_size, program.st_mtime_ns, str(root), times]


def _packages(interpreter: Interpreter) -> list[Path]:
    """Folders whose time changes when something is installed."""
    prefix = interpreter.path.parent.parent
    patterns = ("lib/python3*", "Lib", "lib/Python/lib/python3*", "lib/Python/Lib")
    found = {p for pattern in patterns for p in prefix.glob(f"{pattern}/site-packages")}
    return sorted(found | set(interpreter.path.parent.glob("Lib/site-packages")))


def _ask(interpreter: Interpreter, environment: Mapping[str, str], timeout_s: float) -> str:
    path = interpreter.path
    try:
        done = subprocess.run(
            doctor_argv(interpreter),
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout_s,
            creationflags=no_window(),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise LogicError(
            f"{path}: did not answer within {timeout_s:.0f} s.",
            "Try again when the machine is less busy, or choose another Python.",
        ) from None
    except OSError as error:
        cure = "Update Slicer: 5.10.0 on macOS had a broken PythonSlicer."
        raise LogicError(
            f"{path}: cannot be started ({error.strerror or error}).",
            cure if interpreter.kind == "slicer" else "Choose another Python.",
        ) from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["without a word"])[-1]
        raise LogicError(
            f"{path}: ended with code {done.returncode}: {last}", "Choose another Python."
        )
    return done.stdout


def no_window() -> int:
    """Flag for child processes that keeps Windows from opening a console."""
    if sys.platform == "win32":
        return subprocess.CREATE_NO_WINDOW
    return 0


def parse_report(text: str) -> Report:
    """Check the report that a child wrote.

    Args:
        text: its standard output; the last line is the report.

    Raises:
        LogicError: if it is none, or one of another version.
    """
    told = _last_object(text)
    if told.get("schema") != SCHEMA:
        raise LogicError(
            f"The backend's report is of version {told.get('schema')}, not {SCHEMA}.",
            "Let the extension and the backend be of one version.",
        )
    try:
        return _report(told)
    except (KeyError, TypeError) as error:
        raise LogicError(
            f"The backend's report cannot be read ({error}).",
            "Let the extension and the backend be of one version.",
        ) from None


def _last_object(text: str) -> dict[str, Any]:
    lines = text.strip().splitlines()
    try:
        told = json.loads(lines[-1]) if lines else None
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        last = lines[-1][:200] if lines else "nothing"
        raise LogicError(f"The backend answered {last!r} instead of a report.", "Try again.")
    return told


def _report(told: Mapping[str, Any]) -> Report:
    torch = told["torch"]
    findings = tuple(map(_finding, told["findings"]))
    if _is(bool, told["ok"]) == any(finding.level == "missing" for finding in findings):
        raise TypeError(f"ok is {told['ok']}, its findings say otherwise")
    return Report(
        ok=told["ok"],
        version=_is(str, told["version"]),
        python=_is(str, told["python"]["version"]),
        torch=_is(str, torch["version"] or ""),
        cuda=_is(str, torch["cuda"] or ""),
        packages=tuple(map(_package, told["packages"])),
        devices=tuple(map(_device, told["devices"])),
        findings=findings,
        install=_is(str, told["install"]),
        examined=_is(str, told.get("examined", "")),
    )


def _package(told: Mapping[str, Any]) -> Package:
    return Package(
        name=_is(str, told["name"]),
        version=None if told["version"] is None else _is(str, told["version"]),
        required=_is(str, told["required"]),
        ok=_is(bool, told["ok"]),
    )


def _device(told: Mapping[str, Any]) -> Device:
    return Device(
        name=_is(str, told["name"]),
        description=_is(str, told["description"]),
        memory_mb=_is(int, told["memory_mb"]),
        free_mb=_is(int, told["free_mb"]),
        ms=None if told["ms"] is None else float(told["ms"]),
        error=_is(str, told["error"]),
    )


def _finding(told: Mapping[str, Any]) -> Finding:
    if told["level"] not in _LEVELS:
        raise TypeError(f"level {told['level']!r}")
    level: Level = told["level"]
    topic, what, cure = (_is(str, told[key]) for key in ("topic", "what", "cure"))
    return Finding(topic=topic, level=level, what=what, cure=cure)


_Value = TypeVar("_Value")


def _is(kind: type[_Value], value: object) -> _Value:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} instead of {kind.__name__}")
    return value
