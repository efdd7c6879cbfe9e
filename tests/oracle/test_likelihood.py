"""The bound against what is known exactly: entropies, closed-form integrals, and all its own strides."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from carrara.diffusion import (
    Cosine,
    Given,
    Learned,
    Linear,
    LinearBetas,
    Posterior,
    Process,
    Transition,
    VarianceExploding,
    continuous_bound,
    discretised_log_prob,
    full,
    given,
    kl,
    resolving_time,
    stride_term,
    uniform,
    vlb_estimate,
    vlb_terms,
)
from carrara.oracle import FiniteData, Mixture
from carrara.rng import Rng
from carrara.types import Condition, Estimate, Gaussian

PROCESSES = {
    "table": Process(LinearBetas()),
    "cosine": Process(Cosine()),
    "flow": Process(Linear()),
    "VE": Process(VarianceExploding()),
}


def spread(process: Process, q: float, t: float) -> float:
    """Var[x | x_t] of data N(m, q^2)."""
    alpha, sigma = process.schedule(t)
    return q**2 * sigma**2 / (alpha**2 * q**2 + sigma**2)


class Off:
    """A denoiser that is off by the standard deviation that E[x | x_t] has on N(m, q^2): terms without randomness."""

    def __init__(self, process: Process, x: Tensor, q: float) -> None:
        self.process, self.x, self.q = process, x, q

    def __call__(self, x_t: Tensor, t: Any, condition: Condition = Condition()) -> Estimate:  # noqa: B008
        times = t.tolist() if isinstance(t, Tensor) else [t] * len(x_t)
        off = torch.tensor([spread(self.process, self.q, at) for at in times], dtype=x_t.dtype).sqrt()
        return Estimate(self.x - off.view(-1, *[1] * (x_t.ndim - 1)))


class Midpoints:
    """Stands in for the rng: noise of row i is one quantile of the normal, uniforms are all a half."""

    def __init__(self, noise: Tensor) -> None:
        self.noise = noise

    def fork(self, *words: Any) -> Midpoints:
        return self

    def normal_like(self, x: Tensor) -> Tensor:
        return self.noise.view(-1, *[1] * (x.ndim - 1)).expand_as(x)

    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        return torch.full((len(self.noise), *shape), 0.5, dtype=torch.float64)


class Spread(Midpoints):
    """As above, with row i's uniforms all at (i + 1/2) / rows."""

    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        rows = len(self.noise)
        return ((torch.arange(rows) + 0.5).double() / rows)[:, None].expand(rows, *shape)


# The whole bound


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("steps", [20, 1000])
def test_the_bound_is_tight_for_gaussian_data(name: str, steps: int) -> None:
    """E[-ELBO] = H(x) + KL(q(x_T) || prior) with the optimal denoiser and variance, on every process, to 1e-10.

    A term depends on x and x_t by (x - E[x | x_t])^2 alone; evaluated at its mean, Var[x | x_t], it is the expectation.
    """
    process, m, q = PROCESSES[name], 0.3, 0.6
    times = uniform(process.schedule, steps=steps)
    data = Mixture.gaussian([m], q)

    def optimal(t: Any, s: Any) -> Any:
        # the posterior's mean is linear in x: its weight, squared, carries the variance that is left
        one = torch.ones(len(t), 1, dtype=torch.float64)
        weight = process.posterior(one, torch.zeros_like(one), t, s).mean[:, 0]
        left = torch.tensor([spread(process, q, at) for at in t.tolist()], dtype=torch.float64)
        return process.posterior_var(t, s) + weight**2 * left

    index = torch.arange(steps - 1)
    t = torch.tensor(times)[:-2].double()
    x_t = torch.linspace(-2, 2, steps - 1, dtype=torch.float64)[:, None]
    estimate = Estimate(data.mean(x_t, t, process))
    left = torch.tensor([spread(process, q, at) for at in times[:-2]], dtype=torch.float64)[:, None]
    terms = {
        variance: stride_term(process, estimate, estimate.mean + left.sqrt(), x_t, times, index, variance=variance)
        for variance in (Given(optimal), Posterior(), Transition())
    }
    both = torch.tensor([[m - q], [m + q]], dtype=torch.float64)  # the data's mean and variance
    std = process.prior_std(1.0)
    prior = kl(process.marginal(both, 1.0), Gaussian(torch.zeros_like(both), std**2)).mean().item()
    decoded = 0.5 * math.log(
        2 * math.pi * math.e * spread(process, q, times[-2])
    )  # N(E, Var[x | x_t]), continuous data
    bound = {variance: prior + term.sum().item() + decoded for variance, term in terms.items()}
    best, *fixed = bound.values()
    alpha, sigma = process.schedule(1.0)
    end = Gaussian(torch.tensor([alpha * m], dtype=torch.float64), alpha**2 * q**2 + sigma**2)
    entropy = 0.5 * math.log(2 * math.pi * math.e * q**2)
    assert best == pytest.approx(entropy + kl(end, Gaussian(torch.zeros(1).double(), std**2)).item(), abs=1e-10)
    assert all(value > best for value in fixed)


