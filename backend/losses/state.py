"""State of a loss that moves on once a step, whatever parts the step's batch was cut into."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import nn


class StepState(nn.Module, ABC):
    """Observes during a step, and takes in what was observed when the step is done."""

    @abstractmethod
    def update(self) -> None:
        """Take in what was observed since the last update, on all processes."""

    def forget(self) -> None:
        """Drop what was observed since the last update and is kept elsewhere than in buffers.

        For a step that is made again; buffers are put back by whoever makes it.
        """
