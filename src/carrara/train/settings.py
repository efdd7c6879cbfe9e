"""How long, how fast and how carefully to train: one frozen object."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["Training"]

# A run that goes on with another value of one of these is not the run that was begun.
# `accumulate` and `compile` only change the order of additions, so that a resume may turn them.
_DECIDES_RESULTS = (
    "seed", "batch", "learning_rate", "betas", "weight_decay", "warmup", "decay", "clip", "precision", "ema",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Training:
    """The settings of a training run; every `_every` counts steps, and 0 turns it off.

    Raises ValueError for a setting outside its range.
    """

    steps: int = 10_000  # optimiser steps in all
    batch: int = 64  # rows a step, over all processes and micro-batches
    learning_rate: float = 2e-4  # at the top of its schedule
    betas: tuple[float, float] = (0.9, 0.999)  # of AdamW
    weight_decay: float = 0.0  # of AdamW; matrices and kernels only
    warmup: int = 100  # steps over which the learning rate rises
    decay: Literal["constant", "cosine"] = "constant"  # the learning rate after the warm-up
    clip: float | None = 1.0  # longest gradient of a phase; None leaves it
    accumulate: int = 1  # micro-batches a step: more need less memory; the result is the same but for dropout's masks
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # of the networks; weights are float32
    compile: bool = False  # torch.compile the networks
    ema: float = 0.999  # decay of the averaged weights; 0 keeps none
    validate_every: int = 1_000  # steps between held-out figures
    validate_rows: int = 256  # held-out rows that are measured
    sample_every: int = 1_000  # steps between picture grids
    save_every: int = 1_000  # steps between checkpoints
    save_seconds: float = 600.0  # seconds after which a checkpoint is due in any case
    keep: int = 2  # checkpoints on disk
    log_every: int = 1  # steps between lines of the log
    seed: int = 0  # of every draw in training

    def __post_init__(self) -> None:
        """Checks the ranges."""
        counts = {"steps": 1, "batch": 1, "accumulate": 1, "keep": 1, "log_every": 1, "warmup": 0}
        counts |= {"validate_every": 0, "validate_rows": 1, "sample_every": 0, "save_every": 0, "seed": 0}
        for name, least in counts.items():
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` is {getattr(self, name)}; give {least} or more")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"`learning_rate` is {self.learning_rate}; give a number above 0, such as 2e-4")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"`betas` are {self.betas}; give two numbers from 0 up to, but not including, 1")
        if not self.weight_decay >= 0:
            raise ValueError(f"`weight_decay` is {self.weight_decay}; give 0 or more")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"`clip` is {self.clip}; give a number above 0, or None to leave gradients as they are")
        if not 0 <= self.ema < 1:
            raise ValueError(f"`ema` is {self.ema}; give a decay from 0 (off) up to, but not including, 1")
        if not self.save_seconds >= 0:
            raise ValueError(f"`save_seconds` is {self.save_seconds}; give 0 (off) or more")
        if self.accumulate > self.batch:
            raise ValueError(f"`accumulate` is {self.accumulate} and a batch has only {self.batch} rows to cut up")

    def differences(self, earlier: Mapping[str, Any]) -> tuple[str, ...]:
        """Which settings of an `earlier` run (`dataclasses.asdict`) these change in a way that changes results."""
        mine = asdict(self)
        names = list(_DECIDES_RESULTS) + (["steps"] if self.decay == "cosine" else [])
        return tuple(
            f"{name} (was {earlier.get(name)!r}, is {mine[name]!r})"
            for name in names
            if _plain(earlier.get(name)) != _plain(mine[name]) and not (name == "precision" and mine[name] == "auto")
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
