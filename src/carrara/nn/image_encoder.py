"""A picture tower: residual convolutions, pooled to one vector, for contrastive training (CLIP, Radford et al. 2021).

The picture is folded by `patch` first, so that nothing runs at full size; at 32 to 128 pixels it is quick on a CPU.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from carrara.config import Configured
from carrara.nn.layers import NormKind, ResidualBlock, check_channels, dtype_of, initialise

__all__ = ["ImageEncoder"]


class ImageEncoder(Configured, nn.Module):
    """Pictures (B, channels, H, W) to vectors (B, width), of any size that patch * 2^(len(widths) - 1) divides.

    patch: pixels a side that are folded into channels. widths: channels at each resolution, finest first.
    blocks: residual blocks at each. width: of the vectors.
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        width: int = 256,
        patch: int = 4,
        widths: tuple[int, ...] = (64, 128, 256),
        blocks: tuple[int, ...] = (1, 1, 1),
        norm: NormKind = "group",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if len(blocks) != len(widths):
            raise ValueError(f"blocks={blocks} has {len(blocks)} entries for {len(widths)} widths; give one a width")
        self.channels, self.patch = channels, patch
        self.down = patch * 2 ** (len(widths) - 1)
        stem = nn.Conv2d(channels * patch**2, widths[0], 3, padding=1)
        initialise(stem)
        layers: list[nn.Module] = [stem]
        for i, (here, count) in enumerate(zip(widths, blocks, strict=True)):
            if i:
                shrink = nn.Conv2d(widths[i - 1], here, 2, stride=2)
                initialise(shrink)
                layers.append(shrink)
            layers += [ResidualBlock(here, kind=norm, dropout=dropout) for _ in range(count)]
        self.features = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(widths[-1])
        self.projection = nn.Linear(widths[-1], width)
        initialise(self.projection)

    def forward(self, x: Tensor) -> Tensor:
        """The vectors, in the dtype of x; ValueError for other channels or a size that does not divide."""
        check_channels(x, self.channels)
        if x.shape[2] % self.down or x.shape[3] % self.down:
            raise ValueError(
                f"a picture of {x.shape[2]} x {x.shape[3]} pixels does not divide by {self.down}; "
                f"resize it to multiples of {self.down}"
            )
        h = self.features(F.pixel_unshuffle(x.to(dtype_of(self)), self.patch))
        return self.projection(self.norm(h.mean((2, 3)))).to(x.dtype)
