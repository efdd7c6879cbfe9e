"""The judging network of a GAN after R3GAN (Huang et al. 2024): z and a condition to one number, higher for real.

    f(z)      blocks, halved, blocks, ...; at the coarsest size one number a channel; linear to `features` numbers
    D(z, c) = f(z) . (u + E c) / sqrt(features)                        (projection, Miyato & Koyama 2018)

The generator's mirror image: residual bottlenecks without normalisation, the mean of 2 x 2 pixels for halving. Nothing
compares the rows of a batch. The condition is read after the features, so that judging the same z under further
conditions costs nothing but a product.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from carrara.config import Configured
from carrara.nn.bottleneck import Bottleneck, Resize, gained, halvings, pooled, usual_widths
from carrara.nn.layers import check_channels, check_counts, dtype_of
from carrara.types import Condition

__all__ = ["Discriminator"]


class Discriminator(Configured, nn.Module):
    """z (B, in_channels, *size) under a condition to a number each, (B,) float32.

    The settings are those of `ConvGenerator`: `widths` are coarsest first here too. features: width of the vector that
    is compared with the condition.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        size: int | tuple[int, int],
        context: int | None = None,
        vector: int | None = None,
        features: int = 256,
        widths: tuple[int, ...] = (),
        blocks: int = 2,
        expansion: int = 2,
        group: int = 16,
    ) -> None:
        super().__init__()
        height, width = (size, size) if isinstance(size, int) else size
        widths = (widths or usual_widths((height, width)))[::-1]
        check_counts(features=features, widths=widths, blocks=blocks, expansion=expansion, group=group)
        if len(widths) - 1 > halvings((height, width)):
            raise ValueError(
                f"{len(widths)} widths need a size that can be halved {len(widths) - 1} times down to 4 or more, and "
                f"{height} x {width} can be {halvings((height, width))} times; give fewer widths"
            )
        self.in_channels, self.size, self.read = in_channels, (height, width), context if vector is None else vector
        self.inward = nn.Conv2d(in_channels, widths[0], 1)
        gained(self.inward)
        layers: list[nn.Module] = []
        for i, here in enumerate(widths):
            if i:
                layers.append(Resize(widths[i - 1], here, up=False))
            total = blocks * len(widths)
            layers += [Bottleneck(here, blocks=total, expansion=expansion, group=group) for _ in range(blocks)]
        self.layers = nn.Sequential(*layers)
        down = 2 ** (len(widths) - 1)
        coarsest = (height // down, width // down)
        self.basis = nn.Conv2d(widths[-1], widths[-1], coarsest, groups=widths[-1], bias=False)
        self.outward = nn.Linear(widths[-1], features)
        for layer in (self.basis, self.outward):
            gained(layer)
        self.constant = nn.Parameter(torch.randn(features))
        self.embed = None
        if self.read:
            self.embed = nn.Linear(self.read, features, bias=False)
            gained(self.embed)

    def features(self, x: Tensor) -> Tensor:
        """What is judged of x, whatever the condition: (B, features) float32. ValueError for another shape."""
        check_channels(x, self.in_channels)
        if x.shape[2:] != self.size:
            raise ValueError(f"x is {tuple(x.shape[2:])} and this discriminator was built for {self.size}")
        h = self.basis(self.layers(self.inward(x.to(dtype_of(self)))))
        return self.outward(h.flatten(1)).float()

    def judge(self, features: Tensor, condition: Condition) -> Tensor:
        """D of these features under the condition, (B,) float32 also under autocast."""
        with torch.autocast(features.device.type, enabled=False):
            told = pooled(condition, self.read, len(features))
            towards = self.constant.float()
            if self.embed is not None and told is not None:
                towards = towards + nn.functional.linear(told, self.embed.weight.float())
            return (features * towards).sum(1) / math.sqrt(len(self.constant))

    def forward(self, x: Tensor, condition: Condition) -> Tensor:
        """D(x, c), (B,) float32."""
        return self.judge(self.features(x), condition)
