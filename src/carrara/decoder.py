r"""Decoders: z becomes the picture. Each has `encode` too, which defines the space in which the generator is trained.

Pixels      z is the picture itself
Latents     z = (encoding - mean) / std by channel, both measured on the data and stored with the weights, so that
            z has unit scale and no constant has to be remembered (Rombach et al. 2022, appendix G, made exact)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from carrara.config import Configured, Role
from carrara.fingerprint import fingerprint
from carrara.rng import Rng
from carrara.types import Ask, Condition, Round, Rounds, Space

__all__ = ["AutoencoderLoss", "Decoder", "Latents", "Pixels", "psnr"]

Depth = Literal[8, 16]


class Decoder(Protocol):
    """z to a picture and back, as one of the parts of a system."""

    depth: Depth  # bits a channel of the pictures

    @property
    def space(self) -> Space:
        """The space of z."""
        ...

    @property
    def pictures(self) -> Space:
        """The space of what comes out."""
        ...

    def encode(self, images: Tensor, rng: Rng | None = None) -> Tensor:
        """Pictures (B, C, H, W) in [-1, 1] to z; without an rng the most likely one."""
        ...

    def start(self, z: Tensor, condition: Condition, null: Condition, rng: Rng, settings: Any = None) -> Rounds:
        """A request for the pictures of z, in [-1, 1]."""
        ...


class Pixels(Configured, nn.Module):
    """The generator makes pictures of `size` (height, width) itself; there is nothing to decode."""

    def __init__(self, *, channels: int = 3, size: int | tuple[int, int] = 32, depth: Depth = 8) -> None:
        super().__init__()
        height, width = (size, size) if isinstance(size, int) else size
        self.space = Space("pixels", (channels, height, width))
        self.pictures = self.space
        self.depth: Depth = depth

    def encode(self, images: Tensor, rng: Rng | None = None) -> Tensor:
        """The pictures as they are."""
        return images

    def start(self, z: Tensor, condition: Condition, null: Condition, rng: Rng, settings: Any = None) -> Rounds:
        """The pictures as they are."""
        yield from ()
        return z


class Latents(Configured, nn.Module):
    """The latents of an autoencoder, scaled to mean 0 and standard deviation 1 a channel.

    `size` is that of the pictures (height, width); `measure` fills in mean and std from data.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        autoencoder: Annotated[nn.Module, Role("autoencoder")],
        *,
        size: int | tuple[int, int] = 64,
        depth: Depth = 8,
    ) -> None:
        super().__init__()
        config: Any = autoencoder.config
        height, width = (size, size) if isinstance(size, int) else size
        down, latent = config["down"], config["latent"]
        if height % down or width % down:
            raise ValueError(
                f"pictures of {height} x {width} do not divide into latents by {down}; choose another size"
            )
        self.autoencoder = autoencoder
        self.depth: Depth = depth
        self.pictures = Space("pixels", (config["channels"], height, width))
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
        mean, logvar = self.autoencoder.encode(images)  # type: ignore[operator]
        if rng is not None:
            mean = mean + (logvar / 2).exp() * rng.normal_like(mean)
        return (mean - self.mean) / self.std

    def decode(self, z: Tensor) -> Tensor:
        """Pictures (B, C, H, W), clamped to [-1, 1]."""
        return self.autoencoder.decode(z * self.std + self.mean).clamp(-1, 1)  # type: ignore[operator]

    def start(self, z: Tensor, condition: Condition, null: Condition, rng: Rng, settings: Any = None) -> Rounds:
        """One call of the decoding half."""
        ((images,),) = yield Round((Ask(self.decode, (z,)),))
        return images


@dataclass(frozen=True)
class AutoencoderLoss:
    """What a KL autoencoder minimises (Kingma & Welling 2014): reconstruction and a little KL(q(z|x) || N(0, I)).

    Weights a pixel and channel of the picture: `l1` and `l2` of the error, `edges` of the l1 error of horizontal and
    vertical differences at full, half and quarter size (it keeps outlines crisp), `kl` a latent dimension.
    """

    l1: float = 1.0
    l2: float = 1.0
    edges: float = 1.0
    kl: float = 1e-6

    def __call__(self, x: Tensor, decoded: Tensor, mean: Tensor, logvar: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss of each row (B,), and its parts' means."""
        error = (decoded - x).float()
        parts = {"l1": _mean(error.abs()), "l2": _mean(error**2)}
        parts["edges"] = _edges(error)
        parts["kl"] = 0.5 * _mean(mean.float() ** 2 + logvar.float().exp() - 1 - logvar.float())
        rows = sum(getattr(self, name) * part for name, part in parts.items())
        return rows, {name: part.detach().mean() for name, part in parts.items()}


def _mean(x: Tensor) -> Tensor:
    return x.flatten(1).mean(1)


def _edges(error: Tensor) -> Tensor:
    total = torch.zeros(len(error), device=error.device)
    for _ in range(3):
        total = total + _mean(error.diff(dim=2).abs()) + _mean(error.diff(dim=3).abs())
        error = F.avg_pool2d(error, 2)
    return total


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each row in dB, for pictures (B, C, H, W) in [-1, 1]: 10 log10(4 / mse)."""
    return 10 * torch.log10(4 / _mean((x - y).square()).clamp(min=1e-12))
