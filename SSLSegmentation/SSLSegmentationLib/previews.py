"""The pictures that a run draws on its way, and their volumes in the slice views."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from SSLPretrainLogic.errors import LogicError
from SSLPretrainLogic.run_folder import Preview

_FOREGROUNDS = ("reconstruction", "features", "masked")
_LARGE = (1200, 960)
"""Points, for the window of a large picture."""


class Picture(qt.QWidget):
    """A picture as wide as there is room, and as high as it then must be."""

    def __init__(self, clicked: Callable[[], None]) -> None:
        qt.QWidget.__init__(self)
        self._clicked = clicked
        self._pixmap = qt.QPixmap()

    def show_file(self, path: Path) -> None:
        """Show a PNG; one that cannot be read leaves the place empty."""
        self._pixmap = qt.QPixmap(str(path))
        self._fit()
        self.update()

    def resizeEvent(self, event: Any) -> None:
        """The height follows the width."""
        self._fit()

    def mouseReleaseEvent(self, event: Any) -> None:
        """It was clicked."""
        self._clicked()

    def paintEvent(self, event: Any) -> None:
        """Draw it."""
        if self._pixmap.isNull():
            return
        painter = qt.QPainter(self)
        painter.setRenderHint(qt.QPainter.SmoothPixmapTransform, True)
        painter.drawPixmap(self.rect, self._pixmap)
        painter.end()

    def _fit(self) -> None:
        wide = self._pixmap.width()
        height = self._pixmap.height() * self.width // wide if wide else 0
        if self.minimumHeight != height:
            self.setFixedHeight(height)


class LargePicture:
    """A window that shows a picture in its own size, and follows the panel while it is open."""

    def __init__(self) -> None:
        self.dialog: Any = None
        self._label: Any = None

    def open(self, preview: Preview) -> None:
        """Show a picture, and the window if it is not there."""
        if self.dialog is None:
            self._make()
        self.dialog.show()
        self.dialog.raise_()
        self.show(preview)

    def show(self, preview: Preview) -> None:
        """Show another picture, if the window is open."""
        if self.dialog is None or not self.dialog.visible:
            return
        pixmap = qt.QPixmap(str(preview.picture))
        self._label.setPixmap(pixmap)
        self._label.resize(pixmap.width(), pixmap.height())
        run = preview.picture.parent.parent.name
        self.dialog.windowTitle = _("{run}, step {step}").format(run=run, step=preview.step)

    def close(self) -> None:
        """Close the window."""
        if self.dialog is not None:
            self.dialog.hide()
            self.dialog.deleteLater()
        self.dialog = None

    def _make(self) -> None:
        self.dialog = qt.QDialog(slicer.util.mainWindow())
        self.dialog.objectName = "runLargePicture"
        area = qt.QScrollArea()
        self._label = qt.QLabel()
        area.setWidget(self._label)
        layout = qt.QVBoxLayout(self.dialog)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(area)
        self.dialog.resize(*_LARGE)


class Previews:
    """The row below the picture, which goes through the steps.

    Args:
        ui: with `runPreviewBox`, `runPreviewPlace`, `runPreviewCaption`, `runPreviewSlider`,
            `runPreviewBack`, `runPreviewForward`, `runPreviewStep` and `runPreviewOpen`.
        clicked: called when the button is clicked that loads the volumes.
    """

    def __init__(self, ui: Any, clicked: Callable[[], None]) -> None:
        self._ui = ui
        self._shown: Preview | None = None
        self._all: tuple[Preview, ...] = ()
        self._large = LargePicture()
        self._picture = Picture(self._enlarge)
        self._picture.objectName = "runPicture"
        self._picture.toolTip = _("Click to see it large.")
        self._picture.setCursor(qt.QCursor(qt.Qt.PointingHandCursor))
        ui.runPreviewPlace.layout().addWidget(self._picture)
        ui.runPreviewSlider.connect("valueChanged(int)", self._on_slider)
        ui.runPreviewBack.connect("clicked()", lambda: self._move(-1))
        ui.runPreviewForward.connect("clicked()", lambda: self._move(1))
        ui.runPreviewOpen.connect("clicked()", clicked)
        self.show(())

    @property
    def current(self) -> Preview | None:
        """What is shown."""
        return self._shown

    def show(self, previews: tuple[Preview, ...]) -> None:
        """Show these; who looked at the newest sees the newest again."""
        if previews == self._all and previews:
            return
        slider = self._ui.runPreviewSlider
        was_newest = not self._all or slider.value == len(self._all) - 1
        self._all = previews
        last = max(len(previews) - 1, 0)
        blocked = slider.blockSignals(True)
        slider.maximum = last
        slider.value = last if was_newest else min(slider.value, last)
        slider.blockSignals(blocked)
        self._ui.runPreviewBox.visible = bool(previews)
        self._show_current()

    def close(self) -> None:
        """Close the window of the large picture."""
        self._large.close()

    def _enlarge(self) -> None:
        if self._shown is not None:
            self._large.open(self._shown)

    def _move(self, by: int) -> None:
        self._ui.runPreviewSlider.value = self._ui.runPreviewSlider.value + by

    def _on_slider(self, value: int) -> None:
        self._show_current()

    def _show_current(self) -> None:
        ui, count = self._ui, len(self._all)
        number = ui.runPreviewSlider.value
        chosen = self._all[number] if count else None
        ui.runPreviewSlider.enabled = count > 1
        ui.runPreviewBack.enabled = number > 0
        ui.runPreviewForward.enabled = number < count - 1
        if chosen is not None:
            ui.runPreviewStep.text = _("Step {step}").format(step=f"{chosen.step:,}")
            ui.runPreviewCaption.text = caption(chosen)
            ui.runPreviewOpen.enabled = bool(chosen.volumes)
            ui.runPreviewOpen.toolTip = (
                _("Load this step into the slice views: input behind, result in front.")
                if chosen.volumes
                else _("This run draws pictures only, without volumes.")
            )
            if self._shown is None or chosen.picture != self._shown.picture:
                self._picture.show_file(chosen.picture)
                self._large.show(chosen)
        self._shown = chosen


class PreviewVolumes:
    """The volumes of one step in the scene; the next take their place."""

    def __init__(self) -> None:
        self._identities: list[str] = []

    def load(self, preview: Preview, *, run: str) -> str:
        """Load a step into the slice views; answers what is to be seen.

        Args:
            preview: with volumes.
            run: its name.

        Raises:
            LogicError: if there are none, or they cannot be read.
        """
        nodes = self._loaded(preview, run)
        self.remove()
        self._identities = [node.GetID() for node in nodes.values()]
        front = next((name for name in _FOREGROUNDS if name in nodes), None)
        back = "input" if "input" in nodes else next(iter(nodes))
        slicer.util.setSliceViewerLayers(
            background=nodes[back],
            foreground=None if front in (None, back) else nodes[front],
            foregroundOpacity=0.5,
        )
        slicer.app.layoutManager().resetSliceViews()
        if front in (None, back):
            return str(_("Step {step} is in the slice views.").format(step=preview.step))
        return str(
            _("Step {step}: the {back} lies behind the {front}; fade between them above a slice.")
        ).format(step=preview.step, back=back, front=front)

    def remove(self) -> None:
        """Take them out of the scene, as far as they are still in it."""
        for identity in self._identities:
            node = slicer.mrmlScene.GetNodeByID(identity)
            if node is not None:
                slicer.mrmlScene.RemoveNode(node)
        self._identities = []

    def _loaded(self, preview: Preview, run: str) -> dict[str, Any]:
        if not preview.volumes:
            raise LogicError(
                _("Step {step} has no volumes.").format(step=preview.step),
                _("The picture is all there is."),
            )
        nodes: dict[str, Any] = {}
        for name, path in preview.volumes.items():
            title = f"{run} step {preview.step} {name}"
            node = _read(path, title)
            if node is None:
                for read in nodes.values():
                    slicer.mrmlScene.RemoveNode(read)
                raise LogicError(
                    _("{path}: cannot be read.").format(path=path),
                    _("Choose another step."),
                )
            # They belong to the run folder; scenes would carry its path about.
            node.SetSaveWithScene(False)
            nodes[name] = node
        return nodes


def _read(path: Path, title: str) -> Any:
    if not path.is_file():
        return None
    try:
        return slicer.util.loadVolume(str(path), {"name": title, "show": False, "singleFile": True})
    except RuntimeError:
        return None


def caption(preview: Preview) -> str:
    """What the picture shows, from left to right, in words that can be read at any size."""
    if "reconstruction" in preview.volumes:
        return str(
            _(
                "From left: the scan, what the network saw of it, what it made of that and, where "
                "parts were hidden, both together. It begins with noise; after some hundred steps "
                "shapes appear. Click to see it large."
            )
        )
    if "features" in preview.volumes:
        return str(
            _(
                "Last column: what the network tells apart in the scan on the left. It begins with "
                "noise; after some hundred steps shapes appear. Click to see it large."
            )
        )
    return str(
        _("Solid lines: what the model finds. Dashed lines: your labels. Click to see it large.")
    )
