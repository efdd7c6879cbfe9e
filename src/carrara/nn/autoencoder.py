"""The autoencoder with a normal bottleneck (Kingma & Welling 2013; Rombach et al. 2022), for latent decoders.

    encode   x (B, C, H, W)              ->  mean, logvar (B, latent, H / down, W / down)
    decode   z (B, latent, h, w)         ->  x (B, C, h * down, w * down)

Built for speed on any machine. The picture is folded first, `patch` x `patch` pixels into one with patch^2 times the
channels, so no convolution runs at full size. Where the size halves or doubles, and at the latent, a shortcut without
parameters folds space into channels or back (DC-AE, Chen et al. 2024), so pictures pass from the first step on.
No function bounds the output: what leaves [-1, 1] is for the caller to clip.
"""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from carrara.config import Configured
from carrara.nn.layers import NormKind, ResidualBlock, check_channels, dtype_of, initialise, match_channels, norm
from carrara.nn.reach import Stretch, halo, needed

__all__ = ["KLAutoencoder"]

_START_LOGVAR = -6.0  # an untrained encoder says where, with a standard deviation of 0.05


class _Fold(nn.Module):
    """Half the size: a convolution of stride 2, plus space folded into channels and averaged to `out` of them."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.out = out
        self.conv = nn.Conv2d(channels, out, 3, stride=2, padding=1)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + match_channels(F.pixel_unshuffle(x, 2), self.out)

    def needed(self, outputs: Stretch) -> Stretch | None:
        """See carrara.nn.reach: what the convolution needs holds what the shortcut does."""
        return needed(self.conv, outputs)


class _Unfold(nn.Module):
    """Twice the size: channels, made by a convolution and by repetition, unfolded into space."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4 * out, 3, padding=1)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x) + match_channels(x, self.conv.out_channels), 2)

    def needed(self, outputs: Stretch) -> Stretch | None:
        """See carrara.nn.reach."""
        return needed((self.conv, nn.PixelShuffle(2)), outputs)


class _ToLatent(nn.Module):
    """The mean, a convolution plus the averaged channels, and the log-variance, which starts as a constant."""

    def __init__(self, channels: int, latent: int) -> None:
        super().__init__()
        self.mean = nn.Conv2d(channels, latent, 3, padding=1)
        self.logvar = nn.Conv2d(channels, latent, 3, padding=1)
        initialise(self.mean)
        nn.init.zeros_(self.logvar.weight)
        nn.init.constant_(cast(Tensor, self.logvar.bias), _START_LOGVAR)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean(x) + match_channels(x, self.mean.out_channels), self.logvar(x)

    def needed(self, outputs: Stretch) -> Stretch | None:
        """See carrara.nn.reach."""
        return needed(self.mean, outputs)


