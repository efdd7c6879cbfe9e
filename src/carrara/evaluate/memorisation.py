"""Are samples copies of training pictures? By how near they come to one, beside pictures that were held out.

    d(x) = the distance of x to the nearest training picture

A sample with d below that of every held-out picture is nearer to the training data than any honest picture is: it is
suspected to be a copy. The share of such samples is what is reported, with the pairs that are nearest. A held-out
picture that is a duplicate of a training picture makes d 0 and hides copies, so such are left out and counted. One that
is nearly a duplicate hides copies, too: look at the pairs, and at both distances.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from carrara.evaluate.fidelity import nearest

__all__ = ["Memorisation", "memorisation"]


class Memorisation(NamedTuple):
    """The share that is suspected; of each sample the nearest training picture and how far it is."""

    share: float
    threshold: float  # the least distance of a held-out picture
    number: Tensor  # (N,) of the training picture
    distance: Tensor  # (N,)
    heldout: Tensor  # (M,) the held-out pictures' distances, duplicates left out
    duplicates: int  # held-out pictures that are training pictures

    def worst(self, count: int) -> list[int]:
        """The samples that are nearest to a training picture, nearest first."""
        return self.distance.argsort(stable=True)[:count].tolist()


def memorisation(samples: Tensor, training: Tensor, heldout: Tensor) -> Memorisation:
    """Of features (N, D), (T, D) and (M, D). ValueError where no held-out picture is left to compare with."""
    honest = nearest(heldout, training).distance if len(heldout) else torch.zeros(0)
    scale = training.float().square().mean().sqrt() * training.shape[1] ** 0.5
    same = honest <= 1e-4 * scale  # rounding of equal pictures' features and of their distance
    if not (~same).any():
        raise ValueError(
            f"{len(heldout)} pictures are held out, {int(same.sum())} of them equal to training pictures; "
            "to tell copies, some must be of their own"
        )
    found, honest = nearest(samples, training), honest[~same]
    threshold = honest.min()
    share = (found.distance < threshold).float().mean().item()
    return Memorisation(share, threshold.item(), found.number, found.distance, honest, int(same.sum()))
