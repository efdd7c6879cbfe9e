r"""How far guidance may drive an estimate: wrappers that bring what another guidance makes back into range.

    Clip        D clamped to [-1, 1]                                            (DDPM's own code)
    Threshold   s = max(1, the p-th percentile of |D|), then D clamped to [-s, s], over s   (Saharia et al. 2022, 2.3)
    Rescale     F of the guided estimate brought to the std of the conditional F            (Lin et al. 2024, 3.4)

Lin et al. rescale what the network says, F, in whatever it was trained to predict (the noise, v):

    F' = (phi std(F_c) / std(F_w) + 1 - phi) F_w,       std over all values of a row

Since D = skip x_t + out F, and out cancels in the ratio, that is

    D' = D_w + phi (std(D_c - skip x_t) / std(D_w - skip x_t) - 1) (D_w - skip x_t)

and is not the same as rescaling D unless the network predicts D itself (X0, where skip is 0).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from carrara.diffusion.guidance import Guidance, Plain, Wrapper
from carrara.diffusion.parameterization import Parameterization
from carrara.diffusion.process import Scale, like
from carrara.types import Estimate

__all__ = ["Clip", "Rescale", "Threshold"]


@dataclass(frozen=True)
class Clip(Wrapper):
    """Clamps the estimate to [-limit, limit]: right for pixels in [-1, 1], wrong for latents."""

    inner: Guidance = field(default_factory=Plain)
    limit: float = 1.0

    def combine(
        self, estimates: Sequence[Estimate], denoiser: Callable[..., Estimate], x_t: Tensor, t: Scale
    ) -> Estimate:
        mean, mix = self.inner.combine(estimates, denoiser, x_t, t)
        return Estimate(mean.clamp(-self.limit, self.limit), mix)


@dataclass(frozen=True)
class Threshold(Wrapper):
    """Dynamic thresholding: a picture with values beyond `limit` is scaled down, its outermost values clamped.

    `percentile` p in (0, 1] is the share of a row's magnitudes that are not clamped. What lies within the limit is left
    as it is. For pixels; latents have no range.
    """

    inner: Guidance = field(default_factory=Plain)
    percentile: float = 0.995
    limit: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.percentile <= 1:
            raise ValueError(f"percentile = {self.percentile}; expected a share in (0, 1], such as 0.995")
        if not self.limit > 0:
            raise ValueError(f"limit = {self.limit}; expected the data's largest magnitude, 1 for pictures")

    def combine(
        self, estimates: Sequence[Estimate], denoiser: Callable[..., Estimate], x_t: Tensor, t: Scale
    ) -> Estimate:
        mean, mix = self.inner.combine(estimates, denoiser, x_t, t)
        sizes = mean.flatten(1).abs()
        # the order statistic itself: torch.quantile refuses more than 2**24 values
        rank = math.ceil(self.percentile * sizes.shape[1])
        s = sizes.kthvalue(rank, dim=1).values.clamp(min=self.limit).view(-1, *[1] * (mean.ndim - 1))
        return Estimate(mean.clamp(-s, s) * (self.limit / s), mix)


@dataclass(frozen=True)
class Rescale(Wrapper):
    """Guidance that leaves F's standard deviation as it is without; `share` phi is how much of it, 0 is off.

    Scales above 1 widen F, which over-exposes pictures. Needs a `Denoiser`, whose parameterization says what F is.
    """

    inner: Guidance = field(default_factory=Plain)
    share: float = 0.7

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share = {self.share}; expected a share in [0, 1], such as 0.7; 0 is off")

    def combine(
        self, estimates: Sequence[Estimate], denoiser: Callable[..., Estimate], x_t: Tensor, t: Scale
    ) -> Estimate:
        guided = self.inner.combine(estimates, denoiser, x_t, t)
        if len(estimates) == 1 or self.share == 0:
            return guided
        kept = like(_skip(denoiser, t), x_t) * x_t
        said = guided.mean - kept
        wanted, found = ((mean - kept).flatten(1).std(1) for mean in (estimates[0].mean, guided.mean))
        flat = said.flatten(1).abs().amax(1) * (32 * torch.finfo(said.dtype).eps)  # a ratio of rounding errors is none
        more = torch.where(found > flat, self.share * (wanted / found - 1), 0.0)
        return Estimate(guided.mean + more.view(-1, *[1] * (said.ndim - 1)) * said, guided.mix)


def _skip(denoiser: Callable[..., Estimate], t: Scale) -> Scale:
    parameterization = getattr(denoiser, "parameterization", None)
    if not isinstance(parameterization, Parameterization):
        raise ValueError(
            f"rescaling acts on a network's own output, and {type(denoiser).__name__} has no parameterization that "
            "says what that is; give a Denoiser, or another guidance"
        )
    return parameterization(*denoiser.process.schedule(t)).skip  # type: ignore[attr-defined]
