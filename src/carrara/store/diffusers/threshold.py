"""Dynamic thresholding as foreign schedulers do it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from carrara.diffusion.guidance import Guidance, Plain, Wrapper
from carrara.diffusion.process import Scale
from carrara.types import Estimate

__all__ = ["BoundedThreshold"]


@dataclass(frozen=True)
class BoundedThreshold(Wrapper):
    """`Threshold` with s at most `most`, and with a percentile that is interpolated between two of the magnitudes.

    With `most` 1 every estimate is clamped to [-1, 1], whatever the percentile is; that is what most files say.
    """

    inner: Guidance = field(default_factory=Plain)
    percentile: float = 0.995
    most: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.percentile <= 1:
            raise ValueError(f"percentile = {self.percentile}; expected a share in (0, 1], such as 0.995")
        if not self.most >= 1:
            raise ValueError(f"most = {self.most}; expected the largest magnitude to scale down from, 1 or more")

    def combine(
        self, estimates: Sequence[Estimate], denoiser: Callable[..., Estimate], x_t: Tensor, t: Scale
    ) -> Estimate:
        mean, mix = self.inner.combine(estimates, denoiser, x_t, t)
        s = torch.quantile(mean.flatten(1).abs(), self.percentile, dim=1).clamp(1, self.most)
        s = s.view(-1, *[1] * (mean.ndim - 1))
        return Estimate(mean.clamp(-s, s) / s, mix)
