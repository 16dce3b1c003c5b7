"""What the caches hold, and how to get the space back: the recipe behind `backend cache`."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

from backend.data.cache import RecipeUse, default_cache_dir, list_cache, prune, told_bytes
from backend.errors import UserError

_HEADER = ("recipe", "spacing z, y, x (mm)", "entries", "size", "last used")


def run(
    cache: Path | None = None,
    *,
    remove: bool = False,
    older_than_days: float | None = None,
    recipe: str | None = None,
    everything: bool = False,
) -> None:
    """Write what a cache holds as a table, after removing entries if that is asked.

    Args:
        cache: its folder; None takes the one that runs started here would use.
        remove: remove what the next three choose.
        older_than_days: entries not used for so long.
        recipe: entries of the recipe with this key, as the table shows it.
        everything: all entries.

    Raises:
        UserError: if the folder does not exist, nothing or too much is chosen, or there is no such
            recipe.
        ResourceError: if files cannot be removed.
    """
    root = cache or default_cache_dir(Path.cwd())
    if cache is not None and not root.is_dir():
        raise UserError(f"There is no cache folder {root}.", "Give the one that --cache named.")
    chosen = older_than_days is not None or recipe is not None or everything
    if chosen and not remove:
        raise UserError("What to delete is chosen, but not that it be deleted.", "Add --prune.")
    if remove:
        _check_choice(older_than_days, recipe=recipe, everything=everything)
        report = prune(root, older_than_days=older_than_days, recipe=recipe, everything=everything)
        sys.stdout.write(f"Removed {report.entries} entries, {told_bytes(report.bytes)} freed.\n")
    sys.stdout.write(table(root, list_cache(root)))


def _check_choice(older_than_days: float | None, *, recipe: str | None, everything: bool) -> None:
    """Refuse to delete where it is not clear what."""
    if older_than_days is None and recipe is None and not everything:
        raise UserError(
            "Nothing is chosen to prune.",
            "Add --older-than-days DAYS, --recipe NAME (see `backend cache --list`), or --all.",
        )
    if everything and (older_than_days is not None or recipe is not None):
        raise UserError(
            "--all deletes every entry, the other options only some.", "Give the one or the other."
        )
    if older_than_days is not None and not 0 <= older_than_days < math.inf:
        raise UserError(f"--older-than-days {older_than_days:g} is no age.", "Give 0 or more days.")


def table(root: Path, uses: list[RecipeUse]) -> str:
    """One line per recipe, in columns, under the name of the folder."""
    if not uses:
        return f"The cache {root} is empty.\n"
    total = f"The cache {root} holds {told_bytes(sum(use.bytes for use in uses))}.\n"
    rows = [_HEADER, *(_row(use) for use in uses)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADER))]
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows)
    return total + "".join(f"{line.rstrip()}\n" for line in lines)


def _row(use: RecipeUse) -> tuple[str, str, str, str, str]:
    spacing = "unreadable"
    if use.recipe is not None:
        spacing = " x ".join(f"{s:g}" for s in use.recipe.spacing_mm or ()) or "the scans' own"
        spacing += "" if use.recipe.orientation == "LPS" else f" {use.recipe.orientation}"
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(use.last_used)) if use.last_used else "-"
    return use.key, spacing, str(use.entries), told_bytes(use.bytes), used
