from __future__ import annotations

from backend.demo import timetable


def test_the_timetable_tells_each_step_its_share_and_the_whole() -> None:
    assert timetable({"Scanning": 30.0, "Pretraining": 90.0}).splitlines() == [
        "How long it took:",
        "  Scanning       30.0 s   25%",
        "  Pretraining    90.0 s   75%",
        "  Together      120.0 s  100%",
    ]
