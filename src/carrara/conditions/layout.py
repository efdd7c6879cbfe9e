r"""A layout: which of a few colours, each standing for a kind of thing, covers which place.

    label(pixel) = the nearest colour of the palette                      (the first of several that are as near)
    layout       = in every cell of `cell` x `cell` pixels the label that most of its pixels have

The palette is learnt from the pictures by clustering their colours (Lloyd 1982, from k-means++ draws, Arthur &
Vassilvitskii 2007), or it is the colours of maps that lie beside them (a segmentation). The network reads a plane for
each colour, 1 where it is (one-hot).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from carrara.conditions.base import PlaneInput
from carrara.config import Configured
from carrara.errors import DataError
from carrara.rng import Rng, keyed

__all__ = ["Layout", "cluster"]

_POINTS = 1 << 17  # colours that are clustered, at most
_ROUNDS = 50


def cluster(points: Tensor, count: int, seed: int = 0) -> Tensor:
    """`count` centres (count, D) of points (N, D), from the darkest to the brightest.

    k-means from k-means++ draws; the same points give the same centres. Fewer different points than centres are all
    there are, the last repeated.
    """
    points = points.double()
    rng = keyed(seed, "k-means++")
    centres = points[[int(rng.integers(len(points)))]]
    for _ in range(count - 1):
        far = torch.cdist(points, centres).amin(1).square()
        if float(far.sum()) == 0:
            centres = torch.cat([centres, centres[-1:].expand(count - len(centres), -1)])
            break
        edges = far.cumsum(0)
        chosen = int(torch.searchsorted(edges, float(rng.random()) * edges[-1], right=True).clamp(max=len(points) - 1))
        centres = torch.cat([centres, points[[chosen]]])
    for _ in range(_ROUNDS):
        nearest = torch.cdist(points, centres).argmin(1)
        member = F.one_hot(nearest, count).double()
        sizes = member.sum(0)
        moved = torch.where(sizes[:, None] > 0, member.T @ points / sizes.clamp(min=1)[:, None], centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres[centres.sum(1).argsort(stable=True)]


class Layout(Configured, PlaneInput):
    """A layout of `colours` colours with `channels` values each, in cells of `cell` pixels a side.

    Given is a picture painted in the colours of `palette` (colours, channels), which `measure` learns from data.
    """

    nearest = True
    palette: Tensor

    def __init__(
        self,
        *,
        channels: int,
        colours: int = 8,
        cell: int = 4,
        name: str = "layout",
        drop: float = 0.1,
        down: int = 1,
    ) -> None:
        super().__init__(name, drop, down, colours)
        if colours < 2 or cell < 1:
            raise ValueError(
                f"colours = {colours} and cell = {cell}; a layout has 2 colours and cells of 1 pixel at least"
            )
        self.planes, self.colours, self.cell = channels, colours, cell
        self.register_buffer("palette", torch.zeros(colours, channels))

    @torch.no_grad()
    def measure(self, pictures: Iterable[Tensor], *, beside: bool = False) -> None:
        """Learns the palette: clusters of the pictures' colours, or of maps `beside` them the colours themselves."""
        self.palette.copy_(cluster(self._different(pictures) if beside else self._colours(pictures), self.colours))

    def _colours(self, pictures: Iterable[Tensor]) -> Tensor:
        """(N, channels): the means of the pictures' cells, or some of them."""
        cells = [F.avg_pool2d(x, self.cell, ceil_mode=True).cpu() for x in pictures]
        points = torch.cat([x.movedim(1, -1).flatten(0, 2) for x in cells])
        return points[keyed(0, "points").permutation(len(points))[:_POINTS]]

    def _different(self, maps: Iterable[Tensor]) -> Tensor:
        """(N, channels): the colours of maps, which are labels."""
        found = torch.empty(0, self.planes)
        for x in maps:
            found = torch.cat([found, x.cpu().movedim(1, -1).flatten(0, 2)]).unique(dim=0)
            if len(found) > self.colours:
                raise DataError(
                    f"the pictures of {self.name} have more than {self.colours} colours, which are labels here; set "
                    f'task.inputs.{self.name}.colours to their number, and data.nearest = ["{self.name}"], so that '
                    "they are not blended when resized"
                )
        return found

    def labels(self, pictures: Tensor) -> Tensor:
        """Pictures (B, channels, H, W) as labels (B, H, W) int64: the nearest colour's number."""
        colours = self.palette.to(pictures.device, torch.float32)
        apart = (pictures.float().unsqueeze(1) - colours[None, :, :, None, None]).square().sum(2)
        return apart.argmin(1)

    def computed(self, pictures: Tensor, rng: Rng) -> Tensor:
        one_hot = F.one_hot(self.labels(pictures), self.colours).movedim(3, 1).float()
        cells = F.avg_pool2d(one_hot, self.cell, ceil_mode=True).argmax(1)
        labels = F.interpolate(cells[:, None].float(), scale_factor=self.cell, mode="nearest")[:, 0].long()
        labels = labels[:, : pictures.shape[2], : pictures.shape[3]]
        return self.palette.to(pictures.device)[labels].movedim(3, 1)

    def encode(self, *given: Tensor) -> Tensor:
        return self.folded(F.one_hot(self.labels(given[0]), self.colours).movedim(3, 1).float())
