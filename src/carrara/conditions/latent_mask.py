"""A mask and the latents of what it leaves of a picture: how Stable Diffusion's models for inpainting read them.

encoding = (mask, encode(image * (1 - mask)))        the mask at the size of z, each cell of it the pixel it begins at
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from carrara.conditions.base import Input
from carrara.conditions.mask import draw_masks
from carrara.config import Configured
from carrara.rng import Rng

__all__ = ["LatentMask"]


class LatentMask(Configured, Input):
    """A "mask", white where it is made, and what it leaves of the "image"; `latent` channels of z."""

    low = 0
    planes = 1
    computable = False
    encoded = True

    def __init__(self, *, name: str = "mask", drop: float = 0.0, latent: int = 4) -> None:
        if name != "mask":
            raise ValueError(f'an input of kind "latent-mask" is given by the names image and mask; not {name}')
        super().__init__(name, drop)
        self.channels = 1 + latent
        self.optional = False

    @property
    def needs(self) -> tuple[str, ...]:
        return ("image", self.name)

    def computed(self, pictures: Tensor, rng: Rng) -> Tensor:
        return draw_masks(rng, (pictures.shape[2], pictures.shape[3])).to(pictures.device)

    def left(self, *given: Tensor) -> Tensor:
        """The picture with what is made anew at 0, to be encoded as z."""
        image, mask = given
        return image * (mask < 0.5).to(image.dtype)

    def encode(self, *given: Tensor) -> Tensor:
        """Of the image, the mask, and the z (B, latent, h, w) of what is left: (B, 1 + latent, h, w)."""
        _, mask, z = given
        return torch.cat([F.interpolate((mask >= 0.5).to(z.dtype), size=z.shape[-2:], mode="nearest"), z], 1)

    def null(self, rows: int, size: Sequence[int]) -> Tensor:
        return torch.zeros(rows, self.channels, *size)

    def shown(self, *given: Tensor) -> Tensor:
        return self.left(*given[:2])

    def doubt(self, *given: Tensor) -> str:
        return "" if bool((given[1] >= 0.5).any()) else "it is black throughout, so that nothing is made; white is made"
