"""Denoising Diffusion Probabilistic Models (Ho, Jain & Abbeel 2020), an equation a test, in the paper's own symbols.

beta_t, alpha_t = 1 - beta_t, alpha_bar_t = prod alpha_s, tilde beta_t;  the paper's t = 1..T is our t/T
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from carrara.diffusion import (
    X0,
    Denoiser,
    DenoisingLoss,
    Epsilon,
    Given,
    GivenBetas,
    IntegerStep,
    LinearBetas,
    Plain,
    Posterior,
    Process,
    Steps,
    Transition,
    ancestral,
    discretised_log_prob,
    full,
    guide,
    kl,
    vlb_terms,
)
from carrara.rng import Rng
from carrara.run import finish
from carrara.types import Condition, Estimate, Gaussian

T = 1000
SCHEDULE = LinearBetas(T)
PROCESS = Process(SCHEDULE)
beta = torch.linspace(1e-4, 0.02, T, dtype=torch.float64)
alpha = 1 - beta
alpha_bar = alpha.cumprod(0)
alpha_bar_before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
tilde_beta = (1 - alpha_bar_before) / (1 - alpha_bar) * beta
STEPS = torch.arange(1, T + 1, dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Noise(nn.Module):
    """A small smooth epsilon_theta(x, t), elementwise."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor(-0.2, dtype=torch.float64))

    def forward(self, x: Tensor, level: Tensor, condition: Condition = Condition()) -> Tensor:  # noqa: B008
        step = level.double().view(-1, *[1] * (x.ndim - 1))
        return torch.tanh(self.a * x + self.b + step / 1000)


def noise_denoiser(process: Process = PROCESS) -> Denoiser:
    return Denoiser(Noise(), process, Epsilon(), IntegerStep(process.schedule.steps))  # type: ignore[attr-defined]


# The forward process


def test_equation_2_one_step() -> None:
    """q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I)."""
    x = torch.ones(T, dtype=torch.float64)
    found = PROCESS.transition(x, (STEPS - 1) / T, STEPS / T)
    torch.testing.assert_close(found.mean, torch.sqrt(1 - beta), rtol=1e-13, atol=0)
    torch.testing.assert_close(found.var, beta, rtol=1e-11, atol=0)


def test_equation_2_composed_is_equation_4() -> None:
    """A thousand steps of the chain, by their exact means and variances, are q(x_t | x_0) in one step."""
    mean, var = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for t in range(1, T + 1):
        before = mean
        mean = PROCESS.transition(before, (t - 1) / T, t / T).mean
        a, v = PROCESS.step((t - 1) / T, t / T)
        var = a**2 * var + v
        at_once = PROCESS.marginal(torch.ones(1, dtype=torch.float64), t / T)
        torch.testing.assert_close(mean, at_once.mean, rtol=1e-12, atol=0)
        assert var.item() == pytest.approx(at_once.var, rel=1e-12)


