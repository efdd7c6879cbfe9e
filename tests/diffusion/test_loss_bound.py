"""Objectives with the variational bound: the bound in the mean over their draws, and the right gradients for each part.

Gaussian data has a closed form for everything; the optimal denoisers come from `carrara.oracle`.
"""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import Tensor, nn

from carrara.diffusion import (
    X0,
    BoundLoss,
    ContinuousBoundLoss,
    Cosine,
    CosineBetas,
    Denoiser,
    DenoisingLoss,
    Epsilon,
    Flow,
    HybridLoss,
    Importance,
    IntegerStep,
    Karras,
    Learned,
    LearnedLogSNR,
    LeastVariance,
    Linear,
    LinearBetas,
    LogitNormal,
    LogNormal,
    LogSigma,
    LowDiscrepancy,
    MinSNR,
    Objective,
    Posterior,
    Process,
    ScaledTime,
    Schedule,
    Steps,
    Transition,
    Uncertainty,
    Uniform,
    V,
    leading,
    trailing,
    uniform,
    vlb_terms,
)
from carrara.diffusion.likelihood import kl, stride_term
from carrara.diffusion.loss import parts
from carrara.diffusion.parameterization import Parameterization
from carrara.diffusion.process import Variance
from carrara.diffusion.times import full
from carrara.oracle import Mixture
from carrara.rng import Rng
from carrara.types import Condition, Gaussian

EPSILON = Epsilon()
TABLE = LinearBetas(steps=12, first=0.01, last=0.4)
LEVELS = 2 * torch.randint(0, 256, (3, 1, 2, 2), generator=torch.Generator().manual_seed(0)).double() / 255 - 1


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class F(nn.Module):
    """A small convolution whose output, with twice the channels for a learned variance, depends on x and level."""

    def __init__(self, channels: int = 1, out: int = 1) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Conv2d(channels, out, 3, padding=1).double()

    def forward(self, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
        return torch.tanh(self.body(x)) * (1 + level.to(x.dtype).view(-1, 1, 1, 1) / 20)


def denoiser(
    schedule: Schedule = TABLE,
    parameterization: Parameterization = EPSILON,
    *,
    learned: bool = False,
) -> Denoiser:
    return Denoiser(F(out=1 + learned), Process(schedule), parameterization, ScaledTime(10.0), learned_variance=learned)


class TestBoundLoss:
    @pytest.mark.parametrize("variance", [Posterior(), Transition(), Learned()], ids=str)
    @pytest.mark.parametrize(
        "times", [functools.partial(full), functools.partial(trailing, steps=5), functools.partial(uniform, steps=3)]
    )
    def test_its_mean_over_the_strides_is_the_bound(self, variance: Variance, times: functools.partial[object]) -> None:
        """Exactly, with the noise of `vlb_terms`: all strides one after another."""
        model = denoiser(learned=isinstance(variance, Learned))
        grid = times(TABLE)
        loss = BoundLoss(times=times, variance=variance)
        loss.check(model)
        bound = vlb_terms(model, LEVELS, grid, rng=Rng.seeds(range(3)), variance=variance)
        draws = []
        for i in range(len(grid) - 1):
            noise = Rng.seeds(range(3)).fork("bound", i).normal_like(LEVELS)
            draws.append(loss.at(model, LEVELS, Condition(), noise, torch.full((3,), i)))
        torch.testing.assert_close(torch.stack(draws).mean(0), bound.bits_per_dim, rtol=1e-12, atol=1e-12)

    def test_rows_have_their_own_strides(self) -> None:
        model, loss = denoiser(), BoundLoss()
        x, noise = LEVELS.repeat(4, 1, 1, 1), normal(12, 1, 2, 2)
        index = torch.randperm(12, generator=torch.Generator().manual_seed(0))
        together = loss.at(model, x, Condition(), noise, index)
        for i in range(12):
            alone = loss.at(model, x[i : i + 1], Condition(), noise[i : i + 1], index[i : i + 1])
            torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-12, atol=0)
        grads = torch.autograd.grad(together.sum(), list(model.parameters()))
        assert all(bool(g.isfinite().all()) and bool(g.ne(0).any()) for g in grads)

    def test_draws_reach_every_stride_evenly(self) -> None:
        model = denoiser()
        rng = Rng.samples(0, range(1200), "train")
        seen = torch.bincount(12 - ((rng.fork("time").spread() * 12).floor() + 1).long(), minlength=12)
        assert seen.min() >= 98 and seen.max() <= 102
        x = LEVELS[:1].repeat(1200, 1, 1, 1)
        rows = BoundLoss()(model, x, Condition(), rng)
        noise = rng.fork("noise").normal_like(x)
        index = 12 - ((rng.fork("time").spread() * 12).floor() + 1).long()
        torch.testing.assert_close(rows, BoundLoss().at(model, x, Condition(), noise, index), rtol=1e-12, atol=0)

    def test_unbiased_under_importance_sampling(self) -> None:
        """sum_i p_i draw_i = mean_i L_i + prior, by enumeration."""
        importance = Importance(steps=12, history=1)
        importance.losses.copy_(torch.arange(1, 13).double()[:, None])
        importance.counts.fill_(1)
        model, loss = denoiser(), BoundLoss(draw=importance)
        shares = torch.arange(1, 13, dtype=torch.float64) / 12
        x, noise = LEVELS[:1].repeat(12, 1, 1, 1), normal(12, 1, 2, 2)
        plain = BoundLoss().at(model, x, Condition(), noise, 12 - torch.arange(1, 13))
        prior = loss._prior(model.process, x)

        class Each(Importance):
            def __call__(self, process: Process, rng: Rng) -> Tensor:
                return shares

        each = Each(steps=12, history=1)
        each.load_state(importance.state())

        class Same(Rng):
            def normal_like(self, x: Tensor) -> Tensor:
                return noise

            def fork(self, *words: int | str) -> Rng:
                return Same([(i,) for i in range(12)])

        found = BoundLoss(draw=each)(model, x, Condition(), Same([(i,) for i in range(12)]))
        expected = (importance.probabilities() * (found - prior)).sum() + prior[0]
        torch.testing.assert_close(expected, plain.mean(), rtol=1e-12, atol=0)
        each.commit()
        recorded = each.losses[:, 0] + prior.detach()
        torch.testing.assert_close(recorded, plain.detach(), rtol=1e-12, atol=1e-12)  # before it is corrected

    @pytest.mark.parametrize("schedule", [LinearBetas(12, 0.1, 0.5, zero_terminal=True), CosineBetas(12)], ids=str)
    def test_finite_without_data_at_the_end(self, schedule: Schedule) -> None:
        for learned in (False, True):
            model = denoiser(schedule, V(), learned=learned)
            loss = BoundLoss(variance=Learned() if learned else Posterior())
            rows = loss.at(model, LEVELS[:1].repeat(12, 1, 1, 1), Condition(), normal(12, 1, 2, 2), torch.arange(12))
            assert bool(rows.isfinite().all())
            assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(rows.sum(), list(model.parameters())))


