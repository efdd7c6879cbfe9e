"""Weights: as their papers state them, the same lesson in every parameterization, finite where there is no data."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from carrara.diffusion import (
    P2,
    X0,
    Cosine,
    CosineBetas,
    Denoiser,
    DenoisingLoss,
    EDMWeight,
    Epsilon,
    Flow,
    Karras,
    Linear,
    LinearBetas,
    LinearVP,
    MinSNR,
    PerLogSNR,
    Process,
    ScaledLinearBetas,
    ScaledTime,
    Schedule,
    Sigmoid,
    SigmoidWeight,
    TruncatedSNR,
    Uncertainty,
    Uniform,
    Unit,
    V,
    VarianceExploding,
    Weight,
)
from carrara.diffusion.parameterization import Parameterization
from carrara.types import Condition

STATED: list[Weight] = [
    MinSNR(), MinSNR(0.5), TruncatedSNR(), EDMWeight(), EDMWeight(1.3), P2(), P2(0.5, 2.0), SigmoidWeight(),
    SigmoidWeight(-3.0), PerLogSNR(), PerLogSNR(P2()), Uncertainty(inner=MinSNR()),
]  # fmt: skip
PARAMETERIZATIONS: list[Parameterization] = [Epsilon(), X0(), V(), Flow(), Karras(0.5), Karras(1.3)]
SCHEDULES: list[Schedule] = [LinearBetas(steps=1024), CosineBetas(1024), Cosine(), Linear(), VarianceExploding(),
                             Sigmoid(), LinearVP()]  # fmt: skip


def fits(parameterization: Parameterization, schedule: Schedule) -> bool:
    return not isinstance(parameterization, Epsilon) or schedule(1.0)[0] > 1e-6


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class _Reading(nn.Module):
    """The raw F of a parameterization, from one network `mean` that says E[x | x_t] of everything."""

    def __init__(self, mean: nn.Module, process: Process, parameterization: Parameterization) -> None:
        super().__init__()
        self.mean, self.process, self.parameterization = mean, process, parameterization

    def forward(self, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
        c = self.parameterization(*self.process.schedule(level.double() / 1024))
        x_t = x / torch.as_tensor(c.scale, dtype=torch.float64).view(-1, 1)
        return c.output(x_t, self.mean(x_t))


def gradients(schedule: Schedule, weight: Weight) -> list[Tensor]:
    torch.manual_seed(0)
    mean = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    process = Process(schedule)
    x, noise = normal(8, 4), normal(8, 4, seed=1)
    t = torch.arange(1, 9, dtype=torch.float64) * 113 / 1024
    found = []
    for p in PARAMETERIZATIONS:
        if fits(p, schedule):
            denoiser = Denoiser(_Reading(mean, process, p), process, p, ScaledTime(1024.0))
            loss = DenoisingLoss(Uniform(), weight).at(denoiser, x, Condition(), noise, t).sum()
            found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(mean.parameters()))]))
    return found


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("weight", STATED, ids=str)
def test_the_same_lesson_in_every_parameterization(weight: Weight, schedule: Schedule) -> None:
    first, *others = gradients(schedule, weight)
    assert len(others) >= 4
    for other in others:
        torch.testing.assert_close(other, first, rtol=1e-8, atol=1e-10 * first.abs().max().item())


T = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)


@pytest.mark.parametrize("schedule", [LinearBetas(steps=50, first=1e-3, last=0.2), Cosine(), Linear(),
                                      VarianceExploding()], ids=str)  # fmt: skip
def test_closed_forms(schedule: Schedule) -> None:
    """Each as its paper has it: on x, on the noise, on v, on the velocity, on EDM's F."""
    process = Process(schedule)
    alpha, sigma = schedule(T)
    snr = (alpha / sigma) ** 2
    v = (alpha**2 + sigma**2) ** 2 / sigma**2  # |v - v_hat|^2 = v |x - x_hat|^2, SNR + 1 where variance is preserved
    stated = {
        MinSNR(5.0): snr.clamp(max=5), TruncatedSNR(): snr.clamp(min=1), EDMWeight(0.7): snr + 1 / 0.7**2,
        P2(1.0, 1.0): snr / (1 + snr), P2(0.5, 2.0): snr / (0.5 + snr) ** 2,
        SigmoidWeight(1.5): snr * torch.sigmoid(1.5 - torch.log(snr)),
    }  # fmt: skip
    for weight, on_x in stated.items():
        torch.testing.assert_close(weight(process, X0(), T), on_x, rtol=1e-11, atol=0)
        torch.testing.assert_close(weight(process, Epsilon(), T), on_x / snr, rtol=1e-11, atol=0)
        torch.testing.assert_close(weight(process, V(), T), on_x / v, rtol=1e-11, atol=0)
        torch.testing.assert_close(
            weight(process, Flow(), T), on_x * (sigma / (alpha + sigma)) ** 2, rtol=1e-11, atol=0
        )
        per = PerLogSNR(weight)(process, X0(), T)
        torch.testing.assert_close(per, -schedule.slope(T) / 2 * on_x, rtol=1e-11, atol=0)


