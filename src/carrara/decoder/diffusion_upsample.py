r"""Super-resolution by diffusion (Ho et al. 2021, "Cascaded Diffusion Models"; Imagen, Saharia et al. 2022).

    z                          a small picture, as a generator made it
    z_s = (1 - s) z + s noise  noise conditioning augmentation at the level s in [0, 1]
    x ~ p(x | up(z_s), s, text)     a sampling of the large picture

The network is told z_s, enlarged by bicubic, and s. In training s is drawn for every row, so that the network learns
how far to trust what it is given; in sampling s is a setting, to be tried out: more of it forgives a generator's errors
and invents more. At s = 0 the condition is the small picture as it is.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from carrara.config import Configured
from carrara.decoder.base import Decoding, Depth, shown
from carrara.decoder.upsample import downsample, small_and_large
from carrara.diffusion.denoiser import Denoiser
from carrara.diffusion.generator import SamplingSettings
from carrara.diffusion.guidance import ClassifierFree, guide
from carrara.diffusion.limits import Threshold
from carrara.diffusion.process import Process
from carrara.diffusion.schedule import Linear
from carrara.diffusion.times import uniform
from carrara.nn.upsampler import bicubic
from carrara.rng import Rng
from carrara.types import Condition, Rounds, Space

__all__ = ["DiffusionUpsample", "LEVEL", "augmented"]

LEVEL = "augmentation"
"""The name of the level among a condition's numbers."""

_STRAIGHT = Process(Linear())  # alpha = 1 - s, sigma = s, whatever the denoiser's own schedule is


def augmented(small: Tensor, level: Tensor, noise: Tensor) -> Tensor:
    """z_s of small pictures (B, C, h, w), levels (B,) in [0, 1] and noise like the pictures."""
    return _STRAIGHT.diffuse(small, level.to("cpu", torch.float64), noise)


def _settings() -> SamplingSettings:
    return SamplingSettings(times=functools.partial(uniform, steps=20), guidance=Threshold(ClassifierFree()))


class DiffusionUpsample(Configured, nn.Module):
    """Small pictures made large by a sampling; `reads` is the space of the text encoder it was trained with, if any.

    The denoiser's network has `image_channels` for the enlarged picture, and reads the number "augmentation".
    `size` is that of the large pictures (height, width), `factor` how many times larger they are. `augmentation` is the
    level at which it samples; `most`, at most 1, the largest that it was trained on.
    """

    conditions: ClassVar[tuple[()]] = ()  # beside the text and the small picture it is told of nothing

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        channels: int = 3,
        size: int | tuple[int, int] = 64,
        factor: int = 4,
        depth: Depth = 8,
        reads: Space | None = None,
        augmentation: float = 0.0,
        most: float = 1.0,
        settings: SamplingSettings = _settings(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__()
        if not 0 <= augmentation <= most <= 1:
            raise ValueError(
                f"augmentation = {augmentation} and most = {most}; expected 0 <= augmentation <= most <= 1"
            )
        self.denoiser = denoiser
        self.factor = factor
        self.depth: Depth = depth
        self.reads = reads
        self.augmentation, self.most = augmentation, most
        self.settings = settings
        self.space, self.pictures = small_and_large(channels, size, factor)

    def encode(self, images: Tensor, rng: Rng | None = None) -> Tensor:
        """The pictures made small; nothing is drawn."""
        return downsample(images, self.factor)

    def told(self, condition: Condition, small: Tensor, level: Tensor, noise: Tensor) -> Condition:
        """The text's condition, if it is read, with the small pictures (B, C, h, w) at levels (B,) and enlarged."""
        larger = (small.shape[2] * self.factor, small.shape[3] * self.factor)
        image, numbers = bicubic(augmented(small, level, noise), larger), {LEVEL: level.to(small)}
        if self.reads is None:
            return Condition(image=image, numbers=numbers)
        return Condition(condition.tokens, condition.mask, condition.vector, numbers, image)

    def start(
        self, z: Tensor, condition: Condition, null: Condition, rng: Rng, settings: Decoding | None = None
    ) -> Rounds:
        """A sampling of the large pictures, clamped to [-1, 1]; a step's estimate is one of them.

        Raises ValueError for a level above `most`.
        """
        asked: Any = settings or Decoding()
        level = self.augmentation if asked.augmentation is None else asked.augmentation
        if level > self.most:
            raise ValueError(
                f"augmentation = {level}, and this upsampler has learnt levels up to {self.most}; give one of these"
            )
        chosen: SamplingSettings = asked.sampling or self.settings
        process, times = self.denoiser.process, tuple(chosen.times(self.denoiser.process.schedule))
        levels = torch.full((len(z),), level, dtype=torch.float32, device=z.device)
        grain = rng.fork("augmentation").normal_like(z)
        told, untold = (self.told(said, z, levels, grain) for said in (condition, null))
        shape = (z.shape[1], z.shape[2] * self.factor, z.shape[3] * self.factor)
        noise = rng.fork("prior").normal(shape).to(z.device, z.dtype)
        sampling = chosen.sampler(process, process.prior_std(times[0]) * noise, times, rng=rng.fork("steps"))
        rounds = guide(sampling, chosen.guidance, self.denoiser, told, untold)
        images = yield from shown(rounds, lambda mean: mean.clamp(-1, 1))
        return images.clamp(-1, 1)

    def preview(self, z: Tensor) -> Tensor:
        """The small pictures enlarged by bicubic."""
        return bicubic(z, (z.shape[2] * self.factor, z.shape[3] * self.factor)).clamp(-1, 1)
