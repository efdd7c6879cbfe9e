"""The discriminator of parts of a picture (PatchGAN, Isola et al. 2017): real or made, judged place by place.

    x (B, C, H, W)  ->  logits (B, 1, h, w), positive for real

A logit sees a part of the picture only (34 pixels a side with the defaults), so it judges texture and sharpness and
leaves what is shown to the other losses. In place of the batch norm of the paper there is a norm over groups of
channels, or none: a row's logits depend on that row alone.
"""

from __future__ import annotations

from torch import Tensor, nn

from carrara.config import Configured
from carrara.nn.layers import NormKind, check_channels, dtype_of, norm

__all__ = ["PatchDiscriminator"]

_SLOPE = 0.2
_STD = 0.02  # of the first weights, as in DCGAN and Pix2Pix
_WIDEST = 8  # times `width`


class PatchDiscriminator(Configured, nn.Module):
    """Convolutions of 4 x 4, `depth` of them of stride 2, then one and a last one of stride 1.

    channels: of the pictures. width: channels after the first layer, doubled by each further one up to eight times.
    """

    def __init__(self, *, channels: int = 3, width: int = 64, depth: int = 2, norm: NormKind = "group") -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth = {depth}; a discriminator of parts halves the picture at least once")
        self.channels = channels
        self.smallest = 2**depth * 3  # the last two layers take one pixel each off what is left
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(_SLOPE)]
        here = width
        for i in range(1, depth + 1):
            there = min(2**i, _WIDEST) * width
            layers += [nn.Conv2d(here, there, 4, 2 if i < depth else 1, 1), _norm(norm, there), nn.LeakyReLU(_SLOPE)]
            here = there
        self.layers = nn.Sequential(*layers, nn.Conv2d(here, 1, 4, 1, 1))
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                nn.init.normal_(layer.weight, std=_STD)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 1, h, w) in float32. ValueError for other channels and for pictures that are too small."""
        check_channels(x, self.channels)
        if min(x.shape[2:]) < self.smallest:
            raise ValueError(
                f"pictures of {x.shape[2]} x {x.shape[3]} are too small for this discriminator, which needs "
                f"{self.smallest} pixels a side; lower its `depth`"
            )
        logits: Tensor = self.layers(x.to(dtype_of(self)))
        return logits.float()


def _norm(kind: NormKind, channels: int) -> nn.Module:
    return norm(kind, channels)
