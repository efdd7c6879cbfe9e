r"""Training: predict the noise (DDPM Algorithm 1), in whichever parameterization, weight and distribution of times.

    draw t, draw noise, x_t = alpha_t x + sigma_t noise,  loss = weight(t) |F(x_t) - F*(x, noise)|^2  (mean over pixels)

A weight multiplies the error of the raw output F. With Delta = x - x_hat, |F - F*|^2 = |Delta|^2 / out^2; so a weight
that is stated for x, as min-SNR is, becomes that weight times out^2 and means the same for every parameterization.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from carrara.diffusion.denoiser import Denoiser
from carrara.diffusion.parameterization import Parameterization
from carrara.diffusion.process import Process, like
from carrara.diffusion.schedule import Tabulated
from carrara.rng import Rng
from carrara.types import Condition

__all__ = [
    "DenoisingLoss",
    "LogNormal",
    "LogitNormal",
    "MinSNR",
    "Steps",
    "TimeDistribution",
    "Uniform",
    "Unit",
    "Weight",
]


class TimeDistribution(ABC):
    """Where training looks: a distribution over t."""

    @abstractmethod
    def __call__(self, process: Process, rng: Rng) -> Tensor:
        """One time a stream of the rng: (B,) float64. Continuous ones stay within [t_min, t_max] of the schedule."""


@dataclass(frozen=True)
class Steps(TimeDistribution):
    """The T steps of a table, uniformly: t = i/T with i in 1..T (DDPM Algorithm 1, line 3).

    t = 1 is drawn even where alpha is 0 there: samplers begin at it, so it has to be learned (Lin et al. 2024).
    """

    steps: int = 1000

    def __call__(self, process: Process, rng: Rng) -> Tensor:
        schedule = process.schedule
        if isinstance(schedule, Tabulated) and schedule.steps % self.steps:
            raise ValueError(
                f"steps = {self.steps} of a table of {schedule.steps}; expected {schedule.steps} or a divisor"
            )
        return (rng.integers(self.steps) + 1).double() / self.steps


@dataclass(frozen=True)
class Uniform(TimeDistribution):
    """Uniform on [t_min, t_max]."""

    def __call__(self, process: Process, rng: Rng) -> Tensor:
        low, high = process.schedule.t_min, process.schedule.t_max
        return low + (high - low) * rng.uniform()


@dataclass(frozen=True)
class LogNormal(TimeDistribution):
    """EDM's: log(sigma/alpha) is normal (Karras et al. 2022: mean -1.2, std 1.2)."""

    mean: float = -1.2
    std: float = 1.2

    def __call__(self, process: Process, rng: Rng) -> Tensor:
        log_ratio = self.mean + self.std * rng.normal(()).double()
        return process.schedule.time(-2 * log_ratio)


@dataclass(frozen=True)
class LogitNormal(TimeDistribution):
    """SD3's: logit(t) is normal (Esser et al. 2024)."""

    mean: float = 0.0
    std: float = 1.0

    def __call__(self, process: Process, rng: Rng) -> Tensor:
        t = 1 / (1 + torch.exp(-self.mean - self.std * rng.normal(()).double()))
        return t.clamp(process.schedule.t_min, process.schedule.t_max)


class Weight(ABC):
    """How much an error of F at time t counts."""

    @abstractmethod
    def __call__(self, process: Process, parameterization: Parameterization, t: Tensor) -> Tensor:
        """(B,) float64, for |F - F*|^2."""


@dataclass(frozen=True)
class Unit(Weight):
    """1: DDPM's L_simple with Epsilon, EDM's weighting with Karras, plain flow matching with Flow."""

    def __call__(self, process: Process, parameterization: Parameterization, t: Tensor) -> Tensor:
        return torch.ones(len(t), dtype=torch.float64)


@dataclass(frozen=True)
class MinSNR(Weight):
    """min(SNR, gamma) on the error in x, in every parameterization (Hang et al. 2023)."""

    gamma: float = 5.0

    def __call__(self, process: Process, parameterization: Parameterization, t: Tensor) -> Tensor:
        alpha, sigma = process.schedule(t)
        out = torch.as_tensor(parameterization(alpha, sigma).out, dtype=torch.float64)
        return ((alpha / sigma) ** 2).clamp(max=self.gamma) * out**2


@dataclass(frozen=True)
class DenoisingLoss:
    """DDPM Algorithm 1."""

    draw: TimeDistribution
    weight: Weight = Unit()

    def __call__(self, denoiser: Denoiser, x: Tensor, condition: Condition, rng: Rng) -> Tensor:
        """The loss of each row of x: (B,). Times and noise of row i depend on the rng's stream i alone."""
        t = self.draw(denoiser.process, rng.fork("time"))
        return self.at(denoiser, x, condition, rng.fork("noise").normal_like(x), t)

    def at(self, denoiser: Denoiser, x: Tensor, condition: Condition, noise: Tensor, t: Tensor) -> Tensor:
        """The loss of each row at given times (B,) and noise: for measuring by noise level."""
        prediction = denoiser.predict(x, noise, t, condition)
        error = (prediction.output - prediction.target).square().flatten(1).mean(1)
        weight: Tensor = like(self.weight(denoiser.process, denoiser.parameterization, t), error)
        return weight * error
