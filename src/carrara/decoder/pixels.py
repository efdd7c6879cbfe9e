"""No decoder: z is the picture itself."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from carrara.config import Configured
from carrara.decoder.base import Depth
from carrara.rng import Rng
from carrara.types import Condition, Rounds, Space

__all__ = ["Pixels"]


class Pixels(Configured, nn.Module):
    """The generator makes pictures of `size` (height, width) itself; there is nothing to decode."""

    def __init__(self, *, channels: int = 3, size: int | tuple[int, int] = 32, depth: Depth = 8) -> None:
        super().__init__()
        height, width = (size, size) if isinstance(size, int) else size
        self.space = Space("pixels", (channels, height, width))
        self.pictures = self.space
        self.depth: Depth = depth

    def encode(self, images: Tensor, rng: Rng | None = None) -> Tensor:
        """The pictures as they are."""
        return images

    def start(self, z: Tensor, condition: Condition, null: Condition, rng: Rng, settings: Any = None) -> Rounds:
        """The pictures as they are."""
        yield from ()
        return z

    def preview(self, z: Tensor) -> Tensor:
        """The pictures as they are."""
        return z
