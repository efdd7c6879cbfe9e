"""A picture that lies beside each picture and is read as it is: a map of depth, say, or of heat, normals or poses."""

from __future__ import annotations

from torch import Tensor

from carrara.conditions.base import PlaneInput
from carrara.config import Configured
from carrara.rng import Rng

__all__ = ["Map"]


class Map(Configured, PlaneInput):
    """`channels` values of every pixel in [-1, 1], from files: a column `<name>_file_name` of the metadata."""

    computable = False

    def __init__(self, *, name: str, channels: int, drop: float = 0.1, down: int = 1) -> None:
        super().__init__(name, drop, down, channels)
        self.planes = channels

    def computed(self, pictures: Tensor, rng: Rng) -> Tensor:
        raise ValueError(
            f"{self.name} cannot be computed from a picture; put pictures of it beside the others, named in a column "
            f"{self.name}_file_name of the metadata"
        )

    def encode(self, *given: Tensor) -> Tensor:
        return self.folded(given[0])
