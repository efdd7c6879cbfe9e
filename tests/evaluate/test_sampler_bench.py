"""Samplers measured: the fine solution is exact, evaluations are counted, and a better sampler measures better."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import pytest
import torch

from carrara.diffusion import (
    Cosine,
    Linear,
    LinearBetas,
    VarianceExploding,
    adams,
    alpha_coordinate,
    ancestral,
    ddim,
    heun,
    pndm,
    total_coordinate,
    uniform,
    uniform_logsnr,
)
from carrara.diffusion.adaptive import dopri
from carrara.errors import NonFiniteError
from carrara.evaluate import sampler_bench
from carrara.evaluate.sampler_bench import CASES, bench_data, mean_distance, reference, sliced_distance, solutions
from carrara.evaluate.sampler_page import best_grids, page, rows_of
from carrara.evaluate.walks import Problem, evaluations, kind_of, longest, samplers
from carrara.oracle import Mixture
from carrara.rng import Rng
from carrara.store.kinds import TABLES
from carrara.types import Estimate

SCHEDULES = (Cosine(), LinearBetas(), Linear(), VarianceExploding())


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_the_fine_solution_is_the_exact_one(schedule: Any) -> None:
    """On one normal the ODE's solution is known: x_0 = m + s (x_1 - alpha m) / sqrt(alpha^2 s^2 + sigma^2)."""
    mean, std = 0.4, 0.3
    problem = Problem.exact(Mixture.gaussian([mean, -mean], std), schedule, 8, "normal")
    alpha, sigma = schedule(1.0)
    means = torch.tensor([mean, -mean], dtype=torch.float64)
    exact = means + std * (problem.x - alpha * means) / math.sqrt(alpha**2 * std**2 + sigma**2)
    found, own = reference(problem, 400)
    error = (found - exact).square().mean().sqrt().item()
    assert error < 1e-3
    assert error < 2 * own


def test_the_fine_solution_has_to_be_finite() -> None:
    problem = Problem.exact(Mixture.gaussian([0.0], 0.5), Linear(), 2)
    broken = Problem(problem.process, lambda x, t, condition: Estimate(x * math.nan), problem.x)
    with pytest.raises(NonFiniteError, match="not finite"):
        reference(broken, 10)


def test_every_sampler_of_the_table_is_measured() -> None:
    """One that is added to the table joins without a line here."""
    assert set(samplers()) >= set(TABLES["sampler"])
    found = {name: kind_of(walk) for name, walk in samplers().items()}
    assert {found[name] for name in ("ddim", "heun", "dpmpp-2m", "unipc")} == {"deterministic"}
    assert {found[name] for name in ("ancestral", "lcm", "dpmpp-sde", "predictor-corrector")} == {"stochastic"}
    assert found["dopri"] == "adaptive"


def test_another_package_s_sampler_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    own = functools.partial(ddim, eta=0.0)
    monkeypatch.setattr(sampler_bench, "samplers", lambda: {"own": own, "ancestral": ancestral, "dopri": dopri})
    problem = Problem.exact(bench_data(), Cosine(), 4)
    exact, _ = reference(problem, 40)
    found = list(solutions(problem, exact, {"uniform": uniform}, (3, 6)))
    assert [(solved.sampler, solved.budget) for solved in found] == [("own", 3), ("own", 6), ("dopri", None)]


@pytest.mark.parametrize(
    "walk, strides, count", [(ddim, 7, 7), (heun, 7, 13), (samplers()["pndm"], 7, 16), (samplers()["dpmpp-2s"], 7, 12)]
)
def test_evaluations_are_counted(walk: Any, strides: int, count: int) -> None:
    """Those of the trial without a network are those of the run, and a budget buys the longest grid within it."""
    problem, times = Problem.exact(bench_data(), Cosine(), 2), uniform(Cosine(), steps=strides)
    assert problem.solve(walk, times)[1] == count
    assert evaluations(walk, Cosine(), times) == count
    assert longest(walk, Cosine(), uniform, count) == times
    assert longest(walk, Cosine(), uniform, count - 1) == uniform(Cosine(), steps=strides - 1)


def test_a_table_has_no_longer_grid() -> None:
    assert longest(ddim, LinearBetas(steps=5), uniform, 9) == uniform(LinearBetas(steps=5), steps=5)


