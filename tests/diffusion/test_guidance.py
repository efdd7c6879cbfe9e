"""Guidance against closed forms on Gaussian data, the papers' formulas written again, and its neutral points."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from carrara.diffusion import (
    X0,
    Autoguidance,
    Classifier,
    ClassifierFree,
    Clip,
    Composed,
    Cosine,
    Denoiser,
    Epsilon,
    Flow,
    Guidance,
    Karras,
    Linear,
    LinearBetas,
    Plain,
    Process,
    Projected,
    Rescale,
    ScaledTime,
    Schedule,
    Threshold,
    V,
    VarianceExploding,
    ddim,
    given,
    guide,
    heun,
    karras,
    uniform,
)
from carrara.oracle import Mixture
from carrara.rng import Rng
from carrara.run import finish
from carrara.store import kinds
from carrara.types import Condition, Estimate, Query

CONDITION, NULL = (0.5, 0.4), (-0.2, 1.0)  # mean and std of the data that each knows of


class Affine(nn.Module):
    """F of the optimal denoiser for Gaussian data, whose mean and std are the condition's vector."""

    def __init__(self, process: Process, parameterization: Any) -> None:
        super().__init__()
        self.process, self.parameterization = process, parameterization
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
        assert condition.vector is not None
        alpha, sigma, m, q = (
            value.view(-1, 1, 1, 1) for value in (*self.process.schedule(level), *condition.vector.unbind(1))
        )
        coefficients = self.parameterization(alpha, sigma)
        x_t = x / coefficients.scale
        mean = m + alpha * q**2 / (alpha**2 * q**2 + sigma**2) * (x_t - alpha * m)
        return (mean - coefficients.skip * x_t) / coefficients.out


def denoiser(schedule: Schedule | None = None, parameterization: Any = None) -> Denoiser:
    parameterization = parameterization or V()
    process = Process(schedule or Linear())
    return Denoiser(Affine(process, parameterization), process, parameterization, ScaledTime(1.0))


def told(what: tuple[float, float], rows: int = 2) -> Condition:
    return Condition(vector=torch.tensor([what] * rows, dtype=torch.float64))


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def sample(guidance: Guidance, made: Denoiser | None = None, *, x: Tensor | None = None, sampler: Any = ddim) -> Tensor:
    made = made or denoiser()
    x = normal(2, 1, 2, 2) if x is None else x
    sampling = sampler(made.process, x, uniform(made.process.schedule, steps=8), rng=Rng.seeds(range(len(x))))
    return finish(guide(sampling, guidance, made, told(CONDITION, len(x)), told(NULL, len(x))))


def close(found: Tensor, expected: Any, atol: float = 1e-12) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype), rtol=0, atol=atol)


# Closed forms


def scales(schedule: Schedule, t: float) -> tuple[float, float]:
    if isinstance(schedule, Linear):
        return 1 - t, t
    if isinstance(schedule, Cosine):
        return (0.0 if t == 1 else math.cos(math.pi / 2 * t)), math.sin(math.pi / 2 * t)
    return 1.0, 10 * t


def recursion(schedule: Schedule, times: tuple[float, ...], scale: Callable[[float], float]) -> tuple[float, float]:
    """Euler's steps on D = k x + c: the mean that comes out, and the std for noise of the prior's."""
    gain, shift = (10.0 if isinstance(schedule, VarianceExploding) else 1.0), 0.0
    for t, s in pairwise(times):
        (a, b), (a_s, b_s), w = scales(schedule, t), scales(schedule, s), scale(t)
        k = c = 0.0
        for (m, q), share in ((CONDITION, w), (NULL, 1 - w)):
            slope = a * q * q / (a * a * q * q + b * b)
            k, c = k + share * slope, c + share * (m - slope * a * m)
        gain, shift = (
            (a_s - b_s / b * a) * k * gain + b_s / b * gain,
            ((a_s - b_s / b * a) * (k * shift + c) + b_s / b * shift),
        )
    return shift, gain


def mean_and_std(guidance: Guidance, made: Denoiser, times: tuple[float, ...]) -> tuple[float, float]:
    std = made.process.prior_std(times[0])
    x = torch.tensor([0.0, std], dtype=torch.float64).view(2, 1, 1, 1)
    sampling = ddim(made.process, x, times, rng=Rng.seeds([0, 1]))
    zero, one = finish(guide(sampling, guidance, made, told(CONDITION), told(NULL))).flatten().tolist()
    return zero, one - zero


