r"""Training: predict the noise (DDPM Algorithm 1), in whichever parameterization, weight and distribution of times.

    draw t, draw noise, x_t = alpha_t x + sigma_t noise,  loss = weight(t) |F(x_t) - F*(x, noise)|^2  (mean over pixels)

`Objective` is what any training of a denoiser minimises; those that contain the variational bound are in `bound.py`.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor, nn

from carrara.diffusion.denoiser import Denoiser
from carrara.diffusion.draw import TimeDistribution
from carrara.diffusion.schedule import Tabulated
from carrara.diffusion.weight import Unit, Weight
from carrara.rng import Rng
from carrara.types import Condition

__all__ = ["DenoisingLoss", "Objective", "check_draw", "check_fixed", "parts"]

Part = TypeVar("Part")


class Objective(ABC):
    """What a training minimises: a loss a row, which may hold learned weights and remembering draws."""

    @abstractmethod
    def __call__(self, denoiser: Denoiser, x: Tensor, condition: Condition, rng: Rng) -> Tensor:
        """The loss of each row of x: (B,). Times and noise of row i depend on the rng's stream i alone."""

    def check(self, denoiser: Denoiser) -> None:  # noqa: B027 - most have nothing to check
        """Raises ValueError for a denoiser that cannot be trained so, or not all of it."""

    @property
    def grey_levels(self) -> int | None:
        """How many grey levels the data must have in [-1, 1]; None where any data will do."""
        return None


@dataclass(frozen=True)
class DenoisingLoss(Objective):
    """DDPM Algorithm 1."""

    draw: TimeDistribution
    weight: Weight = Unit()  # noqa: RUF009 - frozen

    def __call__(self, denoiser: Denoiser, x: Tensor, condition: Condition, rng: Rng) -> Tensor:
        """The loss of each row of x: (B,). Times and noise of row i depend on the rng's stream i alone."""
        t = self.draw(denoiser.process, rng.fork("time"))
        loss = self.at(denoiser, x, condition, rng.fork("noise").normal_like(x), t)
        return self.draw.counted(rng, t, loss)

    def at(self, denoiser: Denoiser, x: Tensor, condition: Condition, noise: Tensor, t: Tensor) -> Tensor:
        """The loss of each row at given times (B,) and noise: for measuring by noise level."""
        prediction = denoiser.predict(x, noise, t, condition)
        error = (prediction.output - prediction.target).square().flatten(1).mean(1)
        return self.weight.weigh(error, denoiser.process, denoiser.parameterization, t)

    def check(self, denoiser: Denoiser) -> None:
        if denoiser.learned_variance:
            raise ValueError("a denoising loss teaches a learned variance nothing; use HybridLoss, or leave it out")
        check_fixed(denoiser)
        if isinstance(schedule := denoiser.process.schedule, Tabulated) and self.draw.count is not None:
            check_draw(self.draw, schedule.steps)


def check_draw(draw: TimeDistribution, steps: int) -> None:
    """Raises ValueError for a distribution over anything but `steps` steps: some would never be taught."""
    if draw.count != steps:
        given = "a continuum of times" if draw.count is None else f"{draw.count} steps"
        raise ValueError(f"{type(draw).__name__} draws {given}, and there are {steps}; give Steps({steps})")


def check_fixed(denoiser: Denoiser) -> None:
    """Raises ValueError for a schedule that learns: any loss but the bound teaches it to make the task easy."""
    schedule = denoiser.process.schedule
    if isinstance(schedule, nn.Module) and any(p.requires_grad for p in schedule.parameters()):
        raise ValueError("a learned schedule learns from the bound in continuous time alone; use ContinuousBoundLoss")


def parts(value: object, kind: type[Part], name: str = "") -> Iterator[tuple[str, Part]]:
    """Everything of a kind within an objective, by the names of the fields that lead there: `simple_weight`, say."""
    if isinstance(value, kind):
        yield name, value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from parts(getattr(value, field.name), kind, f"{name}_{field.name}" if name else field.name)
