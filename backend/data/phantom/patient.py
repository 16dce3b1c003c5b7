"""Who is scanned and how: the random draw that makes every phantom another patient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from backend.geometry import Vec3

Phase = Literal["native", "arterial", "portal", "late"]

PHASES: tuple[Phase, ...] = ("native", "arterial", "portal", "late")
_PHASE_SHARES = (0.2, 0.15, 0.45, 0.2)

# Mean Hounsfield units at 120 kV: native, arterial, portal venous, late.
_ENHANCEMENT: dict[str, tuple[float, float, float, float]] = {
    "liver": (56, 66, 104, 86),
    "spleen": (50, 112, 116, 88),
    "cortex": (36, 172, 168, 128),
    "medulla": (32, 74, 138, 134),
    "aorta": (42, 290, 150, 108),
    "vein": (42, 80, 136, 108),
    "portal": (42, 96, 156, 112),
    "hepatic": (42, 66, 142, 110),
    "pancreas": (42, 98, 90, 74),
    "bowel_wall": (40, 84, 80, 68),
    "muscle": (54, 58, 63, 62),
    "heart": (42, 210, 140, 108),
}


@dataclass(frozen=True, kw_only=True)
class Difficulty:
    """How hard the organs are to segment; 1 everywhere is an ordinary patient.

    Attributes:
        contrast: share of each soft organ's difference to muscle that is kept.
        shape: factor on the spread of size, place and deformation between patients.
        organ_size: factor on the size of liver, spleen, kidneys, stomach and gallbladder.
        noise: factor on the image noise.
        texture: factor on the organs' own textures.
        crowding: factor on the number of bowel loops, which lie higher where there are more.
    """

    contrast: float = 1.0
    shape: float = 1.0
    organ_size: float = 1.0
    noise: float = 1.0
    texture: float = 1.0
    crowding: float = 1.0

    @classmethod
    def of(cls, level: float) -> Difficulty:
        """A level from 0, an ordinary patient, to 1, where even people must look twice.

        All factors change evenly with the level, so that one number orders phantoms by how hard
        they are.

        Raises:
            ValueError: if the level is below 0 or above 1.
        """
        if not 0 <= level <= 1:
            raise ValueError(f"difficulty is {level}, but must lie in [0, 1]")
        factors = {name: 1 + level * (hard - 1) for name, hard in _HARDEST.items()}
        return cls(**factors)

    def __post_init__(self) -> None:
        """Refuse factors that make no image."""
        for name in ("contrast", "shape", "noise", "texture", "crowding"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, but must not be negative")
        if not 0.3 <= self.organ_size <= 1.3:
            raise ValueError(f"organ_size is {self.organ_size}, but must lie in [0.3, 1.3]")


_HARDEST = {"contrast": 0.25, "shape": 2.2, "organ_size": 0.7, "noise": 2.2, "crowding": 3.0}
"""The factors at level 1; an organ then differs from muscle by less than the noise."""


@dataclass(frozen=True, kw_only=True)
class Patient:
    """One draw: body size, fat, contrast phase, tissue densities and the scan's noise.

    Attributes:
        scale: size relative to the reference body along (x, y, z).
        fat_mm: thickness of subcutaneous fat at the flank.
        visceral: share of the room between the organs that fat fills instead of bowel.
        bend_mm: standard deviation of the smooth deformation.
        phase: contrast phase.
        hu: mean density per tissue.
        noise_hu: standard deviation of the noise in the centre of the body.
        kernel_mm: standard deviation of the reconstruction kernel in the plane.
        oral_contrast: whether the bowel is opacified.
    """

    scale: Vec3
    fat_mm: float
    visceral: float
    bend_mm: float
    phase: Phase
    hu: dict[str, float]
    noise_hu: float
    kernel_mm: float
    oral_contrast: bool
    difficulty: Difficulty

    def faded(self, hu: float) -> float:
        """A density that is drawn with an organ, as near to muscle as the difficulty asks for."""
        return hu + (1 - self.difficulty.contrast) * (self.hu["muscle"] - hu)


def draw_patient(
    rng: np.random.Generator, *, difficulty: Difficulty, phase: Phase | None
) -> Patient:
    """Draw a patient; the phase is drawn as well unless it is given."""
    chosen = PHASES[int(rng.choice(len(PHASES), p=_PHASE_SHARES))]
    phase = chosen if phase is None else phase
    frame = 1.0 + difficulty.shape * rng.normal(0, 0.035)
    spread = difficulty.shape * rng.normal(0, 0.035, size=3)
    fat = float(np.clip(rng.lognormal(np.log(17), 0.45), 6, 36))
    return Patient(
        scale=(
            float(np.clip(frame + spread[0], 0.88, 1.12)),
            float(np.clip(frame + spread[1], 0.86, 1.14)),
            float(np.clip(frame + spread[2], 0.88, 1.12)),
        ),
        fat_mm=fat,
        visceral=float(np.clip((fat - 6) / 20 + rng.normal(0, 0.15), 0, 1)),
        bend_mm=2.6 * difficulty.shape,
        phase=phase,
        hu=_densities(rng, phase=phase, contrast=difficulty.contrast),
        noise_hu=difficulty.noise * float(rng.uniform(11, 20)),
        kernel_mm=float(rng.uniform(0.8, 1.4)),
        oral_contrast=bool(rng.random() < 0.25),
        difficulty=difficulty,
    )


def _densities(rng: np.random.Generator, *, phase: Phase, contrast: float) -> dict[str, float]:
    column = PHASES.index(phase)
    # Timing and heart shift all enhancement of one patient together; each organ adds its own.
    timing = rng.normal(1.0, 0.08)
    hu = {
        tissue: row[0] + (row[column] - row[0]) * timing * rng.normal(1.0, 0.05)
        for tissue, row in _ENHANCEMENT.items()
    }
    fatty = rng.random() < 0.3
    hu["liver"] += -rng.uniform(5, 35) if fatty else rng.normal(0, 4)
    muscle = hu["muscle"]
    soft = set(_ENHANCEMENT) - {"aorta", "vein", "heart", "muscle"}
    return {
        tissue: float(muscle + contrast * (value - muscle) if tissue in soft else value)
        for tissue, value in hu.items()
    }
