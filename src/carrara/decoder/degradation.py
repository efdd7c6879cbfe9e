"""What a generator's small pictures have and downsampled ones do not, for an upsampler that is to enlarge them.

In this order, each row by draws of its own:

    shift    moved by up to so many small pixels in each direction (bilinear)
    blur     a Gaussian blur, standard deviation up to so many small pixels
    noise    normal noise, standard deviation up to this much, for pictures in [-1, 1]
    levels   rounded to so many grey levels

Every amount is drawn uniformly from 0 to the setting, so that clean pictures are among what is learnt. A setting of 0
leaves the pictures as they are, bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from carrara.rng import Rng

__all__ = ["Degradation"]


@dataclass(frozen=True)
class Degradation:
    """Small pictures (B, C, h, w) in [-1, 1] to worse ones, in [-1, 1]; row i depends on the rng's stream i alone."""

    noise: float = 0.0
    blur: float = 0.0
    levels: int = 0
    shift: float = 0.0

    def __post_init__(self) -> None:
        for name in ("noise", "blur", "shift"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} = {getattr(self, name)}; expected 0 (off) or more")
        if self.levels < 0 or self.levels == 1:
            raise ValueError(f"levels = {self.levels}; expected 0 (off), or 2 grey levels or more")

    def __call__(self, small: Tensor, rng: Rng) -> Tensor:
        """The pictures, degraded."""
        amounts = rng.fork("amounts").uniform((4,)).to(small.device, torch.float32)
        if self.shift:
            small = _moved(small, (2 * amounts[:, :2] - 1) * self.shift)
        if self.blur:
            small = _blurred(small, amounts[:, 2] * self.blur, math.ceil(3 * self.blur))
        if self.noise:
            noise = rng.fork("noise").normal_like(small)
            small = (small + (amounts[:, 3] * self.noise).to(small.dtype).view(-1, 1, 1, 1) * noise).clamp(-1, 1)
        if self.levels:
            top = (self.levels - 1) / 2
            small = ((small + 1) * top).round() / top - 1
        return small


def _moved(images: Tensor, pixels: Tensor) -> Tensor:
    """Each row moved by `pixels` (B, 2), across and down; what comes into view repeats the border."""
    size = pixels.new_tensor((images.shape[3], images.shape[2]))
    theta = torch.eye(2, 3, device=images.device).repeat(len(images), 1, 1)
    theta[:, :, 2] = -2 * pixels / size
    grid = F.affine_grid(theta, list(images.shape), align_corners=False).to(images.dtype)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _blurred(images: Tensor, std: Tensor, radius: int) -> Tensor:
    """Each row blurred by its own standard deviation (B,), to a radius in pixels; the border is repeated."""
    places = torch.arange(-radius, radius + 1, device=images.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (places / std.clamp(min=1e-3)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).to(images.dtype)
    rows, channels = images.shape[:2]
    each = kernel.repeat_interleave(channels, 0)
    x = F.pad(images.flatten(0, 1)[None], (radius,) * 4, mode="replicate")
    x = F.conv2d(x, each[:, None, None, :], groups=rows * channels)
    return F.conv2d(x, each[:, None, :, None], groups=rows * channels)[0].view_as(images)
