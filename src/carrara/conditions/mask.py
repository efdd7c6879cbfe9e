"""A mask and what it leaves of a picture: inpainting as a trained model rather than a way of sampling.

The network reads the mask, 1 where the picture is to be made, and the picture with the masked part at 0. In training
the masks are drawn: one to four shapes, each a box or a stroke, and now and then the whole picture.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from carrara.conditions.base import PlaneInput
from carrara.config import Configured
from carrara.rng import Rng

__all__ = ["Mask", "draw_masks"]

_SHAPES = 4
_WHOLE = 0.05  # share of rows that are masked throughout


def draw_masks(rng: Rng, size: tuple[int, int]) -> Tensor:
    """A mask for each stream: (B, 1, height, width), 1 where the picture is to be made, with both values in most."""
    u = rng.uniform((2 + 6 * _SHAPES,)).float()
    count, whole = (1 + u[:, 0] * _SHAPES).floor(), u[:, 1] < _WHOLE
    y = (torch.arange(size[0]) + 0.5).view(1, 1, -1, 1) / size[0]
    x = (torch.arange(size[1]) + 0.5).view(1, 1, 1, -1) / size[1]
    # (B, shapes, 1, 1) each: a place, an extent or a second place, a thickness, and whether it is a stroke
    y0, x0, y1, x1, thick, kind = (part[..., None, None] for part in u[:, 2:].view(-1, _SHAPES, 6).unbind(2))
    box = ((y - y0).abs() < 0.1 + 0.3 * y1) & ((x - x0).abs() < 0.1 + 0.3 * x1)
    along_y, along_x = y1 - y0, x1 - x0
    share = ((y - y0) * along_y + (x - x0) * along_x) / (along_y**2 + along_x**2).clamp(min=1e-6)
    share = share.clamp(0, 1)
    stroke = torch.hypot(y - y0 - share * along_y, x - x0 - share * along_x) < 0.04 + 0.08 * thick
    drawn = torch.where(kind < 0.5, box, stroke) & (torch.arange(_SHAPES).view(1, -1, 1, 1) < count.view(-1, 1, 1, 1))
    return (drawn.any(1, keepdim=True) | whole.view(-1, 1, 1, 1)).float()


class Mask(Configured, PlaneInput):
    """The part of the "image" that a "mask" leaves, `channels` of it, and the mask: white is made, black stays."""

    low = 0
    planes = 1
    computable = False

    def __init__(self, *, channels: int, name: str = "mask", drop: float = 0.1, down: int = 1) -> None:
        if name != "mask":
            raise ValueError(f'an input of kind "mask" is given by the names image and mask; name it mask, not {name}')
        super().__init__(name, drop, down, 1 + channels)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("image", self.name)

    def computed(self, pictures: Tensor, rng: Rng) -> Tensor:
        return draw_masks(rng, (pictures.shape[2], pictures.shape[3])).to(pictures.device)

    def of(self, pictures: Tensor, beside: Mapping[str, Tensor], rng: Rng) -> tuple[Tensor, ...]:
        return (pictures, *super().of(pictures, beside, rng))

    def encode(self, *given: Tensor) -> Tensor:
        image, mask = given[0], (given[1] > 0).to(given[0].dtype)
        return self.folded(torch.cat([mask, image * (1 - mask)], 1))

    def shown(self, *given: Tensor) -> Tensor:
        return given[0] * (given[1] == 0)

    def doubt(self, *given: Tensor) -> str:
        return "" if bool((given[1] > 0).any()) else "it is black throughout, so that nothing is made; white is made"
