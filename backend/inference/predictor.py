"""A fine-tuned network with all it needs to label a scan on the scan's own grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from backend.data.intensity import clipped_moments
from backend.data.labels import Label
from backend.data.preprocess import Recipe, preprocess
from backend.errors import ResourceError, is_out_of_memory
from backend.geometry import Index3, Volume, index3, vec3
from backend.inference.regrid import labels_on_grid
from backend.inference.sliding import Precision, Progress, Sliding, stream_logits, windows_at_once
from backend.inference.structures import header_labels, require_segmentation
from backend.models.segmentation import build_segmentation
from backend.weights import (
    MODEL_FILES,
    WeightsHeader,
    load_into,
    load_weights,
    resolve_weights,
)

_DEVICE_SHARE = 0.5
"""Logits are summed on the device if they take at most this share of its free memory."""


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A segmentation network, ready on its device.

    Attributes:
        network: windows (b, 1, z, y, x) to logits (b, k, z, y, x); class 0 is background.
        header: of its weights: preprocessing, window size and labels.
        device: where the network lives.
        overlap: share of a window that the next one covers again.
        batch_size: windows per forward pass.
        precision: of the forward pass; "auto" is fp16 on CUDA (with windows that overflow computed
            again in fp32) and fp32 elsewhere.

    Example:
        predictor = load_predictor(Path("run"), device="cuda")
        labels = predictor.segment(read_volume([Path("ct.nii.gz")]))
    """

    network: nn.Module
    header: WeightsHeader
    device: torch.device
    overlap: float = 0.5
    batch_size: int = 1
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"

    @property
    def labels(self) -> tuple[Label, ...]:
        """The structures, in the order of the network's classes 1, 2, ..."""
        return header_labels(self.header)

    @property
    def recipe(self) -> Recipe:
        """How a scan is preprocessed for this network."""
        settings = self.header.preprocessing
        known = {"body_margin_mm", "body_threshold_hu", "version"} & settings.keys()
        return Recipe(
            spacing_mm=vec3(settings["spacing_mm"]),
            orientation=str(settings["orientation"]),
            **{name: settings[name] for name in known},
        )

    @property
    def window(self) -> Index3:
        """Edge lengths of a window in voxels (z, y, x)."""
        return index3(self.header.architecture["window"])

    def segment(
        self,
        volume: Volume,
        *,
        should_stop: Callable[[], bool] | None = None,
        progress: Progress | None = None,
    ) -> Volume:
        """Label values on the volume's own grid, voxel for voxel.

        Args:
            volume: CT in HU, any orientation, spacing and size.
            should_stop: asked before every forward pass.
            progress: told `(windows done, windows in all)`.

        Returns:
            uint8, or int16 where a label value exceeds 255; 0 is background.

        Raises:
            Cancelled: when `should_stop` says so.
            ResourceError: if memory does not suffice.
            UserError: if network and labels do not belong together.
        """
        values = (0, *(label.value for label in self.labels))
        with told_as_resource_error(self.batch_size, self.device):
            prepared = preprocess(volume, self.recipe)
            geometry = prepared.geometry
            seen = intensity_tensor(prepared.voxels, self.header.preprocessing)
            del prepared  # its voxels are not needed any more
            sliding = self._sliding(geometry.size, classes=len(values))
            slabs = stream_logits(
                self.network,
                seen.image,
                replace(sliding, air=seen.air),
                classes=len(values),
                should_stop=should_stop,
                progress=progress,
            )
            return labels_on_grid(
                slabs,
                from_geometry=geometry,
                to_geometry=volume.geometry,
                values=values,
            )

    def _sliding(self, size: Index3, *, classes: int) -> Sliding:
        # A row of windows, its finished slab and the windows of a batch live at the same time.
        plane = max(size[1], self.window[1]) * max(size[2], self.window[2])
        voxels = self.window[0] * plane + self.batch_size * int(np.prod(self.window))
        return Sliding(
            window=self.window,
            overlap=self.overlap,
            batch_size=self.batch_size,
            device=self.device,
            accumulate_on=accumulation_device(self.device, 4 * classes * voxels),
            precision=self._precision(),
        )

    def _precision(self) -> Precision:
        if self.precision == "auto":
            return "fp16" if self.device.type == "cuda" else "fp32"
        return self.precision


def load_predictor(path: Path, *, device: str) -> Predictor:
    """The predictor of a weights file or run folder.

    Args:
        path: a .safetensors file of a segmentation network, or the run folder that made it.
        device: a torch device, e.g. "cpu" or "cuda:1".

    Raises:
        UserError: if there are no such weights, or they do not fill the network completely.
    """
    file = resolve_weights(path, prefer=MODEL_FILES)
    tensors, header = load_weights(file)
    require_segmentation(header, file)
    # Sketched first: a header that describes another network is refused before memory is taken.
    with torch.device("meta"):
        sketch = build_segmentation(header.architecture)
    load_into(sketch, tensors, minimum_share=1.0, what=str(file))
    network = build_segmentation(header.architecture)
    load_into(network, tensors, minimum_share=1.0, what=str(file))
    place = torch.device(device)
    with told_as_resource_error(1, place):
        predictor = Predictor(network=network.eval().to(place), header=header, device=place)
    return replace(predictor, batch_size=windows_at_once(predictor.window, place))


class Seen(NamedTuple):
    """A scan as the network sees it.

    Attributes:
        image: its values, (1, z, y, x).
        air: the value of air, than which nothing is darker.
    """

    image: Float[Tensor, "1 z y x"]
    air: float


def intensity_tensor(hu: NDArray[np.generic], settings: Mapping[str, Any]) -> Seen:
    """A preprocessed scan as the network sees it.

    Args:
        hu: Hounsfield units (z, y, x).
        settings: `hu_window` (low, high), values beyond are clipped, and `intensity`: "window"
            brings it to 0..1, "zscore" gives the scan mean 0 and deviation 1.
    """
    low, high = settings["hu_window"]
    voxels = np.ascontiguousarray(hu, dtype=np.int16)
    shift, scale = low, high - low
    if settings["intensity"] == "zscore":
        mean, deviation = clipped_moments(voxels, (low, high))
        shift, scale = mean, max(deviation, 1.0)
    values = torch.from_numpy(voxels).float().clamp_(low, high).sub_(shift).div_(scale)
    # By the same arithmetic, so that air is equal to it and not close.
    air = torch.tensor(float(low)).sub_(shift).div_(scale)
    return Seen(values[None], float(air))


def accumulation_device(device: torch.device, needed_bytes: int) -> torch.device:
    """The device itself if its memory holds the sums with ease, else the CPU."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if needed_bytes <= _DEVICE_SHARE * free:
            return device
    return torch.device("cpu")


@contextmanager
def told_as_resource_error(batch_size: int, device: torch.device) -> Iterator[None]:
    """Turn any way of running out of memory into an error that says what to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        cure = f"Lower the batch size (now {batch_size})" if batch_size > 1 else "Close others"
        if device.type != "cpu":
            cure += " or use --device cpu"
        raise ResourceError(f"Out of memory on {device} while segmenting.", f"{cure}.") from error
