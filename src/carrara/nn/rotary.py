"""Rotary positions (Su et al. 2021) along several axes: pairs of a head's entries turn by angles that its place says.

    (x_2k, x_2k+1)  ->  (cos a x_2k - sin a x_2k+1,  sin a x_2k + cos a x_2k+1),     a = place / 10000 ** (2k / d)

The product of a query and a key then depends on the difference of their places. Of a head's entries the first d_1
belong to the first axis, the next d_2 to the second, and so on; a place of zero turns nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["rotate", "turns"]


def turns(places: Sequence[Tensor], widths: Sequence[int]) -> Tensor:
    """Cosines and sines (2, N, sum(widths) / 2) float32 of places (N,), one tensor an axis; angles in float64."""
    angles = [
        place.double()[:, None] / 10000.0 ** (torch.arange(0, d, 2, dtype=torch.float64, device=place.device) / d)
        for place, d in zip(places, widths, strict=True)
    ]
    angle = torch.cat(angles, 1)
    return torch.stack((angle.cos(), angle.sin())).float()


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Queries or keys x (B, heads, N, d) turned by `turns`, computed in float32, in x's dtype."""
    cos, sin = turn
    a, b = x.float().unflatten(3, (-1, 2)).unbind(4)
    return torch.stack((a * cos - b * sin, b * cos + a * sin), 4).flatten(3).to(x.dtype)
