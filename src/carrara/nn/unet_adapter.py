"""Control of a frozen UNet by a picture, from outside of it (T2I-Adapter, Mou et al. 2023).

A small network looks at the picture alone, and what it sees at each resolution is added to the UNet's features there,
on their way down. It is told neither x nor the level, so a sampling needs it once; it has no zeros to start from.
"""

from __future__ import annotations

from torch import Tensor, nn

from carrara.config import Configured
from carrara.nn.layers import check_channels, dtype_of, initialise

__all__ = ["UNetAdapter"]

_NARROWER = 4  # the light blocks' inner width


class _Residual(nn.Module):
    """x + two convolutions of it, the second of `kernel`."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, kernel, padding=kernel // 2)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.act(self.conv1(x)))


class _Block(nn.Sequential):
    """What is seen at one resolution: half the size or not, another width, residual blocks; the light kind narrower."""

    def __init__(self, before: int, after: int, *, blocks: int, halved: bool, light: bool) -> None:
        inner = after // _NARROWER if light else after
        layers: list[nn.Module] = [nn.AvgPool2d(2, ceil_mode=True) if halved else nn.Identity()]
        layers.append(nn.Conv2d(before, inner, 1) if light or before != inner else nn.Identity())
        layers += [_Residual(inner, 3 if light else 1) for _ in range(blocks)]
        layers += [nn.Conv2d(inner, after, 1)] if light else []
        super().__init__(*layers)


class UNetAdapter(Configured, nn.Module):
    """A picture's features for a UNet; `nn.control.Controlled` adds them to one.

    channels: of the picture, its last plane included. widths: of the UNet, at each of its resolutions, and at the
    middle where a further one is given. blocks: residual blocks at each. fold: pixels a side that become one, before
    anything else. halved: the resolutions half as large as the one before. light: a quarter of the width inside.
    """

    def __init__(
        self,
        *,
        channels: int,
        widths: tuple[int, ...] = (320, 640, 1280, 1280),
        blocks: int = 2,
        fold: int = 8,
        halved: tuple[int, ...] = (1, 2, 3),
        light: bool = False,
    ) -> None:
        super().__init__()
        if not widths or not set(halved) <= set(range(len(widths))):
            raise ValueError(
                f"halved={halved} names resolutions and widths={widths} has {len(widths)}, numbered from 0; "
                "name those only"
            )
        self.channels = channels
        self.fold = nn.PixelUnshuffle(fold)
        folded = (channels - 1) * fold**2
        self.inward = None if light else nn.Conv2d(folded, widths[0], 3, padding=1)
        before = (folded if light else widths[0], *widths)
        self.body = nn.ModuleList(
            _Block(before[i], width, blocks=blocks, halved=i in halved, light=light) for i, width in enumerate(widths)
        )
        self.times = fold * 2 ** len(halved)
        initialise(self)

    def forward(self, picture: Tensor) -> tuple[Tensor, ...]:
        """Pictures (B, channels, H, W) in [-1, 1] to what is to be added at each resolution.

        Raises ValueError for other channels and for sizes that do not divide by all that is folded and halved.
        """
        check_channels(picture, self.channels, "the adapter's picture")
        if picture.shape[2] % self.times or picture.shape[3] % self.times:
            raise ValueError(
                f"the adapter's picture has {tuple(picture.shape[2:])} pixels and is made {self.times} times smaller; "
                f"resize, crop or pad it to multiples of {self.times}"
            )
        # without the plane that says whether there is one, and from [-1, 1] to [0, 1], as these were trained
        h = self.fold((picture[:, :-1].to(dtype_of(self)) + 1) / 2)
        h = h if self.inward is None else self.inward(h)
        seen = []
        for block in self.body:
            h = block(h)
            seen.append(h)
        return tuple(seen)
