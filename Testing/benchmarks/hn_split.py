"""Divides the head-and-neck CT whose organs are all contoured: 15 to learn from, 8 to test.

    python Testing/benchmarks/hn_split.py DATA

DATA holds MANIFEST.csv, which lists the scans, `open/` and the scans to pretrain on, `hn_pool/`.
Writes hn_split.json beside this file. The order of cases follows from their names and a seed alone,
so a label set is part of every larger one of its seed.
"""

from __future__ import annotations

import csv
import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

SEED = 0
"""Of the division into scans to learn from and to test."""
TEST = 8
SIZES = (1, 3, 5, 10, 15)
LABEL_SEEDS = range(5)
PREFIX = "hn_openkbp_"
ORGANS = 7
RESULT = Path(__file__).with_suffix(".json")


def ranked(names: Iterable[str], *, seed: int) -> list[str]:
    """Names in an order that depends on them and the seed alone."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).hexdigest())


def divided(names: Sequence[str]) -> dict[str, Any]:
    """The division of cases: who tests, who is learnt from, and each seed's nested label sets."""
    order = ranked(names, seed=SEED)
    test, train = sorted(order[:TEST]), sorted(order[TEST:])
    orders = {seed: ranked(train, seed=seed) for seed in LABEL_SEEDS}
    sets = {str(s): [sorted(order[:n]) for n in SIZES] for s, order in orders.items()}
    return {"train": train, "test": test, "label_sets": sets}


def contoured(data: Path) -> dict[str, str]:
    """Cases of which every organ is contoured, with the checksum of their scan's file."""
    with (data / "MANIFEST.csv").open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["name"].startswith(PREFIX)]
    cases = {}
    for row in rows:
        present = json.loads((data / "open" / row["name"] / "labels.json").read_text("utf-8"))
        if len(present["present"]) == ORGANS:
            sums = dict(part.split(":") for part in row["sha256"].split(";"))
            cases[row["name"]] = sums["ct.nii.gz"]
    return cases


def require_other_patients(cases: dict[str, str], pool: Path) -> None:
    """Refuse a patient that is pretrained on: by number, and by the bytes of the scan.

    Raises:
        SystemExit: naming the first.
    """
    known = {total: name for name, total in cases.items()}
    for scan in sorted(pool.glob("*/ct.nii.gz")):
        total = hashlib.sha256(scan.read_bytes()).hexdigest()
        same = PREFIX + scan.parent.name if PREFIX + scan.parent.name in cases else known.get(total)
        if same is not None:
            raise SystemExit(f"{scan.parent}: is the patient of {same}. Take one of them out.")


def main(data: Path, result: Path) -> None:
    """Write the division."""
    cases = contoured(data)
    require_other_patients(cases, data / "hn_pool")
    content = {
        "about": (
            f"{len(cases)} head-and-neck CT of OpenKBP with all {ORGANS} organs contoured; none of "
            "their patients is in hn_pool. label_sets: by seed, nested, of "
            f"{', '.join(map(str, SIZES))} cases."
        ),
        "made_by": "python Testing/benchmarks/hn_split.py DATA",
        "split_source": "ours",
        "seed": SEED,
        **divided(sorted(cases)),
    }
    result.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else RESULT)
