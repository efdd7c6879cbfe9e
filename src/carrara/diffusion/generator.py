"""The diffusion generator: a denoiser with the way it is sampled, as one of the families behind `Generator`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from carrara.config import Configured
from carrara.diffusion.denoiser import Denoiser
from carrara.diffusion.guidance import ClassifierFree, Guidance, guide
from carrara.diffusion.sampler import Sampler, ddim
from carrara.diffusion.times import Grid, Times, uniform
from carrara.rng import Rng
from carrara.types import Condition, Rounds, Space

__all__ = ["DiffusionGenerator", "SamplingSettings"]


@dataclass(frozen=True)
class SamplingSettings:
    """How a diffusion model is sampled: the algorithm, the grid of times, the guidance."""

    sampler: Sampler = field(default=functools.partial(ddim))
    times: Grid = field(default=functools.partial(uniform, steps=50))
    guidance: Guidance = field(default_factory=ClassifierFree)


class DiffusionGenerator(Configured, nn.Module):
    """Makes z of `space` from noise under a condition; `reads` is the space of the text encoder it was trained with."""

    def __init__(
        self,
        denoiser: Denoiser,
        space: Space,
        *,
        reads: Space | None = None,
        settings: SamplingSettings = SamplingSettings(),
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.space = space
        self.reads = reads
        self.settings = settings

    def times(self, settings: SamplingSettings | None = None) -> Times:
        """The grid that a sampling with these settings walks."""
        chosen = settings or self.settings
        return tuple(chosen.times(self.denoiser.process.schedule))

    def start(
        self,
        shape: Sequence[int],
        condition: Condition,
        null: Condition,
        rng: Rng,
        settings: SamplingSettings | None = None,
    ) -> Rounds:
        """A sampling of one z of `shape` (without the batch) for each stream of the rng."""
        chosen = settings or self.settings
        process, times = self.denoiser.process, self.times(chosen)
        device = next(self.denoiser.parameters()).device
        noise = rng.fork("prior").normal(shape).to(device)
        sampling = chosen.sampler(process, process.prior_std(times[0]) * noise, times, rng=rng.fork("steps"))
        z = yield from guide(sampling, chosen.guidance, self.denoiser, condition, null)
        return z
