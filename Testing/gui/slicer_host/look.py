"""The look of Slicer: its style, a light and a dark palette, and pictures of widgets."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from PySide6 import QtCore, QtGui, QtWidgets

Theme = Literal["light", "dark"]

_LIGHT = {
    "Window": "#efefef",
    "WindowText": "#000000",
    "Base": "#ffffff",
    "AlternateBase": "#f7f7f7",
    "Text": "#000000",
    "Button": "#efefef",
    "ButtonText": "#000000",
    "ToolTipBase": "#ffffdc",
    "ToolTipText": "#000000",
    "Highlight": "#308cc6",
    "HighlightedText": "#ffffff",
    "Link": "#0000ff",
    "PlaceholderText": "#80000000",
}
_DARK = {
    "Window": "#353535",
    "WindowText": "#ffffff",
    "Base": "#2a2a2a",
    "AlternateBase": "#353535",
    "Text": "#ffffff",
    "Button": "#353535",
    "ButtonText": "#ffffff",
    "ToolTipBase": "#ffffdc",
    "ToolTipText": "#000000",
    "Highlight": "#2a82da",
    "HighlightedText": "#ffffff",
    "Link": "#56b4e9",
    "PlaceholderText": "#80ffffff",
}
_DIMMED = ("WindowText", "Text", "ButtonText")
_POINTS = 9


def apply_theme(application: QtWidgets.QApplication, theme: Theme) -> None:
    """Give all widgets Slicer's style and one of its two palettes."""
    application.setStyle("Fusion")
    role, group = QtGui.QPalette.ColorRole, QtGui.QPalette.ColorGroup
    colors = _LIGHT if theme == "light" else _DARK
    palette = QtGui.QPalette(QtGui.QColor(colors["Button"]), QtGui.QColor(colors["Window"]))
    for name, color in colors.items():
        palette.setColor(role[name], QtGui.QColor(color))
    for name in _DIMMED:
        dimmed = "#bebebe" if theme == "light" else "#7f7f7f"
        palette.setColor(group.Disabled, role[name], QtGui.QColor(dimmed))
    application.setPalette(palette)


def use_font(application: QtWidgets.QApplication) -> None:
    """Use a font that is installed with Python; the wheels of Qt bring none."""
    spec = find_spec("matplotlib")
    if spec is None or spec.origin is None:
        return
    folder = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"
    for name in ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSansMono.ttf"):
        QtGui.QFontDatabase.addApplicationFont(str(folder / name))
    application.setFont(QtGui.QFont("DejaVu Sans", _POINTS))


def picture(widget: Any, *, scale: int = 1) -> QtGui.QPixmap:
    """A picture of a widget.

    Args:
        widget: shown or not.
        scale: pixels per point, 2 for a dense screen.
    """
    size = QtCore.QSize(widget.width, widget.height)
    made = QtGui.QPixmap(size * scale)
    made.setDevicePixelRatio(scale)
    made.fill(widget.palette.color(QtGui.QPalette.ColorRole.Window))
    widget.render(made)
    return made