def test_what_papers_say_of_them() -> None:
    vp, ve = Process(Cosine()), Process(VarianceExploding())
    ones = torch.ones_like(T)
    # EDM's weight undoes its preconditioning; L_simple is a weight of SNR on x; SNR + 1 is the unit weight of V
    torch.testing.assert_close(EDMWeight(0.5)(ve, Karras(0.5), T), ones, rtol=1e-12, atol=0)
    torch.testing.assert_close(EDMWeight(0.5)(vp, Karras(0.5), T), ones, rtol=1e-12, atol=0)
    s = 80 * T
    torch.testing.assert_close(EDMWeight(0.5)(ve, X0(), T), (s**2 + 0.25) / (s * 0.5) ** 2, rtol=1e-12, atol=0)
    torch.testing.assert_close(EDMWeight(1.0)(vp, V(), T), ones, rtol=1e-12, atol=0)
    torch.testing.assert_close(P2(1.0, 0.0)(vp, Epsilon(), T), ones, rtol=1e-12, atol=0)
    # Kingma & Gao: a monotone weight between the bound (1, towards noise) and nothing; at bias, half
    logsnr = vp.schedule.logsnr(T)
    torch.testing.assert_close(
        SigmoidWeight(2.0)(vp, Epsilon(), T), 1 / (1 + torch.exp(logsnr - 2)), rtol=1e-12, atol=0
    )
    # Hoogeboom et al. 2024, on x: exp(bias) sigmoid(logsnr - bias)
    torch.testing.assert_close(
        SigmoidWeight(-3.0)(vp, X0(), T), math.exp(-3) * torch.sigmoid(logsnr + 3), rtol=1e-11, atol=0
    )


@pytest.mark.parametrize("weight", [Unit(), *STATED], ids=str)
@pytest.mark.parametrize("schedule", [LinearBetas(zero_terminal=True), ScaledLinearBetas(zero_terminal=True), Cosine(),
                                      Linear()], ids=str)  # fmt: skip
def test_finite_where_no_data_is_left(weight: Weight, schedule: Schedule) -> None:
    t = torch.tensor([schedule.t_min, 0.5, schedule.t_max, 1.0], dtype=torch.float64)
    error = torch.ones(4, requires_grad=True)
    for parameterization in PARAMETERIZATIONS[1:]:
        process = Process(schedule)
        assert bool(weight(process, parameterization, t).isfinite().all())
        loss = weight.weigh(error, process, parameterization, t)
        assert loss.shape == (4,) and loss.dtype == torch.float32
        assert bool(loss.isfinite().all()) and bool(torch.autograd.grad(loss.sum(), error)[0].isfinite().all())


