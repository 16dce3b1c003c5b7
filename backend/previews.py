"""Pictures of what a model sees and does: reconstruction triptychs and slices with contours.

Arrays are (z, y, x) in LPS orientation order: x grows towards the patient's Left, y towards
Posterior, z towards Superior. Pictures follow the reading room: anterior up in axial slices, head
up in coronal and sagittal ones, the patient's right on the viewer's left.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import SimpleITK
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from backend.errors import ResourceError
from backend.files import written_whole
from backend.geometry import Geometry, Vec3

Grey = NDArray[np.float32]
Pixels = NDArray[np.uint8]

PLANES = ("Axial", "Coronal", "Sagittal")
"""The planes in the order of the array axes (z, y, x) they cut across."""

_SIDES = {"Axial": "RLAP", "Coronal": "RLSI", "Sagittal": "APSI"}
"""Patient sides at the left, right, top and bottom edge of a slice as shown."""

_BODY_HU = -300
"""Above this, a voxel belongs to the body (or to the table) when a picture is framed."""


class LabelLike(Protocol):
    """What a structure must tell to be drawn: `backend.data.labels.Label` does."""

    @property
    def value(self) -> int:
        """Voxel value in the label map."""

    @property
    def name(self) -> str:
        """Name for the legend."""

    @property
    def color(self) -> tuple[int, int, int]:
        """Red, green and blue, 0 to 255."""


def plane_slice(volume: NDArray[Any], plane: str, index: int) -> NDArray[Any]:
    """Slice `index` of a plane as shown on screen: rows from top to bottom, columns left to right.

    Args:
        volume: array (z, y, x) in LPS orientation order.
        plane: "Axial", "Coronal" or "Sagittal".
        index: position along the array axis that the plane cuts across.
    """
    image: NDArray[Any] = np.take(volume, index, axis=PLANES.index(plane))
    # z grows towards the head, rows grow downwards.
    return image if plane == "Axial" else image[::-1]


def plane_spacing(spacing_mm: Vec3, plane: str) -> tuple[float, float]:
    """Distance in mm of neighbouring (rows, columns) of a slice of that plane."""
    rows, columns = (s for axis, s in enumerate(spacing_mm) if axis != PLANES.index(plane))
    return rows, columns


def richest_slice(volume: Grey, axis: int) -> int:
    """The index along `axis`, within the middle half, at which the grey values vary most.

    A crop may reach far out of the body; the very middle would then show air.
    """
    size = volume.shape[axis]
    start, stop = size // 4, max(size // 4 + 1, size - size // 4)
    others = tuple(a for a in range(3) if a != axis)
    spread = volume.std(axis=others)[start:stop]
    best = np.flatnonzero(spread >= spread.max() * (1 - 1e-6))
    # Among equals the one nearest to the middle.
    return int(start + best[np.argmin(np.abs(best + start - (size - 1) / 2))])


# --- triptych -------------------------------------------------------------------------------------

_PANEL_PX = 270
_GAP_PX = 6
_GUTTER_PX = 30
_HEAD_PX = 66
_FOOT_PX = 34
_BACKGROUND, _TEXT, _QUIET, _HIDDEN = (16, 18, 22), (236, 238, 240), (150, 158, 166), (58, 74, 98)


def triptych_png(
    path: Path,
    *,
    inputs: Grey,
    hidden: NDArray[np.bool_],
    reconstruction: Grey,
    spacing_mm: Vec3,
    title: str,
    spoilt: Grey | None = None,
) -> None:
    """Write a picture of input, what the network saw of it, and what it predicted.

    Three rows: axial, coronal, sagittal. Where voxels were hidden, a fourth column shows the
    visible voxels as they are and the prediction in place of the others. One line below gives the
    mean absolute error over the whole crop.

    Args:
        path: the PNG to write.
        inputs: array (z, y, x), LPS orientation order, window mapped to [0, 1].
        hidden: which voxels were hidden, (z, y, x).
        reconstruction: what the network predicted, everywhere.
        spacing_mm: voxel distances (z, y, x).
        title: e.g. "Step 100".
        spoilt: what the network saw, where it was not the input with voxels hidden.

    Raises:
        ValueError: if the arrays differ in shape or are not three-dimensional.
    """
    _check_same_shape(inputs, reconstruction, inputs if spoilt is None else spoilt)
    columns = {"Input": _grey_to_rgb(inputs)}
    if spoilt is None:
        veil = np.array(_HIDDEN, dtype=np.uint8)
        columns["Masked input"] = np.where(hidden[..., None], veil, _grey_to_rgb(inputs))
    else:
        columns["Spoilt input"] = _grey_to_rgb(spoilt)
    columns["Prediction"] = _grey_to_rgb(reconstruction)
    if spoilt is None and hidden.any():
        columns["Visible + predicted"] = _grey_to_rgb(np.where(hidden, reconstruction, inputs))
    at = [richest_slice(inputs, axis) for axis in range(3)]
    words = ("hidden", "visible") if spoilt is None else ("changed", "unchanged")
    note = _error_note(inputs, reconstruction, hidden, words=words)
    _write_columns(path, columns, at=at, spacing_mm=spacing_mm, title=title, note=note)


def columns_png(
    path: Path, columns: Mapping[str, Grey], *, spacing_mm: Vec3, title: str, note: str
) -> None:
    """Write a picture of volumes beside each other: axial, coronal and sagittal slices.

    Args:
        path: the PNG to write.
        columns: arrays (z, y, x) of one shape with values in [0, 1], by heading.
        spacing_mm: voxel distances (z, y, x).
        title: e.g. "Step 100".
        note: stands below.

    Raises:
        ValueError: if the arrays differ in shape or are not three-dimensional.
    """
    _check_same_shape(*columns.values())
    first = next(iter(columns.values()))
    at = [richest_slice(first, axis) for axis in range(3)]
    pixels = {heading: _grey_to_rgb(volume) for heading, volume in columns.items()}
    _write_columns(path, pixels, at=at, spacing_mm=spacing_mm, title=title, note=note)


def _write_columns(
    path: Path,
    columns: Mapping[str, Pixels],
    *,
    at: Sequence[int],
    spacing_mm: Vec3,
    title: str,
    note: str,
) -> None:
    shape = next(iter(columns.values())).shape
    scale = _PANEL_PX / max(n * s for n, s in zip(shape[:3], spacing_mm, strict=True))
    rows = [
        [_panel(v, plane, at[k], spacing_mm, scale) for v in columns.values()]
        for k, plane in enumerate(PLANES)
    ]
    sheet = _sheet(rows, headings=list(columns), title=title)
    ImageDraw.Draw(sheet).text(
        (_GUTTER_PX, sheet.height - _FOOT_PX / 2), note, fill=_QUIET, font=_font(15), anchor="lm"
    )
    with written_whole(path) as temporary:
        sheet.save(temporary, format="PNG")


def _check_same_shape(*volumes: Grey) -> None:
    shapes = {v.shape for v in volumes}
    if len(shapes) != 1 or len(next(iter(shapes))) != 3:
        raise ValueError(f"expected arrays (z, y, x) of one shape, got {sorted(shapes)}")


def _grey_to_rgb(volume: Grey) -> Pixels:
    """[0, 1] to (z, y, x, 3) bytes; anything outside is clipped, what is not finite is black."""
    grey = np.clip(np.nan_to_num(volume, nan=0.0, posinf=1.0, neginf=0.0), 0.0, 1.0)
    return np.repeat(np.rint(grey * 255).astype(np.uint8)[..., None], 3, axis=-1)


def _panel(volume: Pixels, plane: str, index: int, spacing_mm: Vec3, scale: float) -> Image.Image:
    """One slice in its physical proportions, with the letters of the patient's sides."""
    pixels = plane_slice(volume, plane, index)
    rows_mm, columns_mm = plane_spacing(spacing_mm, plane)
    size = (
        max(1, round(pixels.shape[1] * columns_mm * scale)),
        max(1, round(pixels.shape[0] * rows_mm * scale)),
    )
    image = Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.BICUBIC)
    _letter_sides(image, _SIDES[plane])
    return image