GRIDS: list[tuple[Schedule, Any]] = [
    (Linear(), uniform(Linear(), steps=64)),
    (Cosine(), uniform(Cosine(), steps=64)),
    (VarianceExploding(10.0), karras(VarianceExploding(10.0), steps=64, sigma_min=0.02)),
]


@pytest.mark.parametrize("schedule, times", GRIDS, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0, 4.0, -1.0])
def test_mean_and_std_of_guided_gaussians(scale: float, schedule: Schedule, times: tuple[float, ...]) -> None:
    expected = recursion(schedule, times, lambda t: scale)
    for parameterization in (Epsilon(), X0(), V(), Flow(), Karras(0.7)):
        if isinstance(parameterization, Epsilon) and scales(schedule, 1.0)[0] == 0:
            continue
        found = mean_and_std(ClassifierFree(scale), denoiser(schedule, parameterization), times)
        assert found == pytest.approx(expected, rel=0, abs=1e-12)


@pytest.mark.parametrize("scale, mean, std", [(1.0, 0.481, 0.389), (2.0, 0.673, 0.152), (4.0, 0.702, 0.021)])
def test_the_reference_example(scale: float, mean: float, std: float) -> None:
    schedule, times = GRIDS[2]
    found = mean_and_std(ClassifierFree(scale), denoiser(schedule), times)
    assert found == pytest.approx((mean, std), abs=1.5e-3)


def test_an_interval_in_closed_form() -> None:
    schedule, times = GRIDS[1]
    expected = recursion(schedule, times, lambda t: 3.0 if 0.25 < t <= 0.75 else 1.0)
    found = mean_and_std(ClassifierFree(3.0, start=0.75, end=0.25), denoiser(schedule), times)
    assert found == pytest.approx(expected, rel=0, abs=1e-12)


# Neutral points: the plain denoiser, one branch, equal bit for bit


