"""DPM-Solver++ and UniPC: on a table's entries, on noise levels between them, or on a straight path."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

from carrara.diffusion.dpm import dpmpp_2m, dpmpp_2m_sde, dpmpp_3m, dpmpp_3m_sde
from carrara.diffusion.parameterization import IntegerStep, Level, Parameterization, ScaledTime
from carrara.diffusion.sampler import Sampler, alpha_coordinate, ddim
from carrara.diffusion.schedule import Linear, Tabulated
from carrara.diffusion.times import trailing
from carrara.diffusion.unipc import bh1, bh2, unipc
from carrara.store.diffusers.common import (
    NOISY,
    Step,
    dynamic,
    end,
    levels,
    limit,
    prediction,
    shifts,
    sigma_range,
    spaced,
)
from carrara.store.diffusers.keys import Keys
from carrara.store.diffusers.level import Rounded, Truncated
from carrara.store.diffusers.sampler import ending, singlestep
from carrara.store.diffusers.scheduler import ForeignScheduler
from carrara.store.diffusers.spacing import Spacing
from carrara.store.diffusers.tables import near_zero_table, read_table
from carrara.store.diffusers.times import (
    begun,
    exponential_levels,
    karras_levels,
    leading_open,
    linspace_open,
    straight,
    straight_open,
    stretched,
)

__all__ = ["multistep", "read_multistep", "read_singlestep", "read_unipc"]

_LEARNED = {None: False, "learned": True, "learned_range": True}
_STRAIGHT = ("flow_prediction", "epsilon", "sample")


def _midpoint(keys: Keys, order: int) -> None:
    # the names of other solvers are the midpoint in diffusers as well
    if keys["solver_type"] not in ("midpoint", "logrho", "bh1", "bh2") and order > 1:
        keys.refuse("solver_type", "the rule of second order here is the midpoint; expected midpoint")


def multistep(keys: Keys, final: bool) -> Sampler:
    """The sampler of solver_order and algorithm_type; `final` is whether its last stride may be of lower order."""
    order = keys.choice("solver_order", {1: 1, 2: 2, 3: 3})
    algorithms = {"dpmsolver++": False, "deis": False, "sde-dpmsolver++": True}
    if keys["algorithm_type"] not in algorithms:
        keys.refuse("algorithm_type", 'only the data is integrated here; expected "dpmsolver++" or "sde-dpmsolver++"')
    stochastic = algorithms[keys["algorithm_type"]]
    _midpoint(keys, order)
    first = partial(ddim, eta=1.0) if stochastic else partial(ddim)
    samplers: Mapping[tuple[int, bool], Sampler] = {
        (1, False): first, (2, False): partial(dpmpp_2m), (3, False): partial(dpmpp_3m),
        (1, True): first, (2, True): partial(dpmpp_2m_sde), (3, True): partial(dpmpp_3m_sde),
    }  # fmt: skip
    sampler = samplers[order, stochastic]
    always, few = keys.flag("euler_at_final"), keys.flag("lower_order_final")
    if final and order > 1 and (always or few):
        return partial(ending, inner=sampler, last=first, below=None if always else 15)
    return sampler


def _entries(keys: Keys, table: Tabulated) -> int | None:
    """How many entries are left when those with a lambda below `lambda_min_clipped` are not visited; None is all."""
    least = keys.number("lambda_min_clipped")
    if least == -math.inf:
        return None
    return sum(table.logsnr((i + 1) / table.steps) / 2 >= least for i in range(table.steps))


def _open_grid(keys: Keys, entries: int | None, stop: float) -> Step:
    if entries is not None and keys["timestep_spacing"] == "trailing":
        keys.refuse("lambda_min_clipped", "trailing begins at the table's end, which is clipped; expected -Infinity")
    rules = {"leading": partial(leading_open, entries=entries), "trailing": partial(trailing),
             "linspace": partial(linspace_open, entries=entries)}  # fmt: skip
    return partial(spaced(keys, rules), end=stop)


def _on_table(keys: Keys, table: Tabulated, rule: Step, stop: float) -> tuple[Level, Spacing, bool]:
    """The number that the network is told, the grid, and whether its last stride has a length.

    Where levels stop at the lowest, diffusers makes one more stride, of no length.
    """
    found, step = levels(keys, alpha_coordinate, stop), IntegerStep(table.steps)
    nearest = keys.flag("use_karras_sigmas")
    if "use_lu_lambdas" in keys and keys.flag("use_lu_lambdas") and not nearest:
        found, nearest = partial(exponential_levels, end=stop), True
    if found is None:
        return step, Spacing(rule), True
    if keys.name == "DPMSolverMultistepScheduler" and keys["beta_schedule"] == "squaredcos_cap_v2":
        nearest = False
    spacing = Spacing(partial(straight, last=table.t_min), (found,))
    return Rounded(step) if nearest else Truncated(step), spacing, stop == 0


def _straight(keys: Keys, steps: int) -> tuple[Parameterization, Level, Spacing]:
    """DPM-Solver++ on a straight path, from just before its end."""
    if keys["final_sigmas_type"] != "zero":
        keys.refuse("final_sigmas_type", "a straight path has no table's first entry; expected zero")
    chosen = dynamic(keys)
    spacing = Spacing(partial(straight, first=1 - 1 / steps), shifts(keys, "flow_shift", chosen), chosen)
    return prediction(keys, *_STRAIGHT), Truncated(ScaledTime(float(steps))), spacing


def _is_straight(keys: Keys, *excluded: str) -> bool:
    """Whether the path is straight; with levels of a table it would not be one."""
    flow = keys.flag("use_flow_sigmas")
    for name in excluded:
        if keys.flag(name) and flow:
            keys.refuse(name, "its levels are those of a table, and use_flow_sigmas is true; expected false")
    return flow


def read_multistep(keys: Keys) -> ForeignScheduler:
    """DPM-Solver++ 2M and 3M, and their stochastic forms."""
    table, limited, learned = near_zero_table(keys), limit(keys), keys.choice("variance_type", _LEARNED)
    entries = _entries(keys, table)
    if _is_straight(keys, "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"):
        keys.without_effect("timestep_spacing", "steps_offset")
        parameterization, level, spacing = _straight(keys, table.steps)
        sampler = multistep(keys, final=False)
        return ForeignScheduler(keys.name, Linear(), parameterization, level, spacing, sampler, limited, learned)
    keys.without_effect("flow_shift", "use_dynamic_shifting", "time_shift_type")
    stop = end(keys, table)
    level, spacing, real = _on_table(keys, table, _open_grid(keys, entries, stop), stop)
    sampler = multistep(keys, final=real and stop > 0)
    return ForeignScheduler(keys.name, table, prediction(keys, *NOISY), level, spacing, sampler, limited, learned)


def read_singlestep(keys: Keys) -> ForeignScheduler:
    """DPM-Solver++ 2S."""
    table, limited, learned = read_table(keys), limit(keys), keys.choice("variance_type", _LEARNED)
    order = keys.choice("solver_order", {1: 1, 2: 2})
    _midpoint(keys, order)
    if keys["algorithm_type"] not in ("dpmsolver++", "deis"):
        keys.refuse("algorithm_type", 'only the data is integrated here, without noise; expected "dpmsolver++"')
    lower = keys.flag("lower_order_final") or keys["final_sigmas_type"] == "zero"
    sampler = partial(singlestep, single=2 if lower else 0) if order == 2 else partial(ddim)
    entries = _entries(keys, table)
    if _is_straight(keys, "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"):
        parameterization, level, spacing = _straight(keys, table.steps)
        return ForeignScheduler(keys.name, Linear(), parameterization, level, spacing, sampler, limited, learned)
    keys.without_effect("flow_shift", "use_dynamic_shifting", "time_shift_type")
    stop = end(keys, table)
    rule = partial(linspace_open, entries=entries, end=stop)
    level, spacing, real = _on_table(keys, table, rule, stop)
    if not real and order == 2:
        keys.refuse("final_sigmas_type", "strides in pairs cannot end in one of no length; expected zero")
    return ForeignScheduler(keys.name, table, prediction(keys, *NOISY), level, spacing, sampler, limited, learned)


def read_unipc(keys: Keys) -> ForeignScheduler:
    """UniPC of order 1 to 3."""
    table, limited = near_zero_table(keys), limit(keys)
    keys.only("predict_x0", True, why="only the data is integrated here; expected true")
    keys.only("solver_p", None, why="a predictor of another class is not read; expected null")
    keys.only("disable_corrector", [], None, why="a corrector here acts in every stride or in none; expected []")
    lower = keys.flag("lower_order_final")
    b = keys.choice("solver_type", {"bh1": bh1, "bh2": bh2, "midpoint": bh2, "heun": bh2, "logrho": bh2})
    sampler = partial(unipc, order=keys.choice("solver_order", {1: 1, 2: 2, 3: 3}), b=b)
    if _is_straight(keys, "use_exponential_sigmas", "use_beta_sigmas"):
        keys.only("final_sigmas_type", "zero", why="a last stride of no length is corrected in diffusers, and is none "
                  "here; expected zero")  # fmt: skip
        keys.without_effect("timestep_spacing", "steps_offset")
        level: Level = Truncated(ScaledTime(float(table.steps)))
        spacing = _straight_unipc(keys, table)
        return ForeignScheduler(keys.name, Linear(), prediction(keys, *_STRAIGHT), level, spacing, sampler, limited)
    keys.only("shift_terminal", None, why="it acts where use_flow_sigmas is true; expected null")
    keys.without_effect("flow_shift", "use_dynamic_shifting", "time_shift_type")
    stop = end(keys, table)
    level, spacing, real = _on_table(keys, table, _open_grid(keys, None, stop), stop)
    if stop > 0 and (lower or not real):
        keys.refuse(
            "final_sigmas_type",
            "its last stride is of another order in diffusers than here; expected zero, or lower_order_final false "
            "without use_karras_sigmas and its kin",
        )
    if spacing.through:
        spacing = Spacing(_between(keys, table), spacing.through)
    else:
        keys.without_effect("sigma_min", "sigma_max")
    return ForeignScheduler(keys.name, table, prediction(keys, *NOISY), level, spacing, sampler, limited)


def _between(keys: Keys, table: Tabulated) -> Step:
    """The table from `sigma_max` to `sigma_min`, which it has to reach."""
    low, high = sigma_range(keys, table)
    times = {name: table.time(-2 * math.log(sigma)) for name, sigma in (("sigma_max", high), ("sigma_min", low))}
    for (name, t), sigma in zip(times.items(), (high, low), strict=True):
        if abs(math.exp(-table.logsnr(t) / 2) - sigma) > 1e-6 * sigma:
            keys.refuse(name, "the table has no such level, so no timestep names it; expected one that it has")
    return partial(straight, first=times["sigma_max"], last=times["sigma_min"])


def _straight_unipc(keys: Keys, table: Tabulated) -> Spacing:
    """UniPC on a straight path, begun a millionth before its end, where the log-SNR is finite."""
    chosen = dynamic(keys)
    through = [*shifts(keys, "flow_shift", chosen)]
    low, high = sigma_range(keys, table)
    terminal = keys["shift_terminal"]
    if keys.flag("use_karras_sigmas"):  # of the table's sigmas: t / (1 - t) is sigma / alpha on the straight path
        if chosen is not None:
            keys.refuse("use_dynamic_shifting", "levels of a fixed range are not shifted; expected false")
        base = partial(straight, first=high / (1 + high), last=low / (1 + low))
        return Spacing(base, (partial(karras_levels, coordinate=alpha_coordinate, end=0.0),))
    if terminal:
        through.append(partial(stretched, terminal=keys.number("shift_terminal")))
    base = partial(straight_open, last=1 / table.steps, end=0.0)
    return Spacing(base, (*through, partial(begun)), chosen, handed=True)
