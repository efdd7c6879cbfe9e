"""Held-out figures are means over rows, whatever the pieces that they are measured in."""

from __future__ import annotations

import pytest
import torch

from carrara.rng import Rng, keyed
from carrara.train.judge import heldout_figures
from carrara.train.state import State
from carrara.types import Batch
from train.toy import ToyLoader, ToyTask, settings


class Brightness(ToyTask):
    """Its figure is a row's own number."""

    def validate(self, batch: Batch, rng: Rng) -> dict[str, float]:
        return {"brightness": float(batch.images.double().mean((1, 2, 3)).mean())}


class Many(ToyLoader):
    """As many held-out rows as are asked for."""

    def heldout(self, count: int) -> Batch:
        images = torch.stack([torch.full((1, 4, 4), float(keyed("judge", i).uniform(-1, 1))) for i in range(count)])
        return Batch(images, ("",) * count, tuple(range(count)), tuple(range(count)))


@pytest.mark.parametrize("rows", [1, 3, 16, 17])
@pytest.mark.parametrize("batch", [1, 4, 8, 64])
def test_a_figure_is_the_mean_over_rows(rows: int, batch: int) -> None:
    state = State(Brightness(), settings(batch=batch), torch.device("cpu"), "float32")
    loader = Many()
    expected = loader.heldout(rows).images.double().mean().item()
    assert heldout_figures(state, loader, rows)["brightness"] == pytest.approx(expected, abs=1e-7)


def test_nothing_held_out_gives_no_figures() -> None:
    class Empty(ToyLoader):
        def heldout(self, count: int) -> Batch:
            return Batch(torch.zeros(0, 1, 4, 4), (), (), ())

    state = State(ToyTask(), settings(), torch.device("cpu"), "float32")
    assert heldout_figures(state, Empty(), 4) == {}
