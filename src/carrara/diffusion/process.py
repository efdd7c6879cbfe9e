r"""The forward process and its exact reversals, all in closed form in (alpha, sigma) at two times s < t.

    q(x_t | x)       = N(alpha_t x, sigma_t^2 I)                                         DDPM eq. 4
    q(x_t | x_s)     = N(a x_s, v I),     a = alpha_t / alpha_s,  v = sigma_t^2 - a^2 sigma_s^2   DDPM eq. 2
    q(x_s | x_t, x)  = N((a sigma_s^2 x_t + alpha_s v x) / sigma_t^2,  v sigma_s^2 / sigma_t^2)    DDPM eqs. 6, 7
    p(x_s | x_t)     = the posterior with E[x | x_t] in the place of x                    DDPM eq. 1

DDPM's q(x_t | x_{t-1}) is the case s = t - 1/T. Coefficients are float64 and are cast where they meet a tensor.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from carrara.diffusion.schedule import Schedule
from carrara.types import Estimate, Gaussian

__all__ = ["Given", "Learned", "Posterior", "Process", "Scale", "Transition", "Variance", "like"]

Scale = float | Tensor
"""A coefficient: a float when all rows share a time, a float64 tensor (B,) when each has its own."""


def like(coefficient: Scale, x: Tensor) -> Any:
    """A coefficient ready to multiply x: floats as they are, (B,) tensors in x's type, shaped (B, 1, ...)."""
    if isinstance(coefficient, Tensor):
        return coefficient.to(x.device, x.dtype).view(-1, *[1] * (x.ndim - 1))
    return coefficient


class Variance(ABC):
    """The variance that a reverse step adds, out of the two bounds of the true one (DDPM section 3.2)."""

    @abstractmethod
    def __call__(self, posterior: Scale, transition: Scale, estimate: Estimate, t: Scale, s: Scale) -> Scale | Tensor:
        """The variance, given that of q(x_s | x_t, x) and that of q(x_t | x_s)."""


@dataclass(frozen=True)
class Posterior(Variance):
    """The lower bound, right for data at one point: that of q(x_s | x_t, x), DDPM's tilde beta."""

    def __call__(self, posterior: Scale, transition: Scale, estimate: Estimate, t: Scale, s: Scale) -> Scale:
        return posterior


@dataclass(frozen=True)
class Transition(Variance):
    """The upper bound, right for data N(0, I): that of q(x_t | x_s), DDPM's beta."""

    def __call__(self, posterior: Scale, transition: Scale, estimate: Estimate, t: Scale, s: Scale) -> Scale:
        return transition


@dataclass(frozen=True)
class Learned(Variance):
    """Between the bounds, log-linear in the network's `mix` (iDDPM eq. 15): 0 posterior, 1 transition; unclamped."""

    def __call__(self, posterior: Scale, transition: Scale, estimate: Estimate, t: Scale, s: Scale) -> Tensor:
        if estimate.mix is None:
            raise ValueError(
                "a learned variance was asked for, but the denoiser has none; build it with learned_variance"
            )
        low, high = (_log(like(bound, estimate.mean)) for bound in (posterior, transition))
        return torch.exp(estimate.mix * high + (1 - estimate.mix) * low)


@dataclass(frozen=True)
class Given(Variance):
    """One's own function of (t, s)."""

    function: Callable[[Scale, Scale], Scale]

    def __call__(self, posterior: Scale, transition: Scale, estimate: Estimate, t: Scale, s: Scale) -> Scale:
        return self.function(t, s)


def _log(bound: Any) -> Any:
    # the posterior's variance is 0 at s = 0, where nothing is drawn
    return bound.clamp(min=1e-38).log() if isinstance(bound, Tensor) else math.log(max(bound, 1e-38))


@dataclass(frozen=True)
class Process:
    """The Gaussian diffusion of a schedule. Times are floats, or tensors (B,) with one for each row."""

    schedule: Schedule

    def prior_std(self, t: float = 1.0) -> float:
        """The standard deviation of the noise that sampling begins with at t: 1, or sigma_t where larger (VE)."""
        return max(1.0, self.schedule(t)[1])

    def marginal(self, x: Tensor, t: Scale) -> Gaussian:
        """q(x_t | x), the forward process in one step (DDPM eq. 4)."""
        alpha_t, sigma_t = self.schedule(t)
        return Gaussian(like(alpha_t, x) * x, like(sigma_t**2, x))

    def diffuse(self, x: Tensor, t: Scale, noise: Tensor) -> Tensor:
        """x_t = alpha_t x + sigma_t noise."""
        alpha_t, sigma_t = self.schedule(t)
        x_t: Tensor = like(alpha_t, x) * x + like(sigma_t, x) * noise
        return x_t

    def step(self, s: Scale, t: Scale) -> tuple[Scale, Scale]:
        """(a, v) of q(x_t | x_s) = N(a x_s, v I), for s <= t; float64."""
        (alpha_s, sigma_s), (alpha_t, sigma_t) = self.schedule(s), self.schedule(t)
        a = alpha_t / alpha_s
        return a, (sigma_t - a * sigma_s) * (sigma_t + a * sigma_s)

    def transition(self, x_s: Tensor, s: Scale, t: Scale) -> Gaussian:
        """q(x_t | x_s) for s <= t (DDPM eq. 2)."""
        a, v = self.step(s, t)
        return Gaussian(like(a, x_s) * x_s, like(v, x_s))

    def posterior(self, x: Tensor, x_t: Tensor, t: Scale, s: Scale) -> Gaussian:
        """q(x_s | x_t, x) for s < t (DDPM eqs. 6 and 7)."""
        of_x, of_x_t = self._posterior_mean(t, s)
        return Gaussian(like(of_x_t, x_t) * x_t + like(of_x, x) * x, like(self.posterior_var(t, s), x_t))

    def _posterior_mean(self, t: Scale, s: Scale) -> tuple[Scale, Scale]:
        (alpha_s, sigma_s), (_, sigma_t) = self.schedule(s), self.schedule(t)
        a, v = self.step(s, t)
        return alpha_s * v / sigma_t**2, a * sigma_s**2 / sigma_t**2

    def posterior_var(self, t: Scale, s: Scale) -> Scale:
        """The variance of q(x_s | x_t, x): DDPM's tilde beta (eq. 7); float64."""
        _, v = self.step(s, t)
        return v * (self.schedule(s)[1] / self.schedule(t)[1]) ** 2

    def reverse(self, estimate: Estimate, x_t: Tensor, t: Scale, s: Scale, variance: Variance) -> Gaussian:
        """p(x_s | x_t): the posterior at the estimated mean, with the variance that was asked for (DDPM eq. 1)."""
        mean, _ = self.posterior(estimate.mean, x_t, t, s)
        _, v = self.step(s, t)
        var = variance(self.posterior_var(t, s), v, estimate, t, s)
        return Gaussian(mean, var if isinstance(var, Tensor) and var.ndim > 1 else like(var, x_t))