def test_levels_sum_to_one() -> None:
    """The reconstructions of all 256 values of a pixel are one distribution, with every variance: to 1e-12."""
    process = PROCESSES["table"]
    times = full(process.schedule)
    x = torch.linspace(-1, 1, 256, dtype=torch.float64)[:, None]
    index = torch.full((256,), 999)
    for centre in (-1.02, -0.3, 0.9999, 1.3):
        for mix in (-0.5, 0.0, 0.4, 1.0):
            estimate = Estimate(torch.full_like(x, centre), torch.full_like(x, mix))
            for variance in (Posterior(), Transition(), Learned(), Given(lambda t, s: 0.02)):
                term = stride_term(process, estimate, x, x, times, index, variance=variance)
                assert (-term).exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_sixteen_bits_sum_to_one() -> None:
    x = torch.linspace(-1, 1, 65536, dtype=torch.float64)
    for std in (1e-5, 0.01):
        p = discretised_log_prob(x, Gaussian(torch.full_like(x, 0.123), std**2), 65536)
        assert p.exp().sum().item() == pytest.approx(1, abs=1e-11)


def test_the_last_strides_variance() -> None:
    """The papers' conventions: both fixed variances take the next stride's posterior's, a learned one begins there."""
    process = PROCESSES["table"]
    times, x = full(process.schedule), torch.tensor([[0.0], [2 / 255 * 3 + 1 / 255]], dtype=torch.float64)
    x = ((x + 1) / 2 * 255).round() / 255 * 2 - 1
    after, own = process.posterior_var(2 / 1000, 1 / 1000), 1e-4  # iDDPM's code: posterior_variance[1] and betas[0]
    assert process.step(0.0, 1 / 1000)[1] == pytest.approx(own, rel=1e-10)

    def last(variance: Any, mix: float = 0.0) -> Tensor:
        estimate = Estimate(torch.zeros_like(x), torch.full_like(x, mix))
        return stride_term(process, estimate, x, x, times, torch.tensor([999, 999]), variance=variance)

    def by_hand(var: float) -> Tensor:
        return -discretised_log_prob(x, Gaussian(torch.zeros_like(x), var)).sum(1)

    for found, var in (
        (last(Posterior()), after),
        (last(Transition()), after),
        (last(Learned(), 0.0), after),
        (last(Learned(), 1.0), own),
        (last(Learned(), 0.5), math.sqrt(after * own)),
        (last(Given(lambda t, s: 3e-4 if s == 0 else 1.0)), 3e-4),
    ):
        torch.testing.assert_close(found, by_hand(var), rtol=1e-9, atol=1e-9)


def test_strides_of_each_row() -> None:
    """Rows at different strides, the last among them, are what each is alone; gradients pass."""
    process, times = PROCESSES["table"], full(PROCESSES["table"].schedule)
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (5, 3, 2), generator=g).double() / 127.5 - 1
    x_t, mean, mix = (torch.randn(5, 3, 2, generator=g, dtype=torch.float64, requires_grad=True) for _ in range(3))
    index = torch.tensor([0, 999, 500, 998, 999])
    term = stride_term(process, Estimate(mean, mix), x, x_t, times, index, variance=Learned())
    for i in range(5):
        row = slice(i, i + 1)
        alone = Estimate(mean[row], mix[row])
        found = stride_term(process, alone, x[row], x_t[row], times, index[row], variance=Learned())
        torch.testing.assert_close(found[0], term[i], rtol=1e-13, atol=0)
    of_mean, of_mix = torch.autograd.grad(term.sum(), (mean, mix))
    assert bool(of_mean.isfinite().all()) and bool((of_mix != 0).all())


