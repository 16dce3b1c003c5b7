"""How much Slicer's start is slowed by the module: reading its file, and what it registers.

    PYTHONPATH=Testing/gui python Testing/benchmarks/module_load.py OUTPUT.json

Each measurement is a process of its own, in the test host, after all that Slicer itself loads.
Also noted is what our files import while that happens, whether it was loaded before or not.
"""

from __future__ import annotations

import builtins
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "SSLSegmentation" / "SSLSegmentation.py"
REPEATS = 9
ONCE = "--once"


def measured() -> dict[str, Any]:
    """One start in this process."""
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    from slicer_host.session import Host

    with tempfile.TemporaryDirectory() as folder:
        host = Host(Path(folder))
        before, asked, plain = set(sys.modules), set(), builtins.__import__

        def noting(name: str, values: Any = None, *more: Any) -> Any:
            caller = str((values or {}).get("__file__", ""))
            if caller.startswith(str(ROOT)) and "slicer_host" not in caller:
                asked.add(name)
            return plain(name, values, *more)

        builtins.__import__ = noting
        wall, cpu = time.perf_counter(), time.process_time()
        host.load(MODULE)
        host.startup_completed()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        builtins.__import__ = plain
        return {
            "wall_ms": round(1000 * wall, 2),
            "cpu_ms": round(1000 * cpu, 2),
            "added": sorted(set(sys.modules) - before),
            "asked": sorted(asked),
            "faults": host.faults(),
        }


def started() -> dict[str, Any]:
    """One start in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, ONCE], capture_output=True, text=True, check=True
    )
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def main(output: Path) -> None:
    """Measure and write what came out."""
    started()  # the first writes bytecode, as installing the extension does
    runs = [started() for _ in range(REPEATS)]
    found: dict[str, Any] = {
        "machine": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "repeats": REPEATS,
        "budget_ms": 50,
    }
    for name in ("wall_ms", "cpu_ms"):
        times = [run[name] for run in runs]
        found[name] = {"best": min(times), "median": statistics.median(times), "worst": max(times)}
    found["modules_added"] = runs[0]["added"]
    output.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    if sys.argv[1:] == [ONCE]:
        sys.stdout.write(json.dumps(measured()) + "\n")
        sys.stdout.flush()
        # Qt and VTK do not outlive each other in every order.
        os._exit(0)
    main(Path(sys.argv[1]))
