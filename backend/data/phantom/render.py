"""From a seed to a CT and its label map."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from backend.data.phantom.anatomy import paint_patient
from backend.data.phantom.canvas import Array, Canvas, Region, correlated_noise
from backend.data.phantom.patient import Difficulty, Patient, Phase, draw_patient
from backend.geometry import Geometry, Index3, Vec3, Volume, direction9, reoriented, vec3

SIZE: Index3 = (60, 128, 128)
SPACING_MM: Vec3 = (4.0, 3.0, 3.0)


def phantom_geometry(
    *,
    size: Index3 = SIZE,
    spacing_mm: Vec3 = SPACING_MM,
    orientation: str = "LPS",
    turn_deg: Vec3 = (0.0, 0.0, 0.0),
) -> Geometry:
    """A grid centred on the upper abdomen.

    Args:
        size: voxels along (z, y, x) before `orientation` reorders the axes.
        spacing_mm: millimetres along (z, y, x) before `orientation` reorders the axes.
        orientation: code of the array axes x, y, z, e.g. "LPS" or "RAS".
        turn_deg: turns about world x, y and z; anything but zero makes an oblique grid.
    """
    matrix = Rotation.from_euler("xyz", turn_deg, degrees=True).as_matrix()
    half = (np.array(size[::-1]) - 1) / 2 * np.array(spacing_mm[::-1])
    # A little above the middle of L1, so that lung bases and lower kidney poles are both seen;
    # backwards, so that the table is.
    origin = np.array([0.0, 6.0, 6.0]) - matrix @ half
    straight = Geometry(
        size=size,
        spacing_mm=spacing_mm,
        origin_mm=vec3(origin),
        direction=direction9(matrix.ravel().tolist()),
    )
    return straight if orientation == "LPS" else reoriented(straight, orientation)


def make_phantom(
    seed: int,
    *,
    spacing_mm: Vec3 = SPACING_MM,
    size: Index3 = SIZE,
    orientation: str = "LPS",
    turn_deg: Vec3 = (0.0, 0.0, 0.0),
    phase: Phase | None = None,
    difficulty: Difficulty | None = None,
) -> tuple[Volume, Volume]:
    """A CT of the upper abdomen and lung bases of an invented patient, and its labels.

    The seed alone decides on the patient: other grids show the same anatomy.

    Args:
        seed: which patient.
        spacing_mm: along (z, y, x) of the LPS grid.
        size: voxels along (z, y, x) of the LPS grid.
        orientation: code of the array axes x, y, z, e.g. "RAS".
        turn_deg: turns of the grid about world x, y, z.
        phase: contrast phase; drawn from the seed if not given.
        difficulty: how hard the organs are to tell apart; an ordinary patient if not given.

    Returns:
        CT (z, y, x) int16 Hounsfield units and labels (z, y, x) uint8 with the values of
        `LABELS`, on the same grid.
    """
    geometry = phantom_geometry(
        size=size, spacing_mm=spacing_mm, orientation=orientation, turn_deg=turn_deg
    )
    return render(geometry, seed=seed, phase=phase, difficulty=difficulty)


def render(
    geometry: Geometry,
    *,
    seed: int,
    phase: Phase | None = None,
    difficulty: Difficulty | None = None,
) -> tuple[Volume, Volume]:
    """The patient of this seed on any grid: see `make_phantom`."""
    # Separate streams: what depends on the grid (noise) must not shift what does not (anatomy).
    who, where, what, grain = (
        np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(4)
    )
    patient = draw_patient(who, difficulty=difficulty or Difficulty(), phase=phase)
    canvas = Canvas(geometry, where, scale=patient.scale, bend_mm=patient.bend_mm)
    body = paint_patient(canvas, patient, what)
    hu = _scanned(canvas, patient, body, grain)
    return Volume(hu, geometry), Volume(canvas.labels, geometry)


def _scanned(
    canvas: Canvas, patient: Patient, body: Region, rng: np.random.Generator
) -> np.typing.NDArray[np.int16]:
    """What the scanner makes of the painted densities: kernel, noise, whole numbers."""
    spacing = np.asarray(canvas.geometry.spacing_mm)
    blurred: Array = gaussian_filter(canvas.hu, sigma=tuple(patient.kernel_mm / spacing))
    grain = correlated_noise(canvas.hu.shape, rng, 1.3 * patient.kernel_mm / spacing)
    # Fewer photons reach the middle of the body, so it is noisier than its rim and the air.
    depth = np.clip(-body.distance / 95.0, 0.0, 1.0)
    blurred += grain * np.float32(patient.noise_hu) * (0.45 + 0.55 * depth)
    return np.clip(np.rint(blurred), -1024, 3071).astype(np.int16)
