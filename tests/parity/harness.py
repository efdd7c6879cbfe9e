"""Another implementation, run in its own loop on one oracle: diffusers' schedulers, lifted to float64.

What is computed is the library's own code. Its module sees float64 where it names float32, so that tables and states
keep their digits; its noise is ours; and the network that both ask is the optimal one for a small mixture.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
import types
import warnings
from collections.abc import Iterator
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
from torch import Tensor, nn

from carrara.diffusion import Plain, Process, guide
from carrara.diffusion.schedule import Schedule
from carrara.oracle import Mixture
from carrara.run import finish
from carrara.store.diffusers import ForeignScheduler, translate
from carrara.store.diffusers.schedule import LinearSigma
from carrara.types import Condition

DATA = Mixture(
    [0.2, 0.5, 0.3],
    torch.randn(3, 2, 2, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64).clamp(-1, 1),
    stds=[0.3, 0.1, 0.5],
)
NOISE = torch.randn(3, 2, 2, 2, generator=torch.Generator().manual_seed(99), dtype=torch.float64)


class Recorded:
    """Stands in for the rng: hands out noise number k, whoever asks."""

    def __init__(self) -> None:
        self.number = 0

    def normal_like(self, x: Tensor) -> Tensor:
        self.number += 1
        return torch.randn(x.shape, generator=torch.Generator().manual_seed(self.number), dtype=torch.float64)


class Oracle(nn.Module):
    """The optimal F, which reads the time out of the number that it is told."""

    def __init__(self, found: ForeignScheduler) -> None:
        super().__init__()
        self.found, self.process = found, Process(_plain(found.schedule))
        self.register_parameter("place", nn.Parameter(torch.empty(0), requires_grad=False))
        self.asked: list[float] = []

    def forward(self, x: Tensor, level: Tensor, condition: Condition = Condition()) -> Tensor:  # noqa: B008
        told = float(level[0])
        self.asked.append(told)
        t = self.time(told)
        coefficients = self.found.parameterization(*self.process.schedule(t))
        x_t = x.double() / coefficients.scale
        # no network is the optimal one for a clipped range: clipping has to find something to clip
        return coefficients.output(x_t, 1.2 * DATA.mean(x_t, t, self.process))

    def time(self, level: float) -> float:
        name, schedule = type(getattr(self.found.level, "inner", self.found.level)).__name__, self.process.schedule
        if name == "LogSigma":
            return schedule.time(-8 * level)
        if name == "ScaledTime":
            return max(level, 0.5) / 1000
        return (level + 1) / schedule.steps


def _plain(schedule: Schedule) -> Schedule:
    return schedule.table if isinstance(schedule, LinearSigma) else schedule


class _Lifted(types.SimpleNamespace):
    """A module that says float64 where it is asked for float32."""

    def __init__(self, module: Any, double: Any) -> None:
        self._module, self.float32 = module, double

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def scheduler_class(name: str) -> Any:
    """The library's class of that name. One of them asks for a package of Brownian trees, which is never used here."""
    import diffusers

    if name != "DPMSolverSDEScheduler":
        return getattr(diffusers, name)
    held = sys.modules.get("torchsde")
    sys.modules["torchsde"] = held or MagicMock()
    try:
        return importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_sde").DPMSolverSDEScheduler
    finally:
        if held is None:
            del sys.modules["torchsde"]


@contextlib.contextmanager
def lifted(name: str) -> Iterator[Any]:
    """The library's class, in a module that computes in float64 and draws from `Recorded`."""
    cls = scheduler_class(name)
    module = inspect.getmodule(cls)
    assert module is not None
    kept = dict(vars(module))
    rng, default = Recorded(), torch.get_default_dtype()
    module.torch, module.np = _Lifted(torch, torch.float64), _Lifted(np, np.float64)  # type: ignore[attr-defined]
    module.randn_tensor = lambda shape, **kwargs: rng.normal_like(torch.empty(shape))  # type: ignore[attr-defined]
    torch.set_default_dtype(torch.float64)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # its own: tensors handed to numpy's functions
            yield cls
    finally:
        torch.set_default_dtype(default)
        for key in ("torch", "np", "randn_tensor"):
            if key in kept:
                setattr(module, key, kept[key])
            else:
                delattr(module, key)


SIGMA = ("Euler", "Heun", "LMS", "DPMSolverSDE")


def foreign(
    config: dict[str, Any], steps: int, step: dict[str, Any] | None = None, **laid: Any
) -> tuple[Tensor, Oracle]:
    """What the library makes of NOISE (scaled as its own time asks), and the oracle that it asked."""
    found = translate(config)
    network = Oracle(found)
    arguments = {key: value for key, value in config.items() if not key.startswith("_")}
    with lifted(config["_class_name"]) as cls, torch.no_grad():
        scheduler = cls(**arguments)
        scheduler.set_timesteps(steps, **laid)
        in_sigma = config["_class_name"].startswith(SIGMA) and _plain(found.schedule)(1.0)[0] < 1
        x = NOISE.clone()
        if config["_class_name"] == "DPMSolverSDEScheduler":
            scheduler.noise_sampler = _brownian(scheduler)
        if in_sigma:
            x = x * (scheduler.sigmas[0] ** 2 + 1) ** 0.5
        elif found.schedule(1.0)[0] == 1:
            x = x * scheduler.sigmas[0]
        for t in scheduler.timesteps:
            told = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            x = scheduler.step(network(told, t.double().expand(len(x))), t, x, **(step or {})).prev_sample
        if in_sigma:
            x = x / (scheduler.sigmas[-1] ** 2 + 1) ** 0.5
    return x, network


def _brownian(scheduler: Any) -> Any:
    """The noise of our own two stages: a first draw up to the middle, carried on, and a second for the rest."""
    rng, held = Recorded(), {}

    def sample(sigma: Tensor, to: Tensor) -> Tensor:
        fresh = rng.normal_like(NOISE)
        if scheduler.state_in_first_order:
            held["first"], held["middle"] = fresh, to
            return fresh
        middle = held["middle"]
        up = lambda a, b: b * (1 - (b / a) ** 2) ** 0.5
        kept = (to / middle) ** 2  # what is left at `to` of noise at the middle, in the stride's second half
        whole = kept * up(sigma, middle) * held["first"] + up(middle, to) * fresh
        return whole / up(sigma, to)

    return sample


def ours(config: dict[str, Any], steps: int, **laid: Any) -> tuple[Tensor, Oracle]:
    """What Carrara makes of the same noise, with the configuration translated."""
    found = translate(config)
    network = Oracle(found)
    denoiser = found.denoiser(network)
    times = found.times(steps, **laid)(found.schedule)
    x = NOISE * found.schedule(times[0])[1] if found.schedule(1.0)[0] == 1 else NOISE.clone()
    sampling = found.sampler(found.process, x, times, rng=Recorded())
    return finish(guide(sampling, found.guidance(Plain()), denoiser)), network


def gap(config: dict[str, Any], steps: int, step: dict[str, Any] | None = None, laid: Any = None, **size: Any) -> float:
    """The largest difference, in units of max|x|; infinite where either is not finite."""
    theirs, _ = foreign(config, steps, step, **(size if laid is None else laid))
    mine, _ = ours(config, steps, **size)
    assert theirs.dtype == mine.dtype == torch.float64
    if not bool(theirs.isfinite().all() & mine.isfinite().all()):
        return float("inf")
    return float((theirs - mine).abs().max() / mine.abs().max())
