r"""Training: predict the noise (DDPM Algorithm 1), in whichever parameterization, weight and distribution of times.

    draw t, draw noise, x_t = alpha_t x + sigma_t noise,  loss = weight(t) |F(x_t) - F*(x, noise)|^2  (mean over pixels)

A weight multiplies the error of the raw output F. With Delta = x - x_hat, |F - F*|^2 = |Delta|^2 / out^2; so a weight
that is stated for x, as min-SNR is, becomes that weight times out^2 and means the same for every parameterization.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from carrara.diffusion.denoiser import Denoiser
from carrara.diffusion.draw import TimeDistribution
from carrara.diffusion.weight import Unit, Weight
from carrara.rng import Rng
from carrara.types import Condition

__all__ = ["DenoisingLoss"]


@dataclass(frozen=True)
class DenoisingLoss:
    """DDPM Algorithm 1."""

    draw: TimeDistribution
    weight: Weight = Unit()  # noqa: RUF009 - frozen

    def __call__(self, denoiser: Denoiser, x: Tensor, condition: Condition, rng: Rng) -> Tensor:
        """The loss of each row of x: (B,). Times and noise of row i depend on the rng's stream i alone."""
        t = self.draw(denoiser.process, rng.fork("time"))
        return self.at(denoiser, x, condition, rng.fork("noise").normal_like(x), t)

    def at(self, denoiser: Denoiser, x: Tensor, condition: Condition, noise: Tensor, t: Tensor) -> Tensor:
        """The loss of each row at given times (B,) and noise: for measuring by noise level."""
        prediction = denoiser.predict(x, noise, t, condition)
        error = (prediction.output - prediction.target).square().flatten(1).mean(1)
        return self.weight.weigh(error, denoiser.process, denoiser.parameterization, t)
