"""What a pretraining run shows of itself: pictures, and errors on scans it never learns from."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody uses
from numpy.typing import NDArray
from torch import Tensor

from backend.engine.record import RunFolder
from backend.geometry import Geometry
from backend.losses.reconstruction import masked_l1
from backend.methods.method import Reconstruction
from backend.models.encoder import feature_maps
from backend.pretext import PretrainTask, Reader, collated
from backend.previews import columns_png, triptych_png, write_preview_volumes
from backend.probe import effective_rank
from backend.views.crops import Regions, View, ViewSet


class _Errors(NamedTuple):
    """Mean absolute errors on hidden voxels: as predicted, and filled with the visible mean."""

    predicted: float
    filled: float


class _Seen(NamedTuple):
    """What was measured of a scan: the cells (n, c) of its coarsest map, errors if any."""

    cells: Tensor
    errors: _Errors | None


class Watcher:
    """Looks at the same scans again and again.

    Args:
        task: what is trained.
        reader: gives the scans that are looked at.
        folder: the run.
        measured: whether they are held out, so that errors on them say something.
    """

    def __init__(
        self, task: PretrainTask, reader: Reader, *, folder: RunFolder, measured: bool
    ) -> None:
        self._task = task
        self._reader = reader
        self._folder = folder
        self._measured = measured

    @torch.no_grad()
    def look(self, step: int) -> dict[str, float]:
        """Draw the first scan and, where scans are held out, measure on them."""
        self._task.module.eval()
        try:
            count = len(self._reader.volumes) if self._measured else 1
            seen = [self._see(sample, step) for sample in range(count)]
        finally:
            self._task.module.train()
        if not self._measured:
            return {}
        record = {"probe/feature_rank": effective_rank(torch.cat([s.cells for s in seen]))}
        errors = [s.errors for s in seen if s.errors is not None]
        if errors:
            predicted, filled = (sum(column) / len(errors) for column in zip(*errors, strict=True))
            record["probe/held_out_error"] = predicted
            # What one gets without learning: hidden voxels take the mean of the visible ones.
            record["probe/held_out_error_of_mean"] = filled
        return record

    def _see(self, number: int, step: int) -> _Seen:
        sample, start = self._reader.middle(number)
        regions = collated([sample], seed=self._reader.seed)
        views = self._task.views(regions, plain=True)
        view = views.main[0]
        seen = self._task.module.reconstruct(view)
        features = feature_maps(self._task.module.encoder, view.image)[-1]
        if number == 0:
            geometry = view_geometry(
                self._reader.volumes[0].geometry.cropped(start, sample.hu.shape), view
            )
            if seen is None:
                self._draw_features(views, features, regions, geometry, step)
            else:
                self._draw(seen, regions, geometry, step)
        cells = features[0].flatten(1).T
        return _Seen(cells, None if seen is None else _errors(seen))

    def _draw(self, seen: Reconstruction, regions: Regions, geometry: Geometry, step: int) -> None:
        image = self._grey(seen.image, regions)
        hidden = seen.hidden[0].cpu().numpy()
        prediction = self._grey(seen.prediction, regions)
        spoilt = None if seen.shown is None else self._grey(seen.shown, regions)
        triptych_png(
            self._folder.previews / f"step_{step:06d}.png",
            inputs=image,
            hidden=hidden,
            spoilt=spoilt,
            reconstruction=prediction,
            spacing_mm=geometry.spacing_mm,
            title=self._title(step),
        )
        masked = np.where(hidden, 0.0, image).astype(np.float32) if spoilt is None else spoilt
        shown = {"input": image, "masked": masked, "reconstruction": prediction}
        self._write(shown, geometry, step)

    def _draw_features(
        self, views: ViewSet, features: Tensor, regions: Regions, geometry: Geometry, step: int
    ) -> None:
        """Without a reconstruction: two views, and what the encoder tells apart in the first."""
        first = self._grey(views.main[0].image, regions)
        columns = {"View 1": first}
        if len(views.main) > 1:
            columns["View 2"] = self._grey(views.main[1].image, regions)
        columns["Features of view 1"] = principal_component(features, first.shape)
        columns_png(
            self._folder.previews / f"step_{step:06d}.png",
            columns,
            spacing_mm=geometry.spacing_mm,
            title=self._title(step),
            note="Features: first principal component of the encoder's coarsest map.",
        )
        self._write({"input": first, "features": columns["Features of view 1"]}, geometry, step)

    def _title(self, step: int) -> str:
        return f"Step {step}, scan {'not ' if self._measured else ''}trained on"

    def _grey(self, image: Tensor, regions: Regions) -> NDArray[np.float32]:
        """The first sample as (z, y, x), the HU window at 0 and 1."""
        settings = self._task.preprocess
        values = image[0, 0].float().cpu()
        if settings.intensity == "zscore":
            low, high = settings.hu_window
            mean, deviation = regions.moments[0].tolist()
            values = (values * max(deviation, 1.0) + mean - low) / (high - low)
        grey: NDArray[np.float32] = values.clamp(0, 1).numpy()
        return grey

    def _write(
        self, volumes: dict[str, NDArray[np.float32]], geometry: Geometry, step: int
    ) -> None:
        write_preview_volumes(
            self._folder.previews,
            step,
            volumes,
            geometry=geometry,
            hu_window=self._task.preprocess.hu_window,
        )


def _errors(seen: Reconstruction) -> _Errors:
    hidden = seen.hidden
    # Where all or nothing is hidden, all voxels count, and the mean is that of all.
    if bool(hidden.all()) or not bool(hidden.any()):
        known, hidden = seen.image, torch.ones_like(hidden)
    else:
        known = seen.image[~hidden.unsqueeze(1)]
    return _Errors(
        float(masked_l1(seen.prediction, seen.image, hidden)),
        float(masked_l1(known.mean().expand_as(seen.image), seen.image, hidden)),
    )


def view_geometry(region: Geometry, view: View) -> Geometry:
    """The grid of the first sample's view, which is not mirrored, in the patient."""
    affine = view.affine[0].cpu().numpy()
    steps = affine.diagonal()[:3]
    z, y, x = (n * s for n, s in zip(steps, region.spacing_mm, strict=True))
    size = view.image.shape[2:]
    return Geometry(
        size=(size[0], size[1], size[2]),
        spacing_mm=(float(z), float(y), float(x)),
        origin_mm=region.world(affine[:3, 3].tolist()),
        direction=region.direction,
    )


def principal_component(features: Tensor, size: tuple[int, ...]) -> NDArray[np.float32]:
    """What varies most in a map (1, c, z, y, x), from 0 to 1, enlarged to `size`."""
    cells = features[0].float().flatten(1).T
    centred = cells - cells.mean(dim=0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    component = (centred @ directions[0]).view(1, 1, *features.shape[2:])
    # The sign of a component means nothing: bright is where the map is long.
    if float((component.flatten() * cells.norm(dim=1)).sum()) < 0:
        component = -component
    low, high = component.aminmax()
    scaled = (component - low) / (high - low).clamp(min=1e-12)
    large = F.interpolate(scaled, size=size, mode="trilinear", align_corners=False)
    grey: NDArray[np.float32] = large[0, 0].cpu().numpy()
    return grey
