"""A scheduler of diffusers as Carrara's own objects: what its one class holds, taken apart.

    found = read_scheduler("model/scheduler/scheduler_config.json")
    denoiser = found.denoiser(network)              # its schedule, its parameterization and the number it is told
    settings = found.settings(25)                   # the sampler, the grid of 25 steps, and clipping where it clips

diffusers' timestep i, from 0 to T - 1, is the table's entry i + 1 here, t = (i + 1)/T; where its state is x / alpha,
here it is x. What is the same to rounding, and where it differs and why, is in docs/foreign-schedulers.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from carrara.diffusion.denoiser import Denoiser
from carrara.diffusion.edit import Editing
from carrara.diffusion.generator import SamplingSettings
from carrara.diffusion.guidance import Guidance, Plain, Wrapper
from carrara.diffusion.parameterization import Level, Parameterization
from carrara.diffusion.process import Process
from carrara.diffusion.sampler import Sampler
from carrara.diffusion.schedule import Schedule
from carrara.diffusion.times import Grid
from carrara.errors import RecipeError
from carrara.store.diffusers.spacing import Spacing

__all__ = ["ForeignScheduler", "noise_prior", "read_scheduler", "total_prior", "translate", "unit_prior"]

Prior = Callable[[float, float], float]


def unit_prior(alpha: float, sigma: float) -> float:
    """1, whatever the time that is begun at."""
    return 1.0


def noise_prior(alpha: float, sigma: float) -> float:
    """sigma: the data's part is left out."""
    return sigma


def total_prior(alpha: float, sigma: float) -> float:
    """sqrt(alpha^2 + sigma^2): that of x_t for data of std 1."""
    return float((alpha**2 + sigma**2) ** 0.5)


@dataclass(frozen=True)
class ForeignScheduler:
    """One scheduler of diffusers, translated.

    `prior` says what std diffusers gives the noise it begins with; Carrara's generator begins with 1, or sigma where
    larger, which is `prior_std` to about a thousandth. `ignored` are keys of other classes that the file holds.
    """

    name: str
    schedule: Schedule
    parameterization: Parameterization
    level: Level
    spacing: Spacing
    sampler: Sampler
    limit: Wrapper | None = None
    learned_variance: bool = False
    prior: Prior = unit_prior
    ignored: tuple[str, ...] = field(default=(), compare=False)

    @property
    def process(self) -> Process:
        """The diffusion that the network was trained for."""
        return Process(self.schedule)

    def times(
        self, steps: int, *, tokens: int | None = None, mu: float | None = None, sigmas: tuple[float, ...] | None = None
    ) -> Grid:
        """The grid that diffusers walks in so many steps.

        Where the shift depends on the picture's size, it needs `tokens` (of FLUX: height times width of the latent over
        4) or a `mu`. `sigmas` are those that a pipeline hands in before any shift, as FLUX's does:
        tuple(1 - i / steps for i in range(steps)). Raises ValueError for what this scheduler does not take.
        """
        return self.spacing(steps, tokens=tokens, mu=mu, sigmas=sigmas)

    def prior_std(self, steps: int, **size: Any) -> float:
        """The standard deviation of the noise that diffusers begins a sampling of so many steps with."""
        first = self.times(steps, **size)(self.schedule)[0]
        return self.prior(*self.schedule(first))

    def guidance(self, inner: Guidance = Plain()) -> Guidance:  # noqa: B008 - frozen
        """The guidance, with this scheduler's clipping or thresholding around it."""
        return inner if self.limit is None else replace(self.limit, inner=inner)

    def denoiser(self, network: nn.Module) -> Denoiser:
        """The network F, read as this scheduler reads it."""
        return Denoiser(
            network, self.process, self.parameterization, self.level, learned_variance=self.learned_variance
        )

    def settings(self, steps: int, guidance: Guidance = Plain(), **size: Any) -> SamplingSettings:  # noqa: B008
        """How diffusers samples in so many steps, as a `DiffusionGenerator` takes it; what a mask keeps is held."""
        return SamplingSettings(
            self.sampler, self.times(steps, **size), self.guidance(guidance), Editing(resamplings=0)
        )


def translate(config: Mapping[str, Any]) -> ForeignScheduler:
    """The scheduler that a configuration describes.

    A key that is missing has diffusers' default. Raises RecipeError, in one sentence that names it, for a class or a
    setting that has no counterpart, for a value that is none, and for a key that no scheduler has.
    """
    from carrara.store.diffusers.classes import CLASSES
    from carrara.store.diffusers.keys import REFUSED, Keys

    name = config.get("_class_name")
    if not isinstance(name, str):
        raise RecipeError('a scheduler\'s configuration has no "_class_name"; expected one, such as "DDIMScheduler"')
    name = name.removeprefix("Flax")
    if name not in CLASSES:
        why = REFUSED.get(name, "no such class is known")
        raise RecipeError(f"{name} is not read: {why}. These are: {', '.join(sorted(CLASSES))}")
    keys = Keys(name, config)
    found = CLASSES[name](keys)
    found = replace(found, ignored=keys.finish())
    try:
        found.parameterization.check(found.process)
        found.level.check(found.process)
    except ValueError as error:
        raise RecipeError(f"{name}: {error}") from None
    return found


def read_scheduler(path: Path | str) -> ForeignScheduler:
    """The scheduler of a scheduler_config.json, or of a folder with one. Raises RecipeError as `translate` does."""
    path = Path(path)
    file = path / "scheduler_config.json" if path.is_dir() else path
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{file} cannot be read as a scheduler's configuration: {error}") from None
    if not isinstance(config, dict):
        raise RecipeError(f"{file} holds {type(config).__name__}, expected a table of keys")
    return translate(config)
