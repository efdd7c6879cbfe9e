"""Looking at a run from outside: held-out figures and fixed-seed pictures, both under the averaged weights."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from carrara.rng import Rng
from carrara.train.precision import autocast
from carrara.train.state import State
from carrara.train.step import rows_of, seed_everything, slices, to_device
from carrara.train.task import BatchSource

__all__ = ["heldout_figures", "pictures"]


def heldout_figures(state: State, loader: BatchSource, rows: int) -> dict[str, float]:
    """The task's figures on up to `rows` held-out rows, with the same randomness every time; empty without such rows.

    They are measured in pieces of a micro-batch, and a figure is the mean over rows. Weights are as before afterwards.
    """
    training = state.training
    batch = to_device(loader.heldout(rows), state.device)
    if not len(batch):
        return {}
    most = max(1, training.batch // training.accumulate)
    sums: dict[str, float] = {}
    with state.averaged(), autocast(state.device, state.precision):
        for cut in slices(len(batch), -(-len(batch) // most)):
            part = rows_of(batch, cut)
            seed_everything(training.seed, "validate", cut.start)
            figures: Mapping[str, float] = state.task.validate(
                part, Rng.samples(training.seed, part.sample, "validate")
            )
            for name, value in figures.items():
                sums[name] = sums.get(name, 0.0) + float(value) * len(part)
    means = {name: value / len(batch) for name, value in sums.items()}
    derived = getattr(state.task, "derived", None)
    return {**means, **derived(means)} if derived else means


def pictures(state: State) -> Tensor | None:
    """The task's fixed-seed pictures, if it makes any. Weights are as before afterwards."""
    seed_everything(state.training.seed, "sample")
    with state.averaged(), autocast(state.device, state.precision):
        return state.task.sample(state.training.seed)
