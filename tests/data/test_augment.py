"""Moves of a picture: each row's own, the same whatever is beside it, and none where none is asked for."""

from __future__ import annotations

import torch
from torch import Tensor

from carrara.data.augment import Augment
from carrara.rng import Rng


def ramps(rows: int) -> Tensor:
    """One asymmetric picture many times."""
    row = torch.linspace(-1, 1, 16)
    return (row[:, None] * 0.3 + row[None] * 0.7)[None, None].repeat(rows, 1, 1, 1)


def test_every_sample_is_moved_by_itself() -> None:
    """Equal pictures in one batch come out different; a row does not depend on its batch or place in it."""
    augment, samples = Augment(shift=0.1, scale=0.2, mirror=0.5), list(range(40, 56))
    moved = augment(ramps(16), Rng.samples(5, samples, "augment"))
    assert len(torch.unique(moved.flatten(1), dim=0)) == 16
    for place, sample in enumerate(samples):
        alone = augment(ramps(1), Rng.samples(5, [sample], "augment"))
        torch.testing.assert_close(alone[0], moved[place], rtol=0, atol=1e-6)
    again = augment(ramps(16), Rng.samples(5, range(56, 72), "augment"))  # the next step
    assert not any(torch.equal(a, b) for a, b in zip(moved, again, strict=True))


def test_the_mirrored_share() -> None:
    moved = Augment(mirror=0.5)(ramps(400), Rng.samples(0, range(400), "augment"))
    mirrored = moved[:, 0, 8, 0] > moved[:, 0, 8, -1]
    assert abs(mirrored.float().mean() - 0.5) < 0.15  # six standard deviations
    torch.testing.assert_close(moved[mirrored], ramps(400)[mirrored].flip(-1), rtol=0, atol=1e-5)


def test_none_leaves_them_as_they_are() -> None:
    images = ramps(3)
    assert Augment()(images, Rng.seeds([0, 1, 2])) is images
