"""Commands about methods and weights: `methods`, `describe` and `convert`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from backend.cli.options import OptionalName, Settings, Switch
from backend.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Methods:
    """Options of `backend methods`."""

    json: Switch = False
    """Print JSON for programs."""
    baselines: Switch = False
    """List the networks instead that are only trained from scratch, to compare with."""
    measure: Switch = False
    """Measure time and memory of a step of each tiny preset on this machine (about a minute)."""

    def run(self) -> None:
        """List."""
        from backend import describe

        describe.show_methods(as_json=self.json, baselines=self.baselines, measure=self.measure)


@dataclass(frozen=True, kw_only=True)
class Describe:
    """Options of `backend describe`."""

    method: OptionalName = None
    """Pretext method or network, see `backend methods`."""
    preset: OptionalName = None
    """Settings of the method. Left out: its first preset."""
    diff: Annotated[tuple[str, str] | None, arg(metavar="A B", help_behavior_hint="")] = None
    """Tell the settings in which two differ, each METHOD, METHOD/PRESET or a run folder."""
    json: Switch = False
    """Print JSON for programs."""
    measure: Switch = False
    """Take a few real steps on this machine, for time and memory."""
    overrides: Settings = ()
    """One setting over the preset, e.g. --set train.batch_size=4; may be repeated."""

    def run(self) -> None:
        """Describe."""
        from backend import describe

        if self.diff is not None:
            if self.method or self.preset or self.overrides or self.measure:
                raise UserError(
                    "--diff compares two recipes as they are.",
                    "Leave out --method, --preset, --set and --measure; name presets so: "
                    "--diff smit/tiny mip/tiny.",
                )
            describe.show_difference(*self.diff, as_json=self.json)
            return
        if self.method is None:
            raise UserError("No method was given.", "Add --method smit, or --diff smit mip.")
        describe.show_description(
            method=self.method,
            preset=self.preset,
            overrides=self.overrides,
            as_json=self.json,
            measure=self.measure,
        )


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Options of `backend convert`."""

    file: Annotated[Positional[Path], arg(metavar="FILE")]
    """Weights as published (.pt, .pth or .safetensors)."""
    source: Annotated[Literal["smit", "monai"], arg(name="from")]
    """Where they come from."""
    output: Path
    """The .safetensors file to write."""
    merging: Literal["merging", "mergingv2", "merging_before_1_5"] = "merging"
    """How MONAI's network merged patches, which its weights do not tell."""
    approximate: Switch = False
    """Also convert what our encoder cannot be exactly (merging_before_1_5)."""
    overwrite: Switch = False
    """Replace the output if it exists."""

    def run(self) -> None:
        """Convert."""
        from backend import convert

        convert.run(
            self.file,
            source=self.source,
            output=self.output,
            overwrite=self.overwrite,
            merging=self.merging,
            approximate=self.approximate,
        )
