"""Makes invented patients with the backend and shows them in the scene."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from SSLPretrainLogic import environments
from SSLPretrainLogic.environments import Interpreter
from SSLPretrainLogic.errors import LogicError
from SSLSegmentationLib.sample_data import Phantom
from SSLSegmentationLib.session import Session

_LOOK_MS = 200
_RECIPE = """
import json, shutil, sys
from pathlib import Path
from backend.data.phantom import make_cohort
folder = Path(sys.argv[1])
make_cohort(folder, broken=False, **json.loads(sys.argv[2]))
for names in folder.glob("labelled/*/labels.json"):
    # Whoever loads a label map looks for its names under its own name.
    shutil.copy(names, names.with_name("label.labels.json"))
"""


def phantom_argv(interpreter: Interpreter, folder: Path, *, seed: int, **counts: int) -> list[str]:
    """Program and arguments that write phantoms.

    Args:
        interpreter: a Python that can run the backend.
        folder: to write, new or empty; gets `unlabelled`, `labelled` and `test`.
        seed: which patients.
        counts: how many there are of each.
    """
    parts = {"unlabelled": 0, "labelled": 0, "test": 0, **counts, "seed": seed}
    return [str(interpreter.path), "-c", _RECIPE, str(folder), json.dumps(parts)]


def bring(phantom: Phantom) -> None:
    """Show a phantom, after it was made where it is not there yet; returns at once."""
    if phantom.ct.exists():
        _show(phantom)
    elif phantom.number not in _makings:
        _make(phantom)


def _make(phantom: Phantom) -> None:
    try:
        _makings[phantom.number] = _Making(phantom)
    except (LogicError, OSError) as error:
        _tell(str(error))
    else:
        slicer.util.showStatusMessage(_("The phantom is being made…"))


def _show(phantom: Phantom) -> None:
    from SSLPretrainLogic.scene import results

    slicer.util.showStatusMessage("")
    try:
        volume = slicer.util.loadVolume(str(phantom.ct), {"name": phantom.name})
        results.import_labels(phantom.labels, volume, name=f"{phantom.name} organs")
    except (LogicError, RuntimeError) as error:
        _tell(str(error))


class _Making:
    """A process that makes a phantom, in a folder of its own that takes its name in the end."""

    def __init__(self, phantom: Phantom) -> None:
        self._phantom = phantom
        session = Session()
        interpreter = _interpreter(session)
        self._folder = tempfile.TemporaryDirectory(prefix=".phantom-", dir=phantom.folder.parent)
        made = Path(self._folder.name) / "made"
        with (Path(self._folder.name) / "log.txt").open("wb") as log:
            self._process = subprocess.Popen(
                phantom_argv(interpreter, made, seed=phantom.number, labelled=1),
                env=session.variables(interpreter),
                cwd=self._folder.name,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
        self._timer = qt.QTimer()
        self._timer.interval = _LOOK_MS
        self._timer.connect("timeout()", self._look)
        self._timer.start()

    def _look(self) -> None:
        code = self._process.poll()
        if code is None:
            return
        self._timer.stop()
        _makings.pop(self._phantom.number, None)
        try:
            with self._folder as folder:
                if code == 0:
                    (Path(folder) / "made").replace(self._phantom.folder)
                told = (Path(folder) / "log.txt").read_text("utf-8", errors="replace")
        except OSError as error:
            code, told = 1, str(error)
        if code == 0:
            _show(self._phantom)
        else:
            _tell(told.strip().rpartition("\n")[2])


_makings: dict[int, _Making] = {}
"""Those that are being made; they must not be forgotten meanwhile."""


def _interpreter(session: Session) -> Interpreter:
    """The Python that was chosen under Setup, else Slicer's own."""
    chosen = session.setting("interpreter")
    if chosen:
        return environments.chosen_interpreter(Path(chosen))
    for found in environments.find_interpreters():
        if found.kind == "slicer":
            return found
    raise LogicError(_("No Python is chosen."), _("Choose one in SSL Segmentation, under Setup."))


def _tell(what: str) -> None:
    slicer.util.showStatusMessage("")
    slicer.util.errorDisplay(
        _("The phantom cannot be made: {what}").format(what=what)
        + "\n"
        + _("Choose and test a Python in SSL Segmentation, under Setup, then try again.")
    )
