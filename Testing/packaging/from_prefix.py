"""Uses the installed extension and nothing else: `from_prefix.py MODULES FOLDER`.

FOLDER has `m.safetensors` and `scan.nrrd`; `told.json` is written there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from slicer_host.session import Host

OURS = ("SSLSegmentation", "SSLSegmentationLib", "SSLPretrainLogic")


def main(modules: Path, folder: Path) -> None:
    """Load the module, then run the backend as the module would."""
    host = Host(folder / "slicer")
    module = host.load(modules / "SSLSegmentation.py")
    host.startup_completed()
    panel = host.show(module)
    window = module.widgetRepresentation().self().window

    from SSLPretrainLogic import environments

    python = environments.chosen_interpreter(Path(sys.executable))
    variables = window.session.variables(python)

    def backend(*words: str) -> dict[str, Any]:
        return ran([str(python.path), *words], variables, folder)

    result = folder / "result.seg.nrrd"
    words = ("--model", "m.safetensors", "--input", "scan.nrrd", "--output", str(result))
    told: dict[str, Any] = {
        "where": backend("-c", "import backend, sys; sys.stdout.write(backend.__file__)"),
        "doctor": backend("-m", "backend", "doctor", "--json"),
        "segment": backend("-m", "backend", "segment", *words, "--device", "cpu"),
        "segments": [],
        "sections": len(window.panels),
        "path": sys.path,
    }
    if result.exists():
        from SSLPretrainLogic.scene import results

        volume = host.python("slicer").util.loadVolume(str(folder / "scan.nrrd"))
        told["segments"] = list(results.import_labels(result, volume).segment_ids)
    told["own"] = [m.__file__ for name, m in sys.modules.items() if name.split(".")[0] in OURS]
    panel.hide()
    told["faults"] = host.faults()
    (folder / "told.json").write_text(json.dumps(told), "utf-8")


def ran(argv: list[str], variables: dict[str, str], folder: Path) -> dict[str, Any]:
    """Exit code, output and log of a child process."""
    done = subprocess.run(
        argv, env=variables, cwd=folder, capture_output=True, text=True, check=False
    )
    return {"code": done.returncode, "output": done.stdout, "log": done.stderr}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    # Qt and VTK do not outlive each other in every order.
    os._exit(0)
