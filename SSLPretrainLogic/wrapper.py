"""Runs the command of a job and writes how it ended, so that it is known after Slicer has ended.

Started as a script by whatever Python the job is for, and imported by nobody: it needs nothing of
this package, and no more than the words that old Pythons know.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def main(folder: Path) -> None:
    """Run what `job.json` in a job's folder says; the command inherits where our output goes.

    Writes `process.json` (pid, group, host, written) at once, `command.json` (the same of the
    command) when it has started, and `result.json` (code, ended, error) in the end.
    """
    job = json.loads((folder / "job.json").read_text("utf-8"))
    _write_process(folder / "process.json", os.getpid(), job["host"])
    # A handler, unlike SIG_IGN, is not handed down to the command.
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda *_: None)
    code, error = None, ""
    try:
        command = subprocess.Popen(job["argv"], cwd=job["cwd"], stdin=subprocess.DEVNULL)
        _write_process(folder / "command.json", command.pid, job["host"])
        code = command.wait()
    except OSError as caught:
        error = "{}: {}.".format(caught.filename or job["argv"][0], caught.strerror or caught)
    _write(folder / "result.json", {"code": code, "ended": time.time(), "error": error})


def _write_process(path: Path, pid: int, host: str) -> None:
    group = os.getpgrp() if hasattr(os, "getpgrp") else 0
    # A process that takes over this number starts later than it was written.
    _write(path, {"pid": pid, "group": group, "host": host, "written": time.time()})


def _write(path: Path, value: object) -> None:
    part = path.with_name(".part-" + path.name)
    with part.open("w", encoding="utf-8") as stream:
        json.dump(value, stream)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
