"""Pictures at the size that a network reads: Pillow's antialiased bicubic filter, unrounded (Parmar et al. 2022).

Other ways of scaling move Frechet distances by more than models differ, so there is this one. Along each axis

    y_i = sum_j w((j + 1/2 - (i + 1/2) s) / max(s, 1)) x_j / (the sum of these w),      s = pixels before / after

with Keys' cubic w (a = -1/2), which is 0 beyond 2: where a picture is made smaller the filter is wider. Values beyond 0
and 255 are cut. (Two products with a matrix; `interpolate(antialias=True)` repeats rows in pictures one pixel wide.)
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

__all__ = ["levels", "resize"]


def levels(pixels: np.ndarray) -> Tensor:
    """Stored pictures (N, H, W, 1 or 3), 8 or 16 bits, as colour (N, 3, H, W) float32 in [0, 255].

    Raises ValueError for other types, whose range would be a guess, and for other numbers of channels.
    """
    if pixels.ndim != 4 or pixels.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"given {pixels.dtype} of shape {pixels.shape}; expected (N, H, W, C) of 8 or 16 bits")
    if pixels.shape[3] not in (1, 3):
        raise ValueError(f"these pictures have {pixels.shape[3]} channels; networks that measure see grey or colour")
    whole = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float()
    return (whole if pixels.dtype == np.uint8 else whole / 257).expand(-1, 3, -1, -1).contiguous()


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, C, H, W) in [0, 255] at (height, width); nothing happens to pictures of that size."""
    if tuple(images.shape[2:]) == tuple(size):
        return images
    down, across = (_weights(have, want).to(images.device) for have, want in zip(images.shape[2:], size, strict=True))
    return (down @ images.float() @ across.T).clamp(0, 255)


@functools.lru_cache(maxsize=16)
def _weights(have: int, want: int) -> Tensor:
    """(want, have): the share of each pixel before in each one after."""
    scale = have / want
    wide = max(scale, 1.0)
    centre = (torch.arange(want, dtype=torch.float64)[:, None] + 0.5) * scale
    x = ((torch.arange(have, dtype=torch.float64) + 0.5 - centre) / wide).abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    w = torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
    return (w / w.sum(1, keepdim=True)).float()
