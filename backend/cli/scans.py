"""Commands about scans: `scan` and `cache`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from backend.cli.options import OptionalCount, OptionalName, OptionalPath, Switch


@dataclass(frozen=True, kw_only=True)
class Scan:
    """Options of `backend scan`."""

    paths: Annotated[Positional[tuple[Path, ...]], arg(metavar="PATH ...", help_behavior_hint="")]
    """Folders or files: DICOM in any layout, NIfTI, NRRD, MetaImage."""
    output: Path
    """The index to write, e.g. index.csv."""
    min_slices: Annotated[int, arg(metavar="N")] = 16
    """Series with fewer slices are refused."""
    quick: Switch = False
    """Read headers only; voxels are not decoded."""
    workers: OptionalCount = None
    """Parallel readers. Left out: one per core."""

    def run(self) -> None:
        """Scan."""
        from backend import scan

        scan.run(
            self.paths,
            output=self.output,
            min_slices=self.min_slices,
            quick=self.quick,
            workers=self.workers,
        )


@dataclass(frozen=True, kw_only=True)
class Cache:
    """Options of `backend cache`."""

    list: Switch = False
    """Show what it holds (done in any case)."""
    prune: Switch = False
    """Delete what --older-than-days, --recipe or --all choose."""
    older_than_days: Annotated[float | None, arg(metavar="DAYS", help_behavior_hint="")] = None
    """With --prune: entries that were not used for so long."""
    recipe: OptionalName = None
    """With --prune: entries of this recipe, as listed."""
    all: Switch = False
    """With --prune: every entry."""
    cache: OptionalPath = None
    """The cache. Left out: the user's."""

    def run(self) -> None:
        """List or prune."""
        from backend import cachetool

        cachetool.run(
            self.cache,
            remove=self.prune,
            older_than_days=self.older_than_days,
            recipe=self.recipe,
            everything=self.all,
        )
