"""What every decoder is: z becomes the picture. Its `encode` defines the space in which a generator is trained."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from torch import Tensor

from carrara.rng import Rng
from carrara.types import Condition, Rounds, Space

__all__ = ["Decoder", "Depth"]

Depth = Literal[8, 16]


class Decoder(Protocol):
    """z to a picture and back, as one of the parts of a system."""

    depth: Depth  # bits a channel of the pictures

    @property
    def space(self) -> Space:
        """The space of z."""
        ...

    @property
    def pictures(self) -> Space:
        """The space of what comes out."""
        ...

    def encode(self, images: Tensor, rng: Rng | None = None) -> Tensor:
        """Pictures (B, C, H, W) in [-1, 1] to z; without an rng the most likely one."""
        ...

    def start(self, z: Tensor, condition: Condition, null: Condition, rng: Rng, settings: Any = None) -> Rounds:
        """A request for the pictures of z, in [-1, 1]."""
        ...
