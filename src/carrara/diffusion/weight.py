r"""How much an error at time t counts. Each weight is stated as its paper states it, and converted once:

    |F - F*|^2 = |x - x_hat|^2 / out^2,      |noise - noise_hat|^2 = SNR |x - x_hat|^2

so a weight w on the error in x is w out^2 on that of the raw output F, and one on the error in the noise w SNR out^2:
the same lesson in every parameterization.

    Unit                              1, on F itself: L_simple with Epsilon, EDM's weighting with Karras
    MinSNR, TruncatedSNR, EDMWeight   on the error in x:      min(SNR, g), max(SNR, 1), SNR + 1/sigma_data^2
    P2, SigmoidWeight                 on that in the noise:   1/(k + SNR)^g, sigmoid(bias - logsnr)
    PerLogSNR                         another weight, as density over the log-SNR rather than over t
    Uncertainty                       another weight, divided by a learned size of the loss
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from carrara.config import Configured
from carrara.diffusion.parameterization import Parameterization
from carrara.diffusion.process import Process, like

__all__ = [
    "DataWeight",
    "EDMWeight",
    "MinSNR",
    "NoiseWeight",
    "P2",
    "PerLogSNR",
    "SigmoidWeight",
    "TruncatedSNR",
    "Uncertainty",
    "Unit",
    "Weight",
    "of_data",
    "of_noise",
]


def of_data(process: Process, parameterization: Parameterization, t: Tensor) -> Tensor:
    """out^2: |x - x_hat|^2 over |F - F*|^2, (B,) float64."""
    out = torch.as_tensor(parameterization(*process.schedule(t)).out, dtype=torch.float64)
    return out.expand(len(t)) ** 2


def of_noise(process: Process, parameterization: Parameterization, t: Tensor) -> Tensor:
    """SNR out^2: |noise - noise_hat|^2 over |F - F*|^2, (B,) float64."""
    alpha, sigma = process.schedule(t)
    out = torch.as_tensor(parameterization(alpha, sigma).out, dtype=torch.float64)
    return (alpha / sigma * out) ** 2


class Weight(ABC):
    """How much an error of F at time t counts."""

    @abstractmethod
    def __call__(self, process: Process, parameterization: Parameterization, t: Tensor) -> Tensor:
        """(B,) float64, for |F - F*|^2."""

    def weigh(self, error: Tensor, process: Process, parameterization: Parameterization, t: Tensor) -> Tensor:
        """The loss of each row, from |F - F*|^2 averaged over its pixels (B,)."""
        weighed: Tensor = like(self(process, parameterization, t), error) * error
        return weighed


class DataWeight(Weight):
    """A weight that is stated for |x - x_hat|^2."""

    @abstractmethod
    def on_data(self, snr: Tensor) -> Tensor:
        """The weight at a signal-to-noise ratio alpha^2 / sigma^2 >= 0, float64."""

    def __call__(self, process: Process, parameterization: Parameterization, t: Tensor) -> Tensor:
        return self.on_data(_snr(process, t)) * of_data(process, parameterization, t)


class NoiseWeight(Weight):
    """A weight that is stated for |noise - noise_hat|^2."""

    @abstractmethod
    def on_noise(self, snr: Tensor) -> Tensor:
        """The weight at a signal-to-noise ratio alpha^2 / sigma^2 >= 0, float64."""

    def __call__(self, process: Process, parameterization: Parameterization, t: Tensor) -> Tensor:
        return self.on_noise(_snr(process, t)) * of_noise(process, parameterization, t)


def _snr(process: Process, t: Tensor) -> Tensor:
    alpha, sigma = process.schedule(t)
    return (alpha / sigma) ** 2


@dataclass(frozen=True)
class Unit(Weight):
    """1: DDPM's L_simple with Epsilon, EDM's weighting with Karras, plain flow matching with Flow."""

    def __call__(self, process: Process, parameterization: Parameterization, t: Tensor) -> Tensor:
        return torch.ones(len(t), dtype=torch.float64)


@dataclass(frozen=True)
class MinSNR(DataWeight):
    """min(SNR, gamma) on the error in x, in every parameterization (Hang et al. 2023)."""

    gamma: float = 5.0

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise ValueError(f"gamma = {self.gamma}; expected a positive largest weight")

    def on_data(self, snr: Tensor) -> Tensor:
        return snr.clamp(max=self.gamma)


@dataclass(frozen=True)
class TruncatedSNR(DataWeight):
    """max(SNR, 1) on the error in x (Salimans & Ho 2022, section 4)."""

    def on_data(self, snr: Tensor) -> Tensor:
        return snr.clamp(min=1)


@dataclass(frozen=True)
class EDMWeight(DataWeight):
    """(s^2 + sigma_data^2) / (s sigma_data)^2 on the error in x, where s = sigma / alpha (Karras et al. 2022).

    With Karras(sigma_data) it is Unit.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if not self.sigma_data > 0:
            raise ValueError(f"sigma_data = {self.sigma_data}; expected the data's standard deviation, about 0.5")

    def on_data(self, snr: Tensor) -> Tensor:
        return snr + 1 / self.sigma_data**2


