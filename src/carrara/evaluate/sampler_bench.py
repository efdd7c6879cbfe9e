r"""Samplers measured: how far from the exact solution each ends, for as many evaluations of the denoiser.

A deterministic sampler solves the probability-flow ODE, and is measured from the same noise against its fine solution,

    error = rms over rows and numbers of (x_0 - x_0*)

with x_0* from Heun's method on a fine grid, and on one of half as many strides, which says its own error. A stochastic
sampler has no such x_0*, only a distribution: it is measured by the sliced distance to samples of the data (Bonneel et
al. 2015), the root mean square over directions of the difference between quantiles. Exact samples have a distance too,
as few as they are: that is the floor.

Known data is a mixture of eight normals in eight dimensions, under four schedules with the grids that go with each. A
trained model is measured on its own schedule, with its own guidance, and by the ODE alone.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from carrara.diffusion.generator import DiffusionGenerator, SamplingSettings
from carrara.diffusion.sampler import heun
from carrara.diffusion.schedule import Cosine, Linear, LinearBetas, Schedule, Tabulated, VarianceExploding
from carrara.diffusion.times import Times, beta, exponential, karras, uniform, uniform_logsnr
from carrara.errors import NonFiniteError, RecipeError
from carrara.evaluate.walks import Grid, Problem, kind_of, longest, samplers
from carrara.oracle import Mixture
from carrara.rng import Rng, keyed
from carrara.run import finish
from carrara.system import System

__all__ = [
    "BUDGETS",
    "CASES",
    "Case",
    "Solved",
    "bench_data",
    "distributions",
    "mean_distance",
    "measure_mixture",
    "measure_model",
    "model_problem",
    "reference",
    "sliced_distance",
    "solutions",
]

BUDGETS = (5, 10, 20, 50)

_BLOCKS = 4  # of rows, whose distances give the standard error


@dataclass(frozen=True)
class Case:
    """A schedule and the grids that go with it, the one it is usually walked on first."""

    name: str
    schedule: Schedule
    grids: Mapping[str, Grid]


_BOTH: dict[str, Grid] = {"uniform": uniform, "uniform-logsnr": uniform_logsnr}

CASES = (
    Case("cosine", Cosine(), {**_BOTH, "beta": beta}),
    Case("linear-betas", LinearBetas(), {**_BOTH, "karras": karras}),
    Case("flow", Linear(), {**_BOTH, "beta": beta, "uniform, shift 3": functools.partial(uniform, shift=3.0)}),
    Case("EDM", VarianceExploding(), {"karras": karras, "exponential": exponential}),
)


@dataclass(frozen=True)
class Solved:
    """One measurement. `budget` None is an adaptive sampler, which takes what it needs."""

    sampler: str
    grid: str
    budget: int | None
    strides: int
    evaluations: int
    error: float  # root mean square; or a mean of sliced distances, whose standard error is `bar`
    median: float | None = None  # of the rows' own errors: a few rows that end far away do not count
    bar: float | None = None


# The two measures


def reference(problem: Problem, strides: int) -> tuple[Tensor, float]:
    """The fine solution, and by how much half as many strides differ from it (root mean square).

    Raises NonFiniteError where it is not finite.
    """
    coarse, fine = (problem.solve(heun, _fine(problem.process.schedule, n))[0] for n in (strides // 2, strides))
    if not bool(fine.isfinite().all()):
        raise NonFiniteError(f"the fine solution of {strides} strides is not finite, so that nothing can be compared")
    return fine, _rms(fine - coarse)


def _fine(schedule: Schedule, strides: int) -> Times:
    """Half of the strides are even in t and half in the log-SNR, so that it is fine by either."""
    half = strides // 2
    even = uniform(schedule, steps=min(half, schedule.steps) if isinstance(schedule, Tabulated) else half)
    return tuple(sorted({*even, *uniform_logsnr(schedule, steps=half)}, reverse=True))


def solutions(
    problem: Problem, exact: Tensor, grids: Mapping[str, Grid], budgets: Sequence[int] = BUDGETS
) -> Iterator[Solved]:
    """The error of each deterministic sampler on each grid, against the `exact` solution from the same noise."""
    schedule = problem.process.schedule
    for name, walk in samplers().items():
        if (kind := kind_of(walk)) == "stochastic":
            continue
        if kind == "adaptive":
            yield _solved(problem, exact, (name, "", None), (1.0, 0.0))
            continue
        for label, grid in grids.items():
            for budget in budgets:
                if (times := longest(walk, schedule, grid, budget)) is not None:
                    yield _solved(problem, exact, (name, label, budget), times)


def _solved(problem: Problem, exact: Tensor, names: tuple[str, str, int | None], times: Times) -> Solved:
    x, count = problem.solve(samplers()[names[0]], times)
    rows = (x - exact).double().flatten(1).square().mean(1).sqrt()
    return Solved(*names, len(times) - 1, count, _rms(x - exact), rows.median().item())


def distributions(
    problem: Problem, data: Tensor, label: str, grid: Grid, budgets: Sequence[int] = BUDGETS
) -> Iterator[Solved]:
    """The sliced distance of each sampler's results to `data`, on one grid; without adaptive ones, which are exact."""
    for name, walk in samplers().items():
        for budget in budgets if kind_of(walk) != "adaptive" else ():
            if (times := longest(walk, problem.process.schedule, grid, budget)) is not None:
                x, count = problem.solve(walk, times, "steps")
                distance, bar = mean_distance(x, data)
                yield Solved(name, label, budget, len(times) - 1, count, distance, bar=bar)


