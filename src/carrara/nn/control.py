"""Control of a frozen network by a picture (ControlNet, Zhang et al. 2023).

A copy of the network's encoder reads x and, added to its first features, what a small network makes of the picture. Its
features go through linear maps that start at zero ("zero convolutions") and are added to the frozen network's own:

    h_i  <-  h_i + present Z_i(copy_i(x + Z_0(hint(picture))))        Z = 0 at the start

so that a control that has learnt nothing changes nothing, bit for bit. The last plane of the picture says of each row
whether there is one (`present`, 1 or 0): without it the network is the frozen one, however much the control has learnt.
Anything else scales what the control adds, which others call its conditioning scale. For a UNet the copy is its way
down and its middle; for a DiT its first blocks (Chen et al. 2024, PixArt-delta).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise, zip_longest
from typing import Annotated, Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from carrara.config import Configured, Role
from carrara.nn.dit import DiT, DiTStem
from carrara.nn.layers import check_channels, initialise, zero
from carrara.nn.unet import UNet, UNetDescent
from carrara.nn.unet_adapter import UNetAdapter
from carrara.types import Condition

__all__ = ["Controlled", "DiTControl", "UNetControl", "control_of"]

_NO_CONDITION = Condition()


class _Hint(nn.Sequential):
    """What is seen of the picture: (B, channels, H, W) to (B, hidden, H, W)."""

    def __init__(self, channels: int, hidden: int) -> None:
        layers = [nn.Conv2d(channels, hidden, 3, padding=1), nn.SiLU(), nn.Conv2d(hidden, hidden, 3, padding=1)]
        super().__init__(*layers, nn.SiLU())
        initialise(self)


class _Stem(nn.Sequential):
    """What is seen of a picture larger than x: half the size and another width, `widths`' number less one times."""

    def __init__(self, channels: int, widths: tuple[int, ...]) -> None:
        layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, padding=1), nn.SiLU()]
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, before, 3, padding=1), nn.SiLU()]
            layers += [nn.Conv2d(before, after, 3, padding=1, stride=2), nn.SiLU()]
        super().__init__(*layers)
        initialise(self)

    def forward(self, picture: Tensor) -> Tensor:
        # without the plane that says whether there is one, and from [-1, 1] to [0, 1], as these were trained
        return super().forward((picture[:, :-1] + 1) / 2)


