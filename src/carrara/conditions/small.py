"""A small image: what a picture looks like from far away, to be made large again, or only to say what is where."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from carrara.conditions.base import PlaneInput
from carrara.config import Configured
from carrara.rng import Rng

__all__ = ["SmallImage"]


class SmallImage(Configured, PlaneInput):
    """The picture's averages over the cells of a grid of `side` (height, width), `channels` each.

    `size` is that of the pictures made. The network reads it enlarged to their size, each cell a flat patch.
    """

    def __init__(
        self,
        *,
        channels: int,
        size: tuple[int, int],
        side: int | tuple[int, int] = 8,
        name: str = "small",
        drop: float = 0.1,
        down: int = 1,
    ) -> None:
        super().__init__(name, drop, down, channels)
        self.planes, self.size = channels, size
        self.side = (side, side) if isinstance(side, int) else side
        if not all(0 < small <= large for small, large in zip(self.side, size, strict=True)):
            raise ValueError(
                f"side = {side}; a small image of pictures of {size[0]} x {size[1]} has 1 to that many cells"
            )

    def computed(self, pictures: Tensor, rng: Rng) -> Tensor:
        return F.adaptive_avg_pool2d(pictures, self.side)

    def encode(self, *given: Tensor) -> Tensor:
        return self.folded(F.interpolate(given[0], size=self.size, mode="nearest"))

    def read(self, pictures: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(pictures, self.side)

    def shown(self, *given: Tensor) -> Tensor:
        return F.interpolate(given[0], size=self.size, mode="nearest")
