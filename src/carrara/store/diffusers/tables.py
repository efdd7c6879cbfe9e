"""The tables of betas that a foreign configuration describes."""

from __future__ import annotations

import math

from carrara.diffusion.schedule import (
    CosineBetas,
    GivenBetas,
    LinearBetas,
    ScaledLinearBetas,
    SigmoidBetas,
    Tabulated,
)
from carrara.store.diffusers.keys import Keys
from carrara.store.diffusers.schedule import NearZeroTerminal

__all__ = ["near_zero_table", "read_table"]


def read_table(keys: Keys, *more: str) -> Tabulated:
    """The table of `beta_schedule`, which may be one of `more`; alpha_bar_T is 0 with `rescale_betas_zero_snr`."""
    steps, first, last = keys.count("num_train_timesteps"), keys.number("beta_start"), keys.number("beta_end")
    zero = keys.flag("rescale_betas_zero_snr")
    kind = keys["beta_schedule"]
    if keys["trained_betas"] is not None:
        return _given(keys, steps, zero)
    names = ("linear", "scaled_linear", "squaredcos_cap_v2", *more)
    if kind not in names:
        keys.refuse("beta_schedule", "expected " + ", ".join(names))
    if kind in ("linear", "scaled_linear", "sigmoid") and not 0 < first <= last < 1:
        keys.refuse("beta_end", f"beta_start is {first:g}; expected 0 < beta_start <= beta_end < 1")
    try:
        match kind:
            case "linear":
                return LinearBetas(steps, first, last, zero)
            case "scaled_linear":
                return ScaledLinearBetas(steps, first, last, zero)
            case "sigmoid":
                return SigmoidBetas(steps, first, last, zero)
            case "laplace":
                return GivenBetas(_laplace(steps), zero)
            case "exp":
                every = -math.expm1(-12 / steps)
                return LinearBetas(steps, every, every, zero)
            case _:
                return CosineBetas(steps, zero_terminal=zero)
    except ValueError as error:
        keys.refuse("num_train_timesteps", str(error))


def near_zero_table(keys: Keys) -> Tabulated:
    """The same, for the classes that end a rescaled table at alpha_bar = 2^-24."""
    table = read_table(keys)
    return NearZeroTerminal(table) if keys.flag("rescale_betas_zero_snr") else table


def _given(keys: Keys, steps: int, zero: bool) -> GivenBetas:
    values = keys["trained_betas"]
    if not isinstance(values, list | tuple) or not all(isinstance(value, int | float) for value in values):
        keys.refuse("trained_betas", "expected a list of numbers")
    if len(values) != steps:
        keys.refuse("num_train_timesteps", f"trained_betas has {len(values)} numbers; expected the same")
    try:
        return GivenBetas(tuple(float(value) for value in values), zero)
    except ValueError as error:
        keys.refuse("trained_betas", str(error))


def _laplace(steps: int) -> tuple[float, ...]:
    """The betas of alpha_bar = sqrt(snr / (1 + snr)), snr the exponential of a Laplace distribution's quantile."""

    def bar(u: float) -> float:
        snr = math.exp(-0.5 * math.copysign(1, 0.5 - u) * math.log(1 - 2 * abs(0.5 - u) + 1e-6))
        return math.sqrt(snr / (1 + snr))

    return tuple(min(1 - bar((i + 1) / steps) / bar(i / steps), 0.999) for i in range(steps))
