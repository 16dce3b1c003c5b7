"""Commands about runs that are there: `stop` and `report`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg


@dataclass(frozen=True, kw_only=True)
class Stop:
    """Options of `backend stop`."""

    run_folder: Annotated[Path, arg(name="run")]
    """The run folder."""
    grace: Annotated[float, arg(metavar="SECONDS")] = 60.0
    """How long the run may take to stop by itself."""

    def run(self) -> None:
        """Stop."""
        from backend import stop

        stop.run(self.run_folder, grace_s=self.grace)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Options of `backend report`."""

    run_folder: Annotated[Path, arg(name="run")]
    """The run folder."""

    def run(self) -> None:
        """Write the report."""
        from backend.report import write_run_report

        sys.stdout.write(f"{write_run_report(self.run_folder)}\n")
