r"""Parameterizations: what the raw network F is taken to say, as coefficients (Karras et al. 2022, eq. 7).

    E[x | x_t] = skip x_t + out F(scale x_t, level)

and the closed-form target that makes it true, linear in (x, noise): F* = of_x x + of_noise noise. The target never
recovers the noise from x_t, which fails in float32 near t = 0. With n each row's own:

                skip            out             F*
    Epsilon     1/alpha         -sigma/alpha    noise                                      (DDPM eq. 14)
    X0          0               1               x
    V           alpha/n         -sigma/n        alpha noise - sigma x                      n = alpha^2 + sigma^2
    Flow        1/n             -sigma/n        noise - x                                  n = alpha + sigma
    Karras(d)   alpha d^2/n     sigma d/sqrt n  (sigma x - alpha d^2 noise) / (d sqrt n)   n = alpha^2 d^2 + sigma^2
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from carrara.diffusion.process import Process, Scale, like
from carrara.diffusion.schedule import Tabulated

__all__ = [
    "Coefficients",
    "Epsilon",
    "Flow",
    "IntegerStep",
    "Karras",
    "Level",
    "LogSigma",
    "Parameterization",
    "ScaledTime",
    "V",
    "X0",
]


class Coefficients(NamedTuple):
    """How F becomes an estimate, and what F should have said; floats or float64 tensors (B,)."""

    skip: Scale
    out: Scale
    of_x: Scale
    of_noise: Scale
    scale: Scale = 1.0

    def estimate(self, x_t: Tensor, output: Tensor) -> Tensor:
        """E[x | x_t] from the raw output F."""
        mean: Tensor = like(self.skip, x_t) * x_t + like(self.out, x_t) * output
        return mean

    def target(self, x: Tensor, noise: Tensor) -> Tensor:
        """F*, what F says when it is right about this x and this noise."""
        target: Tensor = like(self.of_x, x) * x + like(self.of_noise, x) * noise
        return target

    def output(self, x_t: Tensor, mean: Tensor) -> Tensor:
        """The raw output F that would have given the estimate `mean`."""
        output: Tensor = (mean - like(self.skip, x_t) * x_t) / like(self.out, x_t)
        return output


class Parameterization(ABC):
    """What the network predicts."""

    @abstractmethod
    def __call__(self, alpha: Scale, sigma: Scale) -> Coefficients:
        """The coefficients at (alpha_t, sigma_t)."""

    def check(self, process: Process) -> None:  # noqa: B027 - most have nothing to check
        """Raises ValueError when this cannot be trained on this process."""


@dataclass(frozen=True)
class Epsilon(Parameterization):
    """F is the noise: DDPM's own choice."""

    def __call__(self, alpha: Scale, sigma: Scale) -> Coefficients:
        return Coefficients(1 / alpha, -sigma / alpha, 0.0, 1.0)

    def check(self, process: Process) -> None:
        alpha, _ = process.schedule(1.0)
        if alpha < 1e-6:
            raise ValueError(
                f"predicting the noise says nothing about x where alpha is {alpha:.1g}, as it is here at t = 1; "
                "use V, X0 or Flow"
            )


@dataclass(frozen=True)
class X0(Parameterization):
    """F is the clean picture."""

    def __call__(self, alpha: Scale, sigma: Scale) -> Coefficients:
        return Coefficients(0.0, 1.0, 1.0, 0.0)


@dataclass(frozen=True)
class V(Parameterization):
    """F is the velocity alpha noise - sigma x (Salimans & Ho 2022)."""

    def __call__(self, alpha: Scale, sigma: Scale) -> Coefficients:
        n = alpha * alpha + sigma * sigma
        return Coefficients(alpha / n, -sigma / n, -sigma, alpha)


@dataclass(frozen=True)
class Flow(Parameterization):
    """F is noise - x, the velocity of the straight line (Lipman et al. 2023; SD3, FLUX)."""

    def __call__(self, alpha: Scale, sigma: Scale) -> Coefficients:
        n = alpha + sigma
        return Coefficients(1 / n, -sigma / n, -1.0, 1.0)


@dataclass(frozen=True)
class Karras(Parameterization):
    """EDM's preconditioning: input and target of unit variance at every level, for data of std `sigma_data`."""

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if not self.sigma_data > 0:
            raise ValueError(f"sigma_data = {self.sigma_data}; expected the data's standard deviation, about 0.5")

    def __call__(self, alpha: Scale, sigma: Scale) -> Coefficients:
        d = self.sigma_data
        n = alpha * alpha * d**2 + sigma * sigma
        root = _root(n)
        return Coefficients(alpha * d**2 / n, sigma * d / root, sigma / (d * root), -alpha * d / root, 1 / root)


def _root(n: Scale) -> Any:
    # not math.sqrt, whose last bit can differ from PyTorch's: rows that share a time are rounded as all others
    return n.sqrt() if isinstance(n, Tensor) else torch.tensor(n, dtype=torch.float64, device="cpu").sqrt().item()


class Level(ABC):
    """The number by which the network is told how noisy its input is."""

    @abstractmethod
    def __call__(self, process: Process, t: Tensor) -> Tensor:
        """t (B,) float64 -> level (B,) float64."""

    def check(self, process: Process) -> None:  # noqa: B027 - most have nothing to check
        """Raises ValueError when this says nothing sensible of this process."""


@dataclass(frozen=True)
class IntegerStep(Level):
    """DDPM's step index t T - 1, from 0 to T - 1, for a schedule of T steps (fractions between entries)."""

    steps: int = 1000

    def __call__(self, process: Process, t: Tensor) -> Tensor:
        return t * self.steps - 1

    def check(self, process: Process) -> None:
        schedule = process.schedule
        if isinstance(schedule, Tabulated) and schedule.steps != self.steps:
            raise ValueError(
                f"the level counts {self.steps} steps and the schedule's table has {schedule.steps}; "
                f"use IntegerStep({schedule.steps})"
            )


@dataclass(frozen=True)
class LogSigma(Level):
    """EDM's c_noise: log(sigma / alpha) / 4."""

    def __call__(self, process: Process, t: Tensor) -> Tensor:
        return process.schedule.logsnr(t.clamp(process.schedule.t_min, process.schedule.t_max)) / -8


@dataclass(frozen=True)
class ScaledTime(Level):
    """Time itself, scaled to what sinusoidal embeddings resolve: `scale` t."""

    scale: float = 1000.0

    def __call__(self, process: Process, t: Tensor) -> Tensor:
        return t * self.scale