def _letter_sides(image: Image.Image, sides: str) -> None:
    width, height = image.size
    places: list[tuple[float, float, str]] = [(4, height / 2, "lm"), (width - 4, height / 2, "rm")]
    places += [(width / 2, 3, "mt"), (width / 2, height - 4, "mb")]
    draw = ImageDraw.Draw(image)
    for letter, (x, y, anchor) in zip(sides, places, strict=True):
        draw.text(
            (x, y), letter, fill=(255, 214, 102), font=_font(13), anchor=anchor,
            stroke_width=1, stroke_fill=(0, 0, 0),
        )  # fmt: skip


def _sheet(rows: list[list[Image.Image]], *, headings: list[str], title: str) -> Image.Image:
    """All panels on one sheet: columns as wide as the widest panel, rows as high as theirs."""
    pitch = max(panel.width for row in rows for panel in row) + _GAP_PX
    heights = [row[0].height for row in rows]
    width = _GUTTER_PX + pitch * len(headings)
    sheet = Image.new("RGB", (width, _HEAD_PX + sum(heights) + _GAP_PX * 3 + _FOOT_PX), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GUTTER_PX, 20), title, fill=_TEXT, font=_font(20), anchor="lm")
    for k, heading in enumerate(headings):
        centre = _GUTTER_PX + k * pitch + (pitch - _GAP_PX) / 2
        draw.text((centre, 51), heading, fill=_QUIET, font=_font(17), anchor="mm")
    top = _HEAD_PX
    for plane, row, height in zip(PLANES, rows, heights, strict=True):
        _draw_upright(sheet, plane, centre=(_GUTTER_PX // 2, top + height // 2))
        for k, panel in enumerate(row):
            left = _GUTTER_PX + k * pitch + (pitch - _GAP_PX - panel.width) // 2
            sheet.paste(panel, (left, top))
        top += height + _GAP_PX
    return sheet


def _draw_upright(sheet: Image.Image, text: str, *, centre: tuple[int, int]) -> None:
    """Text that reads from bottom to top."""
    tile = Image.new("RGB", (110, 22), _BACKGROUND)
    ImageDraw.Draw(tile).text((55, 11), text, fill=_QUIET, font=_font(16), anchor="mm")
    turned = tile.rotate(90, expand=True)
    sheet.paste(turned, (centre[0] - turned.width // 2, centre[1] - turned.height // 2))


def _font(size: int) -> Any:
    return ImageFont.load_default(size=size)


def _error_note(
    inputs: Grey, prediction: Grey, hidden: NDArray[np.bool_], *, words: tuple[str, str]
) -> str:
    """What the picture measures, in one line; `words` for voxels that were hidden and others."""
    error = np.abs(prediction.astype(np.float64) - inputs)
    finite = np.isfinite(error)
    parts = [f"{hidden.mean():.0%} {words[0]}"]
    for name, where in zip(words, (hidden & finite, ~hidden & finite), strict=True):
        if where.any():
            parts.append(f"mean absolute error {name} {error[where].mean():.4f}")
    if not finite.all():
        parts.append(f"{np.count_nonzero(~finite)} voxels are not finite")
    return "   |   ".join(parts) + "   (grey values 0 to 1)"


# --- volumes for viewers --------------------------------------------------------------------------


def write_preview_volumes(
    folder: Path,
    step: int,
    volumes: Mapping[str, Grey],
    *,
    geometry: Geometry,
    hu_window: tuple[float, float] | None = None,
) -> list[Path]:
    """Write the volumes of a picture for a viewer, at their place in the patient.

    Args:
        folder: where to write `step_000100_input.nrrd` and the like.
        step: training step, for the names.
        volumes: arrays (z, y, x) in [0, 1] of one shape, by name.
        geometry: grid of the arrays.
        hu_window: the Hounsfield units of 0 and 1; with it the files hold int16 HU, else the
            float32 values as they are.

    Returns:
        Their paths, in the same order.

    Raises:
        ValueError: if an array does not fit the grid.
        ResourceError: if a file cannot be written.
    """
    _check_same_shape(*volumes.values())
    shape = next(iter(volumes.values())).shape
    if shape != geometry.size:
        raise ValueError(f"array {shape} does not fit grid {geometry.size}")
    paths = [folder / f"step_{step:06d}_{name}.nrrd" for name in volumes]
    for path, volume in zip(paths, volumes.values(), strict=True):
        image = SimpleITK.GetImageFromArray(_for_viewer(volume, hu_window))
        image.SetSpacing(geometry.spacing_mm[::-1])
        image.SetOrigin(geometry.origin_mm)
        image.SetDirection(geometry.direction)
        with written_whole(path) as temporary:
            try:
                SimpleITK.WriteImage(image, str(temporary), useCompression=True)
            except RuntimeError as error:
                # ITK does not tell why.
                raise ResourceError(
                    f"{path}: cannot be written.", "Is the disk full, or the folder closed?"
                ) from error
    return paths


def _for_viewer(
    volume: Grey, hu_window: tuple[float, float] | None
) -> NDArray[np.float32] | NDArray[np.int16]:
    if hu_window is None:
        return volume.astype(np.float32)
    low, high = hu_window
    limits = np.iinfo(np.int16)
    hu = np.nan_to_num(low + volume.astype(np.float64) * (high - low), nan=limits.min)
    return np.clip(np.rint(hu), limits.min, limits.max).astype(np.int16)


# --- contours -------------------------------------------------------------------------------------

_AXIAL_SLICES = 3
_MARGIN_MM = 40.0
"""Surroundings of the structures that stay in the frame."""

_STROKE = (withStroke(linewidth=1.6, foreground="#000000"),)
_HALO = (withStroke(linewidth=2.7, foreground="#000000b0"),)
"""Dark rims: every colour shows on bright bone as well as on dark fat."""

_APART = 130.0
"""Colours that are nearer to each other than this are taken for one another in thin lines."""

_CLEAR: tuple[tuple[int, int, int], ...] = (
    (230, 25, 75), (60, 180, 75), (255, 225, 25), (0, 130, 200), (245, 130, 48), (145, 30, 180),
    (70, 240, 240), (240, 50, 230), (210, 245, 60), (250, 190, 212), (0, 128, 128), (154, 99, 36),
    (128, 128, 0), (170, 255, 195), (65, 90, 255), (220, 190, 255),
)  # fmt: skip
"""To take from where colours are too much alike; no greys, of which the scan is made."""

_INCHES = 10.5


@dataclass(frozen=True)
class _View:
    """One panel: a slice and the part of it that is framed (row and column ranges on screen)."""

    plane: str
    index: int
    rows: slice
    columns: slice
    spacing_mm: tuple[float, float]

    def cut(self, volume: NDArray[Any]) -> NDArray[Any]:
        """The framed part of this slice of `volume`."""
        return plane_slice(volume, self.plane, self.index)[self.rows, self.columns]

    @property
    def size_mm(self) -> tuple[float, float]:
        """Width and height."""
        height = (self.rows.stop - self.rows.start) * self.spacing_mm[0]
        return (self.columns.stop - self.columns.start) * self.spacing_mm[1], height


def contours_png(  # noqa: PLR0913 - image, two label maps and how to show them
    path: Path,
    *,
    image: NDArray[np.int16],
    reference: NDArray[np.integer[Any]] | None,
    prediction: NDArray[np.integer[Any]] | None,
    labels: Sequence[LabelLike],
    spacing_mm: Vec3,
    window: tuple[float, float] = (-175.0, 250.0),
    title: str,
) -> None:
    """Write the most telling slices with the contours of a reference and of a prediction.

    Three axial slices are chosen so that together they show as many structures as possible, one
    coronal and one sagittal slice likewise. All panels have one physical scale. The reference is
    dashed and bright, the prediction solid. Structures whose colours are too much alike are drawn
    in others.

    Args:
        path: the PNG to write.
        image: Hounsfield units, array (z, y, x), LPS orientation order.
        reference: label map on the same grid, or None.
        prediction: label map on the same grid, or None.
        labels: structures to draw; values that are not listed are left out.
        spacing_mm: voxel distances (z, y, x).
        window: Hounsfield units shown black and white.
        title: heading of the picture.

    Raises:
        ValueError: if a label map does not fit the image.
    """
    maps = [m for m in (reference, prediction) if m is not None]
    if image.ndim != 3 or any(m.shape != image.shape for m in maps):
        raise ValueError(f"image {image.shape} and label maps {[m.shape for m in maps]} differ")
    # Chosen by the reference alone, so that the pictures of two models show the same slices.
    guide = [reference] if reference is not None and reference.any() else maps
    labels = clearly_coloured(labels)
    views = _choose_views(image, _presence(guide, labels, image.shape), spacing_mm)
    values = {int(value) for label_map in maps for value in np.unique(label_map)}
    present = [label for label in labels if label.value in values]
    figure, axes, key = _layout(views, entries=len(present) + len(maps))
    for view, ax in zip(views, axes, strict=True):
        _draw_view(ax, view, image, window)
        for label in labels:
            _draw_contour(ax, view, prediction, label, dashed=False)
            _draw_contour(ax, view, reference, label, dashed=True)
    _draw_scale_bar(axes[0], views[0])
    _draw_legend(key, present, has=(reference is not None, prediction is not None))
    figure.text(0.012, 0.99, title, color="white", fontsize=13, va="top", ha="left")
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", facecolor=figure.get_facecolor())


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """A structure as it is drawn."""

    value: int
    name: str
    color: tuple[int, int, int]


def clearly_coloured(labels: Sequence[LabelLike]) -> list[LabelLike]:
    """Structures with colours that can be told apart; the first of those alike keeps its own.

    Anatomical colours are made to look natural together: both kidneys have the same one, and
    stomach and liver nearly so.
    """
    drawn: list[LabelLike] = []
    for label in labels:
        taken = [other.color for other in drawn]
        color = label.color
        if _nearest(color, taken) < _APART:
            color = max((*_CLEAR, color), key=lambda one: _nearest(one, taken))
        drawn.append(_Drawn(value=label.value, name=label.name, color=color))
    return drawn


def _nearest(color: tuple[int, int, int], others: Sequence[tuple[int, int, int]]) -> float:
    """How far the nearest of other colours is, roughly as eyes see it (0 to 765)."""
    distances = []
    for other in others:
        red = (color[0] + other[0]) / 2
        weights = (2 + red / 256, 4.0, 3 - red / 256)
        parts = (w * (a - b) ** 2 for w, a, b in zip(weights, color, other, strict=True))
        distances.append(math.sqrt(sum(parts)))
    return min(distances, default=math.inf)


def _presence(
    maps: Sequence[NDArray[np.integer[Any]]],
    labels: Sequence[LabelLike],
    shape: tuple[int, ...],
) -> list[NDArray[np.bool_]]:
    """Per label, where the reference or the prediction has it."""
    masks = [np.zeros(shape, dtype=bool) for _ in labels]
    for mask, label in zip(masks, labels, strict=True):
        for label_map in maps:
            mask |= label_map == label.value
    return masks


def covering_slices(areas: NDArray[np.integer[Any]], count: int) -> list[int]:
    """Slices that together show as many structures as possible, each where it is large.

    Greedy: every structure is worth its share of its own largest area in that slice, and nothing
    more once an earlier slice showed it at half its size or better. Neighbours of a chosen slice,
    which would show the same again, are passed over.

    Args:
        areas: voxels per (structure, slice).
        count: how many slices at most.

    Returns:
        Slice indices in growing order; the middle slice alone if there is no structure at all.
    """
    largest = areas.max(axis=1, initial=0)
    share = areas[largest > 0] / np.maximum(largest[largest > 0], 1)[:, None]
    if not len(share):
        return [areas.shape[1] // 2]
    chosen: list[int] = []
    slices = np.arange(share.shape[1])
    # Of the slices that show anything, a quarter of each one's fair share.
    apart = np.count_nonzero(share.any(axis=0)) / (4 * count)
    while len(chosen) < count:
        seen = share[:, chosen].max(axis=1, initial=0.0) >= 0.5
        # When all have been shown, the next best slice shows them again elsewhere.
        worth = share[~seen].sum(axis=0) if not seen.all() else share.sum(axis=0)
        for index in chosen:
            worth[np.abs(slices - index) <= apart] = -1.0
        best = int(np.argmax(worth))
        if worth[best] <= 0:
            break
        chosen.append(best)
    return sorted(chosen)


def _choose_views(
    image: NDArray[np.int16], shown: Sequence[NDArray[np.bool_]], spacing_mm: Vec3
) -> list[_View]:
    any_label = np.logical_or.reduce([np.zeros(image.shape, dtype=bool), *shown])
    framed = any_label if any_label.any() else image > _BODY_HU
    box = [_frame(framed, axis, _MARGIN_MM / spacing_mm[axis]) for axis in range(3)]
    views = []
    for axis, plane in enumerate(PLANES):
        others = tuple(a for a in range(3) if a != axis)
        areas = np.array([m.sum(axis=others) for m in shown], dtype=np.int64)
        areas = areas.reshape(-1, image.shape[axis])
        rows, columns = (box[a] for a in others)
        if plane != "Axial":
            # The rows are turned over on screen.
            rows = slice(image.shape[0] - rows.stop, image.shape[0] - rows.start)
        # From head to feet, as one reads a stack.
        chosen = covering_slices(areas, _AXIAL_SLICES if plane == "Axial" else 1)[::-1]
        distances = plane_spacing(spacing_mm, plane)
        views += [_View(plane, index, rows, columns, distances) for index in chosen]
    return views


def _frame(mask: NDArray[np.bool_], axis: int, margin: float) -> slice:
    """First to last slice with anything in it, widened; everything if there is nothing."""
    others = tuple(a for a in range(3) if a != axis)
    hits = np.flatnonzero(mask.any(axis=others))
    size = mask.shape[axis]
    if not len(hits):
        return slice(0, size)
    extra = round(margin)
    return slice(max(0, int(hits[0]) - extra), min(size, int(hits[-1]) + 1 + extra))


def _layout(views: Sequence[_View], *, entries: int) -> tuple[Any, list[Any], Any]:
    """A figure with axial slices above, reformats and the legend below, all at one scale.

    The lower row is as high as its pictures or the `entries` of the legend need it.
    """
    axial = [v for v in views if v.plane == "Axial"]
    below = [v for v in views if v.plane != "Axial"]
    gap, head, legend_mm = 6.0, 26.0, 150.0
    width = max(
        sum(v.size_mm[0] + gap for v in axial),
        sum(v.size_mm[0] + gap for v in below) + legend_mm,
    )
    # Room for the title does not shrink with the patient: a unit of the page, not of the body.
    page = width / 1000.0
    head *= page * 1.6
    columns = _legend_columns(entries)
    row_inches = 0.19 if columns == 1 else 0.14
    key_mm = (math.ceil(entries / columns) + 1) * row_inches * width / _INCHES
    rows = [max(v.size_mm[1] for v in axial), max(key_mm, *(v.size_mm[1] for v in below))]
    height = head + sum(rows) + 2 * gap
    figure = Figure(figsize=(_INCHES, _INCHES * height / width), dpi=110, facecolor="#101216")
    FigureCanvasAgg(figure)
    axes = []
    for row, top in ((axial, head), (below, head + rows[0] + gap)):
        left = gap / 2
        for view in row:
            w, h = view.size_mm
            box = (left / width, 1 - (top + h) / height, w / width, h / height)
            axes.append(figure.add_axes(box))
            left += w + gap
    key_left = left / width
    key = figure.add_axes((key_left, gap / height, 1 - key_left, rows[1] / height))
    key.set_axis_off()
    return figure, axes, key


def _draw_view(ax: Any, view: _View, image: NDArray[np.int16], window: tuple[float, float]) -> None:
    width, height = view.size_mm
    ax.imshow(
        view.cut(image), cmap="gray", vmin=window[0], vmax=window[1], interpolation="bilinear",
        extent=(0, width, height, 0), aspect="auto",
    )  # fmt: skip
    ax.set_axis_off()
    left, right, top, bottom = tuple(_SIDES[view.plane])
    text = {
        "color": "#ffd666", "fontsize": 8, "transform": ax.transAxes, "path_effects": _STROKE
    }  # fmt: skip
    ax.text(0.01, 0.5, left, ha="left", va="center", **text)
    ax.text(0.99, 0.5, right, ha="right", va="center", **text)
    ax.text(0.5, 0.99, top, ha="center", va="top", **text)
    ax.text(0.5, 0.01, bottom, ha="center", va="bottom", **text)
    text["color"] = "#d5d9dd"
    ax.text(0.012, 0.988, f"{view.plane} {view.index + 1}", ha="left", va="top", **text)


def _draw_contour(
    ax: Any,
    view: _View,
    label_map: NDArray[np.integer[Any]] | None,
    label: LabelLike,
    *,
    dashed: bool,
) -> None:
    if label_map is None:
        return
    mask = view.cut(label_map) == label.value
    if not mask.any():
        return
    # A rim of nothing closes contours that run along the edge of the picture.
    field = np.pad(mask.astype(np.float32), 1)
    rows_mm, columns_mm = view.spacing_mm
    x = (np.arange(field.shape[1]) - 0.5) * columns_mm
    y = (np.arange(field.shape[0]) - 0.5) * rows_mm
    lines = ax.contour(
        x, y, field, levels=[0.5], colors=[_line_color(label, dashed=dashed)],
        linewidths=1.5, linestyles=[(0, (2.2, 2.2))] if dashed else "solid",
    )  # fmt: skip
    lines.set_path_effects(_HALO)
    ax.set_xlim(0, view.size_mm[0])
    ax.set_ylim(view.size_mm[1], 0)


def _line_color(label: LabelLike, *, dashed: bool) -> tuple[float, ...]:
    """The colour of the label, brighter for the dashed line so that it shows on the solid one."""
    color = np.asarray(label.color, dtype=float) / 255.0
    return tuple(float(c) for c in (color * 0.6 + 0.4 if dashed else color))


def _draw_scale_bar(ax: Any, view: _View) -> None:
    width, height = view.size_mm
    length = next((n for n in (100, 50, 20, 10, 5, 2) if n <= width / 3), 1)
    x, y = width * 0.97, height * 0.955
    ax.plot([x - length, x], [y, y], color="white", linewidth=2, solid_capstyle="butt")
    ax.text(x - length / 2, y - height * 0.02, f"{length} mm", color="white", fontsize=8,
            ha="center", va="bottom", path_effects=_STROKE)  # fmt: skip


def _draw_legend(ax: Any, labels: Sequence[LabelLike], *, has: tuple[bool, bool]) -> None:
    """Names and colours of what is shown, and which line is which."""
    styles = [
        Line2D([], [], color="#e8eaec", linewidth=1.6, linestyle=style, label=name)
        for name, style, there in (
            ("reference", (0, (2.2, 2.2)), has[0]),
            ("prediction", "solid", has[1]),
        )
        if there
    ]
    names = [
        Line2D([], [], color=_line_color(label, dashed=False), linewidth=4, label=label.name)
        for label in labels
    ]
    handles = styles + names
    columns = _legend_columns(len(handles))
    ax.legend(
        handles=handles, loc="center left", frameon=False, labelcolor="#e8eaec",
        fontsize=9 if columns == 1 else 6, ncols=columns, handlelength=2.2 if columns == 1 else 1.2,
        columnspacing=1.0,
    )  # fmt: skip


def _legend_columns(entries: int) -> int:
    return 1 if entries <= 16 else 2 if entries <= 60 else 3