def test_single_precision_keeps_small_terms() -> None:
    """A thousandth of a pixel's error survives float32, though the two means it comes from do not tell it."""
    process, times = PROCESSES["table"], full(PROCESSES["table"].schedule)
    x = torch.rand(4, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    index = torch.tensor([1, 300, 900, 997])
    terms = [
        stride_term(process, Estimate(v + 0.001), v, v, times, index, variance=Posterior()) for v in (x, x.float())
    ]
    torch.testing.assert_close(terms[1].double(), terms[0], rtol=2e-3, atol=0)


# A sample of it


@pytest.mark.parametrize("terms, rows", [(6, 4), (10, 12), (24, 3), (48, 2)])
def test_the_estimate_is_without_bias(terms: int, rows: int) -> None:
    """Averaged over all places in the strata, the sampled strides are all strides: an identity, no statistics."""
    process = Process(LinearBetas(25, 0.001, 0.3))
    times = full(process.schedule)  # 24 strides before the last
    x = torch.full((rows, 3), 1.0, dtype=torch.float64)
    denoiser = Off(process, x, 0.5)
    whole = vlb_terms(denoiser, x, times, rng=Midpoints(torch.zeros(rows)))  # type: ignore[arg-type]
    found = vlb_estimate(denoiser, x, times, terms=terms, rng=Spread(torch.zeros(rows)))  # type: ignore[arg-type]
    torch.testing.assert_close(found.total.mean(), whole.total.mean(), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.prior, whole.prior)
    torch.testing.assert_close(found.reconstruction, whole.reconstruction)
    if terms == 24:  # a stratum is a stride
        torch.testing.assert_close(found.steps, whole.steps, rtol=1e-12, atol=0)
        torch.testing.assert_close(found.rate, whole.rate, rtol=1e-12, atol=0)
        torch.testing.assert_close(found.errors, whole.errors, rtol=1e-12, atol=0)


def test_the_standard_error_covers() -> None:
    """The spread of estimates over rows that differ in nothing but their draws is at most what each row claims."""
    process = PROCESSES["table"]
    x = torch.full((1500, 2), 1.0, dtype=torch.float64)
    rng = Rng.seeds(range(1500))
    found = vlb_estimate(Off(process, x, 0.5), x, full(process.schedule), terms=8, rng=rng)
    assert found.std_error is not None
    claimed = found.std_error.square().mean().sqrt().item()
    assert found.total.std().item() < claimed * 1.1 < 3 * found.total.std().item()
    whole = vlb_terms(Off(process, x[:1], 0.5), x[:1], full(process.schedule), rng=Rng.seeds([0]))
    assert (found.total.mean() - whole.total[0]).abs() < 5 * found.total.std() / math.sqrt(1500)


# In continuous time


@pytest.mark.parametrize("name", PROCESSES)
def test_the_integral_in_closed_form(name: str) -> None:
    """Steps of N(m, q^2): 1/2 log (1 + q^2 SNR_end) / (1 + q^2 SNR_1), whatever the schedule."""
    process, q = PROCESSES[name], 0.5
    schedule = process.schedule
    x = torch.ones(1, 3, dtype=torch.float64)
    found = continuous_bound(Off(process, x, q), x, terms=2000, rng=Midpoints(torch.zeros(1)))  # type: ignore[arg-type]
    snr = [math.exp(schedule.logsnr(t)) for t in (resolving_time(schedule), schedule.t_max)]
    expected = 3 * 0.5 * math.log((1 + q**2 * snr[0]) / (1 + q**2 * snr[1]))
    assert found.steps.sum().item() == pytest.approx(expected, rel=1e-5)
    assert found.errors.shape == (1, 2000) and found.steps.shape == (1, 2000)


@pytest.mark.parametrize("name", ["cosine", "flow", "VE"])
def test_many_strides_approach_it(name: str) -> None:
    """The discrete bound on finer and finer grids falls to the continuous one, which is its extrapolation."""
    process, q = PROCESSES[name], 0.5
    schedule, x = process.schedule, torch.ones(1, 1, dtype=torch.float64)
    low, high = schedule.logsnr(schedule.t_max), schedule.logsnr(resolving_time(schedule))
    rng: Any = Midpoints(torch.zeros(1))
    limit = continuous_bound(Off(process, x, q), x, terms=2000, rng=rng).steps.sum().item()
    sums = []
    for N in (250, 500, 1000):
        times = (*(schedule.time(low + (high - low) * i / N) for i in range(N + 1)), 0.0)
        sums.append(vlb_terms(Off(process, x, q), x, given(schedule, values=times), rng=rng).steps.sum().item())
    above = [value - limit for value in sums]
    assert above[0] > above[1] > above[2] > 0
    assert above[0] / above[1] == pytest.approx(2, abs=0.05)
    once = [2 * sums[1] - sums[0], 2 * sums[2] - sums[1]]
    assert (4 * once[1] - once[0]) / 3 == pytest.approx(limit, rel=2e-5)


def test_uniform_data_has_eight_bits() -> None:
    """Uniform 8-bit data and the optimal denoiser: 8.000 bits a dimension; expectations by quadrature."""
    levels = torch.linspace(-1, 1, 256, dtype=torch.float64)
    data, process = FiniteData(levels[:, None]), Process(VarianceExploding(2000.0))
    noise = torch.linspace(-4.8, 4.8, 25, dtype=torch.float64)
    weights = torch.exp(-(noise**2) / 2).repeat(128)
    weights = weights / weights.sum()
    x = levels[128:].repeat_interleave(25)[:, None]  # the lower half is alike
    rng, end = cast(Any, Midpoints(noise.repeat(128))), process.schedule.time(2 * math.log(10 * 127.5))
    found = continuous_bound(data.denoiser(process), x, terms=64, rng=rng, end=end)
    assert (weights * found.bits_per_dim).sum().item() == pytest.approx(8, abs=5e-4)
    coarse = vlb_terms(data.denoiser(process), x, (1.0, 0.01, 1e-3, 1e-4, 1e-5, 1e-6, 0.0), rng=rng)
    assert (weights * coarse.bits_per_dim).sum() > 8.0


@pytest.mark.parametrize("variance", [Posterior(), Transition()], ids=["posterior", "transition"])
@pytest.mark.parametrize("steps", [10, 100, 1000])
def test_a_bound_is_never_below_the_entropy(steps: int, variance: Any) -> None:
    """Pictures of two pixels, of which there are five: mean -ELBO >= -sum p log p, and near it with many strides."""
    g = torch.Generator().manual_seed(3)
    points = torch.randint(0, 256, (5, 2), generator=g).double() / 127.5 - 1
    data, process = FiniteData(points, [1, 2, 3, 4, 5]), PROCESSES["table"]
    entropy = -(data.weights * data.weights.log()).sum().item()
    rng = Rng.seeds(range(500))
    x = data.sample(rng.fork("data"))
    times = uniform(process.schedule, steps=steps)
    denoiser = data.denoiser(process)
    found = vlb_estimate(denoiser, x, times, rng=rng, terms=min(steps, 40), variance=variance)
    mean, error = found.total.mean().item(), found.total.std().item() / math.sqrt(500)
    assert mean > entropy - 4 * error
    continuous = continuous_bound(denoiser, x, rng=rng, terms=40)
    mean, error = continuous.total.mean().item(), continuous.total.std().item() / math.sqrt(500)
    assert entropy - 4 * error < mean
    flow = Process(Linear())
    tight = continuous_bound(data.denoiser(flow), x, rng=rng, terms=40)
    assert tight.total.mean().item() == pytest.approx(entropy, abs=0.02 + 5 * tight.total.std().item() / math.sqrt(500))


def test_reading_a_level_off() -> None:
    """P(x | x_t) over the levels is one distribution, whatever the noise; at the resolving time it is nearly free."""
    from carrara.diffusion.likelihood import level_log_prob

    process = PROCESSES["flow"]
    x = torch.linspace(-1, 1, 256, dtype=torch.float64)
    for t in (resolving_time(process.schedule), 0.01, 0.3):
        for x_t in (-1.2, 0.1234, 0.98):
            log_p = level_log_prob(process, x, torch.full_like(x, x_t), t, 256)
            assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert process.schedule.logsnr(resolving_time(process.schedule)) == pytest.approx(13.28, abs=0.01)
    assert resolving_time(PROCESSES["table"].schedule) == 1 / 1000  # no earlier entry
    nearly = process.diffuse(x, t := resolving_time(process.schedule), Rng.seeds([0]).normal((256,))[0].double())
    assert -level_log_prob(process, x, nearly, t, 256).mean() < 0.05


def test_what_is_refused() -> None:
    process = PROCESSES["table"]
    x, rng = torch.ones(2, 3), Rng.seeds([0, 1])
    denoiser = Off(process, x, 0.5)
    with pytest.raises(ValueError, match=r"terms = 3; expected an even number"):
        vlb_estimate(denoiser, x, full(process.schedule), rng=rng, terms=3)
    with pytest.raises(ValueError, match="between levels"):
        vlb_estimate(denoiser, x * 0.5, full(process.schedule), rng=rng)
    with pytest.raises(ValueError, match="between levels"):
        continuous_bound(denoiser, torch.full((2, 3), math.nan), rng=rng)
    with pytest.raises(ValueError, match="end at t = 0"):
        vlb_estimate(denoiser, x, (1.0, 0.5, 0.1), rng=rng)
    with pytest.raises(ValueError, match="expected a time in"):
        continuous_bound(denoiser, x, rng=rng, end=1.0)