def refuses(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
    raise AssertionError("not to be asked")


never: Any = refuses  # stands for a denoiser, a classifier and a weaker model


NEUTRAL: dict[str, Guidance] = {
    "classifier-free": ClassifierFree(1.0),
    "nowhere": ClassifierFree(5.0, start=0.4, end=0.4),
    "autoguidance": Autoguidance(1.0, weak=never),
    "composed": Composed(((told(NULL), 0.0),)),
    "projected": Projected(ClassifierFree(1.0), 0.0, 2.0, -0.5),
    "classifier": Classifier(log_prob=never, scale=0.0),
    "classifier nowhere": Classifier(log_prob=never, start=0.5, end=0.5),
    "clip": Clip(limit=math.inf),
    "rescale": Rescale(share=0.0),
    "rescale nothing": Rescale(ClassifierFree(1.0), 0.7),
    "threshold": Threshold(limit=1e9),
    "all": Clip(Threshold(Rescale(Projected(ClassifierFree(1.0), momentum=0.5), 0.0), limit=1e9), limit=1e9),
}


@pytest.mark.parametrize("name", NEUTRAL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_neutral_guidance_is_the_plain_denoiser(name: str, dtype: torch.dtype) -> None:
    x = normal(2, 1, 2, 2, dtype=dtype)
    assert len(NEUTRAL[name].branches(denoiser(), told(CONDITION), told(NULL), 0.5)) == 1
    assert torch.equal(sample(NEUTRAL[name], x=x), sample(Plain(), x=x))


@pytest.mark.parametrize(
    "neutral", [Projected(ClassifierFree(3.0), 1.0), Rescale(ClassifierFree(3.0), 0.0), Composed((), 3.0)], ids=repr
)
def test_neutral_wrappers_are_what_they_wrap(neutral: Guidance) -> None:
    assert torch.equal(sample(neutral), sample(ClassifierFree(3.0)))


def test_projection_is_neutral_at_its_parameters_not_only_by_a_shortcut() -> None:
    almost = Projected(ClassifierFree(3.0), 1.0, limit=1e9)  # computed, and yet nothing changes
    close(sample(almost), sample(ClassifierFree(3.0)))


def test_nothing_but_scale_zero_is_unconditional() -> None:
    x = normal(2, 1, 2, 2)
    made = denoiser()
    sampling = ddim(made.process, x, uniform(Linear(), steps=8), rng=Rng.seeds([0, 1]))
    null = finish(guide(sampling, Plain(), made, told(NULL)))
    close(sample(ClassifierFree(0.0), x=x), null)
    close(sample(Composed((), 0.0), x=x), null)


# Invariance


def weak() -> Denoiser:
    """A worse model: it takes the data's std for larger than it is."""

    class Wide(Affine):
        def forward(self, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
            assert condition.vector is not None
            return super().forward(x, level, Condition(vector=condition.vector * torch.tensor([1.0, 1.5])))

    process = Process(Linear())
    return Denoiser(Wide(process, V()), process, V(), ScaledTime(1.0))


def log_prob(x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
    return -((x_t - 0.3) ** 2).flatten(1).sum(1) * (1 + t.to(x_t.dtype))


EVERY: dict[str, Guidance] = {
    "classifier-free": ClassifierFree(3.0),
    "interval": ClassifierFree(3.0, start=0.8, end=0.3),
    "autoguidance": Autoguidance(2.0, weak=weak()),
    "projected": Projected(ClassifierFree(4.0), 0.2, 0.3, -0.5),
    "rescaled": Rescale(ClassifierFree(4.0), 0.7),
    "classifier": Classifier(ClassifierFree(2.0), log_prob=log_prob, scale=0.1),
    "all": Clip(Threshold(Rescale(Projected(ClassifierFree(4.0), 0.5, 1.0, -0.3), 0.5), 0.9), 0.95),
}


@pytest.mark.parametrize("sampler", [ddim, heun])
@pytest.mark.parametrize("name", EVERY)
def test_a_row_does_not_depend_on_its_companions(name: str, sampler: Any) -> None:
    """Elementwise networks, so only the guidance's own sums over a row may differ, by their order: 1e-12 in float64."""
    x = normal(5, 3, 4, 4)
    together = sample(EVERY[name], x=x, sampler=sampler)
    for i in range(len(x)):
        close(sample(EVERY[name], x=x[i : i + 1], sampler=sampler)[0], together[i])


@pytest.mark.parametrize("name", EVERY)
def test_a_time_for_each_row(name: str) -> None:
    """Rows at times of their own, in and out of the interval, are answered as each is alone."""

    def asking(x: Tensor, t: Any) -> Any:
        estimate = yield Query(x, t, inner=True)
        return (yield Query(x + estimate.mean, t, inner=True)).mean

    x, t = normal(4, 3, 2, 2), torch.tensor([0.9, 0.8, 0.5, 0.2], dtype=torch.float64)
    made, guidance = denoiser(), EVERY[name]
    together = finish(guide(asking(x, t), guidance, made, told(CONDITION, 4), told(NULL, 4)))
    for i in range(4):
        alone = finish(guide(asking(x[i : i + 1], t[i].item()), guidance, made, told(CONDITION, 1), told(NULL, 1)))
        close(together[i], alone[0])
    plain = finish(guide(asking(x, t), Plain(), made, told(CONDITION, 4), told(NULL, 4)))
    if name == "interval":
        assert torch.equal(together[[0, 3]], plain[[0, 3]])
        assert not torch.equal(together[1], plain[1])


def test_every_branch_of_a_model_shares_a_call() -> None:
    calls: list[int] = []

    class Counting(Affine):
        def forward(self, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
            calls.append(len(x))
            return super().forward(x, level, condition)

    process = Process(Linear())
    made = Denoiser(Counting(process, V()), process, V(), ScaledTime(1.0))
    other = (told((0.1, 0.2)), 2.0)
    sample(Rescale(Composed((other, (told((0.3, 0.1)), -1.0)), 1.5), 0.5), made)
    assert calls == [8] * 8  # two rows; own, two others and null
    sample(Autoguidance(2.0, weak=weak()), made)
    assert calls[8:] == [2] * 8


# The papers' formulas, written again


def branches(rows: int = 3) -> tuple[list[Estimate], Tensor]:
    means = [normal(rows, 3, 4, 4, seed=seed) for seed in (1, 2)]
    return [Estimate(means[0], normal(rows, 3, 4, 4, seed=5)), Estimate(means[1])], normal(rows, 3, 4, 4, seed=9)


@pytest.mark.parametrize(
    "parallel, limit, momentum", [(0.0, None, 0.0), (0.3, 2.0, 0.0), (0.0, 5.0, -0.5), (1, 3, 0.9)]
)
def test_projected(parallel: float, limit: float | None, momentum: float) -> None:
    """Sadat et al. 2024, algorithm 1, over three evaluations."""
    guidance = Projected(ClassifierFree(6.0), parallel, limit, momentum)
    running, begun = np.zeros((3, 48)), guidance.begin()
    again = guidance.begin()
    for seed in range(3):
        c, u = (normal(3, 3, 4, 4, seed=10 * seed + k) for k in (0, 1))
        found = begun.combine([Estimate(c), Estimate(u)], denoiser(), c, 0.5).mean.reshape(3, -1).numpy()
        for row in range(3):
            cond, uncond = c[row].numpy().ravel(), u[row].numpy().ravel()
            running[row] = cond - uncond + momentum * running[row]
            diff = running[row] * (1 if limit is None else min(1, limit / np.linalg.norm(running[row])))
            unit = cond / np.linalg.norm(cond)
            along = (diff @ unit) * unit
            np.testing.assert_allclose(found[row], cond + 5 * (diff - along + parallel * along), rtol=0, atol=1e-12)
    c, u = normal(3, 3, 4, 4), normal(3, 3, 4, 4, seed=1)
    first = guidance.combine([Estimate(c), Estimate(u)], denoiser(), c, 0.5).mean
    close(again.combine([Estimate(c), Estimate(u)], denoiser(), c, 0.5).mean, first)  # each sampling has its own memory


def test_momentum_begins_anew_with_each_sampling() -> None:
    guidance = Clip(Projected(ClassifierFree(3.0), momentum=-0.5))
    assert torch.equal(sample(guidance), sample(guidance))
    assert not torch.allclose(sample(guidance), sample(Clip(Projected(ClassifierFree(3.0)))), atol=1e-3)


@pytest.mark.parametrize("parameterization", [Epsilon(), V(), Flow(), X0(), Karras(0.5)], ids=repr)
@pytest.mark.parametrize("share", [0.7, 1.0])
def test_rescale_acts_on_what_the_network_says(parameterization: Any, share: float) -> None:
    """Lin et al. 2024, algorithm 2, on the raw outputs."""
    made, t = denoiser(LinearBetas(), parameterization), 0.6
    estimates, x_t = branches()
    coefficients = parameterization(*made.process.schedule(t))
    pos, neg = (coefficients.output(x_t, estimate.mean).numpy() for estimate in estimates)
    cfg = neg + 7.5 * (pos - neg)
    factor = pos.std((1, 2, 3), keepdims=True) / cfg.std((1, 2, 3), keepdims=True)
    expected = coefficients.estimate(x_t, torch.from_numpy(cfg * (share * factor + 1 - share)))
    found = Rescale(ClassifierFree(7.5), share).combine(estimates, made, x_t, t)
    close(found.mean, expected)
    assert found.mix is estimates[0].mix
    if share == 1.0:
        stds = coefficients.output(x_t, found.mean).flatten(1).std(1)
        close(stds, torch.from_numpy(pos).flatten(1).std(1))


def test_rescale_depends_on_the_parameterization() -> None:
    estimates, x_t = branches()
    found = [
        Rescale(ClassifierFree(7.5)).combine(estimates, denoiser(LinearBetas(), p), x_t, 0.6).mean
        for p in (X0(), Epsilon())
    ]
    assert not torch.allclose(*found, atol=0.1)
    with pytest.raises(ValueError, match="no parameterization"):
        Rescale(ClassifierFree(2.0)).combine(estimates, never, x_t, 0.6)


def test_autoguidance() -> None:
    strong, small = denoiser(), weak()
    x_t, t = normal(2, 1, 2, 2), 0.5
    d1, d0 = strong(x_t, t, told(CONDITION)).mean, small(x_t, t, told(CONDITION)).mean
    estimates = [
        b.denoiser(x_t, t, b.condition) for b in EVERY["autoguidance"].branches(strong, told(CONDITION), told(NULL), t)
    ]
    close(EVERY["autoguidance"].combine(estimates, strong, x_t, t).mean, d0 + 2 * (d1 - d0))
    projected = Projected(Autoguidance(2.0, weak=small), 1.0, 1e9)  # contrasts of every kind can be projected
    close(projected.combine(estimates, strong, x_t, t).mean, d0 + 2 * (d1 - d0))
    assert sample(EVERY["autoguidance"]).std() < sample(Plain()).std()  # it narrows what the weak model widens


def test_composed() -> None:
    """Two conditions of a Gaussian: means and precisions add, as products of densities do, where alpha is 1."""
    made = denoiser(VarianceExploding(10.0))
    first, second, wide = (0.5, 0.4), (-0.3, 0.6), (0.0, 1e6)
    guidance = Composed(((told(second), 1.0),))
    x_t, t = normal(2, 1, 2, 2), 0.03
    asked = guidance.branches(made, told(first), told(wide), t)
    found = guidance.combine([b.denoiser(x_t, t, b.condition) for b in asked], made, x_t, t).mean
    sigma = 0.3

    def score(m: float, q: float) -> Tensor:
        return (m - x_t) / (q**2 + sigma**2)

    close(found, x_t + sigma**2 * (score(*first) + score(*second) - score(*wide)))


def test_negative_prompts_are_the_null_branch() -> None:
    made, x = denoiser(), normal(2, 1, 2, 2)

    def led(null: tuple[float, float]) -> Tensor:
        sampling = ddim(made.process, x, uniform(Linear(), steps=8), rng=Rng.seeds([0, 1]))
        return finish(guide(sampling, ClassifierFree(3.0), made, told(CONDITION), told(null)))

    assert led((2.0, 0.4)).mean() < led((-2.0, 0.4)).mean()


# Classifiers


def observed(process: Process, y: float, noise: float) -> Any:
    """log p(y | x_t) for y = x + noise and data NULL: y given x_t is normal about E[x | x_t]."""

    def log_prob(x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        assert torch.is_grad_enabled()
        alpha, sigma = (value.view(-1, 1, 1, 1) for value in process.schedule(t))
        m, q = NULL
        k = alpha * q**2 / (alpha**2 * q**2 + sigma**2)
        mean, var = m + k * (x_t - alpha * m), q**2 * (1 - alpha * k)
        return (-((y - mean) ** 2) / (2 * (var + noise**2))).flatten(1).sum(1)

    return log_prob


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), VarianceExploding(10.0)], ids=lambda s: type(s).__name__)
def test_a_classifier_of_gaussians_gives_the_posterior(schedule: Schedule) -> None:
    """Data N(m, q^2) seen through noise: guided with scale 1, the denoiser is that of the posterior given y."""
    y, noise, (m, q) = 0.8, 0.5, NULL
    precision = 1 / q**2 + 1 / noise**2
    posterior = (m / q**2 + y / noise**2) / precision, precision**-0.5
    made, x_t = denoiser(schedule), normal(2, 1, 2, 2)
    guidance = Classifier(log_prob=observed(made.process, y, noise))
    for t in (0.01, 0.3, 0.7, 0.99):
        with torch.no_grad():
            asked = guidance.branches(made, told(NULL), told(NULL), t)
            answers = [b.denoiser(x_t, torch.full((2,), t, dtype=torch.float64), b.condition) for b in asked]
            found = guidance.combine(answers, made, x_t, t).mean
        close(found, made(x_t, t, told(posterior)).mean.detach(), 1e-11)
        assert not found.requires_grad


def test_the_optimal_classifier_of_a_mixture_gives_its_component() -> None:
    """Guided by P(component | x_t), a mixture's denoiser is the component's own."""
    weights, means, stds = [0.3, 0.7], [[-0.8, 0.3], [0.5, -0.4]], [0.4, 0.5]
    process, data = Process(Linear()), Mixture(weights, means, stds=stds)
    x_t = normal(5, 2)
    for k in range(2):

        def log_prob(x: Tensor, t: Tensor, condition: Condition, k: int = k) -> Tensor:
            return data.responsibilities(x, t, process)[:, k].log()

        guidance, alone = Classifier(log_prob=log_prob), Mixture([1.0], means[k : k + 1], stds=stds[k : k + 1])
        for t in (0.1, 0.5, 0.9):
            asked = guidance.branches(data.denoiser(process), Condition(), Condition(), t)
            rows = torch.full((5,), t, dtype=torch.float64)
            answers = [b.denoiser(x_t, rows, b.condition) for b in asked]
            found = guidance.combine(answers, data.denoiser(process), x_t, t).mean
            close(found, alone.mean(x_t, t, process), 1e-11)


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_a_classifier_is_asked_where_gradients_are_off(off: Any) -> None:
    made = denoiser()
    guidance = Classifier(log_prob=observed(made.process, 0.8, 0.5), scale=2.0)
    with off():
        out = sample(guidance, made)
    assert bool(out.isfinite().all()) and not out.requires_grad
    assert made.network.weight.grad is None
    # alpha is 0 at t = 1, where the classifier knows nothing; half the work is spared in an interval
    with_interval = Classifier(log_prob=observed(made.process, 0.8, 0.5), scale=2.0, start=0.5)
    assert not torch.allclose(sample(with_interval, made), out)
    with pytest.raises(ValueError, match="needs a process"):
        guidance.combine([Estimate(out), Estimate(out)], never, out, 0.5)


# Ranges


def test_threshold() -> None:
    """Saharia et al. 2022: s is the percentile of the magnitudes, at least 1; clamped to s, over s."""
    x = torch.linspace(-2, 2, 101, dtype=torch.float64).repeat(2, 1)
    x[1] /= 4
    found = Threshold(percentile=0.9).combine([Estimate(x)], never, x, 0.5).mean
    s = np.sort(x[0].abs().numpy())[math.ceil(0.9 * 101) - 1]
    close(found[0], np.clip(x[0].numpy(), -s, s) / s)
    assert torch.equal(found[1], x[1])  # within the range: left alone
    assert found.abs().max() <= 1
    assert bool((found.diff(dim=1) >= 0).all())
    assert (found[0].abs() == 1).double().mean() == pytest.approx(0.1, abs=0.02)


def test_threshold_and_clip_are_monotone_and_stronger_with_their_parameter() -> None:
    x = 3 * normal(4, 3, 8, 8)
    order = x.flatten(1).argsort(1)
    spreads = []
    for guidance in (Threshold(percentile=1.0), Threshold(percentile=0.9), Threshold(percentile=0.5), Clip()):
        found = guidance.combine([Estimate(x)], never, x, 0.5).mean
        assert bool((found.flatten(1).gather(1, order).diff(dim=1) >= 0).all())
        assert found.abs().max() <= 1
        spreads.append(found.std().item())
    assert spreads == sorted(spreads)  # the more is clamped, the less the rest is squeezed
    large = torch.full((1, 3, 2400, 2400), 2.0)  # more values than torch.quantile takes
    assert bool((Threshold().combine([Estimate(large)], never, large, 0.5).mean == 1).all())


# Words


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: ClassifierFree(2.0, start=0.2, end=0.8), "1 >= start >= end >= 0"),
        (lambda: Classifier(log_prob=never, end=-1.0), "1 >= start >= end >= 0"),
        (lambda: Projected(Clip()), "wraps a contrast"),
        (lambda: Projected(limit=0.0), "above 0"),
        (lambda: Projected(momentum=1.0), "such as -0.5"),
        (lambda: Rescale(share=1.5), "0 is off"),
        (lambda: Threshold(percentile=99.5), "such as 0.995"),
        (lambda: Threshold(limit=0.0), "1 for pictures"),
    ],
)
def test_wrong_parameters(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


def test_files_can_say_them() -> None:
    from carrara.config import build, describe

    for guidance in (EVERY["classifier-free"], EVERY["projected"], EVERY["rescaled"], EVERY["all"], Threshold()):
        assert build(Guidance, describe(guidance, kinds()), kinds()) == guidance
    with pytest.raises(ValueError, match="wraps a contrast"):
        build(Guidance, {"kind": "projected", "inner": {"kind": "clip"}}, kinds())


def test_guidance_narrows_and_projection_keeps_the_norm() -> None:
    """What the norm's limit is for: at a large scale the step away from the conditional estimate stays bounded."""
    times = given(Linear(), values=(1.0, 0.5, 0.0))
    made, x = denoiser(), normal(2, 3, 4, 4)
    for limit in (0.1, 1.0):
        guidance = Projected(ClassifierFree(50.0), 1.0, limit)
        sampling = ddim(made.process, x, times, rng=Rng.seeds([0, 1]))
        query = next(sampling)
        asked = guidance.branches(made, told(CONDITION), told(NULL), query.t)
        answers = [b.denoiser(query.x, query.t, b.condition) for b in asked]
        moved = guidance.combine(answers, made, query.x, query.t).mean - answers[0].mean
        assert bool((moved.flatten(1).norm(dim=1) <= 49 * limit + 1e-9).all())


def test_the_page_runs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "guidance.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, "guidance.md", "exec"), names)  # noqa: S102 - our own page
    assert names["pictures"].shape == (2, 3, 16, 16)
