"""Tokens of a quantising autoencoder: z is a picture's tokens (B, h, w), numbers below a vocabulary (VQ-VAE, FSQ).

The space is defined by the encoder and the codes: its fingerprint covers both, and not the decoding half.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn

from carrara.config import Configured, Role
from carrara.decoder.base import Decoding, Depth
from carrara.decoder.tiling import Scale, tiled
from carrara.fingerprint import fingerprint
from carrara.nn.quantize import Quantized, Quantizer
from carrara.rng import Rng
from carrara.types import Ask, Condition, Round, Rounds, Space

__all__ = ["Tokens", "Use"]


class Use(NamedTuple):
    """How a vocabulary is used by pictures."""

    used: float  # share of the tokens that occur at all
    perplexity: float  # exp(entropy) of their shares: as many tokens that are all as frequent say as much


class Tokens(Configured, nn.Module):
    """The tokens of pictures of `size` (height, width), each standing for `down` x `down` pixels.

    An autoencoder has `channels`, `latent`, `down`, `encode` (to mean and log-variance), `decode`, and `halos` where it
    can be tiled exactly. The mean is what is quantised; the log-variance has no part here, and is not trained.
    """

    def __init__(
        self,
        autoencoder: Annotated[nn.Module, Role("autoencoder")],
        quantizer: Annotated[Quantizer, Role("quantizer")],
        *,
        size: int | tuple[int, int] = 64,
        depth: Depth = 8,
    ) -> None:
        super().__init__()
        network: Any = autoencoder
        height, width = (size, size) if isinstance(size, int) else size
        down, latent = network.down, network.latent
        if height % down or width % down:
            raise ValueError(f"pictures of {height} x {width} do not divide into tokens by {down}; choose another size")
        if latent != quantizer.channels:
            raise ValueError(
                f"the autoencoder's encoding has {latent} channels and the quantizer reads {quantizer.channels}; "
                "make them equal"
            )
        self.autoencoder = autoencoder
        self.quantizer = quantizer
        self.depth: Depth = depth
        self.pictures = Space("pixels", (network.channels, height, width))
        self._shape = (height // down, width // down)
        for name, parameter in autoencoder.named_parameters():
            if ".logvar." in name:
                parameter.requires_grad_(False)

    @property
    def space(self) -> Space:
        """The tokens' space; the fingerprint covers the encoder and the codes, since both define it."""
        weights = {
            name: t
            for name, t in self.state_dict().items()
            if not name.startswith("autoencoder.decoder") and name != "quantizer.usage"
        }
        return Space("tokens", self._shape, self.quantizer.vocabulary, fingerprint(weights))

    def read(self, images: Tensor) -> Tensor:
        """The encoding (B, C, h, w) of pictures (B, C', H, W), before it is quantised."""
        return self.autoencoder.encode(images)[0]  # type: ignore[operator]

    def reconstruct(self, images: Tensor) -> tuple[Tensor, Tensor, Quantized]:
        """Pictures through all of it, with gradients: decoded, not clipped; the encoding; and its codes."""
        z = self.read(images)
        quantized = self.quantizer(z)
        return self.autoencoder.decode(quantized.z), z, quantized  # type: ignore[operator]

    def encode(self, images: Tensor, rng: Rng | None = None) -> Tensor:
        """The tokens (B, h, w), int64; nothing is drawn."""
        found: Quantized = self.quantizer(self.read(images))
        return found.indices

    def decode(self, z: Tensor) -> Tensor:
        """Pictures (B, C, H, W) of tokens (B, h, w), clamped to [-1, 1]. Raises ValueError for what is no token."""
        return self._pictures(self._codes(z))

    def _codes(self, z: Tensor) -> Tensor:
        if z.ndim != 3 or z.is_floating_point():
            raise ValueError(f"z is {z.dtype} of shape {tuple(z.shape)}; expected tokens (B, h, w), int64")
        if z.numel() and not 0 <= int(z.min()) <= int(z.max()) < self.quantizer.vocabulary:
            raise ValueError(
                f"tokens from {int(z.min())} to {int(z.max())} were given, and they are numbers from 0 to "
                f"{self.quantizer.vocabulary - 1}"
            )
        return self.quantizer.embed(z)

    def _pictures(self, codes: Tensor) -> Tensor:
        return self.autoencoder.decode(codes).clamp(-1, 1)  # type: ignore[operator]

    def preview(self, z: Tensor) -> Tensor:
        """The pictures."""
        return self.decode(z)

    @torch.no_grad()
    def measure(self, pictures: Iterable[Tensor]) -> Use:
        """How the vocabulary is used, over batches of pictures (B, C, H, W)."""
        counts = torch.zeros(self.quantizer.vocabulary, dtype=torch.float64)
        device = self.quantizer.usage.device
        for images in pictures:
            counts += torch.bincount(self.encode(images.to(device)).flatten().cpu(), minlength=len(counts))
        if not counts.sum():
            raise ValueError("no pictures to measure the tokens' use on; give at least one batch")
        share = counts / counts.sum()
        return Use((counts > 0).double().mean().item(), torch.special.entr(share).sum().exp().item())

    def start(
        self, z: Tensor, condition: Condition, null: Condition, rng: Rng, settings: Decoding | None = None
    ) -> Rounds:
        """One call of the decoding half, or with a tiling one a part."""
        if settings is not None and settings.tiling is not None:
            down: int = self.autoencoder.down  # type: ignore[assignment]
            _, reach = getattr(self.autoencoder, "halos", (None, None))
            whole = yield from tiled(self._pictures, self._codes(z), settings.tiling, Scale(1, down, reach))
            return whole
        ((images,),) = yield Round((Ask(self.decode, (z,)),))
        return images