class TestUncertainty:
    """Karras et al. 2024, eq. 21."""

    def test_it_begins_as_the_weight_within(self) -> None:
        weight, process = Uncertainty(inner=P2()), Process(Linear())
        error = normal(49).square()
        torch.testing.assert_close(weight.weigh(error, process, V(), T), P2().weigh(error, process, V(), T))
        assert weight.size(process, T).dtype == torch.float64

    def test_at_its_optimum_it_is_the_log_of_the_loss(self) -> None:
        """d/du (exp(-u) L + u) = 0 at u = log L; then every noise level counts the same."""
        weight, process = Uncertainty(inner=EDMWeight(), waves=64), Process(VarianceExploding())
        t = process.schedule.time(torch.linspace(-8, 8, 40, dtype=torch.float64))
        error = torch.exp(torch.sin(process.schedule.logsnr(t) / 3) - 2) / EDMWeight()(process, X0(), t)
        optimizer = torch.optim.LBFGS(weight.parameters(), max_iter=300, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = weight.weigh(error, process, X0(), t).mean()
            loss.backward()
            return loss

        optimizer.step(closure)
        expected = torch.log(EDMWeight()(process, X0(), t) * error)
        assert (weight.size(process, t) - expected).abs().max() < 0.05

    def test_gradients_reach_network_and_size(self) -> None:
        weight, process = Uncertainty(), Process(Linear())
        error = torch.full((3,), 2.0, requires_grad=True)
        loss = weight.weigh(error, process, X0(), torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)).sum()
        grads = torch.autograd.grad(loss, [error, *weight.parameters()])
        assert all(bool(g.ne(0).any()) for g in grads)
        assert all(p.dtype == torch.float32 and p.ndim == 1 for p in weight.parameters())  # vectors do not decay


def test_loss_floors() -> None:
    """On N(0, q^2), E|x - x_hat|^2 of the best denoiser is q^2 sigma^2 / (alpha^2 q^2 + sigma^2), weighted alike."""
    q, rows = 0.6, 4096
    x, noise = q * normal(rows, 8), normal(rows, 8, seed=1)
    for schedule, parameterization in ((LinearBetas(), Epsilon()), (Linear(), Flow()), (VarianceExploding(), Karras())):
        process = Process(schedule)

        class Best(nn.Module):
            def forward(self, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
                c = self.p(*self.process.schedule(level.double() / 1000))
                a, s = (v.view(-1, 1) for v in self.process.schedule(level.double() / 1000))
                x_t = x / torch.as_tensor(c.scale, dtype=torch.float64).view(-1, 1)
                return c.output(x_t, a * q**2 / (a**2 * q**2 + s**2) * x_t)

        network = Best()
        network.process, network.p = process, parameterization  # type: ignore[assignment]
        denoiser = Denoiser(network, process, parameterization, ScaledTime(1000.0))
        for t in (0.02, 0.3, 0.7, 1.0 if schedule(1.0)[0] > 0 else 0.99):
            times = torch.full((rows,), t, dtype=torch.float64)
            alpha, sigma = schedule(t)
            floor = q**2 * sigma**2 / (alpha**2 * q**2 + sigma**2)
            for weight in (Unit(), MinSNR(), EDMWeight(q), P2(), SigmoidWeight()):
                measured = DenoisingLoss(Uniform(), weight).at(denoiser, x, Condition(), noise, times)
                scale = weight(process, parameterization, times)[0] / parameterization(alpha, sigma).out ** 2
                # the residual is exactly normal: |x - x_hat|^2 / floor is chi-square with rows * 8 degrees
                assert measured.mean().item() == pytest.approx(scale.item() * floor, rel=6.1 * math.sqrt(2 / rows / 8))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: MinSNR(0.0),
        lambda: EDMWeight(-1.0),
        lambda: P2(k=0.0),
        lambda: P2(gamma=-1.0),
        lambda: PerLogSNR(Uncertainty()),
        lambda: Uncertainty(inner=Uncertainty()),
        lambda: Uncertainty(waves=1),
    ],
)
def test_refused(wrong: Callable[[], object]) -> None:
    with pytest.raises(ValueError):
        wrong()