def test_equation_4_in_one_step() -> None:
    """q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I)."""
    x, noise = normal(T, 3), normal(T, 3, seed=1)
    found = PROCESS.marginal(x, STEPS / T)
    torch.testing.assert_close(found.mean, alpha_bar.sqrt()[:, None] * x, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(found.var, (1 - alpha_bar)[:, None], rtol=1e-12, atol=0)
    drawn = PROCESS.diffuse(x, STEPS / T, noise)
    torch.testing.assert_close(drawn, alpha_bar.sqrt()[:, None] * x + (1 - alpha_bar).sqrt()[:, None] * noise)


# Its reversal


def test_equations_6_and_7_by_bayes() -> None:
    """q(x_{t-1} | x_t, x_0) is q(x_t | x_{t-1}) q(x_{t-1} | x_0) over its integral, summed up on a fine grid."""
    for t in (2, 10, 500, 1000):
        x_0, x_t = 0.4, 0.9
        found = PROCESS.posterior(
            torch.tensor([x_0], dtype=torch.float64), torch.tensor([x_t], dtype=torch.float64), t / T, (t - 1) / T
        )
        std = math.sqrt(found.var)
        z = found.mean + std * torch.linspace(-12, 12, 20001, dtype=torch.float64)
        i = t - 1
        log_joint = -((x_t - alpha[i].sqrt() * z) ** 2) / (2 * beta[i])
        log_joint -= (z - alpha_bar[i - 1].sqrt() * x_0) ** 2 / (2 * (1 - alpha_bar[i - 1]))
        weight = (log_joint - log_joint.max()).exp()
        weight /= weight.sum()
        mean = (weight * z).sum()
        assert mean.item() == pytest.approx(found.mean.item(), abs=1e-10)
        assert (weight * (z - mean) ** 2).sum().item() == pytest.approx(found.var, rel=1e-9)


def test_equation_7_in_the_papers_symbols() -> None:
    x_0, x_t = normal(T, 2), normal(T, 2, seed=1)
    found = PROCESS.posterior(x_0, x_t, STEPS / T, (STEPS - 1) / T)
    of_x_0 = alpha_bar_before.sqrt() * beta / (1 - alpha_bar)
    of_x_t = alpha.sqrt() * (1 - alpha_bar_before) / (1 - alpha_bar)
    expected = of_x_0[:, None] * x_0 + of_x_t[:, None] * x_t
    torch.testing.assert_close(found.mean, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.var, tilde_beta[:, None], rtol=1e-9, atol=1e-20)


@pytest.mark.parametrize("variance, expected", [(Posterior(), tilde_beta), (Transition(), beta)], ids=["tilde", "beta"])
def test_equation_1_and_section_3_2_variances(variance: Any, expected: Tensor) -> None:
    """p(x_{t-1} | x_t) has the posterior's mean at the estimate, and sigma_t^2 = tilde beta_t or beta_t."""
    x_0, x_t = normal(T, 2), normal(T, 2, seed=1)
    p = PROCESS.reverse(Estimate(x_0), x_t, STEPS / T, (STEPS - 1) / T, variance)
    torch.testing.assert_close(p.var, expected[:, None], rtol=1e-9, atol=1e-20)
    torch.testing.assert_close(p.mean, PROCESS.posterior(x_0, x_t, STEPS / T, (STEPS - 1) / T).mean)


def test_equation_11_mean_from_noise() -> None:
    """mu = (x_t - beta_t / sqrt(1 - alpha_bar_t) epsilon) / sqrt(alpha_t)."""
    denoiser, x_t = noise_denoiser(), normal(T, 2)
    p = PROCESS.reverse(denoiser(x_t, STEPS / T), x_t, STEPS / T, (STEPS - 1) / T, Posterior())
    epsilon = denoiser.network(x_t, STEPS - 1)
    expected = (x_t - (beta / (1 - alpha_bar).sqrt())[:, None] * epsilon) / alpha.sqrt()[:, None]
    torch.testing.assert_close(p.mean, expected, rtol=1e-10, atol=1e-10)


# Training


def test_algorithm_1() -> None:
    """The loss is the paper's four lines on the same draws."""
    denoiser, x_0, rng = noise_denoiser(), normal(16, 3, 2, 2), Rng.samples(0, range(16))
    found = DenoisingLoss(Steps(T))(denoiser, x_0, Condition(), rng)

    t = (rng.fork("time").uniform() * T).long() + 1  # uniform on 1 .. T
    epsilon = rng.fork("noise").normal_like(x_0)
    bar = alpha_bar[t - 1].view(-1, 1, 1, 1)
    expected = (epsilon - denoiser.network(bar.sqrt() * x_0 + (1 - bar).sqrt() * epsilon, t - 1)) ** 2

    torch.testing.assert_close(found, expected.mean((1, 2, 3)), rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(loss.mean(), list(denoiser.network.parameters())) for loss in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


def test_algorithm_1_draws_every_step() -> None:
    t = Steps(20)(PROCESS, Rng.samples(0, range(4000))) * 20
    counts = torch.bincount(t.round().long(), minlength=21)
    assert counts[0] == 0 and counts[1:].min() > 130 and counts[1:].max() < 270  # 200 each, far beyond chance


def test_algorithm_1_learns() -> None:
    """Gradient descent on data N(m, q^2) and one noise level finds the optimal linear network and the loss's floor."""
    m, q, bar = 0.5, 0.6, 0.5
    process = Process(GivenBetas((1 - bar,)))

    class Line(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(1, 1).double()

        def forward(self, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
            return self.line(x)

    torch.manual_seed(0)
    denoiser, loss = Denoiser(Line(), process, Epsilon(), IntegerStep(1)), DenoisingLoss(Steps(1))
    optimiser = torch.optim.SGD(denoiser.parameters(), lr=0.3)
    for step in range(150):
        rng = Rng.samples(step, range(256))
        x_0 = m + q * rng.fork("data").normal((1,)).double()
        value = loss(denoiser, x_0, Condition(), rng).mean()
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
    var = bar * q**2 + 1 - bar
    slope = math.sqrt(1 - bar) / var
    line = denoiser.network.line
    assert line.weight.item() == pytest.approx(slope, abs=0.06)
    assert line.bias.item() == pytest.approx(-slope * math.sqrt(bar) * m, abs=0.06)
    rng = Rng.samples(999, range(4096))
    value = loss(denoiser, m + q * rng.fork("data").normal((1,)).double(), Condition(), rng).mean()
    assert value.item() == pytest.approx(bar * q**2 / var, rel=0.05)  # Var[epsilon | x_t]


# Sampling


@pytest.mark.parametrize("variance", [Posterior(), Transition()], ids=["tilde beta", "beta"])
def test_algorithm_2(variance: Any) -> None:
    """Ancestral sampling is the paper's loop on the same noise, for both choices of sigma."""
    steps, betas = 50, torch.linspace(0.001, 0.2, 50, dtype=torch.float64)
    schedule = LinearBetas(steps, 0.001, 0.2)
    denoiser = noise_denoiser(Process(schedule))
    x_T = normal(4, 3, 2, 2)
    sampling = ancestral(denoiser.process, x_T, full(schedule), rng=Rng.seeds(range(4)), variance=variance)
    found = finish(guide(sampling, Plain(), denoiser))

    a, bars, rng, x = 1 - betas, (1 - betas).cumprod(0), Rng.seeds(range(4)), x_T
    with torch.no_grad():
        for t in range(steps, 0, -1):
            z = rng.normal_like(x) if t > 1 else 0.0
            before = bars[t - 2] if t > 1 else torch.tensor(1.0)
            sigma2 = (
                (1 - before) / (1 - bars[t - 1]) * betas[t - 1] if isinstance(variance, Posterior) else betas[t - 1]
            )
            epsilon = denoiser.network(x, torch.full((4,), t - 1.0))
            x = (x - (1 - a[t - 1]) / (1 - bars[t - 1]).sqrt() * epsilon) / a[t - 1].sqrt() + sigma2.sqrt() * z
    torch.testing.assert_close(found, x, rtol=0, atol=1e-12 * x.abs().max().item())


# The bound


def test_equation_5_kl() -> None:
    """KL of normals, against the integral of its definition."""
    p, q = (Gaussian(torch.tensor([m], dtype=torch.float64), v) for m, v in ((0.3, 0.5), (-0.4, 1.7)))
    z = torch.linspace(-15, 15, 200001, dtype=torch.float64)

    def log_density(g: Gaussian) -> Tensor:
        return -((z - g.mean) ** 2) / (2 * g.var) - math.log(2 * math.pi * g.var) / 2

    expected = torch.trapezoid(log_density(p).exp() * (log_density(p) - log_density(q)), z).item()
    assert kl(p, q).item() == pytest.approx(expected, abs=1e-12)
    assert kl(p, p).item() == 0


def test_equation_8_and_12() -> None:
    """L_{t-1} = beta^2 / (2 sigma^2 alpha (1 - alpha_bar)) |epsilon - epsilon_theta|^2 + C."""
    denoiser, x_0, epsilon = noise_denoiser(), normal(T, 2), normal(T, 2, seed=1)
    t, s = STEPS[1:] / T, (STEPS[1:] - 1) / T
    x_0, epsilon, b, a, bar = x_0[1:], epsilon[1:], beta[1:, None], alpha[1:, None], alpha_bar[1:, None]
    x_t = PROCESS.diffuse(x_0, t, epsilon)
    p = PROCESS.reverse(denoiser(x_t, t), x_t, t, s, Transition())
    found = kl(PROCESS.posterior(x_0, x_t, t, s), p)
    ratio = tilde_beta[1:, None] / b
    constant = (ratio - 1 - ratio.log()) / 2
    error = (epsilon - denoiser.network(x_t, STEPS[1:] - 1)) ** 2
    torch.testing.assert_close(found, constant + b**2 / (2 * b * a * (1 - bar)) * error, rtol=1e-7, atol=1e-9)


def test_equation_5_prior_is_negligible() -> None:
    """L_T: about 1e-5 bits a dimension for pictures (section 4)."""
    x = torch.rand(3072, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    bits = kl(PROCESS.marginal(x, 1.0), Gaussian(torch.zeros_like(x), 1.0)).mean().item() / math.log(2)
    assert 0 < bits < 3e-5


@pytest.mark.parametrize("std", [1e-4, 1e-3, 0.004, 0.02, 0.3, 3.0, 100.0])
@pytest.mark.parametrize("mean", [-1.5, -1.0, -0.3, 0.0, 1 / 255, 0.77, 1.0, 40.0])
def test_equation_13_sums_to_one(mean: float, std: float) -> None:
    """The probabilities of all 256 levels of a pixel sum to exactly 1, wherever the normal lies."""
    levels = torch.arange(256, dtype=torch.float64) / 255 * 2 - 1
    p = Gaussian(torch.full_like(levels, mean), std**2)
    log_p = discretised_log_prob(levels, p)
    assert not bool(log_p.isnan().any()) and bool((log_p <= 0).all())
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_equation_13_one_level() -> None:
    """Away from the ends it is the integral over x +- 1/255, far into the tails and in float32 as well."""
    x, std = torch.tensor([0.0, 2 / 255, 20 / 255, 100 / 255], dtype=torch.float64), 0.01
    found = discretised_log_prob(x - 1 / 255, Gaussian(torch.zeros_like(x), std**2))
    for centre, log_p in zip((x - 1 / 255).tolist(), found.tolist(), strict=True):
        z = torch.linspace(centre - 1 / 255, centre + 1 / 255, 100001, dtype=torch.float64)
        log_density = -(z**2) / (2 * std**2) - math.log(2 * math.pi * std**2) / 2
        expected = torch.logsumexp(log_density[:-1] / 2 + log_density[1:] / 2, 0).item() + math.log(2 / 255 / 100000)
        assert log_p == pytest.approx(expected, rel=1e-6)
    single = discretised_log_prob((x - 1 / 255).float(), Gaussian(torch.zeros(4), torch.tensor(std**2)))
    torch.testing.assert_close(single.double(), found, rtol=1e-3, atol=1e-4)


def test_equation_5_terms_of_a_denoiser_that_knows() -> None:
    """With E[x | x_t] = x and the posterior's variance only the prior and the last decoding remain."""
    schedule = LinearBetas(20, 0.001, 0.3)
    x = (torch.arange(24).view(2, 3, 4) * 9 % 256).double() / 255 * 2 - 1

    class Knows(nn.Module):
        def forward(self, x_t: Tensor, level: Tensor, condition: Condition) -> Tensor:
            return x

    process = Process(schedule)
    found = vlb_terms(Denoiser(Knows(), process, X0(), IntegerStep(20)), x, full(schedule), rng=Rng.seeds([0, 1]))
    assert found.steps.shape == (2, 19) and found.dimensions == 12
    assert found.steps.abs().max() < 1e-12
    expected = kl(process.marginal(x, 1.0), Gaussian(torch.zeros_like(x), 1.0)).flatten(1).sum(1)
    torch.testing.assert_close(found.prior, expected)
    last = Gaussian(x, torch.tensor(process.posterior_var(2 / 20, 1 / 20), dtype=torch.float64))
    torch.testing.assert_close(found.reconstruction, -discretised_log_prob(x, last).flatten(1).sum(1))
    torch.testing.assert_close(found.bits_per_dim, found.total / 12 / math.log(2))


def test_equation_5_terms_by_hand() -> None:
    """Each term of the bound is the divergence of its own pair of normals, at its own draw of x_t."""
    schedule = LinearBetas(12, 0.001, 0.3)
    process, denoiser = Process(schedule), noise_denoiser(Process(schedule))
    x = torch.randint(0, 256, (3, 2, 2), generator=torch.Generator().manual_seed(0)).double() / 255 * 2 - 1
    for variance in (Posterior(), Transition()):
        with torch.no_grad():
            found = vlb_terms(denoiser, x, full(schedule), rng=Rng.seeds(range(3)), variance=variance)
            for i, t in enumerate(range(12, 1, -1)):
                x_t = process.diffuse(x, t / 12, Rng.seeds(range(3)).fork("bound", i).normal_like(x))
                q = process.posterior(x, x_t, t / 12, (t - 1) / 12)
                p = process.reverse(denoiser(x_t, t / 12), x_t, t / 12, (t - 1) / 12, variance)
                expected = math.log(math.sqrt(p.var / q.var)) + (q.var + (q.mean - p.mean) ** 2) / (2 * p.var) - 0.5
                torch.testing.assert_close(found.steps[:, i], expected.flatten(1).sum(1))


def test_equation_5_refuses_what_it_is_not_for() -> None:
    denoiser = noise_denoiser()
    with pytest.raises(ValueError, match="between levels"):  # latents have no levels
        vlb_terms(denoiser, normal(2, 3), full(SCHEDULE), rng=Rng.seeds([0, 1]))
    with pytest.raises(ValueError, match="end at t = 0"):
        vlb_terms(denoiser, torch.zeros(2, 3) + 1, full(SCHEDULE)[:-1], rng=Rng.seeds([0, 1]))


def test_the_bound_is_tight_for_gaussian_data() -> None:
    """E[-ELBO] = H(x) + KL(q(x_T) || N(0, 1)) for data N(m, q^2), the optimal denoiser and the optimal variance.

    Each term depends on x and x_t by (x - E[x | x_t])^2 alone, whose mean is C_t = Var[x | x_t]: evaluating at a
    distance of sqrt(C_t) is taking the expectation.
    """
    m, q = 0.3, 0.6

    def spread(t: float) -> float:
        a, s = SCHEDULE(t)
        return q**2 * s**2 / (a**2 * q**2 + s**2)

    def optimal(t: Any, s: Any) -> float:
        of_x, _ = PROCESS._posterior_mean(t, s)
        return PROCESS.posterior_var(t, s) + of_x**2 * spread(t)

    # x = m +- q has the data's mean and variance, which is all that the prior's term sees
    both = torch.tensor([m - q, m + q], dtype=torch.float64)
    bound = kl(PROCESS.marginal(both, 1.0), Gaussian(torch.zeros_like(both), 1.0)).mean().item()
    fixed = {"tilde beta": bound, "beta": bound}
    for t in range(T, 0, -1):
        now, before = t / T, (t - 1) / T
        x_t = torch.tensor([SCHEDULE(now)[0] * m], dtype=torch.float64)
        estimate = Estimate(torch.tensor([m], dtype=torch.float64))
        x = estimate.mean + math.sqrt(spread(now))
        p = PROCESS.reverse(estimate, x_t, now, before, Given(optimal))
        if t > 1:
            known = PROCESS.posterior(x, x_t, now, before)
            bound += kl(known, p).item()
            for name, variance in (("tilde beta", Posterior()), ("beta", Transition())):
                fixed[name] += kl(known, PROCESS.reverse(estimate, x_t, now, before, variance)).item()
        else:  # -log p(x | x_1), continuous data
            last = 0.5 * math.log(2 * math.pi * p.var) + spread(now) / (2 * p.var)
            bound += last
            fixed = {name: value + last for name, value in fixed.items()}
    entropy = 0.5 * math.log(2 * math.pi * math.e * q**2)
    end = PROCESS.marginal(torch.tensor([m], dtype=torch.float64), 1.0)
    a, s = SCHEDULE(1.0)
    gap = kl(Gaussian(end.mean, a**2 * q**2 + s**2), Gaussian(torch.zeros_like(end.mean), 1.0)).item()
    assert bound == pytest.approx(entropy + gap, abs=1e-10)
    assert all(value > bound for value in fixed.values())  # any other variance costs
