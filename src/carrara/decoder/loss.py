"""What an autoencoder minimises, and how near its pictures are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["AutoencoderLoss", "psnr"]


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
