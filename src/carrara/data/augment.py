"""Small keyed changes of a picture that leave what it shows: moved, scaled, mirrored."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from carrara.rng import Rng

__all__ = ["Augment"]


@dataclass(frozen=True)
class Augment:
    """Random moves of each row: `shift` and `scale` as shares of the side and the size, `mirror` the share mirrored.

    Places that come into view repeat the border. All 0 leaves the pictures as they are.
    """

    shift: float = 0.0
    scale: float = 0.0
    mirror: float = 0.0

    def __post_init__(self) -> None:
        for name in ("shift", "scale", "mirror"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} = {getattr(self, name)}; expected a share in [0, 1]")

    def __call__(self, images: Tensor, rng: Rng) -> Tensor:
        """Pictures (B, C, H, W), changed row by row from the rng's streams."""
        if not (self.shift or self.scale or self.mirror):
            return images
        draws = rng.uniform((4,)).to(torch.float32)
        zoom = torch.exp2((2 * draws[:, 0] - 1) * self.scale)
        side = torch.where(draws[:, 1] < self.mirror, -1.0, 1.0)
        theta = torch.zeros(len(images), 2, 3)
        theta[:, 0, 0], theta[:, 1, 1] = side * zoom, zoom
        theta[:, :, 2] = (2 * draws[:, 2:] - 1) * 2 * self.shift
        grid = F.affine_grid(theta.to(images.device), list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
