r"""The denoiser: a raw network F read as the posterior mean E[x | x_t] under a process and a parameterization.

    E[x | x_t] = skip x_t + out F(scale x_t, level(t), condition)

Coefficients and the estimate are computed in x_t's precision from float64; only F may run in low precision.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
from torch import Tensor, nn

from carrara.config import Configured, Role
from carrara.diffusion.parameterization import Coefficients, Level, Parameterization
from carrara.diffusion.process import Process, like
from carrara.types import Condition, Estimate

__all__ = ["Denoiser", "Prediction"]


class Prediction(NamedTuple):
    """All that losses need from one network call: F, its target, the estimate with its mix, and the coefficients."""

    output: Tensor
    target: Tensor
    estimate: Estimate
    coefficients: Coefficients


class Denoiser(Configured, nn.Module):
    """E[x | x_t], from a network `F(x, level, condition)`.

    With `learned_variance` the network has twice the channels, and the second half v gives mix = (v + 1)/2
    (iDDPM eq. 15; 0 is the posterior's variance, 1 the transition's).
    """

    def __init__(
        self,
        network: Annotated[nn.Module, Role("network")],
        process: Process,
        parameterization: Parameterization,
        level: Level,
        *,
        learned_variance: bool = False,
    ) -> None:
        super().__init__()
        parameterization.check(process)
        level.check(process)
        if isinstance(process.schedule, nn.Module):
            self.schedule = process.schedule  # its parameters are this module's, too
        self.network = network
        self.process = process
        self.parameterization = parameterization
        self.level = level
        self.learned_variance = learned_variance

    def forward(self, x_t: Tensor, t: Tensor | float, condition: Condition = Condition()) -> Estimate:  # noqa: B008 - frozen
        """The estimate for x_t (B, ...) at times t: a float, or (B,) with one for each row."""
        times = _rows(t, x_t)
        output, mix, coefficients = self._call(x_t, times, condition)
        return Estimate(coefficients.estimate(x_t, output), mix)

    def predict(self, x: Tensor, noise: Tensor, t: Tensor, condition: Condition = Condition()) -> Prediction:  # noqa: B008
        """One training evaluation at x_t = alpha_t x + sigma_t noise, with times t (B,)."""
        x_t = self.process.diffuse(x, t, noise)
        output, mix, coefficients = self._call(x_t, t, condition)
        estimate = Estimate(coefficients.estimate(x_t, output), mix)
        return Prediction(output, coefficients.target(x, noise), estimate, coefficients)

    def _call(self, x_t: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, Tensor | None, Coefficients]:
        coefficients = self.parameterization(*self.process.schedule(_shared(t)))
        precision = torch.promote_types(x_t.dtype, torch.float32)  # at least: half precision would merge levels
        level = self.level(self.process, t.to("cpu", torch.float64)).to(x_t.device, precision)
        scale = coefficients.scale
        scaled = x_t if isinstance(scale, float) and scale == 1 else like(scale, x_t) * x_t
        output = self.network(scaled, level, condition).to(x_t.dtype)
        if not self.learned_variance:
            if output.shape != x_t.shape:
                raise ValueError(
                    f"the network made {tuple(output.shape)} from {tuple(x_t.shape)}; expected the same shape "
                    "(twice the channels need learned_variance=True)"
                )
            return output, None, coefficients
        if output.shape[1] != 2 * x_t.shape[1]:
            raise ValueError(
                f"a learned variance needs {2 * x_t.shape[1]} output channels, the network made {output.shape[1]}"
            )
        output, v = output.chunk(2, dim=1)
        return output, (v + 1) / 2, coefficients


def _shared(t: Tensor) -> Tensor | float:
    """The time that all rows share, for which coefficients are floats and cost nothing; while learning, t as it is."""
    rows = t.shape[0]
    if torch.is_grad_enabled() or not rows:  # a learned schedule has gradients
        return t
    first: float = t[0].item()
    return first if rows == 1 or bool((t == first).all()) else t


def _rows(t: Tensor | float, x_t: Tensor) -> Tensor:
    if not isinstance(t, Tensor):
        return torch.full((len(x_t),), t, dtype=torch.float64)
    return t.expand(len(x_t)) if t.ndim == 0 else t
