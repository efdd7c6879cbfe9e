"""The border between tensors and pictures: float (N, C, H, W) in [-1, 1] inside, whole numbers (N, H, W, C) outside.

The range is never guessed, and a picture that is not finite is never written: it would come out black and look like a
picture.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from carrara.errors import NonFiniteError

__all__ = ["to_pixels"]


def to_pixels(images: Tensor, depth: Literal[8, 16] = 8) -> np.ndarray:
    """Pictures (N, C, H, W) in [-1, 1] as (N, H, W, C) uint8 or uint16; overshoot is cut off.

    Raises NonFiniteError, naming the pictures, where a value is not finite, and ValueError for another shape or type.
    """
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(
            f"given {images.dtype} of shape {tuple(images.shape)}; pictures are floating-point (N, C, H, W) in [-1, 1]"
        )
    images = images.detach().to("cpu", torch.float32)
    finite = torch.isfinite(images).flatten(1).all(1)
    if not bool(finite.all()):
        bad = [int(i) for i in torch.nonzero(~finite).flatten()[:8]]
        raise NonFiniteError(f"picture {', '.join(map(str, bad))} of {len(images)} has values that are not finite")
    top = 2**depth - 1
    whole = images.clamp(-1, 1).add(1).mul(top / 2).round()
    return whole.permute(0, 2, 3, 1).contiguous().numpy().astype(np.uint8 if depth == 8 else np.uint16)