class _FromLatent(nn.Module):
    """A convolution, plus the repeated channels."""

    def __init__(self, latent: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(latent, channels, 3, padding=1)
        initialise(self)

    def forward(self, z: Tensor) -> Tensor:
        return self.conv(z) + match_channels(z, self.conv.out_channels)

    def needed(self, outputs: Stretch) -> Stretch | None:
        """See carrara.nn.reach."""
        return needed(self.conv, outputs)


class KLAutoencoder(Configured, nn.Module):
    """An encoder and a decoder of residual blocks; sizes need only be divisible by `down`.

    channels: of the pictures, any number. latent: channels of z. down: pixels of the picture a side of a latent pixel.
    patch: the part of `down` that is folded away before the first convolution: 1, 2, 4, ...
    widths: channels at each resolution, finest first; one for every halving between `patch` and `down`, plus one.
    encoder_blocks, decoder_blocks: residual blocks at each resolution, finest first.
    norm: "none" lets the residual branches start at zero instead (Zhang et al. 2019): the quickest, and the best in
    trainings of minutes, at learning rates of 1e-3 to 3e-3; "group" is the usual norm, for long trainings of large
    networks; "rms" normalises each pixel alone, so distant parts of a picture do not touch each other.
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        latent: int = 16,
        down: int = 8,
        patch: int = 2,
        widths: tuple[int, ...] = (32, 64, 128),
        encoder_blocks: tuple[int, ...] = (0, 1, 1),
        decoder_blocks: tuple[int, ...] = (1, 2, 2),
        norm: NormKind = "none",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if patch < 1 or down != patch * 2 ** (len(widths) - 1):
            raise ValueError(
                f"down={down} cannot be reached from patch={patch} with {len(widths)} widths, which give "
                f"{patch} * 2^{len(widths) - 1}; change `down`, `patch` or the number of widths"
            )
        for name, blocks in (("encoder_blocks", encoder_blocks), ("decoder_blocks", decoder_blocks)):
            if len(blocks) != len(widths):
                raise ValueError(
                    f"{name}={blocks} has {len(blocks)} entries for {len(widths)} widths; give one a width"
                )
        self.channels, self.latent, self.down, self.patch = channels, latent, down, patch
        self.encoder = _encoder(channels * patch**2, latent, widths, encoder_blocks, norm, dropout)
        self.decoder = _decoder(latent, channels * patch**2, widths, decoder_blocks, norm, dropout)

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
        mean, logvar = self.encoder(F.pixel_unshuffle(x.to(dtype_of(self)), self.patch))
        return mean.to(x.dtype), logvar.to(x.dtype).clamp(-30.0, 20.0)

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, latent, h, w) to pictures (B, channels, h * down, w * down), not clipped, in the dtype of z."""
        check_channels(z, self.latent, "z")
        return F.pixel_shuffle(self.decoder(z.to(dtype_of(self))), self.patch).to(z.dtype)

    @property
    def last(self) -> nn.Parameter:
        """The weights of the decoder's last layer, at which losses are weighed against one another."""
        return cast(nn.Parameter, self.decoder[-1].weight)

    @property
    def halos(self) -> tuple[int | None, int | None]:
        """How far encoding and decoding see beyond a part: pixels of x, and pixels of z; None with the norm "group".

        Encoding's is a multiple of `down`.
        """
        layers = (nn.PixelUnshuffle(self.patch), *self.encoder)
        inward, outward = halo(layers, self.down, 1), halo((*self.decoder, nn.PixelShuffle(self.patch)), 1, self.down)
        return None if inward is None else -(-inward // self.down) * self.down, outward

    def forward(self, x: Tensor) -> Tensor:
        """The picture decoded from its mean latent."""
        return self.decode(self.encode(x)[0])


def _blocks(width: int, count: int, kind: NormKind, dropout: float) -> list[nn.Module]:
    return [ResidualBlock(width, kind=kind, dropout=dropout) for _ in range(count)]


def _encoder(
    channels: int, latent: int, widths: tuple[int, ...], blocks: tuple[int, ...], kind: NormKind, dropout: float
) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, padding=1)]
    for i, width in enumerate(widths):
        if i:
            layers.append(_Fold(widths[i - 1], width))
        layers += _blocks(width, blocks[i], kind, dropout)
    layers += [norm(kind, widths[-1]), nn.SiLU(), _ToLatent(widths[-1], latent)]
    initialise(layers[0])
    return nn.Sequential(*layers)


def _decoder(
    latent: int, channels: int, widths: tuple[int, ...], blocks: tuple[int, ...], kind: NormKind, dropout: float
) -> nn.Sequential:
    layers: list[nn.Module] = [_FromLatent(latent, widths[-1])]
    for i, width in reversed(list(enumerate(widths))):
        layers += _blocks(width, blocks[i], kind, dropout)
        if i:
            layers.append(_Unfold(width, widths[i - 1]))
    layers += [norm(kind, widths[0]), nn.SiLU(), nn.Conv2d(widths[0], channels, 3, padding=1)]
    initialise(layers[-1])
    return nn.Sequential(*layers)
