"""Shows a scripted module of Slicer in a window, without Slicer.

python Testing/gui/host.py                      this project's module
python Testing/gui/host.py MODULE.py --theme dark
python Testing/gui/host.py --picture panel.png  a picture of the panel, without a window
python Testing/gui/host.py --phantoms FOLDER    writes invented patients there to try it on
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT_MODULE = HERE.parents[1] / "SSLSegmentation" / "SSLSegmentation.py"
SAMPLE_MODULE = HERE / "sample_module" / "SampleModule.py"


def main() -> int:
    """Run the host; answers the exit code."""
    options = _options()
    if options.picture:
        os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    if options.phantoms is not None and not options.phantoms.exists():
        from backend.data.phantom import make_cohort

        make_cohort(options.phantoms, seed=1)
    from slicer_host.faults import FAULTS
    from slicer_host.session import Host

    with tempfile.TemporaryDirectory(prefix="slicer_host_") as folder:
        host = Host(
            options.settings or Path(folder),
            testing=options.picture is not None,
            base_python=options.base_python,
            theme=options.theme,
        )
        module = host.load(options.module)
        host.startup_completed()
        panel = host.show(module, size=(options.width, options.height))
        if options.phantoms is not None:
            _load(options.phantoms / "test" / "images")
        if options.picture:
            host.picture(panel, options.picture, scale=options.scale)
        else:
            FAULTS.listener = tell
            host.application.exec_()
        host.stop()
    return 1 if FAULTS.take() else 0


def _load(folder: Path) -> None:
    """Bring the first scan of a folder into the scene; the window has no dialog to load one."""
    import slicer

    scan = next(iter(sorted(folder.glob("*.nii.gz"))), None)
    if scan is not None:
        slicer.util.loadVolume(str(scan), {"name": scan.name.removesuffix(".nii.gz")})


def tell(error: BaseException) -> None:
    """Say in a box what went wrong; few look at the terminal behind the window."""
    from PySide6 import QtCore, QtWidgets

    details = "" if isinstance(error, NotImplementedError) else "\nThe terminal tells more."
    box = QtWidgets.QMessageBox()
    box.setWindowTitle("Not in this window" if not details else "An error")
    box.setText(f"{error}{details}")
    box.setAttribute(QtCore.Qt.WidgetAttribute.WA_DeleteOnClose)
    box.open()
    _boxes.append(box)


_boxes: list[object] = []
"""Python must not forget a box that is still open."""


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Show a scripted module without Slicer.")
    default = PROJECT_MODULE if PROJECT_MODULE.exists() else SAMPLE_MODULE
    parser.add_argument("module", type=Path, nargs="?", default=default, help="Python file")
    parser.add_argument("--theme", choices=("light", "dark"), default="light")
    parser.add_argument("--picture", type=Path, help="save a PNG and end")
    parser.add_argument("--scale", type=int, choices=(1, 2), default=1, help="pixels per point")
    parser.add_argument("--width", type=int, default=400)
    parser.add_argument("--height", type=int, default=760)
    parser.add_argument(
        "--phantoms",
        type=Path,
        help="folder for invented patients; made if it is not there, and one of them is loaded",
    )
    parser.add_argument("--settings", type=Path, help="folder that keeps the settings")
    parser.add_argument(
        "--base-python",
        type=Path,
        default=os.environ.get("SLICER_BASE_PYTHON"),
        help="Base/Python of Slicer's sources, to use its own Python code",
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
