"""The tiny autoencoder of TAESD (Ollin Boer Bohan, 2023, github.com/madebyollin/taesd): a large one's latents, quickly.

    encode   x (B, C, H, W)        ->  z (B, latent, H / 8, W / 8), with no variance
    decode   z (B, latent, h, w)   ->  x (B, C, 8 h, 8 w), after z is bounded to (-3, 3) by 3 tanh(z / 3)

It was trained to make and to read the latents of Stable Diffusion, SDXL, SD3 or FLUX at a hundredth of their cost, so
it decodes what their generators make, shows it on the way, or is a decoder for a generator of one's own. Parameters
have the names of the published files. Inside, pictures are in [0, 1].

`pooled` is the variant for FLUX.2: at the coarsest size every block first adds a normed branch that sees the whole
picture.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from carrara.config import Configured
from carrara.nn.layers import check_channels, dtype_of
from carrara.nn.reach import Stretch, halo, needed

__all__ = ["TinyAutoencoder"]

_LOGVAR = -30.0  # the encoder is certain: the least that a KL autoencoder says
_BOUND = 3.0  # of the latents' magnitude
_WIDEN = 4  # of the pooled branch


class _Bound(nn.Module):
    """3 tanh(z / 3)."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(z / _BOUND) * _BOUND

    def needed(self, outputs: Stretch) -> Stretch:
        """See carrara.nn.reach: each point alone."""
        return outputs


class _Block(nn.Module):
    """ReLU(x + three convolutions of it)."""

    def __init__(self, width: int, pooled: bool) -> None:
        super().__init__()
        self.conv = nn.Sequential(_conv(width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width))
        self.fuse = nn.ReLU()
        self.pool = None
        if pooled:
            wide = _WIDEN * width
            inward, outward = nn.Conv2d(width, wide, 1, bias=False), nn.Conv2d(wide, width, 1, bias=False)
            self.pool = nn.Sequential(inward, nn.GroupNorm(4, wide), nn.ReLU(), outward)

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return self.fuse(self.conv(x) + x)

    def needed(self, outputs: Stretch) -> Stretch | None:
        """See carrara.nn.reach."""
        return needed((*(self.pool or ()), *self.conv), outputs)


class TinyAutoencoder(Configured, nn.Module):
    """An autoencoder in TAESD's layout; the defaults are its own for Stable Diffusion.

    latent: channels of z (4 for SD and SDXL, 16 for SD3 and FLUX.1, 32 for FLUX.2). width: channels of every layer.
    encoder_blocks: blocks at each resolution, finest first, every further one of half the size. decoder_blocks:
    likewise, coarsest first. pooled: the variant for FLUX.2.
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        latent: int = 4,
        width: int = 64,
        encoder_blocks: tuple[int, ...] = (1, 3, 3, 3),
        decoder_blocks: tuple[int, ...] = (3, 3, 3, 1),
        pooled: bool = False,
    ) -> None:
        super().__init__()
        if len(encoder_blocks) != len(decoder_blocks) or not encoder_blocks:
            raise ValueError(
                f"encoder_blocks={encoder_blocks} has {len(encoder_blocks)} resolutions and "
                f"decoder_blocks={decoder_blocks} {len(decoder_blocks)}; give as many of both"
            )
        self.channels, self.latent, self.down = channels, latent, 2 ** (len(encoder_blocks) - 1)
        inward: list[nn.Module] = [_conv(channels, width)]
        for i, count in enumerate(encoder_blocks):
            if i:
                inward.append(nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False))
            inward += [_Block(width, pooled and i == len(encoder_blocks) - 1) for _ in range(count)]
        self.encoder = nn.Sequential(*inward, _conv(width, latent))
        outward: list[nn.Module] = [_Bound(), _conv(latent, width), nn.ReLU()]
        for i, count in enumerate(decoder_blocks):
            if i:
                outward += [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1, bias=False)]
            outward += [_Block(width, pooled and i == 0) for _ in range(count)]
        self.decoder = nn.Sequential(*outward, _conv(width, channels))

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> TinyAutoencoder:
        """The autoencoder of a published file's tensors, in float32, whatever precision they are kept in.

        Names are those of taesd ("encoder.0.weight") or of diffusers ("encoder.layers.0.weight"). ValueError for
        tensors of another layout.
        """
        mine = {_renamed(name): tensor.float() for name, tensor in tensors.items()}
        try:
            network = cls(**_settings(mine))
            network.load_state_dict(mine)
        except (KeyError, IndexError, RuntimeError, ValueError) as error:
            why = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error).splitlines()[-1].strip()
            raise ValueError(
                f"these {len(tensors)} tensors are not of TAESD's layout (encoder.0.weight ... decoder.19.bias, or "
                f"those of diffusers' AutoencoderTiny): {why}"
            ) from error
        return network

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures (B, channels, H, W) in [-1, 1] to z and its log-variance, a constant, each (B, latent, h, w).

        Raises ValueError for other channels and for sizes that `down` does not divide.
        """
        check_channels(x, self.channels)
        if x.shape[2] % self.down or x.shape[3] % self.down:
            raise ValueError(
                f"a picture of {x.shape[2]} x {x.shape[3]} pixels does not divide into latents of {self.down} x "
                f"{self.down}; resize, crop or pad it to multiples of {self.down}"
            )
        z = self.encoder((x.to(dtype_of(self)) + 1) / 2).to(x.dtype)
        return z, torch.full_like(z, _LOGVAR)

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, latent, h, w) to pictures (B, channels, h * down, w * down), not clipped."""
        check_channels(z, self.latent, "z")
        return (2 * self.decoder(z.to(dtype_of(self))) - 1).to(z.dtype)

    @property
    def last(self) -> nn.Parameter:
        """The weights of the decoder's last layer."""
        return self.decoder[-1].weight  # type: ignore[return-value]

    @property
    def halos(self) -> tuple[int | None, int | None]:
        """How far encoding and decoding see beyond a part: pixels of x, and pixels of z; None with `pooled`.

        Encoding's is a multiple of `down`.
        """
        inward, outward = halo(self.encoder, self.down, 1), halo(self.decoder, 1, self.down)
        return None if inward is None else -(-inward // self.down) * self.down, outward

    def forward(self, x: Tensor) -> Tensor:
        """The picture decoded from its latent."""
        return self.decode(self.encode(x)[0])


def _conv(channels: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, padding=1)


def _renamed(name: str) -> str:
    """A name of diffusers' as taesd's: its decoder does not count the bound."""
    found = re.fullmatch(r"(encoder|decoder)\.layers\.(\d+)\.(.+)", name)
    return f"{found[1]}.{int(found[2]) + (found[1] == 'decoder')}.{found[3]}" if found else name


def _settings(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The constructor's arguments that give tensors of these names and shapes."""
    first, last = tensors["encoder.0.weight"], tensors["decoder.1.weight"]
    width, channels = first.shape[:2]
    return {
        "channels": channels,
        "latent": last.shape[1],
        "width": width,
        "encoder_blocks": _counts(tensors, "encoder"),
        "decoder_blocks": _counts(tensors, "decoder"),
        "pooled": any(".pool." in name for name in tensors),
    }


def _counts(tensors: Mapping[str, Tensor], half: str) -> tuple[int, ...]:
    """Blocks between the convolutions without a bias, which change the size."""
    places = sorted({int(name.split(".")[1]) for name in tensors if name.startswith(f"{half}.")})
    counts = [0]
    for place in places:
        if f"{half}.{place}.conv.0.weight" in tensors:
            counts[-1] += 1
        elif f"{half}.{place}.bias" not in tensors:
            counts.append(0)
    return tuple(counts)
