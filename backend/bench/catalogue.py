"""What `backend bench` measures and what is asked of it. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Size = Literal["smallest", "default", "full"]
"""smallest: for tests. default: two processor cores end in minutes. full: sizes of real work."""
Kind = Literal["cpu", "gpu"]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """One way to meet what is asked of a row: everything that is not None holds.

    Attributes:
        ratio: the peer's time over ours is at least this.
        memory_ratio: our memory over the peer's is at most this.
        memory_mib: our memory is at most this.
    """

    ratio: float | None = None
    memory_ratio: float | None = None
    memory_mib: float | None = None

    def text(self) -> str:
        """The goal in a few words."""
        parts = []
        if self.ratio is not None:
            parts.append(f">= {self.ratio:g}")
        if self.memory_ratio is not None:
            parts.append(f"memory <= {self.memory_ratio:g}")
        if self.memory_mib is not None:
            parts.append(f"< {self.memory_mib / 1024:g} GiB")
        return ", ".join(parts)

    def met(self, measured: dict[str, Any]) -> bool:
        """Whether a measured row meets it; what was not measured meets nothing."""
        memory = measured.get("memory") or {}
        # 1: the more, the better; -1: the less.
        asked = (
            (self.ratio, measured.get("ratio"), 1),
            (self.memory_ratio, memory.get("ratio"), -1),
            (self.memory_mib, memory.get("ours"), -1),
        )
        return all(
            wanted is None or (value is not None and sign * value >= sign * wanted)
            for wanted, value, sign in asked
        )


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table.

    Attributes:
        number: of the goal, with a letter where it has several parts.
        name: by which it is asked for.
        path: what of ours is measured.
        peer: what it is measured against.
        cpu: ways to meet the goal on two processor cores; empty where there is none.
        gpu: likewise on one GPU.
        cost_s: about how long it takes on two cores at its default size: for the time left.
    """

    number: str
    name: str
    path: str
    peer: str
    cpu: tuple[Goal, ...] = ()
    gpu: tuple[Goal, ...] = ()
    cost_s: float = 10.0

    def goals(self, kind: Kind) -> tuple[Goal, ...]:
        """Ways to meet the goal on one kind of device."""
        return self.cpu if kind == "cpu" else self.gpu


ROWS: tuple[Row, ...] = (
    Row(
        number="1",
        name="smit",
        path="SMIT step",
        peer="plain step as released",
        cpu=(Goal(ratio=1.1), Goal(ratio=1.0, memory_ratio=0.5)),
        gpu=(Goal(ratio=4.0),),
        cost_s=90,
    ),
    Row(
        number="2",
        name="glmae",
        path="GL-MAE step",
        peer="all tokens, explicit attention",
        cpu=(Goal(ratio=1.6, memory_ratio=0.35),),
        gpu=(Goal(ratio=3.0),),
        cost_s=120,
    ),
    Row(
        number="3",
        name="mae",
        path="masked autoencoder step",
        peer="MONAI MaskedAutoEncoderViT",
        cpu=(Goal(ratio=1.15, memory_ratio=0.4),),
        gpu=(Goal(ratio=1.5),),
        cost_s=40,
    ),
    Row(
        number="4",
        name="pgl",
        path="PGL step",
        peer="the same on MONAI's resnet50",
        cpu=(Goal(ratio=1.0),),
        gpu=(Goal(ratio=2.5),),
        cost_s=60,
    ),
    Row(
        number="5",
        name="trio",
        path="Swin UNETR's three tasks",
        peer="MONAI's network, step as published",
        cpu=(Goal(ratio=1.75),),
        gpu=(Goal(ratio=3.0),),
        cost_s=120,
    ),
    Row(
        number="6",
        name="tail",
        path="optimizer and teacher",
        peer="AdamW default, loop over weights",
        cpu=(Goal(ratio=4.0),),
        gpu=(Goal(ratio=4.0),),
        cost_s=15,
    ),
    Row(
        number="7",
        name="preprocess",
        path="preprocessing of a scan",
        peer="MONAI's transforms",
        cpu=(Goal(ratio=5.0),),
        cost_s=60,
    ),
    Row(
        number="8a",
        name="sample",
        path="training sample, host work",
        peer="SMIT's transforms from the file",
        cpu=(Goal(ratio=1000.0),),
        cost_s=60,
    ),
    Row(
        number="8b",
        name="sample_plain",
        path="the same, plain cache",
        peer="SMIT's transforms from the file",
        cpu=(Goal(ratio=1000.0),),
        cost_s=60,
    ),
    Row(
        number="9a",
        name="crop",
        path="crop of 96³ from the cache",
        peer="MONAI, volume in memory",
        cpu=(Goal(ratio=0.9, memory_ratio=0.4),),
        cost_s=20,
    ),
    Row(
        number="9b",
        name="crop_plain",
        path="the same, plain cache",
        peer="MONAI, volume in memory",
        cpu=(Goal(ratio=3.5),),
        cost_s=20,
    ),
    Row(
        number="10a",
        name="geometry",
        path="views: crop, resize, flip",
        peer="MONAI, sample by sample",
        cpu=(Goal(ratio=1.0),),
        gpu=(Goal(ratio=20.0),),
        cost_s=15,
    ),
    Row(
        number="10b",
        name="intensity",
        path="views: noise, blur, contrast",
        peer="MONAI, sample by sample",
        cpu=(Goal(ratio=1.8),),
        gpu=(Goal(ratio=20.0),),
        cost_s=15,
    ),
    Row(
        number="11",
        name="segment",
        path="segmenting a scan, 14 classes",
        peer="MONAI sliding window, inverse",
        cpu=(Goal(ratio=3.0, memory_ratio=0.1),),
        gpu=(Goal(ratio=2.0),),
        cost_s=150,
    ),
    Row(
        number="12",
        name="classes105",
        path="segmenting a scan, 105 classes",
        peer="MONAI (90 GiB, modelled)",
        cpu=(Goal(memory_mib=6 * 1024),),
        gpu=(Goal(memory_mib=12 * 1024),),
        cost_s=100,
    ),
    Row(
        number="13",
        name="worker",
        path="second request to the worker",
        peer="`segment` anew",
        cpu=(Goal(ratio=10.0),),
        cost_s=60,
    ),
    Row(
        number="14",
        name="help",
        path="`backend --help`",
        peer="`python -c pass`",
        cpu=(Goal(ratio=0.2),),
        cost_s=5,
    ),
    Row(
        number="15",
        name="ranks",
        path="two ranks",
        peer="one rank, same global batch",
        cpu=(Goal(ratio=1.6),),
        gpu=(Goal(ratio=1.84),),
        cost_s=60,
    ),
)
