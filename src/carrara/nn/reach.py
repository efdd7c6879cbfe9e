"""How far a network sees: which inputs a stretch of outputs depends on, worked out layer by layer from the end.

    convolution of kernel k, stride s, padding p     outputs [a, b)  <-  inputs [a s - p, (b - 1) s - p + k)
    twice the size, by repetition or shuffling       outputs [a, b)  <-  inputs [floor(a / 2), ceil(b / 2))
    a point alone (activations, the norm "rms")      outputs [a, b)  <-  inputs [a, b)

A norm over groups of channels, or attention, sees the whole picture: then there is no such stretch. A picture can be
computed in parts that overlap by what is found here and come out as it would whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import nn

from carrara.nn.layers import ChannelRms, ResidualBlock

__all__ = ["Stretch", "halo", "needed"]

_POINTWISE = (nn.SiLU, nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Identity, nn.Dropout, ChannelRms)


class Stretch(NamedTuple):
    """The places start <= i < stop along a side; negative ones lie before the picture."""

    start: int
    stop: int

    def union(self, other: Stretch) -> Stretch:
        """The smallest stretch that holds both."""
        return Stretch(min(self.start, other.start), max(self.stop, other.stop))


def needed(network: nn.Module | Iterable[nn.Module], outputs: Stretch) -> Stretch | None:
    """The inputs that these outputs depend on, or None where that is all of them.

    Blocks of other modules say it themselves, in a method `needed(outputs)`. ValueError for a layer that is not known.
    """
    if isinstance(network, nn.Sequential) or not isinstance(network, nn.Module):
        inputs: Stretch | None = outputs
        for layer in reversed(list(network)):
            if inputs is not None:
                inputs = needed(layer, inputs)
        return inputs
    if isinstance(network, nn.GroupNorm):
        return None
    if isinstance(network, _POINTWISE):
        return outputs
    if isinstance(network, nn.Conv2d):
        (kernel, *_), (stride, *_), padding = network.kernel_size, network.stride, network.padding
        before = padding[0] if isinstance(padding, tuple) else (kernel - 1) // 2
        return Stretch(outputs.start * stride - before, (outputs.stop - 1) * stride - before + kernel)
    if isinstance(network, nn.Upsample | nn.PixelShuffle):
        times = int(network.scale_factor) if isinstance(network, nn.Upsample) else network.upscale_factor  # type: ignore[arg-type]
        return Stretch(outputs.start // times, -(-outputs.stop // times))
    if isinstance(network, nn.PixelUnshuffle):
        return Stretch(outputs.start * network.downscale_factor, outputs.stop * network.downscale_factor)
    if isinstance(network, ResidualBlock):
        return needed((network.norm1, network.conv1, network.norm2, network.conv2), outputs)
    own = getattr(network, "needed", None)
    if own is None:
        raise ValueError(f"how far {type(network).__name__} sees is not known; give it a method `needed(outputs)`")
    found: Stretch | None = own(outputs)
    return found


def halo(network: nn.Module | Iterable[nn.Module], inputs: int, outputs: int) -> int | None:
    """How many inputs beyond its own a part of `inputs` places needs on either side, for its `outputs` places.

    `outputs` to `inputs` is the network's scale. None where it needs all of the picture.
    """
    found = needed(network, Stretch(0, outputs))
    return None if found is None else max(0, -found.start, found.stop - inputs)
