"""Believable CT phantoms: invented patients for the demo, the tests and benchmarks."""

from backend.data.phantom.anatomy import LABELS
from backend.data.phantom.cohort import Cohort, CohortEntry, make_cohort
from backend.data.phantom.patient import PHASES, Difficulty, Phase
from backend.data.phantom.render import make_phantom, phantom_geometry, render

__all__ = [
    "LABELS",
    "PHASES",
    "Cohort",
    "CohortEntry",
    "Difficulty",
    "Phase",
    "make_cohort",
    "make_phantom",
    "phantom_geometry",
    "render",
]
