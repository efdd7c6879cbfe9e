"""The schedulers that stay on the entries of a table: DDPM, DDIM, PNDM, LCM."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from carrara.diffusion.multistep import plms, pndm
from carrara.diffusion.parameterization import IntegerStep
from carrara.diffusion.process import Learned, Posterior, Transition, Variance
from carrara.diffusion.sampler import alpha_coordinate, ancestral, ddim, lcm
from carrara.diffusion.times import leading, linspace, trailing
from carrara.store.diffusers.common import NOISY, Step, end, limit, prediction, spaced
from carrara.store.diffusers.keys import Keys
from carrara.store.diffusers.scheduler import ForeignScheduler
from carrara.store.diffusers.spacing import Spacing
from carrara.store.diffusers.tables import read_table
from carrara.store.diffusers.times import consistency

__all__ = ["read_ddim", "read_ddpm", "read_lcm", "read_pndm"]

_RULES: Mapping[str, Step] = {
    "leading": partial(leading), "trailing": partial(trailing), "linspace": partial(linspace),
}  # fmt: skip

_VARIANCES: Mapping[str, Variance] = {
    "fixed_small": Posterior(), "fixed_small_log": Posterior(), "fixed_large": Transition(), "learned_range": Learned(),
}  # fmt: skip


def read_ddpm(keys: Keys) -> ForeignScheduler:
    """DDPM, by `ancestral`."""
    table = read_table(keys, "sigmoid", "laplace")
    if keys["variance_type"] not in _VARIANCES:
        keys.refuse(
            "variance_type",
            "a variance of the network's own, or a logarithm taken for one, has no counterpart; expected "
            + ", ".join(_VARIANCES),
        )
    variance = _VARIANCES[keys["variance_type"]]
    return ForeignScheduler(
        name=keys.name,
        schedule=table,
        parameterization=prediction(keys, *NOISY),
        level=IntegerStep(table.steps),
        spacing=Spacing(partial(spaced(keys, _RULES), end=0.0)),
        sampler=partial(ancestral, variance=variance),
        limit=limit(keys),
        learned_variance=isinstance(variance, Learned),
    )


def read_ddim(keys: Keys) -> ForeignScheduler:
    """DDIM with eta 0."""
    table = read_table(keys)
    return ForeignScheduler(
        name=keys.name,
        schedule=table,
        parameterization=prediction(keys, *NOISY),
        level=IntegerStep(table.steps),
        spacing=Spacing(partial(spaced(keys, _RULES), end=end(keys, table, "set_alpha_to_one"))),
        sampler=partial(ddim),
        limit=limit(keys),
    )


def read_pndm(keys: Keys) -> ForeignScheduler:
    """PNDM, whole or without its Runge-Kutta strides."""
    table = read_table(keys)
    return ForeignScheduler(
        name=keys.name,
        schedule=table,
        parameterization=prediction(keys, "epsilon", "v_prediction"),
        level=IntegerStep(table.steps),
        spacing=Spacing(partial(spaced(keys, _RULES), end=end(keys, table, "set_alpha_to_one"))),
        sampler=partial(plms if keys.flag("skip_prk_steps") else pndm, coordinate=alpha_coordinate),
    )


def read_lcm(keys: Keys) -> ForeignScheduler:
    """LCM; its boundary conditions change less than a part in 1e5 at the times that it asks at, and are left out."""
    table = read_table(keys)
    if keys.number("timestep_scaling") < 10:
        keys.refuse("timestep_scaling", "boundary conditions that reach into the grid have no counterpart; expected 10")
    original = keys.count("original_inference_steps")
    if not 1 <= original <= table.steps // 10:
        keys.refuse("original_inference_steps", f"expected 1 to {table.steps // 10}, every tenth entry of the table")
    keys.without_effect("set_alpha_to_one", "steps_offset", "timestep_spacing")
    return ForeignScheduler(
        name=keys.name,
        schedule=table,
        parameterization=prediction(keys, *NOISY),
        level=IntegerStep(table.steps),
        spacing=Spacing(partial(consistency, original=original)),
        sampler=partial(lcm),
        limit=limit(keys),
    )
