"""Draws the icons of the extension, of the module and of its effect.

python Resources/draw_icons.py

One picture, in three degrees of detail: a body cut across, half of it hidden behind squares as in
masked pretraining, the other half segmented. Drawn large and made smaller, for smooth edges.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageChops, ImageDraw

ROOT = Path(__file__).resolve().parents[1]
MODULE = ROOT / "SSLSegmentation"
GRID = 32
"""All coordinates are given on a grid of so many units each way."""
FINE = 16
"""Pixels per unit while drawing."""

GROUND, BODY, SHADE = "#17202b", "#aab4c0", "#7f8b99"
LIVER, SPLEEN, AORTA, SPINE = "#dd8265", "#9d6ca2", "#d8654f", "#f1d691"
HIDDEN = "#2f6fd0"

Box = tuple[float, float, float, float]


class Sheet:
    """A drawing in units of the grid."""

    def __init__(self) -> None:
        self.image = Image.new("RGBA", (GRID * FINE, GRID * FINE))
        self._draw = ImageDraw.Draw(self.image)

    def ellipse(self, box: Box, color: str) -> None:
        """Fill an ellipse."""
        self._draw.ellipse([value * FINE for value in box], fill=color)

    def rounded(self, box: Box, color: str, radius: float) -> None:
        """Fill a rectangle with round corners."""
        self._draw.rounded_rectangle(
            [value * FINE for value in box], radius=radius * FINE, fill=color
        )

    def save(self, path: Path, size: int) -> None:
        """Write it as a square PNG of `size` pixels."""
        path.parent.mkdir(parents=True, exist_ok=True)
        smaller = self.image.resize((size, size), Image.Resampling.LANCZOS)
        smaller.save(path, optimize=True)


def draw_body(sheet: Sheet, box: Box, *, details: bool) -> None:
    """A cut through the upper abdomen, as CT shows it from below."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top

    def organ(x: float, y: float, w: float, h: float, color: str) -> None:
        sheet.ellipse(
            (left + x * width, top + y * height, left + (x + w) * width, top + (y + h) * height),
            color,
        )

    sheet.ellipse(box, BODY)
    if details:
        organ(0.05, 0.06, 0.90, 0.88, SHADE)
    organ(0.10, 0.16, 0.44, 0.50, LIVER)
    organ(0.72, 0.40, 0.19, 0.32, SPLEEN)
    organ(0.42, 0.66, 0.19, 0.26, SPINE)
    if details:
        organ(0.54, 0.53, 0.11, 0.15, AORTA)


def hide(sheet: Sheet, box: Box, *, step: float) -> None:
    """Hide every other square of the right half of a body, as a method of pretraining does."""
    squares, body = Sheet(), Sheet()
    body.ellipse(box, "white")
    middle = (box[0] + box[2]) / 2
    columns, rows = int((box[2] - middle) / step) + 1, int((box[3] - box[1]) / step) + 1
    for column in range(columns):
        for row in range(rows):
            if (column + row) % 2 == 0:
                x, y = middle + column * step, box[1] + row * step
                squares.rounded((x, y, x + step, y + step), HIDDEN, 0.4)
    seen = ImageChops.multiply(squares.image.getchannel("A"), body.image.getchannel("A"))
    sheet.image.paste(squares.image, mask=seen)


def extension_icon() -> Sheet:
    """With ground and details, for the Extensions Manager."""
    sheet, box = Sheet(), (2.0, 5.0, 30.0, 27.0)
    sheet.rounded((0, 0, 32, 32), GROUND, 5)
    draw_body(sheet, box, details=True)
    hide(sheet, box, step=22 / 6)
    return sheet


def module_icon() -> Sheet:
    """Without ground, for menus in light and dark."""
    sheet, box = Sheet(), (1.0, 4.0, 31.0, 28.0)
    sheet.ellipse((0, 3, 32, 29), GROUND)
    draw_body(sheet, box, details=False)
    hide(sheet, box, step=6)
    return sheet


def effect_icon() -> Sheet:
    """Few shapes, for a button of 24 pixels among those of the Segment Editor."""
    sheet = Sheet()
    sheet.ellipse((0, 2, 32, 30), GROUND)
    draw_body(sheet, (1.25, 3.25, 30.75, 28.75), details=False)
    return sheet


if __name__ == "__main__":
    extension_icon().save(ROOT / "Resources" / "SSLSegmentation.png", 128)
    module_icon().save(MODULE / "Resources" / "Icons" / "SSLSegmentation.png", 128)
    effect_icon().save(MODULE / "SSLSegmentationEffectLib" / "SegmentEditorEffect.png", 32)
