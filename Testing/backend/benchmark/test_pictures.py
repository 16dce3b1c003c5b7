"""What the pictures of a benchmark say: who gains, where it is shown, one colour for a method."""

from __future__ import annotations

import re

import numpy as np

from backend.benchmark.pictures import CONTROL, convergence_pictures, efficiency_pictures
from backend.benchmark.summary import Finding, findings
from backend.charts import PALETTE, svg_file

ORDER = ("random swin", "SMIT", "random vit", "GL-MAE", "MAE3D")
NETWORKS = ("swin", "swin", "vit", "vit", "vit")
GAINS = {"SMIT": 0.1, "GL-MAE": 0.0, "MAE3D": -0.1}


def _place(start: str, labels: int, seed: int) -> dict[str, str]:
    return {
        **{"start": start, "network": NETWORKS[ORDER.index(start)], "mode": "end to end"},
        **{"labels": str(labels), "seed": str(seed)},
    }


def _found() -> list[Finding]:
    """One start gains, one loses, and one does neither, with one labelled scan and with five."""
    rng = np.random.default_rng(0)
    rows = [
        _place(start, labels, seed)
        | {"case": f"c{case}", "organ": "liver", "value": "1", "status": "ok"}
        | {"dice": str(0.5 + case / 50 + GAINS.get(start, 0) + rng.normal(0, 0.01))}
        for start in ORDER
        for labels in (1, 5)
        for seed in range(3)
        for case in range(8)
    ]
    return findings(rows, metric="dice", order=ORDER)


def _drawn(svg: str, pattern: str) -> int:
    return len(re.findall(pattern, svg))


def test_dots_are_hollow_exactly_where_no_difference_is_shown() -> None:
    found = _found()
    unshown = [f.start for f in found if f.against is not None and not f.shown]
    assert unshown == ["GL-MAE", "GL-MAE"]
    (name, svg), *more = efficiency_pictures(found, metric="dice", order=ORDER).items()
    assert (name, more) == ("efficiency_end-to-end.svg", [])
    # Each stands above among the means and below among the gains.
    color = PALETTE[ORDER.index("GL-MAE") - 2]
    hollow = rf'<use [^>]*style="fill: #ffffff; stroke: {color}'
    assert _drawn(svg_file(svg), hollow) == 2 * len(unshown)
    assert _drawn(svg_file(svg), r'<use [^>]*style="fill: #ffffff; stroke: #') == 2 * 2 + 1
    assert all(f">{word}</text>" in svg for word in (*GAINS, CONTROL, "Dice gained", "not shown"))
    assert f"random {NETWORKS[0]}" not in svg


def test_a_method_has_one_colour_in_all_pictures() -> None:
    rows = [
        _place(start, 1, seed) | {"step": str(step), "dice": str(step / 100)}
        for start in ORDER
        for seed in (0, 1)
        for step in (10, 20)
    ]
    (curves,) = convergence_pictures(rows, order=ORDER).values()
    (gains,) = efficiency_pictures(_found(), metric="dice", order=ORDER).values()
    for number in range(len(GAINS)):
        for svg in (curves, gains):
            assert f"stroke: {PALETTE[number]}" in svg_file(svg)
    for svg in (curves, gains):
        assert PALETTE[len(GAINS)] not in svg_file(svg)