def test_more_evaluations_and_higher_orders_measure_better() -> None:
    problem = Problem.exact(bench_data(), Cosine(), 64)
    exact, own = reference(problem, 400)
    errors = {
        (walk, strides): (problem.solve(walk, uniform(Cosine(), steps=strides))[0] - exact)
        .square()
        .mean()
        .sqrt()
        .item()
        for walk, strides in itertools.product((ddim, heun), (20, 80))
    }
    assert errors[ddim, 80] < errors[ddim, 20] / 2
    assert errors[heun, 80] < min(errors[heun, 20] / 4, errors[ddim, 80] / 2)
    assert own < errors[heun, 80] / 4


def test_what_a_coordinate_changes() -> None:
    """With few evaluations sigma / (alpha + sigma) is far closer than the papers' sigma / alpha, but for one method."""
    schedule = LinearBetas()
    problem = Problem.exact(bench_data(), schedule, 16, "coordinates")
    exact, _ = reference(problem, 400)

    def error(walk: Any, grid: Any, budget: int, coordinate: Any) -> float:
        walk = functools.partial(walk, coordinate=coordinate)
        times = longest(walk, schedule, grid, budget)
        assert times is not None
        found, _ = problem.solve(walk, times, "draw")
        return (found - exact).square().mean().sqrt().item()

    for walk, budget in ((heun, 5), (pndm, 10)):
        alpha, total = (error(walk, uniform_logsnr, budget, c) for c in (alpha_coordinate, total_coordinate))
        assert total < 0.1 * alpha
    assert error(adams, uniform_logsnr, 10, total_coordinate) < error(adams, uniform_logsnr, 10, alpha_coordinate)
    assert error(adams, uniform, 10, total_coordinate) > error(adams, uniform, 10, alpha_coordinate)


def test_the_sliced_distance_of_a_shift() -> None:
    """Projections of a shift d on random directions have the root mean square |d| / sqrt(size)."""
    x = Rng.seeds(range(2000)).normal((3,)).double()
    shift = torch.tensor([0.3, -0.4, 0.0], dtype=torch.float64)
    assert sliced_distance(x, x) < 2e-2
    assert sliced_distance(x + shift, x) == pytest.approx(0.5 / math.sqrt(3), rel=0.15)
    assert sliced_distance(2 * x, x) == pytest.approx(1.0, rel=0.05)


def test_exact_samples_reach_the_floor() -> None:
    """Between two draws of the data the distance is the floor; fine ancestral sampling comes as near."""
    data = bench_data()
    target = data.sample(Rng.seeds(range(4000), "target"))
    floor, bar = mean_distance(data.sample(Rng.seeds(range(1000), "floor")), target)
    problem = Problem.exact(data, Cosine(), 1000, "noise")
    near, _ = mean_distance(problem.solve(ancestral, uniform(Cosine(), steps=100), "steps")[0], target)
    far, _ = mean_distance(problem.solve(ancestral, uniform(Cosine(), steps=5), "steps")[0], target)
    assert near < floor + 0.02
    assert far > floor + 5 * bar


def record() -> dict[str, Any]:
    found = [sampler_bench.measure_mixture(CASES[0], 4, (3, 6))]
    return {"format_version": 1, "budgets": [3, 6], "mixture": found, "versions": {"carrara": "0"}}


def test_the_page_shows_every_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {name: samplers()[name] for name in ("ddim", "heun", "pndm", "dopri", "ancestral")}
    monkeypatch.setattr(sampler_bench, "samplers", lambda: chosen)
    measured = record()
    (case,) = measured["mixture"]
    rows = rows_of(case["solutions"], [3, 6])
    assert [row[:2] for row in rows if row[0] == "heun"] == [("heun", grid) for grid in CASES[0].grids]
    assert all(row[2] == "" and "evaluations" in row[3] for row in rows if row[0] == "dopri")
    assert {row[0] for row in rows_of(case["distributions"], [3, 6], grids=False)} == {
        "ddim",
        "heun",
        "pndm",
        "ancestral",
    }
    assert all("±" in cell for row in rows_of(case["distributions"], [3, 6], grids=False) for cell in row[1:] if cell)
    text = page(measured).html()
    for name in (*chosen, *CASES[0].grids, "exact samples"):
        assert name in text
    best = best_grids(case["solutions"], 6)
    assert [found["error"] for found in best.values()] == sorted(found["error"] for found in best.values())


def test_a_page_of_one_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler_bench, "samplers", lambda: {"heun": heun, "ddim": ddim})
    found = sampler_bench.measure_mixture(CASES[0], 4, (1,))
    assert "heun" in page({"budgets": [1], "mixture": [found], "versions": {}}).html()
