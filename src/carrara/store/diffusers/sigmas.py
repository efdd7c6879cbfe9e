"""The schedulers that came from k-diffusion, in sigma = sigma_t / alpha_t and x / alpha_t."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from carrara.diffusion.dpm import dpmpp_sde
from carrara.diffusion.multistep import adams
from carrara.diffusion.parameterization import IntegerStep, Level, LogSigma, Parameterization, V
from carrara.diffusion.sampler import alpha_coordinate, ddim, euler_ancestral, heun
from carrara.diffusion.schedule import Schedule, Tabulated, VarianceExploding
from carrara.diffusion.times import leading, trailing
from carrara.store.diffusers.common import NOISY, end, levels, limit, prediction, sigma_range, spaced
from carrara.store.diffusers.keys import Keys
from carrara.store.diffusers.parameterization import NegativeKarras
from carrara.store.diffusers.schedule import LinearSigma
from carrara.store.diffusers.scheduler import ForeignScheduler, noise_prior, total_prior
from carrara.store.diffusers.spacing import Spacing
from carrara.store.diffusers.tables import near_zero_table, read_table
from carrara.store.diffusers.times import straight

__all__ = ["read_dpm_sde", "read_euler", "read_euler_ancestral", "read_heun", "read_lms"]


def _grid(keys: Keys, table: Tabulated, stop: float = 0.0) -> tuple[Schedule, Spacing]:
    """The grid, and the table as it is read between entries, which plain linspace falls between."""
    line = partial(straight, last=table.t_min)
    rule = spaced(keys, {"leading": partial(leading), "trailing": partial(trailing), "linspace": line})
    found = levels(keys, alpha_coordinate, stop)
    if found is not None:
        return table, Spacing(rule, (found,))
    return LinearSigma(table) if rule is line else table, Spacing(partial(rule, end=stop))


def _prior(keys: Keys) -> Callable[[float, float], float]:
    return total_prior if keys["timestep_spacing"] == "leading" else noise_prior


def read_euler(keys: Keys) -> ForeignScheduler:
    """Euler's method, which is `ddim`."""
    table = near_zero_table(keys)
    parameterization = prediction(keys, *NOISY, "original_sample")
    continuous = keys.choice("timestep_type", {"discrete": False, "continuous": True})
    level: Level = LogSigma() if continuous and isinstance(parameterization, V) else IntegerStep(table.steps)
    if keys["sigma_min"] is not None or keys["sigma_max"] is not None:
        return _between_sigmas(keys, table, parameterization, level)
    schedule, spacing = _grid(keys, table, end(keys, table))
    if keys.choice("interpolation_type", {"linear": False, "log_linear": True}):
        if not spacing.through:
            keys.refuse("interpolation_type", "it tells the network other levels than x has; expected linear")
        spacing = Spacing(partial(straight, last=table.t_min), spacing.through)
    return ForeignScheduler(keys.name, schedule, parameterization, level, spacing, partial(ddim), prior=_prior(keys))


def _between_sigmas(keys: Keys, table: Tabulated, parameterization: Parameterization, level: Level) -> ForeignScheduler:
    """Euler between two levels of its own (Stable Video Diffusion), which the table need not reach."""
    found = levels(keys, alpha_coordinate, 0.0)
    if found is None:
        keys.refuse("sigma_max", "it does nothing without use_karras_sigmas or a kin of it; expected null")
    keys.only("final_sigmas_type", "zero", why="a grid between levels of its own ends at 0; expected zero")
    keys.without_effect("steps_offset", "interpolation_type")
    low, high = sigma_range(keys, table)
    times = [table.time(-2 * math.log(sigma)) for sigma in (high, low)]
    if all(_reaches(table, t, sigma) for t, sigma in zip(times, (high, low), strict=True)):
        schedule: Schedule = table
        base = partial(straight, first=times[0], last=times[1])
    elif isinstance(level, LogSigma):
        schedule, parameterization = VarianceExploding(high), NegativeKarras(1.0)
        base = partial(straight, last=low / high)
    else:
        keys.refuse(
            "sigma_max",
            f"levels from {low:g} to {high:g} lie beyond the table, so no timestep names them; expected timestep_type "
            "continuous with v_prediction",
        )
    spacing = Spacing(base, (found,))
    return ForeignScheduler(keys.name, schedule, parameterization, level, spacing, partial(ddim), prior=_prior(keys))


def _reaches(table: Tabulated, t: float, sigma: float) -> bool:
    """Whether the table's level at t is the one that t was looked up for."""
    return abs(math.exp(-table.logsnr(t) / 2) - sigma) <= 1e-6 * sigma


def read_euler_ancestral(keys: Keys) -> ForeignScheduler:
    """Euler's method with noise, `ddim` with eta 1; it has no levels of its own."""
    table = near_zero_table(keys)
    schedule, spacing = _grid(keys, table)
    return ForeignScheduler(
        name=keys.name,
        schedule=schedule,
        parameterization=prediction(keys, "epsilon", "v_prediction"),
        level=IntegerStep(table.steps),
        spacing=spacing,
        sampler=partial(euler_ancestral),
        prior=_prior(keys),
    )


def read_heun(keys: Keys) -> ForeignScheduler:
    """Heun's method."""
    table = read_table(keys, "exp")
    schedule, spacing = _grid(keys, table)
    return ForeignScheduler(
        name=keys.name,
        schedule=schedule,
        parameterization=prediction(keys, *NOISY),
        level=IntegerStep(table.steps),
        spacing=spacing,
        sampler=partial(heun, coordinate=alpha_coordinate),
        limit=limit(keys),
        prior=_prior(keys),
    )


def read_lms(keys: Keys) -> ForeignScheduler:
    """Adams-Bashforth of order 4."""
    table = read_table(keys)
    schedule, spacing = _grid(keys, table)
    return ForeignScheduler(
        name=keys.name,
        schedule=schedule,
        parameterization=prediction(keys, *NOISY),
        level=IntegerStep(table.steps),
        spacing=spacing,
        sampler=partial(adams, order=4, coordinate=alpha_coordinate),
        prior=_prior(keys),
    )


def read_dpm_sde(keys: Keys) -> ForeignScheduler:
    """DPM-Solver++ of two stages with noise, which comes from the request's seeds."""
    table = read_table(keys)
    schedule, spacing = _grid(keys, table)
    keys.without_effect("noise_sampler_seed")
    return ForeignScheduler(
        name=keys.name,
        schedule=schedule,
        parameterization=prediction(keys, "epsilon", "v_prediction"),
        level=IntegerStep(table.steps),
        spacing=spacing,
        sampler=partial(dpmpp_sde),
        prior=_prior(keys),
    )
