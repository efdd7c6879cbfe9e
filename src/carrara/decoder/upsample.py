"""Super-resolution as a decoder: z is a small picture, and a network that was trained on pairs makes it large.

    encode   the picture made small by antialiased bicubic: what the generator learns to make
    decode   network(z), one call: each large pixel as the training pairs have it on average

Its space is "pixels" of the small size, and has no weights: any generator of small pictures fits, and any upsampler.
"""

from __future__ import annotations

from typing import Annotated, Any

from torch import Tensor, nn

from carrara.config import Configured, Role
from carrara.decoder.base import Decoding, Depth
from carrara.decoder.tiling import Scale, Tiling, answered, tiled
from carrara.nn.upsampler import bicubic
from carrara.rng import Rng
from carrara.types import Ask, Condition, Round, Rounds, Space

__all__ = ["Upsample", "downsample", "small_and_large"]


def downsample(images: Tensor, factor: int) -> Tensor:
    """Pictures (B, C, H, W) in [-1, 1], their sides divided by `factor`, antialiased. ValueError where that is none."""
    height, width = images.shape[2:]
    if height % factor or width % factor:
        raise ValueError(f"pictures of {height} x {width} cannot be made {factor} times smaller; crop or pad them")
    return bicubic(images, (height // factor, width // factor)).clamp(-1, 1)


def small_and_large(channels: int, size: int | tuple[int, int], factor: int) -> tuple[Space, Space]:
    """The spaces of the small and of the large pictures. ValueError where the factor does not divide the size."""
    height, width = (size, size) if isinstance(size, int) else size
    if factor < 2 or height % factor or width % factor:
        raise ValueError(
            f"pictures of {height} x {width} cannot be made from ones {factor} times smaller; choose a factor of 2 or "
            "more that divides both sides"
        )
    return Space("pixels", (channels, height // factor, width // factor)), Space("pixels", (channels, height, width))


class Upsample(Configured, nn.Module):
    """Small pictures made large by a network with `channels`, `factor`, and `halo` where it can be tiled exactly.

    `size` is that of the large ones (height, width). `tiling` makes larger ones part by part.
    """

    def __init__(
        self,
        network: Annotated[nn.Module, Role("upsampler")],
        *,
        size: int | tuple[int, int] = 64,
        depth: Depth = 8,
        tiling: Tiling | None = None,
    ) -> None:
        super().__init__()
        made: Any = network
        self.network = network
        self.factor: int = made.factor
        self.depth: Depth = depth
        self.tiling = tiling
        self.space, self.pictures = small_and_large(made.channels, size, made.factor)

    def encode(self, images: Tensor, rng: Rng | None = None) -> Tensor:
        """The pictures made small; nothing is drawn."""
        return downsample(images, self.factor)

    def decode(self, z: Tensor) -> Tensor:
        """Pictures (B, C, h * factor, w * factor) of small ones, clamped to [-1, 1]; never in parts."""
        made: Tensor = self.network(z)
        return made.clamp(-1, 1)

    def start(
        self, z: Tensor, condition: Condition, null: Condition, rng: Rng, settings: Decoding | None = None
    ) -> Rounds:
        """One call of the network, or with a tiling one a part."""
        tiling = self.tiling if settings is None or settings.tiling is None else settings.tiling
        if tiling is not None:
            whole = yield from tiled(self.decode, z, tiling, self._scale())
            return whole
        ((images,),) = yield Round((Ask(self.decode, (z,)),))
        return images

    def preview(self, z: Tensor) -> Tensor:
        """The pictures themselves."""
        return self.decode(z) if self.tiling is None else answered(tiled(self.decode, z, self.tiling, self._scale()))

    def _scale(self) -> Scale:
        return Scale(1, self.factor, getattr(self.network, "halo", None))