class UNetControl(Configured, UNetDescent):
    """A UNet's way down and middle, told a picture; `network` is the UNet whose modules it takes, a copy of another's.

    channels: of the picture, its last plane included. hidden: of the network that looks at it; or `stem`, the widths of
    the one that Zhang et al. look with, for latents: it halves the picture after each width but the last, and so the
    picture is that much larger than x.
    """

    def __init__(
        self,
        network: Annotated[nn.Module, Role("network")],
        *,
        channels: int,
        hidden: int = 32,
        stem: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        if not isinstance(network, UNet):
            raise ValueError(f"given a {type(network).__name__}; a control of this kind is made of a UNet")
        self.embed, self.inward = network.embed, network.inward
        self.down, self.downsample, self.middle = network.down, network.downsample, network.middle
        self.fourier, self.channels = network.fourier, channels
        first = network.inward.out_channels
        self.hint = _Stem(channels - 1, stem) if stem else _Hint(channels, hidden)
        self.seen = zero(nn.Conv2d(stem[-1], first, 3, padding=1) if stem else nn.Conv2d(hidden, first, 1))
        self.times = 2 ** max(0, len(stem) - 1)
        widths = [first, *_made(network)]
        self.beside = nn.ModuleList(zero(nn.Conv2d(width, width, 1)) for width in (*widths, widths[-1]))

    def forward(self, x: Tensor, level: Tensor, condition: Condition, picture: Tensor) -> tuple[Tensor, ...]:
        """What is to be added to the features of the frozen UNet: one for each of its skips, one for its middle."""
        check_channels(picture, self.channels, "the control's picture")
        if picture.shape[2:] != (self.times * x.shape[2], self.times * x.shape[3]):
            raise ValueError(
                f"the control's picture has {tuple(picture.shape[2:])} pixels and x has {tuple(x.shape[2:])}; resize "
                f"it to {self.times} times x's size first"
            )
        if not self.embed.image_channels:
            condition = replace(condition, image=None)  # what only the frozen network reads
        h, skips, *_ = self.descend(x, level, condition, self.seen(self.hint(picture.to(self.seen.weight.dtype))))
        return tuple(linear(feature) for linear, feature in zip(self.beside, (*skips, h), strict=True))


def _made(network: UNet) -> list[int]:
    """The channels that each block and downsampling of the way down makes."""
    widths = []
    for i, stages in enumerate(network.down):
        widths += [int(cast(Any, stage).block.conv2.out_channels) for stage in cast(nn.ModuleList, stages)]
        if i < len(network.downsample):
            widths.append(widths[-1])
    return widths


class DiTControl(Configured, DiTStem):
    """The first blocks of a DiT, told a picture; `network` is the DiT whose modules it takes, a copy of another's.

    channels: of the picture, its last plane included. blocks: how many; None is half of them. hidden: as for a UNet.
    """

    def __init__(
        self,
        network: Annotated[nn.Module, Role("network")],
        *,
        channels: int,
        blocks: int | None = None,
        hidden: int = 32,
    ) -> None:
        super().__init__()
        if not isinstance(network, DiT):
            raise ValueError(f"given a {type(network).__name__}; a control of this kind is made of a DiT")
        count = max(1, len(network.blocks) // 2) if blocks is None else blocks
        if not 1 <= count <= len(network.blocks):
            raise ValueError(f"blocks = {blocks}; this DiT has {len(network.blocks)}, of which at least 1 is needed")
        self.embed, self.inward, self.positions = network.embed, network.inward, network.positions
        self.patch, self.grid, self.channels = network.patch, network.grid, channels
        self.blocks = network.blocks[:count]
        width = network.inward.out_features
        self.hint = _Hint(channels, hidden)
        self.seen = zero(nn.Linear(hidden * self.patch**2, width))
        self.beside = nn.ModuleList(zero(nn.Linear(width, width)) for _ in range(count))

    def forward(self, x: Tensor, level: Tensor, condition: Condition, picture: Tensor) -> tuple[Tensor, ...]:
        """What is to be added after each of the frozen DiT's first blocks: (B, N, width) each."""
        check_channels(picture, self.channels, "the control's picture")
        seen = F.pixel_unshuffle(self.hint(picture.to(self.seen.weight.dtype)), self.patch)
        h, c, tokens = self.begin(x, level, condition, self.seen(seen.flatten(2).transpose(1, 2)))
        added = []
        for block, linear in zip(self.blocks, self.beside, strict=True):
            h = block(h, c, tokens, condition.mask)
            added.append(linear(h))
        return tuple(added)


def control_of(network: nn.Module, *, channels: int, hidden: int = 32) -> UNetControl | DiTControl:
    """A control for a network, with a copy of its weights to begin with; ValueError for one that has none."""
    kinds: dict[type[nn.Module], Callable[..., UNetControl | DiTControl]] = {UNet: UNetControl, DiT: DiTControl}
    if (kind := kinds.get(type(network))) is None:
        raise ValueError(f"a {type(network).__name__} cannot be controlled; UNets and DiTs can")
    return kind(copy.deepcopy(network), channels=channels, hidden=hidden).requires_grad_(True)


class Controlled(nn.Module):
    """A frozen network and its controls, as one network; what several add is summed.

    `controls` are UNetControl, UNetAdapter or DiTControl modules of that network, by the name of the picture in
    `condition.controls` that each reads.
    """

    def __init__(self, network: nn.Module, controls: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.network = network
        self.controls = nn.ModuleDict(controls)

    def forward(self, x: Tensor, level: Tensor, condition: Condition = _NO_CONDITION) -> Tensor:
        """As the network's own, with a picture for each control in `condition.controls`."""
        pictures = dict(condition.controls)
        if missing := sorted(set(self.controls) - set(pictures)):
            raise ValueError(
                f"condition.controls has {sorted(pictures)} and this network is controlled by {missing}, too"
            )
        mine = {name: pictures.pop(name) for name in self.controls}
        rest = replace(condition, controls=pictures)
        total: list[Tensor] = []
        within: list[Tensor] = []
        for name, control in self.controls.items():
            present = mine[name][:, -1:, :1, :1]
            if isinstance(control, UNetAdapter):
                within = _sum(within, [_times(feature, present) for feature in control(mine[name])])
            else:
                total = _sum(total, [_times(feature, present) for feature in control(x, level, rest, mine[name])])
        made: Tensor = self.network(x, level, rest, total, *([within] if within else []))
        return made


def _sum(some: list[Tensor], more: list[Tensor]) -> list[Tensor]:
    return [a if b is None else b if a is None else a + b for a, b in zip_longest(some, more)]


def _times(feature: Tensor, present: Tensor) -> Tensor:
    """A feature map (B, C, H, W) or a sequence (B, N, width), row by row times `present` (B, 1, 1, 1)."""
    return feature * present.to(feature.dtype).reshape(-1, *[1] * (feature.ndim - 1))
