"""Guidance, precision, seeds, and pictures that do not depend on their neighbours."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from carrara.diffusion import (
    X0,
    ClassifierFree,
    Clip,
    Cosine,
    Denoiser,
    DenoisingLoss,
    Epsilon,
    Flow,
    IntegerStep,
    Learned,
    Linear,
    LinearBetas,
    LogitNormal,
    LogNormal,
    Plain,
    Process,
    ScaledTime,
    Steps,
    Uniform,
    V,
    VarianceExploding,
    ancestral,
    ddim,
    dpmpp_2m,
    full,
    guide,
    heun,
    uniform,
)
from carrara.diffusion.guidance import Guidance
from carrara.nn import DiT, Sinusoidal, UNet
from carrara.rng import Rng
from carrara.run import finish, run
from carrara.types import Condition, Estimate

SAMPLERS: dict[str, Any] = {
    "ancestral": ancestral,
    "ddim": ddim,
    "ddim 1": functools.partial(ddim, eta=1.0),
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
}


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def shaken(module: nn.Module) -> Any:
    """Networks begin at zero output; this moves every parameter away from where it began."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator).to(p.dtype))
    return module.eval()


class Toy(nn.Module):
    """Elementwise, in any precision; reads the condition's vector and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor]] = []
        self.weight = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
        self.calls.append((x, level))
        shift = 0.0 if condition.vector is None else condition.vector[:, :1, None, None].to(x.dtype)
        wave = torch.tanh(x * self.weight.to(x.dtype) + shift + level.to(x.dtype).view(-1, 1, 1, 1) / 1000)
        return wave


def toy(parameterization: Any = V(), process: Process = Process(Cosine())) -> Denoiser:  # noqa: B008
    return Denoiser(Toy(), process, parameterization, ScaledTime())


def vector(value: float, rows: int = 2) -> Condition:
    return Condition(vector=torch.full((rows, 1), value, dtype=torch.float64))


# Guidance


def sample(guidance: Guidance, condition: Condition, null: Condition, denoiser: Denoiser | None = None) -> Tensor:
    denoiser = denoiser or toy()
    times = uniform(denoiser.process.schedule, steps=8)
    x = normal(2, 1, 2, 2)
    return finish(guide(ddim(denoiser.process, x, times, rng=Rng.seeds([0, 1])), guidance, denoiser, condition, null))


def test_scale_one_is_off_and_costs_one_branch() -> None:
    denoiser, c, n = toy(), vector(0.5), vector(-0.2)
    assert len(ClassifierFree(1.0).branches(denoiser, c, n, 0.5)) == 1
    assert torch.equal(sample(ClassifierFree(1.0), c, n), sample(Plain(), c, n))


def test_scale_zero_is_unconditional() -> None:
    c, n = vector(0.5), vector(-0.2)
    torch.testing.assert_close(sample(ClassifierFree(0.0), c, n), sample(Plain(), n, n), rtol=0, atol=1e-12)
    assert not torch.allclose(sample(Plain(), c, n), sample(Plain(), n, n), atol=1e-2)


@pytest.mark.parametrize("scale", [-1.0, 0.5, 2.0, 7.5])
def test_the_estimates_are_extrapolated(scale: float) -> None:
    a, b = Estimate(normal(2, 3), normal(2, 3, seed=2)), Estimate(normal(2, 3, seed=1), normal(2, 3, seed=3))
    mean, mix = ClassifierFree(scale).combine([a, b], toy(), normal(2, 3), 0.5)
    torch.testing.assert_close(mean, (1 - scale) * b.mean + scale * a.mean)
    assert mix is a.mix  # the conditional branch's


def test_the_interval_is_half_open() -> None:
    guidance = ClassifierFree(3.0, start=0.8, end=0.2)
    count = {
        t: len(guidance.branches(toy(), vector(0.5), vector(0.0), t)) for t in (1.0, 0.81, 0.8, 0.5, 0.21, 0.2, 0.1)
    }
    assert count == {1.0: 1, 0.81: 1, 0.8: 2, 0.5: 2, 0.21: 2, 0.2: 1, 0.1: 1}
    whole = ClassifierFree(3.0)
    assert len(whole.branches(toy(), vector(0.5), vector(0.0), 1.0)) == 2
    c, n = vector(0.5), vector(-0.2)
    assert torch.equal(sample(ClassifierFree(3.0, start=0.5, end=0.5), c, n), sample(Plain(), c, n))
    with pytest.raises(ValueError, match="1 >= start >= end >= 0"):
        ClassifierFree(3.0, start=0.2, end=0.8)


def test_clip_wraps() -> None:
    c, n = vector(0.5), vector(-0.2)
    guidance = Clip(ClassifierFree(3.0), limit=0.25)
    assert len(guidance.branches(toy(), c, n, 0.5)) == 2
    assert sample(guidance, c, n).abs().max() <= 0.25  # the last stride returns the estimate itself
    assert torch.equal(sample(Clip(ClassifierFree(3.0), limit=1e9), c, n), sample(ClassifierFree(3.0), c, n))
    estimate = Clip().combine([Estimate(torch.tensor([-2.0, 0.5, 2.0]), torch.ones(3))], toy(), torch.zeros(3), 0.5)
    assert estimate.mean.tolist() == [-1.0, 0.5, 1.0] and estimate.mix is not None


def test_both_branches_share_a_call() -> None:
    denoiser = toy()
    sample(ClassifierFree(3.0), vector(0.5), vector(-0.2), denoiser)
    assert [len(x) for x, _ in denoiser.network.calls] == [4] * 8


def test_gaussians_guided_affinely() -> None:
    """Reference values: condition N(0.5, 0.4^2), null N(-0.2, 1), 64 Euler steps of the linear path."""

    def mean_and_std(scale: float) -> tuple[float, float]:
        def denoise(x: Tensor, t: Tensor, condition: Condition) -> Estimate:
            m, q = (0.5, 0.4) if condition.vector is not None else (-0.2, 1.0)
            alpha, sigma = 1 - t[0].item(), t[0].item()
            return Estimate(m + alpha * q**2 / (alpha**2 * q**2 + sigma**2) * (x - alpha * m))

        process, x = Process(Linear()), torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        times = uniform(process.schedule, steps=64)
        sampling = ddim(process, x, times, rng=Rng.seeds([0, 0]))
        out = finish(guide(sampling, ClassifierFree(scale), denoise, vector(1.0), Condition()))
        return out[0].item(), (out[1] - out[0]).abs().item()

    assert mean_and_std(1.0)[0] == pytest.approx(0.5, abs=0.03)
    stds = [mean_and_std(w)[1] for w in (0.0, 1.0, 2.0, 4.0)]
    assert stds == sorted(stds, reverse=True)  # guidance narrows
    means = [mean_and_std(w)[0] for w in (0.0, 1.0, 2.0, 4.0)]
    assert means == sorted(means) and means[-1] > 0.5


# Precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_coefficients_stay_float64(dtype: torch.dtype) -> None:
    denoiser = Denoiser(Toy(), Process(LinearBetas()), Epsilon(), IntegerStep())
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    before = denoiser.process.schedule(t)
    denoiser.to(dtype)
    after = denoiser.process.schedule(t)
    for a, b in zip(before, after, strict=True):
        assert b.dtype == torch.float64 and torch.equal(a, b)
    x = normal(4, 1, 2, 2, dtype=torch.float32)
    assert denoiser(x, 0.5).mean.dtype == torch.float32  # only F was in low precision


def test_levels_are_distinct_under_autocast() -> None:
    """bfloat16 holds only 507 of the integers below 1000; the network must still be told them all apart."""
    denoiser = Denoiser(Toy(), Process(LinearBetas()), Epsilon(), IntegerStep())
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        denoiser(torch.zeros(1000, 1, 1, 1), t)
        level = denoiser.network.calls[0][1]
        assert level.dtype == torch.float32 and torch.equal(level, torch.arange(1000).float())
        embedding = Sinusoidal()(level, 64)
    assert embedding.dtype == torch.float32
    assert len(torch.unique(embedding, dim=0)) == 1000


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_state_keeps_its_type(sampler: str, dtype: torch.dtype) -> None:
    denoiser = toy()
    sampling = SAMPLERS[sampler](
        denoiser.process, normal(2, 1, 2, 2, dtype=dtype), uniform(Cosine(), steps=5), rng=Rng.seeds([0, 1])
    )
    stepping = run(guide(sampling, Plain(), denoiser))
    for step in stepping:
        assert step.x.dtype == step.estimate.mean.dtype == dtype


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_float32_is_close_to_float64(sampler: str) -> None:
    found = []
    for dtype in (torch.float32, torch.float64):
        denoiser = toy(Epsilon(), Process(LinearBetas()))
        x = normal(2, 1, 2, 2, dtype=torch.float32).to(dtype)
        times = uniform(denoiser.process.schedule, steps=10)
        found.append(
            finish(guide(SAMPLERS[sampler](denoiser.process, x, times, rng=Rng.seeds([0, 1])), Plain(), denoiser))
        )
    assert (found[0] - found[1]).abs().max() < 1e-4 * found[1].abs().max()


# Denoiser


def test_learned_variance_splits_the_output() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
            return torch.cat([x, torch.full_like(x, 0.5)], 1)

    process = Process(LinearBetas())
    denoiser = Denoiser(Twice(), process, X0(), IntegerStep(), learned_variance=True)
    estimate = denoiser(normal(2, 3, 2, 2), 0.5)
    assert estimate.mean.shape == (2, 3, 2, 2)
    assert estimate.mix is not None and bool((estimate.mix == 0.75).all())
    sampling = ancestral(
        process, normal(2, 3, 2, 2), full(process.schedule)[-4:], rng=Rng.seeds([0, 1]), variance=Learned()
    )
    assert bool(finish(guide(sampling, Plain(), denoiser)).isfinite().all())
    with pytest.raises(ValueError, match="learned_variance=True"):
        Denoiser(Twice(), process, Epsilon(), IntegerStep())(normal(2, 3, 2, 2), 0.5)
    with pytest.raises(ValueError, match="needs 6 output channels"):
        Denoiser(Toy(), process, Epsilon(), IntegerStep(), learned_variance=True)(normal(2, 3, 2, 2), 0.5)


def test_predict_agrees_with_forward() -> None:
    denoiser = toy()
    x, noise, t = normal(3, 1, 2, 2), normal(3, 1, 2, 2, seed=1), torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    prediction = denoiser.predict(x, noise, t)
    x_t = denoiser.process.diffuse(x, t, noise)
    torch.testing.assert_close(prediction.estimate.mean, denoiser(x_t, t).mean)
    for i in range(3):
        torch.testing.assert_close(denoiser(x_t[i : i + 1], t[i].item()).mean, prediction.estimate.mean[i : i + 1])


# Independence


@functools.cache
def real(name: str) -> Denoiser:
    torch.manual_seed(0)
    network: nn.Module
    if name == "unet":
        network = UNet(
            in_channels=2, out_channels=2, channels=16, multipliers=(1, 2), blocks=1, attention=(1,), vector=4, groups=4
        )
    else:
        network = DiT(in_channels=2, out_channels=2, size=8, patch=2, width=32, depth=2, heads=2, vector=4)
    return Denoiser(shaken(network), Process(Linear()), Flow(), ScaledTime())


def pictures(denoiser: Denoiser, seeds: Sequence[int], vectors: Tensor, sampler: str) -> Tensor:
    rng = Rng.seeds(seeds)
    x = rng.fork("prior").normal((2, 8, 8))
    times = uniform(denoiser.process.schedule, steps=4)
    sampling = SAMPLERS[sampler](denoiser.process, x, times, rng=rng.fork("steps"))
    null = Condition(vector=torch.zeros_like(vectors))
    return finish(guide(sampling, ClassifierFree(2.0), denoiser, Condition(vector=vectors), null))


@pytest.mark.parametrize("network", ["unet", "dit"])
@pytest.mark.parametrize("sampler", ["ancestral", "heun"])
def test_a_picture_does_not_depend_on_its_batch(network: str, sampler: str) -> None:
    """All rows, float32. Tolerance 2e-6 of the largest value: a network's arithmetic at another batch size."""
    denoiser, seeds = real(network), [3, 0, 7, 11, 5, 2**40, 1, 8]
    vectors = normal(8, 4, dtype=torch.float32)
    together = pictures(denoiser, seeds, vectors, sampler)
    assert together.std() > 0.1
    scale = together.abs().max().clamp(min=1)
    for i, seed in enumerate(seeds):
        alone = pictures(denoiser, [seed], vectors[i : i + 1], sampler)
        assert (alone[0] - together[i]).abs().max() <= 2e-6 * scale, i


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_seeds(sampler: str) -> None:
    denoiser = real("dit")
    vectors = torch.zeros(3, 4)
    state = torch.get_rng_state()
    first = pictures(denoiser, [0, 1, 0], vectors, sampler)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was touched"
    torch.rand(5)
    again = pictures(denoiser, [0, 1, 0], vectors, sampler)
    assert torch.equal(first, again)  # seed 0 is a seed
    torch.testing.assert_close(first[0], first[2], rtol=0, atol=2e-6 * first.abs().max().item())
    assert (first[0] - first[1]).abs().max() > 0.1


