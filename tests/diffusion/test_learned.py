"""The learned schedule: a schedule like any other; its parameters are the denoiser's and its gradients are right."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from carrara.config import build, describe
from carrara.diffusion import (
    Denoiser,
    Epsilon,
    LearnedLogSNR,
    LogSigma,
    Plain,
    Process,
    Schedule,
    V,
    ancestral,
    ddim,
    exponential,
    guide,
    heun,
    karras,
    uniform,
    uniform_logsnr,
)
from carrara.rng import Rng
from carrara.run import finish
from carrara.store import kinds
from carrara.types import Condition


def moved(seed: int = 0) -> LearnedLogSNR:
    """A schedule somewhere in the midst of its training."""
    schedule = LearnedLogSNR(first=11.0, last=-6.0, curves=5)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in schedule.parameters():
            parameter += 0.4 * torch.randn(parameter.shape, generator=generator)
    return schedule


def extreme() -> LearnedLogSNR:
    """As far as parameters can go, and further."""
    schedule = LearnedLogSNR(curves=4)
    with torch.no_grad():
        schedule.centres.copy_(torch.tensor([-30.0, -1.0, 1.5, 40.0]))
        schedule.log_widths.copy_(torch.tensor([20.0, 5.0, 5.0, 9.0]))
    return schedule


SCHEDULES = [LearnedLogSNR(), LearnedLogSNR(first=5.0, last=-20.0, curves=1), moved(), moved(1), extreme()]
EACH = pytest.mark.parametrize("schedule", SCHEDULES)


@EACH
def test_a_schedule_like_any_other(schedule: LearnedLogSNR) -> None:
    t = torch.linspace(schedule.t_min, schedule.t_max, 501, dtype=torch.float64)
    alpha, sigma = schedule(t)
    logsnr = schedule.logsnr(t)
    assert alpha.dtype == torch.float64 and bool((logsnr.diff() < 0).all())
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t), rtol=0, atol=1e-15)
    assert logsnr[0].item() == pytest.approx(schedule.first.item(), rel=1e-12)
    assert logsnr[-1].item() == pytest.approx(schedule.first.item() - math.exp(schedule.log_span.item()), rel=1e-6)
    torch.testing.assert_close(schedule.time(logsnr.detach()), t, rtol=0, atol=1e-12)  # the inverse
    assert schedule.time(1e9) == pytest.approx(schedule.t_min, abs=1e-15)
    assert schedule.time(-math.inf) == pytest.approx(1.0, abs=1e-15)
    assert schedule(0.0) == (1.0, 0.0) and schedule.logsnr(0.0) == math.inf
    below = torch.linspace(0, schedule.t_min, 20, dtype=torch.float64)
    alpha, sigma = schedule(below)
    ratio = (sigma / alpha).detach()
    torch.testing.assert_close(ratio, ratio[-1] * below / below[-1], rtol=1e-9, atol=0)


@EACH
def test_floats_are_those_of_tensors(schedule: LearnedLogSNR) -> None:
    t = torch.cat([torch.linspace(0, 1, 103, dtype=torch.float64), torch.tensor([1e-4, 1e-3], dtype=torch.float64)])
    alpha, sigma = schedule(t)
    logsnr = schedule.logsnr(t)
    for i, one in enumerate(t.tolist()):
        assert schedule(one) == pytest.approx((alpha[i].item(), sigma[i].item()), rel=1e-13, abs=0)
        assert schedule.logsnr(one) == pytest.approx(logsnr[i].item(), rel=1e-13)


@EACH
def test_slope(schedule: LearnedLogSNR) -> None:
    t = torch.cat([torch.linspace(0.01, 0.99, 60, dtype=torch.float64), torch.tensor([4e-4], dtype=torch.float64)])
    h = 1e-6 * t
    with torch.no_grad():
        expected = (schedule.logsnr(t + h) - schedule.logsnr(t - h)) / (2 * h)
        torch.testing.assert_close(schedule.slope(t), expected, rtol=1e-6, atol=1e-8)
        assert bool((schedule.slope(t) < 0).all())


def test_nothing_is_remembered_when_parameters_change() -> None:
    schedule = LearnedLogSNR()
    before = schedule(0.5), schedule.logsnr(0.5), schedule.time(0.0)
    with torch.no_grad():
        schedule.first.add_(1.0)
        schedule.shares[3] += 2.0
    after = schedule(0.5), schedule.logsnr(0.5), schedule.time(0.0)
    assert all(a != b for a, b in zip(before, after, strict=True))
    schedule.first.data, old = torch.tensor(13.3), schedule.first.data  # as the averaged weights are put in place
    assert schedule.logsnr(0.001) == pytest.approx(13.3, rel=1e-6) != old


def test_gradients_flow_through_tensors_of_times() -> None:
    """Against difference quotients, in float64 parameters: alpha, sigma, log-SNR, slope, and what a process makes."""
    schedule = moved().double()
    t, s = torch.tensor([0.3, 0.9, 1.0], dtype=torch.float64), torch.tensor([0.1, 0.8, 0.0], dtype=torch.float64)
    x = torch.tensor([[0.3], [-0.7], [0.2]], dtype=torch.float64)

    def scalars() -> Tensor:
        process = Process(schedule)
        found = [*schedule(t), schedule.logsnr(t), schedule.slope(t), process.posterior_var(t, s)]
        found += [
            *process.step(s, t),
            process.diffuse(x, t, x.flip(0))[:, 0],
            process.posterior(x, -x, t, s).mean[:, 0],
        ]
        return torch.stack([torch.as_tensor(f) for f in found])

    for parameter in schedule.parameters():
        for k in range(parameter.numel()):
            values = scalars()
            grads = torch.stack(
                [torch.autograd.grad(v, parameter, retain_graph=True)[0].flatten()[k] for v in values.flatten()]
            ).view_as(values)
            with torch.no_grad():
                flat = parameter.view(-1)
                flat[k] += 1e-6
                high = scalars()
                flat[k] -= 2e-6
                low = scalars()
                flat[k] += 1e-6
            torch.testing.assert_close(grads, (high - low) / 2e-6, rtol=1e-5, atol=1e-7)
            assert bool(grads.isfinite().all())


def test_pace_scales_what_the_interior_learns_and_not_the_ends() -> None:
    schedule = moved()
    t = torch.tensor([0.2, 0.6], dtype=torch.float64)

    def grads(pace: Tensor | None) -> list[Tensor]:
        if pace is None:
            value = schedule.logsnr(t)[0] + 3 * schedule.slope(t)[1]
        else:
            now = torch.ones(2, dtype=torch.float64)
            with schedule.paced(now):
                value = schedule.logsnr(t)[0] + 3 * schedule.slope(t)[1]
            now.copy_(pace)  # is known after the fact
        return list(torch.autograd.grad(value, list(schedule.parameters())))

    plain, twice = grads(None), grads(torch.tensor([2.0, 2.0], dtype=torch.float64))
    names = [name for name, _ in schedule.named_parameters()]
    for name, a, b in zip(names, plain, twice, strict=True):
        torch.testing.assert_close(b, a if name in ("first", "log_span") else 2 * a)
    first = grads(torch.tensor([1.0, 0.0], dtype=torch.float64))
    second = grads(torch.tensor([0.0, 1.0], dtype=torch.float64))
    for name, a, b, c in zip(names, plain, first, second, strict=True):
        if name not in ("first", "log_span"):
            torch.testing.assert_close(b + c, a)
    schedule.logsnr(t).sum().backward()  # outside nothing is scaled


class _F(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(3, 3).double()

    def forward(self, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
        return self.line(x) + level[:, None].to(x.dtype)


def test_its_parameters_are_the_denoisers() -> None:
    schedule = moved()
    denoiser = Denoiser(_F(), Process(schedule), Epsilon(), LogSigma())
    names = dict(denoiser.named_parameters())
    assert names["schedule.first"] is schedule.first
    assert {"schedule.log_span", "schedule.centres", "schedule.log_widths", "schedule.shares"} <= set(names)
    other = Denoiser(copy.deepcopy(denoiser.network), Process(LearnedLogSNR(curves=5)), Epsilon(), LogSigma())
    other.load_state_dict({key: value.clone() for key, value in denoiser.state_dict().items()}, assign=True)
    assert other.process.schedule(0.4) == schedule(0.4)
    double = copy.deepcopy(denoiser)
    assert isinstance(double.process.schedule, LearnedLogSNR)
    assert double.process.schedule is double.schedule and double.schedule is not schedule
    x = torch.randn(4, 3, dtype=torch.float64)
    prediction = denoiser.predict(x, x.flip(0), torch.tensor([0.1, 0.4, 0.7, 1.0], dtype=torch.float64))
    (prediction.estimate.mean - x).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.ne(0).any()) for p in schedule.parameters())


def test_files_can_say_it() -> None:
    schedule = build(Schedule, {"kind": "learned", "first": 12.0, "curves": 3}, kinds())
    assert isinstance(schedule, LearnedLogSNR) and schedule.centres.shape == (3,)
    table = describe(Process(schedule), kinds())
    assert table["schedule"] == {"kind": "learned", "first": 12.0, "last": -5.0, "curves": 3}
    for wrong in ({"first": -6.0}, {"last": -21.0}, {"first": 20.5}, {"curves": 0}):
        with pytest.raises(ValueError, match="expected 20"):
            LearnedLogSNR(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("sampler", [ddim, heun, ancestral])
@pytest.mark.parametrize("grid", [uniform, karras, exponential, uniform_logsnr])
def test_samplers_walk_it(sampler: object, grid: object) -> None:
    process = Process(moved())
    denoiser = Denoiser(_F(), process, V(), LogSigma())
    times = grid(process.schedule, steps=7)  # type: ignore[operator]
    assert len(times) == 8 and times[-1] == 0
    rng = Rng.seeds(range(2))
    x = finish(guide(sampler(process, rng.normal((3,)).double(), times, rng=rng), Plain(), denoiser))  # type: ignore[operator]
    assert bool(x.isfinite().all()) and not x.requires_grad
