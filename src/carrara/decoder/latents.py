"""Latents of an autoencoder: z = (encoding - mean) / std by channel.

Both are measured on the data and stored with the weights, so that z has unit scale and no constant has to be remembered
(Rombach et al. 2022, appendix G, made exact).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from carrara.config import Configured, Role
from carrara.decoder.base import Decoding, Depth
from carrara.decoder.tiling import Scale, Tiling, answered, tiled
from carrara.fingerprint import fingerprint
from carrara.rng import Rng
from carrara.types import Ask, Condition, Round, Rounds, Space

__all__ = ["Latents"]


class Latents(Configured, nn.Module):
    """The latents of an autoencoder, scaled to mean 0 and standard deviation 1 a channel.

    `size` is that of the pictures (height, width); `measure` fills in mean and std from data. An autoencoder has
    `channels`, `latent`, `down`, `encode` (to mean and log-variance), `decode`, and `halos` where it can be tiled
    exactly. `tiling` encodes and decodes large pictures part by part.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        autoencoder: Annotated[nn.Module, Role("autoencoder")],
        *,
        size: int | tuple[int, int] = 64,
        depth: Depth = 8,
        tiling: Tiling | None = None,
    ) -> None:
        super().__init__()
        network: Any = autoencoder
        height, width = (size, size) if isinstance(size, int) else size
        down, latent = network.down, network.latent
        if height % down or width % down:
            raise ValueError(
                f"pictures of {height} x {width} do not divide into latents by {down}; choose another size"
            )
        self.autoencoder = autoencoder
        self.depth: Depth = depth
        self.tiling = tiling
        self.pictures = Space("pixels", (network.channels, height, width))
        self._shape = (latent, height // down, width // down)
        self.register_buffer("mean", torch.zeros(latent, 1, 1))
        self.register_buffer("std", torch.ones(latent, 1, 1))

    @property
    def space(self) -> Space:
        """The latents' space; the fingerprint covers the encoder and the scale, since both define it."""
        weights = {name: t for name, t in self.state_dict().items() if not name.startswith("autoencoder.decoder")}
        return Space("latent", self._shape, None, fingerprint(weights))

    @torch.no_grad()
    def measure(self, pictures: Iterable[Tensor]) -> None:
        """Measures the latents' mean and standard deviation a channel, over batches of pictures (B, C, H, W)."""
        count = 0
        total = torch.zeros(self._shape[0], dtype=torch.float64)
        square = torch.zeros_like(total)
        for images in pictures:
            mean, logvar = self.autoencoder.encode(images.to(self.mean.device))  # type: ignore[operator]
            mean, var = mean.double().cpu(), logvar.double().exp().cpu()
            count += mean.numel() // mean.shape[1]
            total += mean.sum((0, 2, 3))
            square += (mean**2 + var).sum((0, 2, 3))
        if not count:
            raise ValueError("no pictures to measure the latents' scale on; give at least one batch")
        average = total / count
        self.mean.copy_(average.view(-1, 1, 1))
        self.std.copy_((square / count - average**2).clamp(min=1e-12).sqrt().view(-1, 1, 1))

    def encode(self, images: Tensor, rng: Rng | None = None) -> Tensor:
        """z (B, C, H / down, W / down) of unit scale: the posterior's mean, or with an rng a draw from it."""
        if self.tiling is None:
            mean, logvar = self.autoencoder.encode(images)  # type: ignore[operator]
        else:
            both = answered(tiled(self._moments, images, self.tiling, self._scales()[0]))
            mean, logvar = both.chunk(2, 1)
        if rng is not None:
            mean = mean + (logvar / 2).exp() * rng.normal_like(mean)
        return (mean - self.mean) / self.std

    def _moments(self, images: Tensor) -> Tensor:
        return torch.cat(self.autoencoder.encode(images), 1)  # type: ignore[operator]

    def _scales(self) -> tuple[Scale, Scale]:
        """Of encoding and of decoding."""
        down: int = self.autoencoder.down  # type: ignore[assignment]
        inward, outward = getattr(self.autoencoder, "halos", (None, None))
        return Scale(down, 1, inward), Scale(1, down, outward)

    def decode(self, z: Tensor) -> Tensor:
        """Pictures (B, C, H, W), clamped to [-1, 1]; never in parts."""
        return self.autoencoder.decode(z * self.std + self.mean).clamp(-1, 1)  # type: ignore[operator]

    def start(
        self, z: Tensor, condition: Condition, null: Condition, rng: Rng, settings: Decoding | None = None
    ) -> Rounds:
        """One call of the decoding half, or with a tiling one a part."""
        tiling = self.tiling if settings is None or settings.tiling is None else settings.tiling
        if tiling is not None:
            whole = yield from tiled(self.decode, z, tiling, self._scales()[1])
            return whole
        ((images,),) = yield Round((Ask(self.decode, (z,)),))
        return images

    def preview(self, z: Tensor) -> Tensor:
        """The pictures themselves."""
        if self.tiling is None:
            return self.decode(z)
        return answered(tiled(self.decode, z, self.tiling, self._scales()[1]))

    def decoded_by(self, autoencoder: nn.Module) -> Latents:
        """These latents in the hands of another autoencoder, a tiny one that was trained on them, for previews.

        ValueError for one that reads other latents.
        """
        other: Any = autoencoder
        mine: Any = self.autoencoder
        if (other.channels, other.latent, other.down) != (mine.channels, mine.latent, mine.down):
            raise ValueError(
                f"these latents have {mine.latent} channels at a {mine.down}th of the size, and pictures "
                f"{mine.channels}; the other autoencoder has {other.latent}, a {other.down}th and {other.channels}"
            )
        made = Latents(autoencoder, size=self.pictures.shape[1:], depth=self.depth, tiling=self.tiling)  # type: ignore[arg-type]
        made.mean.copy_(self.mean)
        made.std.copy_(self.std)
        return made.to(self.mean.device).eval()
