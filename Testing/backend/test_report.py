"""Reports say what was recorded, all of it that matters, and nothing else."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import re
import socket
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, NamedTuple

import numpy as np
import psutil
import pytest
from PIL import Image

from backend import charts, settings
from backend.charts import Curve
from backend.engine.record import boot_id
from backend.errors import UserError
from backend.report import write_demo_report, write_run_report
from backend.report.comparison import case_means, compare, read_evaluation, verdict
from backend.report.curves import TERMS, chart_groups
from backend.report.pictures import choose_pictures
from backend.report.run_files import read_metrics, read_run
from backend.report.run_view import view_run

ORGANS = ("liver", "spleen")


class Page(HTMLParser):
    """Tags, links and visible text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.source = path.read_text("utf-8")
        self._in_style = False
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._in_style = tag == "style"
        self.links += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "data")]

    def handle_endtag(self, tag: str) -> None:
        self._in_style &= tag != "style"

    def handle_data(self, data: str) -> None:
        if not self._in_style:
            self.text += " ".join(data.split()) + " "


def write_png(path: Path, *, size: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(size).integers(0, 255, (size, size), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def write_run(
    run: Path, *, kind: str = "pretrain", records: list[dict[str, Any]] | None = None, **status: Any
) -> Path:
    run.mkdir(parents=True)
    settings = {"preset": "tiny", "method": {"name": "smit"}, "train": {"seed": 11}}
    config = {"schema": 1, "kind": kind, "config": settings, "request": {"device": "auto"}}
    (run / "config.json").write_text(json.dumps(config))
    state = {"schema": 1, "kind": kind, "state": "done", "step": 40, "total_steps": 40}
    state |= {"device": "cpu, 2 threads", "scans": {"training": 9, "held_out": 1}}
    (run / "status.json").write_text(json.dumps(state | status))
    records = pretrain_records() if records is None else records
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return run


THIS_PROCESS = {
    "pid": os.getpid(),
    "process_started": psutil.Process().create_time(),
    "boot_id": boot_id(),
    "host": socket.gethostname(),
}


def pretrain_records() -> list[dict[str, Any]]:
    return [
        {
            "step": step, "epoch": step // 10, "time_s": 1.5 * step, "loss/total": 4.0 / step,
            "loss/mip": 2.0 / step, "loss/brand_new": 1.0, "lr": 2e-4 * step / 40,
            "ema_momentum": 0.996, "teacher_temperature/cls": 0.04,
            "teacher_temperature/patch": 0.065, "monitor/teacher_entropy_cls": 5.0,
            "monitor/teacher_entropy_patch": 6.0, "monitor/unheard_of": 0.5, "probe/spread": 0.3,
            "volumes_per_s": 12.0, "memory_mb": 900.0,
        }
        for step in range(1, 41)
    ]  # fmt: skip


def finetune_records(top: float) -> list[dict[str, Any]]:
    losses = [{"step": s, "loss/total": 1.0 / s, "loss/dice": 0.5 / s} for s in range(1, 41)]
    checks = [
        {"step": s, "val/dice_mean": top * s / 40, "val/dice/liver": top * s / 40} for s in (20, 40)
    ]
    return losses + checks


def write_evaluation(folder: Path, dice: dict[tuple[str, str], str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "evaluation.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["case", "organ", "value", "dice", "status"])
        writer.writerows(
            [c, o, "0" if o == "background" else "1", d, ""] for (c, o), d in dice.items()
        )
    return folder / "evaluation.csv"


# --- the report of a run --------------------------------------------------------------------------


def test_a_report_is_one_file_that_loads_nothing_and_runs_nothing(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_png(run / "previews" / "step_000040.png")
    page = Page(write_run_report(run))
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert page.links
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in page.links)
    assert "@import" not in page.source
    assert sorted(p.name for p in run.iterdir()) == sorted(
        ["config.json", "status.json", "metrics.jsonl", "previews", "report.html"]
    )


def test_everything_recorded_is_shown_whatever_its_name(tmp_path: Path) -> None:
    text = Page(write_run_report(write_run(tmp_path / "run"))).text
    for word in ("smit", "tiny", "40", "mip", "brand new", "learning rate", "teacher momentum",
                 "teacher temperature", "teacher entropy", "unheard of", "spread", "cls", "patch",
                 "volumes per second", "memory"):  # fmt: skip
        assert word in text.replace("_", " "), word


def test_a_report_claims_nothing_that_was_not_recorded(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", records=[{"step": 1, "loss/total": 2.0}])
    page = Page(write_run_report(run))
    for word in ("Dice", "entropy", "volumes per second", "MB", "Refused", "usable", "Validation"):
        assert word not in page.text, word
    assert "img" not in page.tags


def test_key_figures_are_the_recorded_ones(tmp_path: Path) -> None:
    figures = {f.label: f for f in view_run(read_run(write_run(tmp_path / "run"))).figures}
    assert (figures["Steps"].value, figures["Steps"].remark) == ("40", "of 40")
    assert figures["Time"].value == "1 min"  # 40 steps of 1.5 s
    # medians of the first and the last two of 40 values 4 / step
    assert figures["Loss"].value == f"{(4 / 40 + 4 / 39) / 2:.4g}"
    assert figures["Loss"].remark == "from 3"
    assert figures["Speed"].value == "12"
    assert figures["Memory"].value == "900 MB"


def test_a_loss_that_has_grown_is_told_as_such(tmp_path: Path) -> None:
    records = [{"step": s, "loss/total": 1.0 + s} for s in range(3)]
    figures = view_run(read_run(write_run(tmp_path / "run", records=records))).figures
    loss = next(f for f in figures if f.label == "Loss")
    assert (loss.value, loss.remark) == ("3", "larger than at the start: 1")


def test_what_was_done_is_told_of_status_and_configuration(tmp_path: Path) -> None:
    view = view_run(read_run(write_run(tmp_path / "run")))
    assert view.lead == "Trained on 9 scans for 40 steps in 1 min on cpu, 2 threads."
    facts = dict(view.facts)
    assert facts["Scans"] == "9 training, 1 held out"
    assert (facts["Method"], facts["Preset"], facts["Seed"]) == ("smit", "tiny", "11")


def test_best_validation_dice_is_the_highest_not_the_last(tmp_path: Path) -> None:
    records = [{"step": s, "val/dice_mean": d} for s, d in ((10, 0.4), (20, 0.7), (30, 0.6))]
    view = view_run(read_run(write_run(tmp_path / "run", kind="finetune", records=records)))
    best = next(f for f in view.figures if f.label == "Best validation Dice")
    assert (best.value, best.remark) == ("0.700", "mean, at step 20")


def test_of_equal_validation_dice_the_last_is_the_best_as_it_is_for_the_run(tmp_path: Path) -> None:
    records = [
        {"step": s, "val/dice_mean": d, "val/dice/liver": d}
        for s, d in ((10, 0.0), (20, 0.7), (30, 0.7), (40, 0.6))
    ]
    view = view_run(read_run(write_run(tmp_path / "run", kind="finetune", records=records)))
    best = next(f for f in view.figures if f.label == "Best validation Dice")
    assert best.remark == "mean, at step 30"
    assert view.final_dice == [("liver", 0.6, 0.7, 30)]


def test_a_torn_last_line_is_a_write_in_progress_and_others_are_told(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "lr": 1}\n{"step": 2, "l')
    assert read_metrics(path) == ([{"step": 1, "lr": 1}], 0)
    path.write_text('{"step": 1, "lr": 1}\ngarbage\n{"lr": 3}\n{"step": 2, "lr": 1}\n')
    records, broken = read_metrics(path)
    assert ([r["step"] for r in records], broken) == ([1, 2], 2)


def test_losses_that_are_not_finite_are_named_with_their_step(tmp_path: Path) -> None:
    records = [
        {"step": s, "loss/total": (None, float("nan"))[s % 2] if s > 5 else 1.0}
        for s in range(1, 9)
    ]
    text = Page(write_run_report(write_run(tmp_path / "run", records=records))).text
    assert "loss/total was not finite in 3 records, first at step 6" in text


def test_a_curve_without_any_finite_value_does_not_break_the_report(tmp_path: Path) -> None:
    keys = ("loss/total", "val/dice_mean", "volumes_per_s", "memory_mb", "lr", "monitor/x")
    records = [{"step": 1, **dict.fromkeys(keys, float("nan"))}]
    text = Page(write_run_report(write_run(tmp_path / "run", records=records))).text
    assert "memory_mb was not finite" in text


def test_a_failed_run_shows_its_error_the_cure_and_how_to_resume(tmp_path: Path) -> None:
    error = {"type": "ResourceError", "message": "Out of <memory>.", "hint": "Lower batch_size."}
    argv = ["/opt/bin/python", "-m", "backend", "pretrain", "--output", "my run"]
    run = write_run(tmp_path / "run", state="failed", error=error, argv=argv)
    page = Page(write_run_report(run))
    assert "Out of <memory>." in page.text
    assert "<memory>" not in page.source  # shown, not interpreted
    assert "Lower batch_size." in page.text
    assert "backend pretrain --output 'my run' --resume" in page.text


def test_a_warning_stands_above_the_figures_with_what_to_do_and_in_the_badge(
    tmp_path: Path,
) -> None:
    run = write_run(tmp_path / "run", warning="The features may have <collapsed>: x is 0.")
    page = Page(write_run_report(run))
    above = page.text[: page.text.index("Steps")]
    for words in ("done, with a warning", "first steps of a short run", "train.learning_rate",
                  "The features may have <collapsed>: x is 0."):  # fmt: skip
        assert words in above
    assert 'class="badge done warned"' in page.source
    assert "<collapsed>" not in page.source


def test_a_run_without_a_warning_has_a_plain_badge(tmp_path: Path) -> None:
    page = Page(write_run_report(write_run(tmp_path / "run")))
    assert 'class="badge done"' in page.source
    assert "with a warning" not in page.text
    assert "first steps of a short run" not in page.text


def test_a_finished_pretraining_tells_how_to_fine_tune_from_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a run")
    text = Page(write_run_report(run)).text
    assert f"backend finetune --data LABELLED --init '{run}' --output FINETUNED" in text
    # Without weights that tell it, the network has to be named whole, or it is another one.
    line = "backend finetune --data LABELLED --method smit --preset tiny --init none --output"
    assert f"{line} FROM_SCRATCH" in text
    assert "give both the same --max-steps or --epochs" in text


def test_a_run_without_metrics_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", state="running", step=0, **THIS_PROCESS)
    (run / "metrics.jsonl").unlink()
    text = Page(write_run_report(run)).text
    assert "No metrics were recorded yet." in text
    assert "Written while the run was going on." in text


def test_a_run_whose_process_has_died_is_told_as_interrupted_with_the_way_on(
    tmp_path: Path,
) -> None:
    argv = ["backend", "pretrain", "--output", "run"]
    dead = {**THIS_PROCESS, "process_started": 12345.0}
    run = write_run(tmp_path / "run", state="running", argv=argv, **dead)
    view = view_run(read_run(run))
    assert view.state == "interrupted"
    assert [command.line for command in view.commands] == ["backend pretrain --output run --resume"]
    assert "Written while the run was going on." not in view.notes


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run folder"):
        write_run_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_long_lists_of_files_are_kept_out_of_the_settings(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["files"] = [f"/data/Some^Name/{k}.dcm" for k in range(50)]
    (run / "config.json").write_text(json.dumps(config))
    text = Page(write_run_report(run)).text
    assert "Some^Name" not in text
    assert "50 entries, see config.json" in text


def test_the_index_beside_a_run_becomes_the_table_of_scans(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "index.csv").write_text(
        "id,path,format,size,spacing_mm,orientation,verdict,reason\n"
        "aa11,Doe^Jane/1,DICOM,512x512x41,0.8x0.8x5,LPS,usable,\n"
        "bb22,Doe^Jane/2,DICOM,512x512x3,0.8x0.8x5,LPS,refused,fewer than 16 slices\n"
    )
    page = Page(write_run_report(run))
    assert "1 usable series, 1 refused." in page.text
    assert page.text.index("aa11") < page.text.index("bb22")
    assert "fewer than 16 slices" in page.text
    assert "Doe^" not in page.source


# --- pictures -------------------------------------------------------------------------------------


def test_the_latest_and_the_first_picture_are_given_room_before_others(tmp_path: Path) -> None:
    for step in range(1, 10):
        write_png(tmp_path / f"step_{step:06d}.png", size=40)
    size = (tmp_path / "step_000001.png").stat().st_size
    two = choose_pictures(tmp_path, budget_bytes=2 * size)
    assert [p.caption for p in two.shown] == ["Step 9 (latest)"]
    assert [p.caption for p in two.earlier] == ["Step 1"]
    assert two.left_out == 7
    all_of_them = choose_pictures(tmp_path)
    assert [p.caption for p in all_of_them.earlier] == ["Step 1", "Step 3", "Step 5", "Step 7"]


def test_earlier_pictures_are_spread_over_the_whole_run(tmp_path: Path) -> None:
    for step in range(15, 151, 15):
        write_png(tmp_path / f"step_{step:06d}.png")
    pictures = choose_pictures(tmp_path)
    assert [p.caption for p in pictures.shown] == ["Step 150 (latest)"]
    assert [p.caption for p in pictures.earlier] == ["Step 15", "Step 45", "Step 75", "Step 120"]


def test_a_file_that_is_no_png_is_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "step_1.png").write_text("no picture")
    pictures = choose_pictures(tmp_path)
    assert (list(pictures.shown), pictures.left_out) == ([], 1)


# --- charts ---------------------------------------------------------------------------------------


def curve(values: np.ndarray, name: str = "loss") -> Curve:
    return Curve(name=name, steps=np.arange(1.0, len(values) + 1), values=values)


def test_a_chart_of_a_long_run_stays_small_and_is_valid_xml() -> None:
    noisy = np.random.default_rng(0).random(100_000) + 1.0
    for svg in (
        charts.smoothed_chart(curve(noisy), wide=True),
        charts.lines_chart([curve(noisy, f"{k}") for k in range(8)], title="x"),
        charts.dice_chart([curve(noisy[:5000], f"organ {k}") for k in range(24)], curve(noisy)),
    ):
        assert len(svg) < 60_000
        ET.fromstring(svg)


def test_bins_keep_the_extremes_and_the_median_of_every_part() -> None:
    values = np.random.default_rng(1).random(1003)
    values[17] = np.nan
    bins = charts.binned(curve(values), limit=50)
    finite = np.delete(values, 17)
    parts = np.array_split(finite, 50)
    np.testing.assert_array_equal(bins.low, [min(p) for p in parts])
    np.testing.assert_array_equal(bins.middle, [np.median(p) for p in parts])
    np.testing.assert_array_equal(bins.high, [max(p) for p in parts])
    assert not bins.exact


def test_running_median_ignores_a_single_spike() -> None:
    values = np.array([1.0, 1.0, 9.0, 1.0, 1.0, 2.0, 3.0])
    np.testing.assert_array_equal(charts.running_median(values, 3), [1, 1, 1, 1, 1, 2, 2.5])


def test_tick_labels_of_small_numbers_are_told_in_full() -> None:
    svg = charts.lines_chart([curve(np.linspace(0.041, 0.043, 50))], title="temperature")
    assert ">0.0415<" in svg
    svg = charts.lines_chart([curve(np.linspace(0, 2e-4, 50))], title="lr")
    assert ">1.5e-4<" in svg


def test_colours_are_left_to_the_page_and_ids_do_not_clash() -> None:
    first = charts.lines_chart([curve(np.arange(5.0))], title="a")
    second = charts.lines_chart([curve(np.arange(6.0))], title="b")
    assert "var(--c0, #0072b2)" in first
    assert "var(--muted" in first

    def ids(svg: str) -> set[str]:
        return {e.attrib["id"] for e in ET.fromstring(svg).iter() if "id" in e.attrib}

    assert not ids(first) & ids(second)


def test_drawing_leaves_no_trace_in_the_settings_of_matplotlib() -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    charts.smoothed_chart(curve(np.arange(5.0)))
    assert dict(mpl.rcParams) == before


def test_related_curves_share_a_chart_and_one_sentence() -> None:
    teacher = ("monitor/teacher_entropy_cls", "monitor/teacher_entropy_patch")
    names = ("monitor/marginal_entropy_cls", *teacher, "monitor/feature_std", "monitor/new")
    groups = chart_groups({name: curve(np.ones(4), name) for name in names})
    assert [g.title for g in groups] == ["Health"]
    captions = [chart.caption for chart in groups[0].charts]
    assert len(captions) == 4
    assert ["collapse" in caption for caption in captions] == [True, False, True, False]
    assert "sure" in captions[1]
    assert captions[3] == ""


@pytest.mark.parametrize(
    ("method", "count"),
    [
        ({"head": {"prototypes": 512}, "projector": {"output": 64}}, 512),
        ({"projector": {"output": 4096}}, 4096),
        ({"head": None, "projector": {"output": "wide"}}, None),
        ("smit", None),
    ],
)
def test_the_ceiling_of_an_entropy_is_drawn_where_the_settings_tell_it(
    method: object, count: int | None, tmp_path: Path
) -> None:
    records = [{"step": s, "monitor/teacher_entropy": 5.0 + s / 10} for s in range(3)]
    run = write_run(tmp_path / "run", records=records)
    (run / "config.json").write_text(json.dumps({"kind": "pretrain", "config": {"method": method}}))
    (health,) = view_run(read_run(run)).groups
    (chart,) = health.charts
    assert ("ceiling" in chart.svg) == ("ceiling" in chart.caption) == (count is not None)
    if count is not None:
        assert f"{count:,} possible answers" in chart.caption


def test_the_ceiling_is_drawn_at_its_height() -> None:
    # The topmost line of the plot: a curve of the same height covers it.
    flat = curve(np.full(20, math.log(512)))
    svg = charts.lines_chart([flat], title="entropy", ceiling=math.log(512))
    heights = [
        {y for _, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path)}
        for path in re.findall(r'<path d="([^"]+)" [^>]*(?:--muted|--c0)', svg)
    ]
    assert len(heights) >= 2
    assert any(len(one) == 1 and heights.count(one) >= 2 for one in heights)


def test_a_total_of_one_term_is_drawn_once_and_says_which_term() -> None:
    def drawn(*terms: str) -> list[tuple[bool, str]]:
        keys = ["loss/total", *(f"loss/{term}" for term in terms)]
        (group,) = chart_groups({key: curve(np.arange(4.0), key) for key in keys})
        return [(chart.wide, chart.caption) for chart in group.charts]

    assert drawn("own") == [
        (True, "Its only term is own: grey values from the network's own features, turned as it "
         "was told."),
    ]  # fmt: skip
    assert drawn("brand_new") == [(True, "Its only term is brand new.")]
    assert drawn("order", "brand_new") == [
        (True, ""), (False, "In which order the shuffled cubes belong."), (False, ""),
    ]  # fmt: skip
    assert drawn() == [(True, "")]


def test_a_quick_fall_is_called_healthy_only_where_nothing_else_moves_the_aim() -> None:
    def told(*keys: str) -> str:
        return chart_groups({key: curve(np.arange(4.0), key) for key in keys})[0].text

    alone, led = told("loss/total", "loss/mip"), told("loss/total", "loss/mpd", "ema_momentum")
    assert "a quick fall at first" in alone
    assert "may rise" not in alone
    assert "may rise" in led
    assert led == told("loss/total", "loss/adversarial", "loss/discriminator")


def test_the_dice_loss_is_not_named_like_the_dice_of_a_validation() -> None:
    curves = {f"loss/{name}": curve(np.arange(4.0), name) for name in ("total", "dice", "ce")}
    (group,) = chart_groups(curves)
    assert "Dice loss over training steps" in group.charts[1].svg


def test_a_dice_of_zero_lies_above_the_edge_of_its_chart() -> None:
    svg = charts.dice_chart([], curve(np.zeros(20)))
    frame, line = (
        max(float(y) for y in re.findall(r"[ML] [\d.]+ ([\d.]+)", path))
        for path in (
            re.search(r'<path d="([^"]+)" [^>]*--faint', svg)[1],  # type: ignore[index]
            re.search(r'<path d="([^"]+)" [^>]*--ink', svg)[1],  # type: ignore[index]
        )
    )
    assert line < frame - 2


def test_one_of_two_terms_is_not_called_the_only_one_for_being_never_finite() -> None:
    curves = {f"loss/{name}": curve(np.arange(4.0), name) for name in ("total", "own")}
    curves["loss/other"] = curve(np.full(4, np.nan), "other")
    (group,) = chart_groups(curves)
    assert [chart.wide for chart in group.charts] == [True, False]
    assert not any("only term" in chart.caption for chart in group.charts)


def test_every_term_that_a_method_weighs_is_explained() -> None:
    modules = [f"backend.settings.{m.name}" for m in iter_modules(settings.__path__)]
    weights = {
        field.name.removeprefix("weight_")
        for module in modules
        for thing in vars(import_module(module)).values()
        if isinstance(thing, type) and dataclasses.is_dataclass(thing)
        for field in dataclasses.fields(thing)
        if field.name.startswith("weight_")
    }
    assert {"mip", "own", "order"} <= weights
    assert weights <= TERMS.keys()


def test_only_what_was_set_is_called_a_schedule() -> None:
    names = (
        "lr", "gradient_norm", "temperature/student", "temperature/teacher_cls", "odd",
        "probe/held_out_error", "probe/held_out_error_of_mean", "volumes_per_s",
    )  # fmt: skip
    groups = chart_groups({name: curve(np.ones(4), name) for name in names})
    assert {group.title: len(group.charts) for group in groups} == {
        "Health": 1, "Probe": 1, "Odd": 1, "Schedules": 2, "Speed and memory": 1,
    }  # fmt: skip


def test_comparison_chart_shows_a_dot_per_case_unless_there_are_very_many() -> None:
    def arms(cases: int) -> dict[str, dict[str, dict[str, float]]]:
        scores = {organ: {f"c{k}": k / cases for k in range(cases)} for organ in ORGANS}
        return {"with": scores, "without": scores}

    few = charts.comparison_chart(arms(4), ORGANS)
    assert "dots: cases" in few
    many = charts.comparison_chart(arms(400), ORGANS)
    assert "dots" not in many
    assert len(many) < 60_000


# --- two arms -------------------------------------------------------------------------------------


def test_background_and_absent_structures_are_no_part_of_a_comparison(tmp_path: Path) -> None:
    path = write_evaluation(
        tmp_path,
        {("a", "background"): "0.99", ("a", "liver"): "0.8", ("a", "spleen"): "",
         ("b", "liver"): "0.6", ("b", "spleen"): "nan"},
    )  # fmt: skip
    expected = {"liver": {"a": 0.8, "b": 0.6}}
    assert read_evaluation(path) == expected
    assert read_evaluation(tmp_path) == expected
    assert read_evaluation(tmp_path / "evaluation.json") == expected


def test_a_damaged_evaluation_is_refused_with_its_place(tmp_path: Path) -> None:
    path = write_evaluation(tmp_path, {("a", "liver"): "good"})
    with pytest.raises(UserError, match=r"line 2: dice 'good' is no number"):
        read_evaluation(path)
    path.write_text("case,organ\na,liver\n")
    with pytest.raises(UserError, match="column dice is missing"):
        read_evaluation(path)
    with pytest.raises(UserError, match="no such table"):
        read_evaluation(tmp_path / "nowhere.csv")


def test_differences_are_taken_over_the_cases_that_both_arms_have() -> None:
    first = {"liver": {"a": 0.9, "b": 0.7, "c": 0.1}, "spleen": {"a": 0.5}}
    second = {"liver": {"a": 0.8, "b": 0.4}, "spleen": {"b": 0.6}}
    result = compare({"with": first, "without": second})
    liver, spleen = result.organs
    assert liver.difference == pytest.approx(0.2)
    assert (liver.pairs, liver.counts) == (2, [3, 2])
    assert liver.means == pytest.approx([1.7 / 3, 0.6])
    assert (spleen.difference, spleen.pairs) == (None, 0)
    assert case_means(first, second) == [("a", 0.9, 0.8), ("b", 0.7, 0.4)]
    assert result.means == pytest.approx((0.8, 0.6))


@pytest.mark.parametrize(
    ("pairs", "expected", "unsaid"),
    [
        ([(0.9, 0.7)] * 3, ["+0.200", "better in 3 and worse in 0 of 3", "1 of 4"], "worse one"),
        (
            [(0.5, 0.7)] * 2,
            ["\N{MINUS SIGN}0.200", "was the worse one", "1 of 2"],
            "practically none",
        ),
        ([(0.701, 0.70)] * 3, ["practically none"], "worse one"),
        ([(0.9, 0.7)], ["nothing follows for other patients"], "too few to tell"),
        # 2 * (1/2)^6
        ([(0.9, 0.7)] * 6, ["3.1%"], "too few"),
        # 2 * (1 + 8) / 2^8
        ([(0.9, 0.7)] * 7 + [(0.6, 0.7)], ["7.0%"], "too few"),
    ],
)
def test_words_follow_from_the_numbers(
    pairs: list[tuple[float, float]], expected: list[str], unsaid: str
) -> None:
    means = [(f"case {k}", a, b) for k, (a, b) in enumerate(pairs)]
    text = " ".join(verdict("with pretraining", "without pretraining", means))
    for words in expected:
        assert words in text
    assert unsaid not in text
    assert "significant" not in text


# --- the report of the whole way ------------------------------------------------------------------


class Row(NamedTuple):
    id: str
    path: Path
    format: str
    size: tuple[int, int, int] | None
    spacing_mm: tuple[float, float, float] | None
    orientation: str
    verdict: str
    reason: str


def test_the_whole_way_is_told_from_scans_to_times(tmp_path: Path) -> None:
    rows = [
        Row("aa11", Path("Doe^J/1"), "DICOM", (41, 512, 500), (5, 0.8, 0.7), "LPS", "usable", ""),
        Row("bb22", Path("Doe^J/2"), "NIfTI", None, None, "", "refused", "file is truncated"),
    ]
    arms = ("with pretraining", "without pretraining")
    runs = {
        arm: write_run(
            tmp_path / f"run{k}", kind="finetune", records=finetune_records(0.8 - 0.1 * k)
        )
        for k, arm in enumerate(arms)
    }
    tables = {
        arm: write_evaluation(
            tmp_path / f"run{k}", {(c, "liver"): f"{0.8 - 0.1 * k}" for c in ("t1", "t2")}
        )
        for k, arm in enumerate(arms)
    }
    pictures = {f"Case t1, {arm}": write_png(tmp_path / f"{k}.png") for k, arm in enumerate(arms)}
    report = write_demo_report(
        tmp_path / "out", scan_rows=rows, pretrain_run=write_run(tmp_path / "pre"),
        finetune_runs=runs, evaluations=tables, pictures=pictures,
        timings={"Pretrain": 125.0, "Scan": 0.5},
    )  # fmt: skip
    page = Page(report)
    assert report == tmp_path / "out" / "report.html"
    for words in (
        "1 usable series, 1 refused", "500×512×41", "0.7×0.8×5", "file is truncated",
        "Mean Dice over 2 cases: 0.800 with pretraining, 0.700 without pretraining "
        "(difference +0.100).", "Case t1, with pretraining", "2 min 5 s", "MICCAI 2022",
    ):  # fmt: skip
        assert words in page.text, words
    assert page.text.count("MICCAI 2022") == 1
    assert page.tags.count("img") == 2
    assert "Doe^" not in page.source
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in page.links)


@pytest.mark.parametrize(
    ("key", "told"),
    [("val/dice_mean", "Mean Dice on the validation scans"), ("loss/total", "lower is better")],
)
def test_both_arms_share_a_chart_of_what_was_recorded_for_them(
    key: str, told: str, tmp_path: Path
) -> None:
    runs = {
        name: write_run(
            tmp_path / name, kind="finetune", records=[{"step": s, key: 0.5} for s in (1, 2)]
        )
        for name in ("one", "other")
    }
    text = Page(write_demo_report(tmp_path / "out", finetune_runs=runs)).text
    shared = text[: text.index("Curves and settings")]
    assert told in shared
    assert "one" in shared
    assert "other" in shared


def test_sections_without_material_are_left_out(tmp_path: Path) -> None:
    page = Page(write_demo_report(tmp_path, timings={"Scan": 0.0}))
    assert "How long it took" in page.text
    for word in ("Scans found", "Pretraining", "Fine-tuning", "Dice", "How to go on", "Cite"):
        assert word not in page.text, word


def test_reports_never_import_torch() -> None:
    code = "import sys, backend.report; sys.exit(any(m in sys.modules for m in ('torch', 'monai')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
