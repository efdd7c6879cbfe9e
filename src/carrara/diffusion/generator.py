"""The diffusion generator: a denoiser with the way it is sampled, as one of the families behind `Generator`."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType
from typing import Annotated, ClassVar

from torch import Tensor, nn

from carrara.config import Configured, Role
from carrara.diffusion.denoiser import Denoiser
from carrara.diffusion.edit import Editing, edit
from carrara.diffusion.guidance import ClassifierFree, Guidance, guide
from carrara.diffusion.number import Number, numbered
from carrara.diffusion.sampler import Sampler, ddim
from carrara.diffusion.times import Grid, Times, uniform
from carrara.rng import Rng
from carrara.types import Condition, Rounds, Space

__all__ = ["DiffusionGenerator", "SamplingSettings"]


@dataclass(frozen=True)
class SamplingSettings:
    """How a diffusion model is sampled: the algorithm, the grid of times, the guidance, and how a picture is edited."""

    sampler: Sampler = field(default=functools.partial(ddim))
    times: Grid = field(default=functools.partial(uniform, steps=50))
    guidance: Guidance = field(default_factory=ClassifierFree)
    editing: Editing = field(default_factory=Editing)


class DiffusionGenerator(Configured, nn.Module):
    """Makes z of `space` from noise under a condition; `reads` is the space of the text encoder it was trained with.

    `conditions` are what it is told beside text, each by a picture of its name (`carrara.conditions`); `numbers` are
    told as they are, or follow from the size of z.
    """

    inputs: ClassVar[tuple[str, ...]] = ("image", "mask")

    def __init__(
        self,
        denoiser: Denoiser,
        space: Space,
        *,
        reads: Space | None = None,
        settings: SamplingSettings = SamplingSettings(),
        conditions: tuple[Annotated[nn.Module, Role("input")], ...] = (),
        numbers: tuple[Number, ...] = (),
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.space = space
        self.reads = reads
        self.settings = settings
        self.conditions = nn.ModuleList(conditions)
        self.numbers = numbers

    def times(self, settings: SamplingSettings | None = None) -> Times:
        """The grid that a sampling with these settings walks."""
        chosen = settings or self.settings
        return tuple(chosen.times(self.denoiser.process.schedule))

    def strides(self, settings: SamplingSettings | None = None, inputs: Collection[str] = ()) -> int:
        """How many strides from noise to data a sampling with these settings and inputs makes."""
        times, chosen = self.times(settings), settings or self.settings
        visited = chosen.editing.visits(times, "mask" in inputs) if "image" in inputs else times
        return sum(s < t for t, s in pairwise(visited))

    def start(
        self,
        shape: Sequence[int],
        condition: Condition,
        null: Condition,
        rng: Rng,
        settings: SamplingSettings | None = None,
        inputs: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> Rounds:
        """A sampling of one z of `shape` (without the batch) for each stream of the rng.

        With the input "image", a z (B, ...), that is sampled anew as `settings.editing` says, and with "mask"
        (B, 1, ...) only where the mask is true.
        """
        chosen = settings or self.settings
        process, times = self.denoiser.process, self.times(chosen)
        device = next(self.denoiser.parameters()).device
        noise, steps = rng.fork("prior").normal(shape).to(device), rng.fork("steps")
        given = {name: tensor.to(device) for name, tensor in inputs.items()}
        if self.numbers:
            rows = len(noise)
            condition = numbered(condition, self.numbers, shape, rows)
            null = numbered(null, self.numbers, shape, rows, null=True)
        if "image" in given:
            sampling = edit(
                process,
                given["image"],
                noise,
                times,
                sampler=chosen.sampler,
                editing=chosen.editing,
                rng=steps,
                mask=given.get("mask"),
            )
        else:
            sampling = chosen.sampler(process, process.prior_std(times[0]) * noise, times, rng=steps)
        z = yield from guide(sampling, chosen.guidance, self.denoiser, condition, null)
        return z