class TestHybridLoss:
    def test_it_is_the_sum_of_its_parts(self) -> None:
        model, loss = denoiser(learned=True), HybridLoss(DenoisingLoss(Steps(12), MinSNR()), share=0.25)
        x, noise, i = LEVELS[:1].repeat(12, 1, 1, 1), normal(12, 1, 2, 2), torch.arange(1, 13)
        t = i.double() / 12
        simple = DenoisingLoss(Steps(12), MinSNR()).at(model, x, Condition(), noise, t)
        bound = BoundLoss(variance=Learned()).at(model, x, Condition(), noise, 12 - i) - BoundLoss()._prior(
            model.process, x
        )
        torch.testing.assert_close(loss.at(model, x, Condition(), noise, t), simple + 0.25 * bound)

    def test_the_mean_learns_nothing_from_the_bound(self) -> None:
        """The channels of the mean get L_simple's gradient, bit for bit; those of the variance none of it."""
        model, t = denoiser(learned=True), torch.arange(1, 13, dtype=torch.float64) / 12
        x, noise = LEVELS[:1].repeat(12, 1, 1, 1), normal(12, 1, 2, 2)
        weights = [model.network.body.weight, model.network.body.bias]
        hybrid = torch.autograd.grad(
            HybridLoss(DenoisingLoss(Steps(12)), 0.5).at(model, x, Condition(), noise, t).sum(), weights
        )
        simple = torch.autograd.grad(DenoisingLoss(Steps(12)).at(model, x, Condition(), noise, t).sum(), weights)
        for both, plain in zip(hybrid, simple, strict=True):
            assert torch.equal(both[:1], plain[:1])
            assert not bool(plain[1:].any()) and bool(both[1:].any())

    def test_the_variance_learns_the_bounds_optimum(self) -> None:
        """With the mean fixed, the best variance of a stride is posterior + A^2 E|x - x_hat|^2."""
        q, process = 0.7, Process(TABLE)
        data = Mixture.gaussian(torch.zeros(1, 1, 1), q)
        t, s = 0.5, 5 / 12
        (alpha, sigma), (alpha_s, _) = process.schedule(t), process.schedule(s)
        cov = q**2 * sigma**2 / (alpha**2 * q**2 + sigma**2)
        _, v = process.step(s, t)
        A = alpha_s * v / sigma**2
        low, best = process.posterior_var(t, s), process.posterior_var(t, s) + A**2 * cov
        mix = math.log(best / low) / math.log(v / low)  # the share in log-variance

        class Given(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.v = nn.Parameter(torch.tensor(2 * mix - 1, dtype=torch.float64))
                self.best = data.network(process, X0(), IntegerStep(12))

            def forward(self, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
                return torch.cat([self.best(x, level, condition), self.v.expand_as(x)], 1)

        network = Given()
        model = Denoiser(network, process, X0(), IntegerStep(12), learned_variance=True)
        # three-point Gauss-Hermite quadrature is exact for the quadratic |x - x_hat|^2 over (x, noise)
        nodes = torch.tensor([-math.sqrt(3), 0.0, math.sqrt(3)], dtype=torch.float64)
        weights = torch.tensor([1 / 6, 2 / 3, 1 / 6], dtype=torch.float64)
        x = (q * nodes).repeat_interleave(3).view(9, 1, 1, 1)
        noise = nodes.repeat(3).view(9, 1, 1, 1)
        rows = HybridLoss(DenoisingLoss(Steps(12)), 1.0).at(model, x, Condition(), noise, torch.full((9,), t).double())
        (gradient,) = torch.autograd.grad((weights.outer(weights).flatten() * rows).sum(), network.v)
        scale = math.log(v / low) / 2 / math.log(2) * 12 / 2
        assert abs(gradient.item()) < 1e-12 * scale

    def test_latents_leave_out_the_last_stride(self) -> None:
        model, t = denoiser(learned=True), torch.arange(1, 13, dtype=torch.float64) / 12
        x, noise = normal(12, 1, 2, 2, seed=2), normal(12, 1, 2, 2)
        loss = HybridLoss(DenoisingLoss(Steps(12)), levels=0)
        found = loss.at(model, x, Condition(), noise, t) - DenoisingLoss(Steps(12)).at(model, x, Condition(), noise, t)
        assert found[0] == 0 and bool((found[1:] > 0).all())
        only = loss.at(model, x[:1], Condition(), noise[:1], t[:1])
        assert bool(only.isfinite().all())

    def test_times_off_the_grid_are_refused(self) -> None:
        model = denoiser(learned=True)
        with pytest.raises(ValueError, match=r"draw Steps\(12\)"):
            HybridLoss(DenoisingLoss(Uniform()))(model, LEVELS, Condition(), Rng.samples(0, range(3)))
        with pytest.raises(ValueError, match="share"):
            HybridLoss(share=0.0)


# A learned schedule that is somewhere
def learned() -> LearnedLogSNR:
    schedule = LearnedLogSNR(first=8.0, last=-4.0, curves=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in schedule.parameters():
            parameter += 0.4 * torch.randn(parameter.shape, generator=generator)
    return schedule.double()


def quadrature(count: int = 400) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights on (0, 1)."""
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(count)
    return torch.from_numpy(nodes / 2 + 0.5), torch.from_numpy(weights / 2)


class TestContinuousBoundLoss:
    q = 0.5

    def model(self, schedule: Schedule, parameterization: Parameterization) -> Denoiser:
        data, process = Mixture.gaussian(torch.zeros(1, 1, 1), self.q), Process(schedule)
        level = LogSigma()
        return (
            Denoiser(Exact(self.q, process, parameterization), process, parameterization, level)
            if isinstance(schedule, LearnedLogSNR)
            else Denoiser(data.network(process, parameterization, level), process, parameterization, level)
        )

    @pytest.mark.parametrize("schedule", [Linear(), Cosine(), learned()], ids=["linear", "cosine", "learned"])
    @pytest.mark.parametrize("parameterization", [V(), X0(), Flow(), Karras()], ids=str)
    def test_the_integral_in_closed_form(self, schedule: Schedule, parameterization: Parameterization) -> None:
        """On N(0, q^2): 1/2 int SNR q^2 / (1 + SNR q^2) dlogsnr = 1/2 log of (1 + q^2 SNR) from end to end."""
        model, loss = self.model(schedule, parameterization), ContinuousBoundLoss()
        low, high = loss.span(model.process)
        shares, weights = quadrature()
        # equal strides of the log-SNR, where the integrand is smooth; dt in terms of it
        first, last = schedule.logsnr(low), schedule.logsnr(high)
        t = schedule.time(first + (last - first) * shares)
        nodes, mass = (
            torch.tensor([-math.sqrt(3), 0, math.sqrt(3)]).double(),
            torch.tensor([1 / 6, 2 / 3, 1 / 6]).double(),
        )
        total = torch.zeros((), dtype=torch.float64)
        for a, wa in zip(nodes, mass, strict=True):
            for b, wb in zip(nodes, mass, strict=True):
                x = torch.full((len(t), 1, 1, 1), self.q * a.item(), dtype=torch.float64)
                noise = torch.full_like(x, b.item())
                rows = loss.at(model, x, Condition(), noise, t, noise)
                rows = rows * math.log(2) - loss.ends(model.process, x, noise)  # nats of the integral alone
                dt = (last - first) / schedule.slope(t) / (high - low)
                total = total + wa * wb * (rows * dt * weights).sum()
        expected = math.log((1 + self.q**2 * math.exp(first)) / (1 + self.q**2 * math.exp(last))) / 2
        assert total.item() == pytest.approx(expected, rel=1e-7)

    def test_the_whole_is_the_entropy(self) -> None:
        """-E[ELBO] of the optimal denoiser = H(x) + KL(q(x_1) || N(0, 1)) + what the decoder does not know.

        The entropy is that of grey levels: of the density, less the log of their width 2/255.
        """
        schedule = learned()
        loss = ContinuousBoundLoss()
        process = Process(schedule)
        q, (low, high) = 0.05, loss.span(process)  # x well within [-1, 1]; grey levels are fine beside sigma at t_min
        with torch.no_grad():
            schedule.first.fill_(6.0)  # sigma/alpha = 0.05 at t_min, six grey levels
            first, last = schedule.logsnr(low), schedule.logsnr(high)
            integral = math.log((1 + q**2 * math.exp(first)) / (1 + q**2 * math.exp(last))) / 2
            generator = torch.Generator().manual_seed(0)
            x = (
                q * torch.randn(20000, 1, generator=generator, dtype=torch.float64) * 127.5 + 127.5
            ).round() / 127.5 - 1
            ends = loss.ends(process, x, torch.randn(20000, 1, generator=generator, dtype=torch.float64)).mean().item()
            alpha, sigma = process.schedule(1.0)
            variance = alpha**2 * q**2 + sigma**2
            entropy = math.log(2 * math.pi * math.e * q**2) / 2 - math.log(2 / 255)
            cost = (variance - 1 - math.log(variance)) / 2
        # with a decoder that knows x_t at t_min alone, and not how x is distributed
        assert integral + ends == pytest.approx(entropy + cost + _excess(q, first), abs=0.03)

    @pytest.mark.parametrize("schedule", [Linear(), Cosine(), LinearBetas(), LinearBetas(zero_terminal=True)], ids=str)
    def test_draws(self, schedule: Schedule) -> None:
        model = denoiser(schedule, V())
        rng = Rng.samples(0, range(64), "train")
        x = LEVELS[:1].repeat(64, 1, 1, 1)
        rows = ContinuousBoundLoss()(model, x, Condition(), rng)
        assert rows.shape == (64,) and bool(rows.isfinite().all()) and bool((rows > 0).all())
        again = ContinuousBoundLoss()(model, x[5:6], Condition(), Rng.samples(0, [5], "train"))
        torch.testing.assert_close(again, rows[5:6])

    def test_the_ends_learn_the_bounds_gradient_and_the_interior_none(self) -> None:
        """The exact gradient of the whole bound on N(0, q^2), with the best denoiser of whatever the schedule is."""
        schedule = learned()
        model, loss = self.model(schedule, Epsilon()), ContinuousBoundLoss()
        low, high = loss.span(model.process)
        shares, weights = quadrature(200)
        t = low + (high - low) * shares
        nodes, mass = (
            torch.tensor([-math.sqrt(3), 0, math.sqrt(3)]).double(),
            torch.tensor([1 / 6, 2 / 3, 1 / 6]).double(),
        )
        total = torch.zeros((), dtype=torch.float64)
        for a, wa in zip(nodes, mass, strict=True):
            for b, wb in zip(nodes, mass, strict=True):
                x = torch.full((len(t), 1, 1, 1), self.q * a.item(), dtype=torch.float64)
                noise = torch.full_like(x, b.item())
                rows = loss.at(model, x, Condition(), noise, t, noise) * math.log(2)
                total = total + wa * wb * ((rows - loss.ends(model.process, x, noise)) * weights).sum()
        found = dict(
            zip(
                (name for name, _ in schedule.named_parameters()),
                torch.autograd.grad(total, list(schedule.parameters())),
                strict=True,
            )
        )
        first, span = schedule.first.item(), math.exp(schedule.log_span.item())
        share = [self.q**2 * math.exp(v) / (1 + self.q**2 * math.exp(v)) / 2 for v in (first, first - span)]
        assert found["first"].item() == pytest.approx(share[0] - share[1], rel=1e-6)
        assert found["log_span"].item() == pytest.approx(share[1] * span, rel=1e-6)
        for name in ("centres", "log_widths", "shares"):
            assert found[name].abs().max() < 1e-6  # the bound does not depend on the way between the ends

    def test_least_variance(self) -> None:
        """Network and ends get the bound's gradient, the interior that of its square, row by row."""
        schedule = learned()
        model = Denoiser(F(), Process(schedule), Epsilon(), LogSigma())
        rng, x = Rng.samples(0, range(3), "train"), LEVELS
        plain = ContinuousBoundLoss()(model, x, Condition(), rng)
        steady = LeastVariance()(model, x, Condition(), rng)
        assert torch.equal(plain, steady)
        names = [name for name, _ in model.named_parameters()]
        grads, squares, found = (
            torch.autograd.grad(rows.sum(), list(model.parameters()), retain_graph=True)
            for rows in (plain, plain.square(), steady)
        )
        interior = {"schedule.centres", "schedule.log_widths", "schedule.shares"}
        assert interior < set(names)
        for name, gradient, square, mine in zip(names, grads, squares, found, strict=True):
            torch.testing.assert_close(mine, square if name in interior else gradient, rtol=1e-9, atol=1e-12)
        LeastVariance().check(model)
        with pytest.raises(ValueError, match="no interior"):
            LeastVariance().check(denoiser(Linear(), V()))


def _excess(q: float, logsnr: float) -> float:
    """E over x_t of KL(p(x | x_t) || the decoder N(x_t / alpha, sigma^2 / alpha^2)) for x of N(0, q^2)."""
    noise = math.exp(-logsnr)  # (sigma / alpha)^2
    post = q**2 * noise / (q**2 + noise)
    shift = (noise / (q**2 + noise)) ** 2 * (q**2 + noise)  # E (mean of p(x | x_t) - x_t / alpha)^2
    return (post / noise - 1 - math.log(post / noise) + shift / noise) / 2


class Exact(nn.Module):
    """The optimal F for N(0, q^2) on a schedule that may learn: differentiable in the schedule."""

    def __init__(self, q: float, process: Process, parameterization: Parameterization) -> None:
        super().__init__()
        self.q, self.parameterization = q, parameterization
        self.place = [process]  # not a submodule

    def forward(self, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
        logsnr = -8 * level.double().view(-1, 1, 1, 1)
        alpha, sigma = torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr).sqrt()
        c = self.parameterization(alpha, sigma)
        x_t = x / c.scale
        mean = alpha * self.q**2 / (alpha**2 * self.q**2 + sigma**2) * x_t
        return (mean - c.skip * x_t) / c.out


def test_what_does_not_fit_is_refused() -> None:
    plain, taught = denoiser(), denoiser(learned=True)
    moving = Denoiser(F(), Process(LearnedLogSNR()), Epsilon(), LogSigma())
    wrong: list[tuple[Objective, Denoiser, str]] = [
        (DenoisingLoss(Steps(12)), taught, "HybridLoss"),
        (HybridLoss(), plain, "learned_variance"),
        (BoundLoss(variance=Learned()), plain, "learned_variance"),
        (BoundLoss(), taught, "Learned"),
        (BoundLoss(), moving, "ContinuousBoundLoss"),
        (DenoisingLoss(Uniform()), moving, "ContinuousBoundLoss"),
        (ContinuousBoundLoss(), taught, "learned_variance"),
        (BoundLoss(draw=Steps(6)), plain, "6 steps, and there are 12"),
        (BoundLoss(draw=Importance(steps=4)), plain, "4 steps"),
        (BoundLoss(draw=LogNormal()), plain, "a continuum"),
        (BoundLoss(draw=LowDiscrepancy(Steps(6))), plain, "6 steps"),
        (HybridLoss(DenoisingLoss(Steps(6))), taught, "6 steps"),
        (HybridLoss(DenoisingLoss(Uniform())), taught, "a continuum"),
        (HybridLoss(DenoisingLoss(Steps(6)), times=functools.partial(leading, steps=6)), taught, "not on the grid"),
        (DenoisingLoss(Steps(6)), plain, "6 steps"),
        (BoundLoss(times=functools.partial(uniform, steps=1)), plain, "two strides"),
        (BoundLoss(times=functools.partial(trailing, steps=4, end=1 / 12)), plain, "ends at 0"),
    ]
    for objective, model, said in wrong:
        with pytest.raises(ValueError, match=said):
            objective.check(model)
    frozen = Denoiser(F(), Process(LearnedLogSNR().requires_grad_(False)), Epsilon(), LogSigma())
    for objective, model in ((DenoisingLoss(Uniform()), frozen), (ContinuousBoundLoss(), moving), (BoundLoss(), plain)):
        objective.check(model)
    BoundLoss(draw=LowDiscrepancy(Steps(12))).check(plain)
    BoundLoss(times=functools.partial(uniform, steps=6), draw=Importance(steps=6)).check(plain)
    HybridLoss(DenoisingLoss(LowDiscrepancy(Steps(12)))).check(taught)
    assert BoundLoss().grey_levels == 256 and HybridLoss(levels=0).grey_levels is None
    assert DenoisingLoss(Uniform()).grey_levels is None and LeastVariance().grey_levels == 256


def test_a_levels_steps_are_the_tables() -> None:
    with pytest.raises(ValueError, match=r"use IntegerStep\(12\)"):
        Denoiser(F(), Process(TABLE), Epsilon(), IntegerStep(1000))
    Denoiser(F(), Process(TABLE), Epsilon(), IntegerStep(12))
    Denoiser(F(), Process(Linear()), V(), IntegerStep(1000))  # continuous time has no table


def test_parts_of_an_objective() -> None:
    uncertainty, importance = Uncertainty(), Importance(steps=12)
    objective = HybridLoss(DenoisingLoss(importance, uncertainty))
    assert dict(parts(objective, nn.Module)) == {"simple_weight": uncertainty}
    assert dict(parts(objective, Importance)) == {"simple_draw": importance}
    assert not dict(parts(DenoisingLoss(LogitNormal()), nn.Module))


def test_kl_and_strides_agree_with_each_other() -> None:
    """The stride term is the KL of the two posteriors in full, means and all."""
    process, x, x_t, mean = Process(TABLE), normal(2, 3), normal(2, 3, seed=1), normal(2, 3, seed=2)
    from carrara.types import Estimate

    index = torch.tensor([0, 5])
    times = full(TABLE)
    t, s = (torch.tensor(times, dtype=torch.float64)[index + k] for k in (0, 1))
    known = process.posterior(x, x_t, t, s)
    believed = process.posterior(mean, x_t, t, s)
    expected = kl(Gaussian(known.mean, known.var), Gaussian(believed.mean, believed.var)).sum(1)
    found = stride_term(process, Estimate(mean), x, x_t, times, index, variance=Posterior())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
