"""The residual block of R3GAN (Huang et al. 2024, arXiv:2501.05441): a grouped bottleneck without normalisation.

    x + W3 a(W2 a(W1 x)),      a: leaky ReLU of slope 0.2 with a bias a channel

W1 widens by 1x1, W2 is a grouped 3x3, W3 narrows by 1x1 (ResNeXt, Xie et al. 2017, with the bottleneck turned inside
out). What a norm does for the size of activations the start does instead (Fixup, Zhang et al. 2019): W3 is zero, so a
network of any depth begins as its skeleton, and in a network of L blocks W1 and W2 are L^(-1/4) of He's size.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carrara.types import Condition

__all__ = ["Bottleneck", "Resize", "gained", "halvings", "pooled", "usual_widths"]

_SLOPE = 0.2
_GAIN = math.sqrt(2 / (1 + _SLOPE**2))  # keeps the second moment through the activation
_LEAST = 4  # pixels a side of the coarsest feature map, at least


def gained(layer: nn.Conv2d | nn.Linear, gain: float = 1.0) -> None:
    """Weights normal with standard deviation gain / sqrt(fan in), biases zero."""
    nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.weight[0].numel()))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def halvings(size: tuple[int, int]) -> int:
    """How often a feature map of this size is halved, at most: as long as both sides are even and 4 remain."""
    count = 0
    while all(side % 2 ** (count + 1) == 0 and side >> (count + 1) >= _LEAST for side in size):
        count += 1
    return count


def usual_widths(size: tuple[int, int]) -> tuple[int, ...]:
    """Channels at each resolution, coarsest first: 192 up to 16 pixels a side, then half for every doubling."""
    count = halvings(size)
    shorter = min(size)
    return tuple(192 if shorter >> i <= 16 else max(24, 192 * 16 // (shorter >> i)) for i in range(count, -1, -1))


def pooled(condition: Condition, width: int | None, rows: int) -> Tensor | None:
    """What both networks of a GAN are told: the condition's vector, or the mean of its tokens, (B, width) float32.

    Scaled to root mean square 1, so that labels (one 1 among zeros) and text speak equally loud. None where `width` is.
    Raises ValueError for a condition that does not fit, and for parts that a GAN does not read.
    """
    unread = [name for name in ("image", "numbers", "controls", "adapters") if _given(getattr(condition, name))]
    if unread:
        raise ValueError(f"condition.{unread[0]} is not read by a GAN's networks; drop it")
    vector, tokens = condition.vector, condition.tokens
    if vector is None and tokens is not None:
        mask = torch.ones_like(tokens[..., 0]) if condition.mask is None else condition.mask.to(tokens.dtype)
        vector = (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
    if width is None:
        if vector is not None:
            raise ValueError("a condition was given to a network built without `vector`; drop it, or build with it")
        return None
    if vector is None:
        raise ValueError(f"the condition has neither vector nor tokens, and this network was built with width {width}")
    if vector.shape != (rows, width):
        raise ValueError(
            f"the condition's vector has shape {tuple(vector.shape)}; this network reads ({rows}, {width})"
        )
    vector = vector.float()
    return vector * torch.rsqrt(vector.square().mean(1, keepdim=True) + 1e-8)


def _given(part: object) -> bool:
    return part is not None and part != {}


class Bottleneck(nn.Module):
    """A residual block of `channels`, (B, channels, H, W) to the same.

    expansion: the hidden channels are that many times `channels`, in groups of `group`. blocks: how many of them the
    network has in all. style: width of a vector (B, style) that scales and shifts the hidden channels, both by zero at
    the start; None for a block that is told nothing.
    """

    def __init__(
        self, channels: int, *, blocks: int, expansion: int = 2, group: int = 16, style: int | None = None
    ) -> None:
        super().__init__()
        hidden = channels * expansion
        if hidden % group:
            raise ValueError(f"{hidden} hidden channels do not divide into groups of {group}; choose another `group`")
        self.widen = nn.Conv2d(channels, hidden, 1)
        self.mix = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden // group)
        self.narrow = nn.Conv2d(hidden, channels, 1, bias=False)
        self.modulate = None if style is None else nn.Linear(style, 2 * hidden)
        for layer in (self.widen, self.mix):
            gained(layer, _GAIN * blocks**-0.25)
        nn.init.zeros_(self.narrow.weight)
        if self.modulate is not None:
            nn.init.zeros_(self.modulate.weight)
            nn.init.zeros_(self.modulate.bias)

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        """The block's output, in the dtype of x."""
        h = self.widen(x)
        if self.modulate is not None and style is not None:
            scale, shift = self.modulate(style)[:, :, None, None].chunk(2, 1)
            h = torch.addcmul(shift, h, 1 + scale)
        h = self.mix(F.leaky_relu(h, _SLOPE))
        return x + self.narrow(F.leaky_relu(h, _SLOPE))


class Resize(nn.Module):
    """Bilinear to twice or half the size; where the channels change, a 1x1 convolution on the smaller of the two maps.

    Bilinear at half the size is the mean of 2 x 2 pixels.
    """

    def __init__(self, channels: int, out: int, *, up: bool) -> None:
        super().__init__()
        self.up = up
        self.project = nn.Identity() if out == channels else nn.Conv2d(channels, out, 1, bias=False)
        if isinstance(self.project, nn.Conv2d):
            gained(self.project)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to (B, out, 2H, 2W) or (B, out, H/2, W/2)."""
        if self.up:
            return F.interpolate(self.project(x), scale_factor=2, mode="bilinear", align_corners=False)
        return self.project(F.avg_pool2d(x, 2))