def test_training_draws_depend_on_the_sample_alone() -> None:
    denoiser = toy(Epsilon(), Process(LinearBetas()))
    loss = DenoisingLoss(Steps(1000))
    x = normal(6, 1, 2, 2)
    whole = loss(denoiser, x, Condition(), Rng.samples(0, range(6), "train"))
    halves = [loss(denoiser, x[i:j], Condition(), Rng.samples(0, range(i, j), "train")) for i, j in ((0, 4), (4, 6))]
    torch.testing.assert_close(torch.cat(halves), whole)
    assert whole.shape == (6,)
    other = loss(denoiser, x, Condition(), Rng.samples(1, range(6), "train"))
    assert bool((other != whole).all())


@pytest.mark.parametrize(
    "draw", [Steps(1000), Uniform(), LogNormal(), LogNormal(5.0, 4.0), LogitNormal(), LogitNormal(0.0, 9.0)], ids=str
)
@pytest.mark.parametrize(
    "schedule", [LinearBetas(), LinearBetas(zero_terminal=True), Cosine(), Linear(), VarianceExploding()], ids=str
)
def test_times_are_within_the_schedule(draw: Any, schedule: Any) -> None:
    if isinstance(draw, Steps) and not isinstance(schedule, LinearBetas):
        return
    t = draw(Process(schedule), Rng.samples(0, range(2000)))
    assert t.shape == (2000,) and t.dtype == torch.float64
    most = 1.0 if isinstance(draw, Steps) else schedule.t_max
    assert t.min() >= schedule.t_min and t.max() <= most
    schedule(t)
    assert len(t.unique()) > 500 or isinstance(draw, LogNormal | LogitNormal)


def test_lognormal_is_edms() -> None:
    sigma = 80 * LogNormal()(Process(VarianceExploding(80.0)), Rng.samples(0, range(4000)))
    logs = sigma.log()
    assert logs.mean().item() == pytest.approx(-1.2, abs=0.1) and logs.std().item() == pytest.approx(1.2, abs=0.1)


def test_steps_are_those_of_the_table() -> None:
    process = Process(LinearBetas(500))
    with pytest.raises(ValueError, match="steps = 1000 of a table of 500"):
        Steps(1000)(process, Rng.seeds([0]))
    process.schedule(Steps(250)(process, Rng.samples(0, range(50))))
