"""A small picture made larger (after EDSR, Lim et al. 2017): the bicubic enlargement plus what a network adds to it.

    x (B, C, h, w)  ->  bicubic(x) + network(x)      (B, C, h f, w f)

All but the last layers work at the small size. The network's part is zero at the start, so an untrained one is bicubic.
Bicubic here is Keys' kernel with a = -1/2, widened where the picture is made smaller, so that nothing aliases (what
Pillow and MATLAB do).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from carrara.config import Configured
from carrara.nn.layers import NormKind, ResidualBlock, check_channels, dtype_of, initialise, zero
from carrara.nn.reach import halo

__all__ = ["ResidualUpsampler", "bicubic"]

_KERNEL = 2  # small pixels on either side that bicubic reads


def bicubic(x: Tensor, size: tuple[int, int]) -> Tensor:
    """x (B, C, H, W) at another size (height, width), in x's dtype, antialiased; it can overshoot x's range."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x.float(), size, mode="bicubic", align_corners=False, antialias=True).to(x.dtype)


class ResidualUpsampler(Configured, nn.Module):
    """Residual blocks at the small size, then one convolution and shuffle for each prime of `factor`.

    channels: of the pictures. factor: how many times larger the sides become, 2 or more. width: channels of the
    features. blocks: how many. norm: as the autoencoder's; "group" sees the whole picture.
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        factor: int = 4,
        width: int = 64,
        blocks: int = 8,
        norm: NormKind = "none",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if factor < 2:
            raise ValueError(f"factor = {factor}; a larger picture has at least 2 times the side")
        self.channels, self.factor = channels, factor
        body: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1)]
        body += [ResidualBlock(width, kind=norm, dropout=dropout) for _ in range(blocks)]
        for prime in _primes(factor):
            body += [nn.SiLU(), nn.Conv2d(width, width * prime**2, 3, padding=1), nn.PixelShuffle(prime)]
        for layer in body:
            if isinstance(layer, nn.Conv2d):
                initialise(layer)
        self.body = nn.Sequential(*body, nn.SiLU(), zero(nn.Conv2d(width, channels, 3, padding=1)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) in [-1, 1] to (B, channels, h * factor, w * factor), not clipped, in the dtype of x."""
        check_channels(x, self.channels)
        height, width = x.shape[2:]
        larger = bicubic(x, (height * self.factor, width * self.factor))
        return larger + self.body(x.to(dtype_of(self))).to(x.dtype)

    @property
    def last(self) -> nn.Parameter:
        """The weights of the last layer."""
        return self.body[-1].weight  # type: ignore[return-value]

    @property
    def halo(self) -> int | None:
        """How many small pixels beyond a part its enlargement depends on; None with the norm "group"."""
        found = halo(self.body, 1, self.factor)
        return None if found is None else max(found, _KERNEL)


def _primes(number: int) -> list[int]:
    found, prime = [], 2
    while number > 1:
        while number % prime == 0:
            found.append(prime)
            number //= prime
        prime += 1
    return found
