"""The autoencoder with a normal bottleneck (Kingma & Welling 2013; Rombach et al. 2022), for latent decoders.

    encode   x (B, C, H, W)              ->  mean, logvar (B, latent, H / down, W / down)
    decode   z (B, latent, h, w)         ->  x (B, C, h * down, w * down)

Built for speed on any machine. The picture is folded first, `patch` x `patch` pixels into one with patch^2 times the
channels, so no convolution runs at full size. Where the size halves or doubles, a shortcut without parameters folds
space into channels or back (DC-AE, Chen et al. 2024), so pictures pass from the first step of training on.
No function bounds the output: what leaves [-1, 1] is for the caller to clip.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carrara.config import Configured
from carrara.nn.layers import NormKind, ResidualBlock, check_channels, dtype_of, initialise, match_channels, norm, zero

__all__ = ["KLAutoencoder"]

_START_LOGVAR = -6.0  # an untrained encoder says where, with a standard deviation of 0.05


class _Fold(nn.Module):
    """Half the size: a convolution of stride 2, plus space folded into channels and averaged to `out` of them."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.out = out
        self.conv = nn.Conv2d(channels, out, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + match_channels(F.pixel_unshuffle(x, 2), self.out)


class _Unfold(nn.Module):
    """Twice the size: channels, made by a convolution and by repetition, unfolded into space."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4 * out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x) + match_channels(x, self.conv.out_channels), 2)


class KLAutoencoder(Configured, nn.Module):
    """An encoder and a decoder of residual blocks; sizes need only be divisible by `down`.

    channels: of the pictures, any number. latent: channels of z. down: pixels of the picture a side of a latent pixel.
    patch: the part of `down` that is folded away before the first convolution: 1, 2, 4, ...
    widths: channels at each resolution, finest first; one for every halving between `patch` and `down`, plus one.
    encoder_blocks, decoder_blocks: residual blocks at each resolution, finest first.
    norm: "group" for the usual norm; "rms" normalises each pixel alone, so distant parts of a picture do not touch each
    other; "none" leaves it out, the residual branches starting at zero (Zhang et al. 2019).
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        latent: int = 16,
        down: int = 8,
        patch: int = 2,
        widths: tuple[int, ...] = (64, 128, 256),
        encoder_blocks: tuple[int, ...] = (1, 1, 1),
        decoder_blocks: tuple[int, ...] = (1, 2, 2),
        norm: NormKind = "group",
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
        self.encoder = _encoder(channels * patch**2, 2 * latent, widths, encoder_blocks, norm, dropout)
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
        folded = F.pixel_unshuffle(x.to(dtype_of(self)), self.patch)
        mean, logvar = self.encoder(folded).to(x.dtype).chunk(2, dim=1)
        return mean, logvar.clamp(-30.0, 20.0)

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, latent, h, w) to pictures (B, channels, h * down, w * down), not clipped, in the dtype of z."""
        check_channels(z, self.latent, "z")
        return F.pixel_shuffle(self.decoder(z.to(dtype_of(self))), self.patch).to(z.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """The picture decoded from its mean latent."""
        return self.decode(self.encode(x)[0])


def _blocks(width: int, count: int, kind: NormKind, dropout: float) -> list[nn.Module]:
    return [ResidualBlock(width, kind=kind, dropout=dropout) for _ in range(count)]


def _head(width: int, out: int, kind: NormKind) -> list[nn.Module]:
    return [norm(kind, width), nn.SiLU(), nn.Conv2d(width, out, 3, padding=1)]


def _encoder(
    channels: int, out: int, widths: tuple[int, ...], blocks: tuple[int, ...], kind: NormKind, dropout: float
) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, padding=1)]
    for i, width in enumerate(widths):
        if i:
            layers.append(_Fold(widths[i - 1], width))
        layers += _blocks(width, blocks[i], kind, dropout)
    return _sequence(layers + _head(widths[-1], out, kind), logvar=out // 2)


def _decoder(
    latent: int, out: int, widths: tuple[int, ...], blocks: tuple[int, ...], kind: NormKind, dropout: float
) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(latent, widths[-1], 3, padding=1)]
    for i, width in reversed(list(enumerate(widths))):
        layers += _blocks(width, blocks[i], kind, dropout)
        if i:
            layers.append(_Unfold(width, widths[i - 1]))
    return _sequence(layers + _head(widths[0], out, kind))


def _sequence(layers: list[nn.Module], *, logvar: int = 0) -> nn.Sequential:
    """The layers in order, initialised; the last `logvar` output channels start as a constant."""
    network = nn.Sequential(*layers)
    initialise(network)
    for block in network:
        if isinstance(block, ResidualBlock):
            zero(block.conv2)
    last = network[-1]
    if logvar and isinstance(last, nn.Conv2d) and last.bias is not None:
        with torch.no_grad():
            last.weight[-logvar:] = 0.0
            last.bias[-logvar:] = _START_LOGVAR
    return network
