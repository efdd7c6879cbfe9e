"""The schedulers without a table: EDM's, where alpha = 1, and those of the straight path."""

from __future__ import annotations

from functools import partial

from carrara.diffusion.parameterization import Flow, Karras, LogSigma, Parameterization, ScaledTime
from carrara.diffusion.sampler import ddim, heun, lcm, total_coordinate
from carrara.diffusion.schedule import Linear, VarianceExploding
from carrara.diffusion.times import shifted
from carrara.store.diffusers.common import dynamic, levels, limit, shifts
from carrara.store.diffusers.keys import Keys
from carrara.store.diffusers.parameterization import NegativeKarras
from carrara.store.diffusers.scheduler import ForeignScheduler, total_prior
from carrara.store.diffusers.solvers import multistep
from carrara.store.diffusers.spacing import Spacing
from carrara.store.diffusers.times import exponential_levels, karras_levels, straight, stretched

__all__ = ["read_edm_euler", "read_edm_multistep", "read_flow_euler", "read_flow_heun"]


def _edm(keys: Keys) -> tuple[VarianceExploding, Parameterization, Spacing]:
    low, high, data = keys.number("sigma_min"), keys.number("sigma_max"), keys.number("sigma_data")
    if not 0 < low < high:
        keys.refuse("sigma_min", f"the levels would go from {low:g} to {high:g}; expected 0 < sigma_min < sigma_max")
    if not data > 0:
        keys.refuse("sigma_data", "expected the data's standard deviation, 0.5 for EDM's")
    stop = keys.choice("final_sigmas_type", {"zero": 0.0, "sigma_min": None})
    rules = {"karras": partial(karras_levels, rho=keys.number("rho"), end=stop),
             "exponential": partial(exponential_levels, end=stop)}  # fmt: skip
    keys.without_effect("num_train_timesteps")
    spacing = Spacing(partial(straight, last=low / high), (keys.choice("sigma_schedule", rules),))
    signs = {"epsilon": Karras(data), "v_prediction": NegativeKarras(data)}
    return VarianceExploding(high), keys.choice("prediction_type", signs), spacing


def read_edm_euler(keys: Keys) -> ForeignScheduler:
    """Euler's method, which is `ddim`."""
    schedule, parameterization, spacing = _edm(keys)
    return ForeignScheduler(
        keys.name, schedule, parameterization, LogSigma(), spacing, partial(ddim), prior=total_prior
    )


def read_edm_multistep(keys: Keys) -> ForeignScheduler:
    """DPM-Solver++ 2M and 3M, and 2M with noise."""
    schedule, parameterization, spacing = _edm(keys)
    sampler = multistep(keys, final=False)
    if keys["algorithm_type"] == "sde-dpmsolver++" and keys["solver_order"] == 3:
        keys.refuse("solver_order", "diffusers has no stochastic form of it in this class; expected 1 or 2")
    return ForeignScheduler(
        keys.name, schedule, parameterization, LogSigma(), spacing, sampler, limit(keys), prior=total_prior
    )


def _twice_shifted(keys: Keys, steps: int) -> float:
    # The lowest level has been shifted when the grid is laid from it, and is shifted again with the grid.
    by = keys.number("shift")
    return shifted(1 / steps, by) if by > 0 else 1 / steps


def read_flow_euler(keys: Keys) -> ForeignScheduler:
    """Euler's method, which is `ddim`; with stochastic_sampling, that of consistency models."""
    steps = keys.count("num_train_timesteps")
    if keys.flag("invert_sigmas"):
        keys.refuse("invert_sigmas", "a path on which time runs from data to noise has no counterpart; expected false")
    chosen = dynamic(keys, "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len")
    through = [*shifts(keys, "shift", chosen)]
    if keys["shift_terminal"]:
        through.append(partial(stretched, terminal=keys.number("shift_terminal")))
    if (found := levels(keys, total_coordinate, 0.0)) is not None:
        through.append(found)
    last = _twice_shifted(keys, steps) if chosen is None else 1 / steps
    spacing = Spacing(partial(straight, last=last), tuple(through), chosen, handed=True)
    sampler = partial(lcm) if keys.flag("stochastic_sampling") else partial(ddim)
    return ForeignScheduler(keys.name, Linear(), Flow(), ScaledTime(float(steps)), spacing, sampler)


def read_flow_heun(keys: Keys) -> ForeignScheduler:
    """Heun's method."""
    steps = keys.count("num_train_timesteps")
    spacing = Spacing(partial(straight, last=_twice_shifted(keys, steps)), shifts(keys, "shift", None))
    sampler = partial(heun, coordinate=total_coordinate)
    return ForeignScheduler(keys.name, Linear(), Flow(), ScaledTime(float(steps)), spacing, sampler)
