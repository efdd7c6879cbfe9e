"""The autoencoder of latent diffusion (Rombach et al. 2022, after Esser et al. 2021): of Stable Diffusion and FLUX.

    encode   x (B, C, H, W)              ->  mean, logvar (B, latent, H / down, W / down),   down = 2^(widths - 1)
    decode   z (B, latent, h, w)         ->  x (B, C, h * down, w * down)

Residual blocks at every resolution, and between the halves attention of all pixels to one another. Networks of one's
own train quicker as a `KLAutoencoder`; this one reads the weights that people have.
"""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from carrara.config import Configured
from carrara.nn.attention import SpatialAttention
from carrara.nn.layers import Downsample, ResidualBlock, Upsample, check_channels, dtype_of, initialise, norm

__all__ = ["ImageAutoencoder"]

_EPS = 1e-6


class _Middle(nn.Sequential):
    """Two residual blocks, with attention between them or not."""

    def __init__(self, width: int, *, attention: bool, groups: int, group_width: int) -> None:
        def block() -> nn.Module:
            return ResidualBlock(width, groups=groups, group_width=group_width, eps=_EPS)

        between = [SpatialAttention(width, heads=1, groups=groups, group_width=group_width, eps=_EPS)]
        super().__init__(block(), *(between if attention else []), block())


class _Encoder(nn.Module):
    """Pictures to the mean and the log-variance, one after the other along the channels."""

    def __init__(
        self, channels: int, latent: int, widths: tuple[int, ...], blocks: int, attention: bool, mix: bool,
        *, groups: int, group_width: int,
    ) -> None:  # fmt: skip
        super().__init__()
        here = widths[0]
        self.inward = nn.Conv2d(channels, here, 3, padding=1)
        self.down, self.downsample = nn.ModuleList(), nn.ModuleList()
        for i, there in enumerate(widths):
            stages = []
            for _ in range(blocks):
                stages.append(ResidualBlock(here, there, groups=groups, group_width=group_width, eps=_EPS))
                here = there
            self.down.append(nn.Sequential(*stages))
            if i < len(widths) - 1:
                self.downsample.append(Downsample(here, asymmetric=True))
        self.middle = _Middle(here, attention=attention, groups=groups, group_width=group_width)
        self.norm = norm("group", here, groups=groups, group_width=group_width, eps=_EPS)
        self.outward = nn.Conv2d(here, 2 * latent, 3, padding=1)
        self.mix = nn.Conv2d(2 * latent, 2 * latent, 1) if mix else nn.Identity()
        for layer in (self.inward, self.outward, self.mix):
            initialise(layer)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inward(x)
        for i, stages in enumerate(self.down):
            h = stages(h)
            if i < len(self.downsample):
                h = self.downsample[i](h)
        return self.mix(self.outward(F.silu(self.norm(self.middle(h)))))


class _Decoder(nn.Module):
    """Latents to pictures."""

    def __init__(
        self, channels: int, latent: int, widths: tuple[int, ...], blocks: int, attention: bool, mix: bool,
        *, groups: int, group_width: int,
    ) -> None:  # fmt: skip
        super().__init__()
        here = widths[-1]
        self.mix = nn.Conv2d(latent, latent, 1) if mix else nn.Identity()
        self.inward = nn.Conv2d(latent, here, 3, padding=1)
        self.middle = _Middle(here, attention=attention, groups=groups, group_width=group_width)
        self.up, self.upsample = nn.ModuleList(), nn.ModuleList()
        for i, there in reversed(list(enumerate(widths))):
            stages = []
            for _ in range(blocks + 1):
                stages.append(ResidualBlock(here, there, groups=groups, group_width=group_width, eps=_EPS))
                here = there
            self.up.append(nn.Sequential(*stages))
            if i:
                self.upsample.append(Upsample(here))
        self.norm = norm("group", here, groups=groups, group_width=group_width, eps=_EPS)
        self.outward = nn.Conv2d(here, channels, 3, padding=1)
        for layer in (self.mix, self.inward, self.outward):
            initialise(layer)

    def forward(self, z: Tensor) -> Tensor:
        h = self.middle(self.inward(self.mix(z)))
        for i, stages in enumerate(self.up):
            h = stages(h)
            if i < len(self.upsample):
                h = self.upsample[i](h, (2 * h.shape[2], 2 * h.shape[3]))
        return self.outward(F.silu(self.norm(h)))


class ImageAutoencoder(Configured, nn.Module):
    """An encoder and a decoder in the layout of Stable Diffusion's; the defaults are its own.

    latent: channels of z (4 for SD and SDXL, 16 for SD3 and FLUX). widths: channels at each resolution, finest first.
    blocks: residual blocks at each resolution of the encoder, one more in the decoder. attention: in both middles.
    mix_moments, mix_latent: a linear map of each pixel after the encoder, and before the decoder (SD and SDXL).
    groups, group_width: of the norms, how many at most, and of how many channels at least.
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        latent: int = 4,
        widths: tuple[int, ...] = (128, 256, 512, 512),
        blocks: int = 2,
        attention: bool = True,
        mix_moments: bool = True,
        mix_latent: bool = True,
        groups: int = 32,
        group_width: int = 4,
    ) -> None:
        super().__init__()
        if not widths:
            raise ValueError("widths=() leaves no resolution; give the channels of one at least")
        self.channels, self.latent, self.down = channels, latent, 2 ** (len(widths) - 1)
        grouped = {"groups": groups, "group_width": group_width}
        self.encoder = _Encoder(channels, latent, widths, blocks, attention, mix_moments, **grouped)
        self.decoder = _Decoder(channels, latent, widths, blocks, attention, mix_latent, **grouped)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures (B, channels, H, W) in [-1, 1] to the mean and log-variance of z, each (B, latent, H/down, W/down).

        The log-variance is limited to [-30, 20]. Both have the dtype of x. Raises ValueError for other channels and for
        sizes that `down` does not divide.
        """
        check_channels(x, self.channels)
        if x.shape[2] % self.down or x.shape[3] % self.down:
            raise ValueError(
                f"a picture of {x.shape[2]} x {x.shape[3]} pixels does not divide into latents of {self.down} x "
                f"{self.down}; resize, crop or pad it to multiples of {self.down}"
            )
        mean, logvar = self.encoder(x.to(dtype_of(self))).chunk(2, 1)
        return mean.to(x.dtype), logvar.to(x.dtype).clamp(-30.0, 20.0)

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, latent, h, w) to pictures (B, channels, h * down, w * down), not clipped, in the dtype of z."""
        check_channels(z, self.latent, "z")
        return self.decoder(z.to(dtype_of(self))).to(z.dtype)

    @property
    def last(self) -> nn.Parameter:
        """The weights of the decoder's last layer, at which losses are weighed against one another."""
        return cast(nn.Parameter, self.decoder.outward.weight)

    @property
    def halos(self) -> tuple[int | None, int | None]:
        """None, None: the norms, and the attention, see the whole picture."""
        return None, None

    def forward(self, x: Tensor) -> Tensor:
        """The picture decoded from its mean latent."""
        return self.decode(self.encode(x)[0])
