"""Every example runs as it stands, is short, and what it says is right: against closed forms and on other numbers."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from carrara.rng import Rng

EXAMPLES = Path(__file__).parents[1] / "examples"
FILES = sorted(EXAMPLES.glob("*.py"))


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The examples as modules, imported as they import one another."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    names = [path.stem for path in FILES]
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    for name in names:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_runs(path: Path) -> None:
    """As it is, in seconds, and says something if it is one to run."""
    command = [sys.executable, "-W", "error", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=_environment(), check=False)
    assert done.returncode == 0, done.stderr
    assert bool(done.stdout) == ("__main__" in path.read_text())


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 60


def test_the_gap_is_the_sum_of_the_divergences(example: Any) -> None:
    """Within four standard errors, on other data points; and no gap is negative."""
    x = example.plane.DATA.sample(Rng.seeds(range(4000), "tested"))
    found = example.why_bound.measure(example.plane.DATA.denoiser(example.plane.PROCESS), x, 20)
    assert abs(found["gap"] - found["prior"] - found["steps"]) < 4 * found["error"]
    assert found["gap"] > 10 * found["error"]


def test_the_density_of_what_is_sampled(example: Any) -> None:
    """The grid's density has a mass of 1, and its KL is between 0 and the bound's gap; a finer grid says the same."""
    best = example.plane.DATA.denoiser(example.plane.PROCESS)
    coarse, fine = (example.why_training.divergence(best, 10, points) for points in (60, 90))
    assert coarse["mass"] == pytest.approx(1, abs=2e-3)
    assert coarse["kl"] == pytest.approx(fine["kl"], abs=2e-3)
    x = example.plane.DATA.sample(Rng.seeds(range(4000), "tested"))
    assert 0 < fine["kl"] < example.why_bound.measure(best, x, 10)["gap"]


def test_what_survives_on_normal_data_is_the_closed_form(example: Any) -> None:
    """Ancestral sampling and the conditionals to rounding; the deterministic sampler as its strides get shorter."""
    shares = (1 / 16, 0.5, 0.875)
    found = example.why_correction.figures(shares, rows=16, strides=32)
    finer = example.why_correction.figures(shares, rows=16, strides=128)
    for i, share in enumerate(shares):
        known = example.waves.known(share)
        for method in ("autoregressive", "ancestral"):
            assert found[f"normal {method}"]["distance"][i] == pytest.approx(known[method], rel=1e-5)
        near, far = (each["normal deterministic"]["distance"][i] - known["deterministic"] for each in (finer, found))
        assert abs(near) < 0.02
        assert abs(near) < abs(far)


def test_what_is_written_one_by_one_is_the_data(example: Any) -> None:
    """Covariances of normal data, and the likelihood of waves, are those of exact samples."""
    rng = Rng.seeds(range(2000), "written")
    x = example.waves.written(example.waves.NORMAL, rng)
    assert torch.allclose(torch.cov(x.T), example.waves.NORMAL.covariances[0], atol=0.12)
    waves = example.waves.WAVES
    own, exact = (waves.log_prob(each).mean().item() for each in (example.waves.written(waves, rng), waves.sample(rng)))
    assert own == pytest.approx(exact, abs=0.3)
