"""What the probe of a pretraining has found so far: in numbers, in words and as a chart."""

from __future__ import annotations

from typing import Any

from slicer.i18n import tr as _

from SSLPretrainLogic.probes import PROBE, Course, course
from SSLSegmentationLib.curve_plot import CurvePlot
from SSLSegmentationLib.curves import Group

PATIENCE = 3
"""After so many probes without a better one the features are taken for ready: a rule of thumb."""


class ProbeView:
    """The part of a run's view that comes with the first probe.

    Args:
        ui: of the view.
    """

    def __init__(self, ui: Any) -> None:
        self._ui = ui
        self._plot = CurvePlot()
        ui.runProbePlace.layout().addWidget(self._plot)

    def show(self, groups: tuple[Group, ...], *, shown: Group | None, is_active: bool) -> None:
        """Show the newest state.

        Args:
            groups: all curves.
            shown: what is drawn above; not drawn twice.
            is_active: whether the run goes on.
        """
        group = next((group for group in groups if group.key == PROBE), None)
        curve = None if group is None else group.curves[0]
        found = None if curve is None else course(curve.steps, curve.values)
        self._ui.runProbeBox.visible = found is not None
        self._ui.runProbeText.text = "" if found is None else told(found, is_active=is_active)
        self._ui.runProbePlace.visible = group is not shown
        self._plot.show_group(group, empty="")


def told(found: Course, *, is_active: bool) -> str:
    """The score in numbers, and whether the features still get better.

    Args:
        found: by the probes so far.
        is_active: whether the run goes on.
    """
    now = _("Probe: {score:.3f} at step {step:,}").format(score=found.score, step=found.step)
    if found.only:
        return f"{now}. {_first_words(found)}"
    if not found.since:
        return f"{now}, {_better_words(is_active=is_active)}"
    return f"{now}; {_best_words(found)}"


def _first_words(found: Course) -> str:
    if found.step == 0:
        return str(
            _("So much the weights know that it began with; the next one tells what is new.")
        )
    return str(_("The next one tells whether the features get better."))


def _better_words(*, is_active: bool) -> str:
    if is_active:
        return str(_("the best so far. The features still get better."))
    return str(_("the best. The features still got better at the end: more steps may help."))


def _best_words(found: Course) -> str:
    if found.best_step == 0:
        text = _("the weights that it began with had {score:.3f}: nothing is gained yet.")
        return str(text.format(score=found.best_score))
    probes = _("1 probe") if found.since == 1 else _("{n} probes").format(n=found.since)
    text = _("best {score:.3f} at step {step:,}, not better for {probes}")
    text = text.format(score=found.best_score, step=found.best_step, probes=probes)
    return f"{text}: {_('more steps will hardly help')}." if found.since >= PATIENCE else f"{text}."
