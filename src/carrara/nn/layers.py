"""The layers every network here is built from: initialisation, norms, and the residual block of DDPM.

Feature maps are (B, C, H, W), contiguous or channels_last; every operation keeps the memory format it is given.
Norms take their statistics in float32 whatever the dtype of the features: torch's own kernels accumulate so.
"""

from __future__ import annotations

import math
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "Activation",
    "ChannelRms",
    "Downsample",
    "NormKind",
    "ResidualBlock",
    "Upsample",
    "check_channels",
    "check_counts",
    "dtype_of",
    "feed_forward",
    "initialise",
    "match_channels",
    "norm",
    "zero",
]

Activation = Literal["silu", "gelu", "gelu-tanh"]
NormKind = Literal["group", "rms", "none"]
_Module = TypeVar("_Module", bound=nn.Module)


def zero(module: _Module) -> _Module:
    """The module with all its parameters at zero: the last layer of a residual branch starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def initialise(module: nn.Module) -> None:
    """Weights of convolutions and linear maps uniform with variance 2 / (fan in + fan out), biases zero.

    What DDPM (Ho et al. 2020) and DiT (Peebles & Xie 2022) start from; layers that start at zero are zeroed after it.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def dtype_of(module: nn.Module) -> torch.dtype:
    """What the module's weights are made of, and so what it is to be fed."""
    return next(module.parameters()).dtype


def check_counts(**counts: int | tuple[int, ...]) -> None:
    """Refuse settings that count something, or several things, and are not all 1 or more."""
    for name, count in counts.items():
        every = count if isinstance(count, tuple) else (count,)
        if not every or min(every) < 1:
            wanted = "numbers, each" if isinstance(count, tuple) else "a number"
            raise ValueError(f"{name}={count}; give {wanted} from 1 up")


def check_channels(x: Tensor, channels: int, what: str = "x") -> None:
    """Refuse anything but (B, channels, H, W)."""
    if x.ndim != 4 or x.shape[1] != channels:
        raise ValueError(
            f"{what} has shape {tuple(x.shape)} and this network reads (B, {channels}, H, W); "
            f"give it {channels} channels or build it for others"
        )


def match_channels(x: Tensor, channels: int) -> Tensor:
    """Give x (B, C, H, W) `channels` channels without parameters: neighbours are averaged or repeated.

    The shortcut of DC-AE (Chen et al. 2024) for any pair of widths: repeat to the least common multiple, then average.
    """
    common = math.lcm(x.shape[1], channels)
    if common != x.shape[1]:
        x = x.repeat_interleave(common // x.shape[1], dim=1)
    if common != channels:
        x = x.unflatten(1, (channels, common // channels)).mean(2)
    return x


class ChannelRms(nn.Module):
    """Each pixel's channels divided by their root mean square, times a learned gain: (B, C, H, W) to the same.

    Sees no other pixel, so a picture's statistics do not leak through it (Zhang & Sennrich 2019).
    """

    def __init__(self, channels: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """The normalised x, in x's dtype."""
        scale = torch.rsqrt(x.float().square().mean(1, keepdim=True) + self.eps)
        return x * scale.to(x.dtype) * self.weight.to(x.dtype).view(-1, 1, 1)


def norm(kind: NormKind, channels: int, *, groups: int = 32, group_width: int = 4, eps: float = 1e-6) -> nn.Module:
    """A norm over feature maps of `channels` channels.

    Group norm takes the largest number of groups that divides `channels`, is at most `groups` and leaves `group_width`
    channels a group: with one channel a group it would take out whatever the level's embedding adds.
    """
    if kind == "rms":
        return ChannelRms(channels, eps=eps)
    if kind == "none":
        return nn.Identity()
    most = max(1, min(groups, channels // group_width))
    return nn.GroupNorm(next(n for n in range(most, 0, -1) if channels % n == 0), channels, eps=eps)


def feed_forward(width: int, ratio: float, activation: Activation) -> nn.Sequential:
    """Two linear maps with an activation between them, over the last axis.

    "gelu" is the exact one; "gelu-tanh", its approximation by a tanh, is slower and what many released weights expect.
    """
    hidden = round(width * ratio)
    middle = nn.SiLU() if activation == "silu" else nn.GELU("tanh" if activation == "gelu-tanh" else "none")
    return nn.Sequential(nn.Linear(width, hidden), middle, nn.Linear(hidden, width))


class ResidualBlock(nn.Module):
    """x + conv(SiLU(norm(conv(SiLU(norm(x))) + embedding))), the second convolution zero at the start.

    `embedding` is the width of a vector (B, embedding) added to every pixel, None for a block that gets none. When the
    channels change the shortcut is a 1x1 convolution. (Ho et al. 2020, appendix B.)
    """

    def __init__(
        self,
        channels: int,
        out_channels: int | None = None,
        *,
        embedding: int | None = None,
        kind: NormKind = "group",
        groups: int = 32,
        group_width: int = 4,
        eps: float = 1e-6,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        out = channels if out_channels is None else out_channels
        self.norm1 = norm(kind, channels, groups=groups, group_width=group_width, eps=eps)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.embed = None if embedding is None else nn.Linear(embedding, out)
        self.norm2 = norm(kind, out, groups=groups, group_width=group_width, eps=eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.shortcut = nn.Identity() if out == channels else nn.Conv2d(channels, out, 1)
        initialise(self)
        zero(self.conv2)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """(B, channels, H, W) and (B, embedding), already through its SiLU, to (B, out_channels, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        if self.embed is not None and embedding is not None:
            h = h + self.embed(embedding)[:, :, None, None]
        return self.shortcut(x) + self.conv2(self.dropout(F.silu(self.norm2(h))))


class Downsample(nn.Module):
    """Half the height and width by a 3x3 convolution of stride 2.

    `asymmetric` pads below and to the right alone, as DDPM does; otherwise all four sides are padded. An odd side of
    length n becomes (n - 1) / 2 with asymmetric padding and (n + 1) / 2 without.
    """

    def __init__(self, channels: int, *, asymmetric: bool = False) -> None:
        super().__init__()
        self.asymmetric = asymmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if asymmetric else 1)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H/2, W/2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.asymmetric else x)


class Upsample(nn.Module):
    """Nearest-neighbour resize to a given size, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        initialise(self)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, C, h, w) to (B, C, *size)."""
        return self.conv(F.interpolate(x, size=size, mode="nearest"))