def mean_distance(x: Tensor, data: Tensor) -> tuple[float, float]:
    """The mean sliced distance of four parts of x to data, and its standard error."""
    found = torch.tensor([sliced_distance(part, data) for part in x.chunk(_BLOCKS)], dtype=torch.float64)
    return found.mean().item(), found.std().item() / math.sqrt(len(found))


def sliced_distance(x: Tensor, data: Tensor, *, directions: int = 64) -> float:
    """Root mean square over directions and quantiles of the difference between projections of x and data (B, ...)."""
    size = x[0].numel()
    ways = torch.from_numpy(keyed("sliced", size).standard_normal((size, directions)))
    ways = ways / ways.norm(dim=0)
    shares = (torch.arange(len(x), dtype=torch.float64) + 0.5) / len(x)
    projected = (x.flatten(1).double() @ ways).sort(dim=0).values
    return _rms(projected - torch.quantile(data.flatten(1).double() @ ways, shares, dim=0))


# Known data


def bench_data() -> Mixture:
    """Eight normals in eight dimensions, from narrow to wide; the data's standard deviation is about 0.45."""
    stds = [0.05 * 6 ** (i / 7) for i in range(8)]
    return Mixture([1.0] * 8, 0.45 * keyed("sampler bench").standard_normal((8, 8)), stds=stds)


def measure_mixture(
    case: Case, rows: int, budgets: Sequence[int], said: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Both measures of a case as JSON, from `rows` of noise, and four times as many for distances.

    `said` is called after every measurement.
    """
    data = bench_data()
    problem = Problem.exact(data, case.schedule, rows, "solutions")
    exact, own = reference(problem, 20 * max(budgets))
    solved = _listed(solutions(problem, exact, case.grids, budgets), said)
    many = Problem.exact(data, case.schedule, _BLOCKS * rows, "distributions")
    target = data.sample(Rng.seeds(range(4 * _BLOCKS * rows), "target"))
    floor, bar = mean_distance(data.sample(Rng.seeds(range(_BLOCKS * rows), "floor")), target)
    label, grid = next(iter(case.grids.items()))
    return {
        "case": case.name,
        "grids": list(case.grids),
        "rows": rows,
        "scale": _rms(exact),
        "reference_error": own,
        "solutions": solved,
        "floor": floor,
        "floor_bar": bar,
        "stochastic": [name for name, walk in samplers().items() if kind_of(walk) == "stochastic"],
        "distributions": _listed(distributions(many, target, label, grid, budgets), said),
    }


def _listed(found: Iterator[Solved], said: Callable[[], None]) -> list[dict[str, Any]]:
    listed = []
    for solved in found:
        listed.append({name: value for name, value in asdict(solved).items() if value is not None})
        said()
    return listed


# A trained model


def model_problem(
    system: System, prompts: Sequence[str], seeds: Sequence[int], settings: SamplingSettings | None = None
) -> Problem:
    """A model's problem: its noise of these seeds, prompts, and its guidance or that of `settings`.

    RecipeError for generators of other families.
    """
    generator = system.generator
    if not isinstance(generator, DiffusionGenerator):
        raise RecipeError(f"the generator is a {type(generator).__name__}, and samplers are for diffusion models")
    process = generator.denoiser.process
    both = system.untold(finish(system.text.start([*prompts, *[""] * len(prompts)])), 2 * len(prompts))
    noise = Rng.seeds(seeds).fork("generator").fork("prior").normal(system.decoder.space.shape)
    x = process.prior_std() * noise.to(next(generator.denoiser.parameters()).device)
    condition, null = both.rows(slice(0, len(prompts))), both.rows(slice(len(prompts), None))
    return Problem(process, generator.denoiser, x, (settings or generator.settings).guidance, condition, null)


def measure_model(problem: Problem, budgets: Sequence[int], said: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """The first measure on a trained model as JSON: root mean square in its space, whose own is `scale`."""
    exact, own = reference(problem, 4 * max(budgets))
    schedule = problem.process.schedule
    every: dict[str, Grid] = {"uniform": uniform, "uniform-logsnr": uniform_logsnr, "karras": karras}
    # all solve from the same noise, so a grid that begins at less noise would solve another problem
    grids = {name: grid for name, grid in every.items() if grid(schedule, steps=2)[0] >= schedule.t_max}
    solved = _listed(solutions(problem, exact, grids, budgets), said)
    return {
        "grids": list(grids),
        "rows": len(problem.x),
        "scale": _rms(exact),
        "reference_error": own,
        "solutions": solved,
    }


def _rms(x: Tensor) -> float:
    return x.double().square().mean().sqrt().item()
