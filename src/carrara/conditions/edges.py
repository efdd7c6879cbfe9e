r"""Edges of a picture: where its brightness changes fastest (Canny 1986), the same on every machine.

    L    = (299 R + 587 G + 114 B) / 1000                 brightness in [0, 1]; the mean for other numbers of channels
    S    = L smoothed by a normal distribution of standard deviation sigma pixels
    g    = (d S / dx, d S / dy)                           Sobel's differences, over 8: brightness a pixel
    thin : |g| is no smaller than its two neighbours' along g (to a multiple of 45 degrees), and larger than one's
    edge : thin and |g| > strong, or thin and |g| > weak and joined to such a pixel by others (8 neighbours)

Borders repeat the outermost pixels. |g| is rounded to 1/8192, so that two which are equal are so however they were
added up.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from carrara.conditions.base import PlaneInput
from carrara.config import Configured
from carrara.rng import Rng

__all__ = ["Edges", "brightness", "edge_overlap", "edges"]

_LUMA = (0.299, 0.587, 0.114)


def brightness(pictures: Tensor) -> Tensor:
    """Pictures (B, C, H, W) in [-1, 1] as (B, 1, H, W) in [0, 1]."""
    values = (pictures.float() + 1) / 2
    if values.shape[1] != 3:
        return values.mean(1, keepdim=True)
    return (values * values.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)


def edges(pictures: Tensor, *, sigma: float = 1.0, weak: float = 0.03, strong: float = 0.08) -> Tensor:
    """Edges (B, 1, H, W), 1 on them and 0 elsewhere, of pictures (B, C, H, W) in [-1, 1].

    `sigma` in pixels, 0 for no smoothing; `weak` and `strong` in brightness a pixel: a step from black to white comes
    to 0.35 after smoothing by sigma = 1.
    """
    smooth = _smoothed(brightness(pictures), sigma)
    across, down = _slopes(smooth)
    size = (torch.hypot(across, down) * 8192).round() / 8192
    thin = _thin(size, across, down)
    sure, likely = thin & (size > strong), thin & (size > weak)
    while True:
        more = sure | (likely & (F.max_pool2d(sure.float(), 3, 1, 1) > 0))
        if torch.equal(more, sure):
            return sure.float()
        sure = more


def _smoothed(values: Tensor, sigma: float) -> Tensor:
    if sigma == 0:
        return values
    reach = math.ceil(3 * sigma)
    places = torch.arange(-reach, reach + 1, dtype=torch.float32, device=values.device)
    weights = torch.exp(-(places**2) / (2 * sigma**2))
    weights = weights / weights.sum()
    padded = F.pad(values, (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))


def _slopes(values: Tensor) -> tuple[Tensor, Tensor]:
    """Sobel's differences to the right and downwards, a pixel."""
    padded = F.pad(values, (1, 1, 1, 1), mode="replicate")
    sobel = values.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
    both = F.conv2d(padded, torch.stack([sobel, sobel.T])[:, None])
    return both[:, :1], both[:, 1:]


def _thin(size: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """Where the slope is largest along itself; of two that are equal, one."""
    turn = (torch.atan2(down, across) / (math.pi / 4)).round().long() % 4  # 0 right, 1 right and down, 2 down, 3
    height, width = size.shape[2:]
    padded = F.pad(size, (1, 1, 1, 1))

    def moved(y: int, x: int) -> Tensor:
        return padded[:, :, 1 + y : 1 + y + height, 1 + x : 1 + x + width]

    thin = torch.zeros_like(size, dtype=torch.bool)
    for direction, (y, x) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        thin |= (turn == direction) & (size >= moved(y, x)) & (size > moved(-y, -x))
    return thin


def edge_overlap(a: Tensor, b: Tensor, *, tolerance: int = 1) -> Tensor:
    """How well two maps of edges (B, 1, H, W) agree, row by row in [0, 1]: (B,).

    The harmonic mean of the shares of either's edges that lie within `tolerance` pixels of the other's; 1 where neither
    has any.
    """

    def share(of: Tensor, near: Tensor) -> Tensor:
        wide = F.max_pool2d((near > 0.5).float(), 2 * tolerance + 1, 1, tolerance)
        on = (of > 0.5).float()
        return (on * wide).sum((1, 2, 3)) / on.sum((1, 2, 3)).clamp(min=1)

    found, kept = share(a, b), share(b, a)
    neither = ((a > 0.5).flatten(1).sum(1) + (b > 0.5).flatten(1).sum(1)) == 0
    return torch.where(neither, 1.0, 2 * found * kept / (found + kept).clamp(min=1e-12))


class Edges(Configured, PlaneInput):
    """Edges, white on black: drawn, or computed from a picture as `edges` does with `sigma`, `weak` and `strong`."""

    low = 0
    planes = 1

    def __init__(
        self,
        *,
        name: str = "edges",
        drop: float = 0.1,
        down: int = 1,
        sigma: float = 1.0,
        weak: float = 0.03,
        strong: float = 0.08,
    ) -> None:
        super().__init__(name, drop, down, 1)
        if sigma < 0 or not 0 <= weak <= strong:
            raise ValueError(
                f"sigma = {sigma}, weak = {weak}, strong = {strong}; expected sigma >= 0 and 0 <= weak <= strong"
            )
        self.sigma, self.weak, self.strong = sigma, weak, strong

    def computed(self, pictures: Tensor, rng: Rng) -> Tensor:
        return edges(pictures, sigma=self.sigma, weak=self.weak, strong=self.strong)

    def encode(self, *given: Tensor) -> Tensor:
        return self.folded((given[0] > 0.5).float())

    def doubt(self, *given: Tensor) -> str:
        if float((given[0] > 0.5).float().mean()) <= 0.5:
            return ""
        return "most of it is white, and edges are white lines on black; give it with black and white exchanged"
