"""A process of its own for each row: it can be ended at any moment, and its memory is its own.

    python -m backend.bench.child ROW SIZE DEVICE REPEATS       measures a row
    python -m backend.bench.child ROW SIZE DEVICE ours|peer     one side once, with its peak

It writes JSON lines: `{"done": 3, "of": 8}` after each call, `{"figures": {...}}` at the end. It
ends with its standard input, and so with the process that started it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from backend.bench.catalogue import Size
from backend.tuning import tune_process


def command(name: str, size: Size, device: str, what: str) -> list[str]:
    """What starts a child."""
    return [sys.executable, "-m", "backend.bench.child", name, size, device, what]


@contextmanager
def started(words: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A child that is ended with the block, whatever ends that."""
    process = subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Ctrl-C is meant for the parent, which ends the child.
        start_new_session=os.name == "posix",
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def figures_of(
    process: subprocess.Popen[str], *, turn: Callable[[int, int], None] = lambda _done, _of: None
) -> dict[str, Any]:
    """What a child has measured.

    Raises:
        RuntimeError: with its last words, if it ends without.
    """
    assert process.stdout is not None
    assert process.stderr is not None
    words: list[str] = []
    listening = threading.Thread(target=words.extend, args=(process.stderr,), daemon=True)
    listening.start()
    for line in process.stdout:
        told = json.loads(line)
        if "figures" in told:
            figures: dict[str, Any] = told["figures"]
            return figures
        turn(told["done"], told["of"])
    listening.join(2.0)
    last = [word.strip() for word in words if word.strip()]
    raise RuntimeError(last[-1] if last else f"ended with exit code {process.wait()}")


def apart(name: str, size: Size, device: str, *, side: str) -> dict[str, Any]:
    """Seconds and peak memory of one side in a process that does nothing else."""
    with started(command(name, size, device, side)) as process:
        return figures_of(process)


def main() -> None:
    """Measure what the command line names."""
    name, size, device, what = sys.argv[1:]
    tune_process()
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    # What libraries print must not stand between the lines of JSON.
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(**content: Any) -> None:
        lines.write(json.dumps(content) + "\n")
        lines.flush()

    from backend.bench.builders import built
    from backend.bench.measure import measured, peak_growth_mib

    with tempfile.TemporaryDirectory(prefix="sslsegmentation-bench-") as folder:
        pair = built(name, size=cast(Size, size), device=device, folder=Path(folder))
        try:
            if what in {"ours", "peer"}:
                began = time.perf_counter()
                peak = peak_growth_mib(getattr(pair, what))
                tell(figures={"seconds": time.perf_counter() - began, "peak_mib": peak})
            else:
                tell(
                    figures=measured(
                        pair, repeats=int(what), turn=lambda done, of: tell(done=done, of=of)
                    )
                )
        finally:
            pair.close()


def _leave_with_parent() -> None:
    while os.read(0, 1 << 10):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