@dataclass(frozen=True)
class P2(NoiseWeight):
    """1 / (k + SNR)^gamma on the error in the noise (Choi et al. 2022): less for details that nobody sees."""

    k: float = 1.0
    gamma: float = 1.0

    def __post_init__(self) -> None:
        if not (self.k > 0 and self.gamma >= 0):
            raise ValueError(f"k = {self.k}, gamma = {self.gamma}; expected k > 0 and gamma >= 0, 0 for none")

    def on_noise(self, snr: Tensor) -> Tensor:
        return (self.k + snr) ** -self.gamma


@dataclass(frozen=True)
class SigmoidWeight(NoiseWeight):
    """sigmoid(bias - logsnr) on the error in the noise (Kingma & Gao 2023; Hoogeboom et al. 2024).

    The papers integrate it over the log-SNR: that is PerLogSNR(SigmoidWeight(bias)).
    """

    bias: float = 0.0

    def on_noise(self, snr: Tensor) -> Tensor:
        return 1 / (1 + snr * math.exp(-self.bias))


@dataclass(frozen=True)
class PerLogSNR(Weight):
    """-1/2 dlogsnr/dt times another weight: with uniform t, an integral over the log-SNR (Kingma & Gao 2023, eq. 2).

    Of a NoiseWeight of 1 that is the variational bound. At t = 1 of a table without data there, the last finite slope.
    """

    inner: Weight = SigmoidWeight()

    def __post_init__(self) -> None:
        if isinstance(self.inner, Uncertainty):
            raise ValueError("a learned uncertainty goes around another weight, not within one")

    def __call__(self, process: Process, parameterization: Parameterization, t: Tensor) -> Tensor:
        schedule = process.schedule
        slope = schedule.slope(t.to("cpu", torch.float64).clamp(schedule.t_min, schedule.t_max))
        return -slope / 2 * self.inner(process, parameterization, t)


class Uncertainty(Configured, nn.Module, Weight):
    r"""Another weight's loss L, divided by its learned size: exp(-u(t)) L + u(t)  (Karras et al. 2024, eq. 21).

    u is linear in waves of the log-SNR and begins at 0; its parameters train beside the network, and at the optimum
    exp(u(t)) is the mean of L at t, so that every noise level counts the same.
    """

    def __init__(self, *, inner: Weight = EDMWeight(), waves: int = 128) -> None:
        super().__init__()
        if isinstance(inner, Uncertainty) or waves < 2:
            raise ValueError(f"inner {type(inner).__name__}, {waves} waves; expected a plain weight, at least 2 waves")
        self.inner = inner
        self.waves = waves
        self.coefficients = nn.Parameter(torch.zeros(waves))
        self.constant = nn.Parameter(torch.zeros(1))

    def size(self, process: Process, t: Tensor) -> Tensor:
        """u(t): (B,) float64, differentiable in the parameters."""
        schedule, device = process.schedule, self.coefficients.device
        level = schedule.logsnr(t.to("cpu", torch.float64).clamp(schedule.t_min, schedule.t_max)) / -8  # EDM's c_noise
        shares = (torch.arange(self.waves, dtype=torch.float64, device="cpu") + 0.5) / self.waves
        turns = torch.special.ndtri(shares) * level[:, None] + (shares * self.waves * 0.6180339887498949) % 1
        features = math.sqrt(2) * torch.cos(2 * math.pi * turns)
        return (features.to(device) @ self.coefficients.double() + self.constant.double()).cpu()

    def __call__(self, process: Process, parameterization: Parameterization, t: Tensor) -> Tensor:
        return torch.exp(-self.size(process, t)) * self.inner(process, parameterization, t)

    def weigh(self, error: Tensor, process: Process, parameterization: Parameterization, t: Tensor) -> Tensor:
        size: Tensor = like(self.size(process, t), error)
        return torch.exp(-size) * self.inner.weigh(error, process, parameterization, t) + size
