"""The relation that every task keeps: a run that was stopped and went on ends with the bits of one that was not."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from carrara.errors import Preempted
from carrara.train.checkpoint import checkpoints, read_checkpoint
from carrara.train.log import Event
from carrara.train.recipe import Run

__all__ = ["same_bits", "train"]


def train(it: Run, stop_after: int | None = None, *, hear: Callable[[Event], object] = lambda event: None) -> Any:
    """The run as a user starts it, told to stop when a step is done; without a stop it rehearses first."""

    def listen(event: Event) -> None:
        hear(event)
        if event["event"] == "step" and event["step"] == stop_after:
            signal.raise_signal(signal.SIGTERM)

    return it.train(progress=False, on_event=listen, rehearsal=stop_after is None)


def same_bits(
    folder: Path, train: Callable[..., Any], file: str = "weights.safetensors"
) -> tuple[Any, Mapping[str, Mapping[str, Tensor]]]:
    """`train(PLACE)` in folder/whole, and with `stop_after` in folder/cut; what the first gave, and its last tables."""
    outcome = train(folder / "whole")  # with a rehearsal, which leaves nothing behind
    for step in (2, 5):
        with pytest.raises(Preempted):
            train(folder / "cut", stop_after=step)
    train(folder / "cut")
    whole, cut = (read_checkpoint(checkpoints(folder / place)[-1]).tables for place in ("whole", "cut"))
    assert {key: set(table) for key, table in whole.items()} == {key: set(table) for key, table in cut.items()}
    for kind, table in whole.items():
        for key, value in table.items():
            assert torch.equal(value, cut[kind][key]), f"{kind} {key}"
    weights = [(folder / place / file).read_bytes() for place in ("whole", "cut")]
    assert weights[0] == weights[1]
    return outcome, whole
