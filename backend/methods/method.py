"""What every pretext method is to the loop, to the pictures and to the description."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from backend.losses.state import StepState
from backend.losses.terms import Losses
from backend.methods.teacher import follow
from backend.schedules import cosine
from backend.views.crops import View, ViewSet


class Reconstruction(NamedTuple):
    """Pictures of what a method makes of a view.

    Attributes:
        image: what should come out, (b, 1, z, y, x).
        hidden: true where a voxel was hidden or spoilt, (b, z, y, x).
        prediction: what came out, (b, 1, z, y, x).
        shown: what the network saw, (b, 1, z, y, x); None: the image without what is hidden.
    """

    image: Tensor
    hidden: Tensor
    prediction: Tensor
    shown: Tensor | None = None


class Method(nn.Module, ABC):
    """A pretext task: networks, and losses of views.

    It knows nothing of files, loops or processes: it is told views and how far the run is.

    Attributes:
        epochs: length of the run, to which schedules told in epochs refer.
        ema_momentum: of the teacher, at the first and the last step; half a cosine between.
        healthy: bounds (low, high) of monitors by name; outside of them for long, the features
            collapse.
        student: what learns and has a teacher; None where there is none.
        teacher: the moving average of `student`; stays in evaluation mode.
    """

    healthy: Mapping[str, tuple[float, float]] = MappingProxyType({})
    student: nn.Module | None
    teacher: nn.Module | None

    def __init__(self, *, epochs: float, ema_momentum: tuple[float, float] = (1.0, 1.0)) -> None:
        super().__init__()
        self.epochs = epochs
        self.ema_momentum = ema_momentum
        self.register_module("student", None)
        self.register_module("teacher", None)

    @property
    @abstractmethod
    def encoder(self) -> nn.Module:
        """The network that is kept after pretraining."""

    @property
    @abstractmethod
    def parts(self) -> dict[str, nn.Module]:
        """What learns, by name: the encoder first, then what is dropped after pretraining."""

    @abstractmethod
    def forward(self, views: ViewSet, progress: float) -> Losses:
        """Losses of a batch; `progress` in [0, 1] tells how far the run is."""

    def settings(self, progress: float) -> dict[str, float]:  # noqa: ARG002 - most have none
        """What changes over the run, by the name it has in the record."""
        return {}

    def after_backward(self, progress: float) -> None:
        """Called when all gradients of a step are there, before clipping."""

    @torch.no_grad()
    def after_step(self, progress: float) -> dict[str, float]:
        """Move on what follows the student: the teacher, and states such as centres and queues.

        Called after the optimiser; `progress` counts the step just made.

        Returns what was used for it, for the record.
        """
        used = {}
        if self.teacher is not None and self.student is not None:
            used["ema_momentum"] = cosine(*self.ema_momentum, progress)
            follow(self.teacher, self.student, used["ema_momentum"])
        for module in self.modules():
            if isinstance(module, StepState):
                module.update()
        return used

    def reconstruct(self, view: View) -> Reconstruction | None:  # noqa: ARG002 - see below
        """What the method predicts for a view in evaluation mode; None if it predicts no voxels."""
        return None

    def train(self, mode: bool = True) -> Method:
        """As for any module, but a teacher stays in evaluation mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    @torch.no_grad()
    def restart_teacher(self) -> None:
        """Make the teacher equal to the student, after weights were loaded into that one."""
        if self.teacher is not None and self.student is not None:
            follow(self.teacher, self.student, momentum=0.0)
