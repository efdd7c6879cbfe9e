r"""A relief: how far each pixel of a figure is from the ground around it, as if the figure were blown up from behind.

    ground = pixels joined to the border (4 neighbours), all as near to its colour as `tolerance`
    d      = steps to the ground, in turn to any of 4 and of 8 neighbours (octagonal, Rosenfeld & Pfaltz 1968)
    relief = min(d / reach, 1),                 reach = `reach` times the shorter side, in pixels

The border's colour is the median of its pixels. A picture without a ground is high throughout, a flat one is none but
ground. It is made for drawings on a plain ground; a map of depth that lies beside each picture takes its place.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from carrara.conditions.base import PlaneInput
from carrara.config import Configured
from carrara.rng import Rng

__all__ = ["Relief", "relief"]


def relief(pictures: Tensor, *, tolerance: float = 0.1, reach: float = 0.25) -> Tensor:
    """Heights (B, 1, H, W) in [0, 1] of pictures (B, C, H, W) in [-1, 1]: 0 on the ground.

    `tolerance` in each channel's range of [0, 1]; `reach` in shorter sides of the picture.
    """
    inside = ~_ground((pictures.float() + 1) / 2, tolerance)
    count = max(1, round(reach * min(pictures.shape[2:])))
    total = inside.float()
    for step in range(1, count):
        outside = ~inside
        inside = ~(_near4(outside) if step % 2 else _near8(outside))
        total += inside
    return total / count


def _ground(values: Tensor, tolerance: float) -> Tensor:
    """Where the ground is: (B, 1, H, W) bool, of values (B, C, H, W) in [0, 1]."""
    rim = torch.ones(values.shape[2:], dtype=torch.bool, device=values.device)
    rim[1:-1, 1:-1] = False
    colour = values[:, :, rim].median(2).values[:, :, None, None]
    like = (values - colour).abs().amax(1, keepdim=True) <= tolerance
    ground = like & rim
    while True:
        more = _joined(_joined(ground, like, 3), like, 2)
        if torch.equal(more, ground):
            return ground
        ground = more


def _joined(ground: Tensor, like: Tensor, axis: int) -> Tensor:
    """The runs of `like` along an axis that have some ground in them: (B, 1, H, W) bool all three."""
    run = (~like).cumsum(axis)  # each run has a number of its own
    found = ground.new_zeros(run.shape, dtype=torch.float32)
    found = torch.cat([found, found.narrow(axis, 0, 1)], axis).scatter_reduce(axis, run, ground.float(), "amax")
    return like & (found.gather(axis, run) > 0)


def _near4(marked: Tensor) -> Tensor:
    """The marked pixels of (B, 1, H, W), and those beside, above and below them."""
    x = marked.float()
    return (F.max_pool2d(x, (1, 3), 1, (0, 1)) + F.max_pool2d(x, (3, 1), 1, (1, 0))) > 0


def _near8(marked: Tensor) -> Tensor:
    """The marked pixels and all that touch them."""
    return F.max_pool2d(marked.float(), 3, 1, 1) > 0


class Relief(Configured, PlaneInput):
    """A map of heights, black far and white near: painted, a map of depth, or computed as `relief` does."""

    low = 0
    planes = 1

    def __init__(
        self, *, name: str = "relief", drop: float = 0.1, down: int = 1, tolerance: float = 0.1, reach: float = 0.25
    ) -> None:
        super().__init__(name, drop, down, 1)
        if not 0 <= tolerance < 1 or not 0 < reach <= 1:
            raise ValueError(
                f"tolerance = {tolerance} and reach = {reach}; expected 0 <= tolerance < 1 and 0 < reach <= 1"
            )
        self.tolerance, self.reach = tolerance, reach

    def computed(self, pictures: Tensor, rng: Rng) -> Tensor:
        return relief(pictures, tolerance=self.tolerance, reach=self.reach)

    def encode(self, *given: Tensor) -> Tensor:
        return self.folded(given[0])
