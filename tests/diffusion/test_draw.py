"""Draws of training times: the distributions they claim to be, spread evenly where they say so, unbiased throughout."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from carrara.diffusion import (
    Cosine,
    Importance,
    Linear,
    LinearBetas,
    LogitNormal,
    LogNormal,
    LowDiscrepancy,
    Mode,
    Process,
    Schedule,
    Sigmoid,
    Steps,
    TimeDistribution,
    Uniform,
    VarianceExploding,
)
from carrara.rng import Rng


def named(draw: TimeDistribution) -> str:
    """Its type and settings: the same in every process, which an object's own words are not."""
    return str(draw) if dataclasses.is_dataclass(draw) else type(draw).__name__


DRAWS: list[TimeDistribution] = [
    Uniform(), LogNormal(), LogNormal(5.0, 4.0), LogitNormal(), LogitNormal(0.6, 0.5), Mode(), Mode(-0.9), Mode(0.0),
]  # fmt: skip
SCHEDULES: list[Schedule] = [LinearBetas(), Cosine(), Linear(), VarianceExploding(), Sigmoid()]
SHARES = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("draw", DRAWS, ids=named)
def test_quantiles_rise_within_the_schedule(draw: TimeDistribution, schedule: Schedule) -> None:
    u = torch.cat([torch.zeros(1, dtype=torch.float64), SHARES])
    t = draw.quantile(Process(schedule), u)
    assert t.dtype == torch.float64 and bool((t.diff() >= 0).all())
    assert schedule.t_min <= t.min() and t.max() <= schedule.t_max
    assert bool(schedule.logsnr(t).isfinite().all())


def test_distributions_in_closed_form() -> None:
    process, u = Process(Linear()), SHARES
    low, high = Linear().t_min, Linear().t_max
    np.testing.assert_allclose(Uniform().quantile(process, u), low + (high - low) * u, rtol=1e-14)
    # SD3 eq. 19: density of the logit-normal
    t = LogitNormal(0.6, 0.8).quantile(process, u)
    np.testing.assert_allclose(stats.norm.cdf((torch.log(t / (1 - t)) - 0.6) / 0.8), u, atol=1e-12)
    # EDM: log sigma is normal
    t = LogNormal(-1.2, 1.2).quantile(Process(VarianceExploding()), u)
    np.testing.assert_allclose(stats.norm.cdf((torch.log(80 * t) + 1.2) / 1.2), u, atol=1e-12)
    # SD3 eq. 20, whose t falls as u rises
    for scale in (1.29, 0.5, -0.9):
        t = Mode(scale).quantile(process, u)
        v = 1 - u
        np.testing.assert_allclose(t, 1 - v - scale * (torch.cos(math.pi / 2 * v) ** 2 - 1 + v), atol=1e-4)
    middle = ((Mode(1.5).quantile(process, u) - 0.5).abs() < 0.2).double().mean()
    assert middle > 0.45 > ((Mode(-0.9).quantile(process, u) - 0.5).abs() < 0.2).double().mean() + 0.1


@pytest.mark.parametrize("steps", [1, 7, 1000])
def test_steps_are_equally_likely(steps: int) -> None:
    u = (torch.arange(steps * 5, dtype=torch.float64) + 0.5) / (5 * steps)
    t = Steps(steps).quantile(Process(LinearBetas(steps=steps, first=0.1, last=0.2)), u)
    found, counts = t.unique(return_counts=True)
    assert torch.equal(found, torch.arange(1, steps + 1, dtype=torch.float64) / steps)
    assert counts.tolist() == [5] * steps


@pytest.mark.parametrize(
    "draw", [*DRAWS, Steps(1000), LowDiscrepancy(), LowDiscrepancy(Steps()), Importance()], ids=named
)
def test_a_row_is_drawn_from_its_own_stream(draw: TimeDistribution) -> None:
    process = Process(LinearBetas())
    together = draw(process, Rng.samples(3, range(40, 60), "train").fork("time"))
    again = torch.cat([draw(process, Rng.samples(3, [i], "train").fork("time")) for i in range(40, 60)])
    assert torch.equal(together, again)
    assert not torch.equal(together, draw(process, Rng.samples(4, range(40, 60), "train").fork("time")))


def test_low_discrepancy_fills_every_batch_evenly() -> None:
    process = Process(Linear())
    gaps, spreads = [], []
    for batch in range(20):
        rng = Rng.samples(0, range(batch * 32, batch * 32 + 32), "train")
        u = rng.fork("time").spread()
        gaps.append(torch.cat([u.sort().values.diff(), (u.min() + 1 - u.max())[None]]).max().item())
        t = LowDiscrepancy(LogitNormal())(process, rng.fork("time"))
        assert torch.equal(t, LogitNormal().quantile(process, u))
        spreads.append(abs(LowDiscrepancy()(process, rng.fork("time")).mean().item() - 0.5))
    assert max(gaps) < 2.1 / 32
    assert sum(spreads) / 20 < 0.015  # of independent draws 0.04 (a standard deviation of 0.05)
    # uniform over seeds: a row's share is the start's, which is uniform, moved by a constant
    starts = torch.cat([Rng.samples(seed, [17], "train").spread() for seed in range(2000)])
    assert stats.kstest(starts.numpy(), "uniform").statistic < math.sqrt(math.log(2e9) / 2 / 2000)  # at 1e-9


def test_numbers_and_spread_keep_their_rows() -> None:
    rng = Rng.samples(9, [5, 6, 7], "train", "denoising")
    forked = rng.fork("time", 3).fork("noise")
    assert rng.numbers() == forked.numbers() == (5, 6, 7)
    assert forked.rows(slice(1, 3)).numbers() == (6, 7)
    assert Rng.seeds([8, 2], "prior", 4).fork(1).numbers() == (8, 2)
    assert Rng([("a", 4, "b")]).fork(2).numbers() == (4,)
    assert not torch.equal(forked.spread(), forked.spread())
    assert not torch.equal(rng.fork("a").spread(), rng.fork("b").spread())
    u = rng.fork("a").spread()
    golden = (math.sqrt(5) - 1) / 2
    torch.testing.assert_close(u.diff() % 1, torch.full((2,), golden, dtype=torch.float64), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="no number"):
        Rng([("a",)]).numbers()


class TestImportance:
    """Nichol & Dhariwal 2021, section 3.3."""

    process = Process(LinearBetas(steps=4, first=0.1, last=0.3))

    def told(self, losses: dict[int, list[float]], **settings: Any) -> Importance:
        draw = Importance(steps=4, history=3, **settings)
        number = 0
        for step, values in losses.items():
            for value in values:
                rng = Rng.samples(0, [number])
                loss = torch.tensor([value], dtype=torch.float64)
                draw.record(rng, torch.tensor([step / 4], dtype=torch.float64), loss)
                number += 1
        draw.commit()
        return draw

    def test_uniform_until_every_step_is_known(self) -> None:
        draw = self.told({1: [1.0] * 9, 2: [1.0] * 3, 3: [2.0] * 3, 4: [1.0] * 2})
        assert draw.probabilities().tolist() == [0.25] * 4
        assert draw.correction(torch.tensor([0.25, 1.0])).tolist() == [1, 1]

    def test_in_proportion_to_the_root_mean_square(self) -> None:
        draw = self.told({1: [9.0, 3.0, 4.0, 0.0], 2: [1.0] * 3, 3: [2.0] * 3, 4: [1.0, 2.0, 3.0]}, share=0.01)
        sizes = np.sqrt([25 / 3, 1, 4, 14 / 3])  # of the last three
        expected = 0.99 * sizes / sizes.sum() + 0.01 / 4
        np.testing.assert_allclose(draw.probabilities(), expected, rtol=1e-14)
        t = draw.quantile(self.process, SHARES)
        np.testing.assert_allclose([(t == i / 4).double().mean() for i in range(1, 5)], expected, atol=2e-3)
        assert draw.quantile(self.process, torch.tensor([0.0, 1 - 1e-16], dtype=torch.float64)).tolist() == [0.25, 1.0]

    def test_unbiased(self) -> None:
        """sum_t p_t loss_t / (T p_t) = mean of the losses, whatever p is."""
        draw = self.told({1: [9.0] * 3, 2: [1.0] * 3, 3: [0.0] * 3, 4: [2.0] * 3})
        t = torch.arange(1, 5, dtype=torch.float64) / 4
        loss = torch.tensor([3.0, 1.0, 4.0, 1.5], dtype=torch.float64)
        assert (draw.probabilities() * draw.counted(Rng.samples(0, range(4)), t, loss)).sum() == pytest.approx(
            loss.mean().item(), rel=1e-14
        )

    def test_only_what_teaches_is_remembered_and_only_at_commit(self) -> None:
        draw, t = Importance(steps=4, history=2), torch.tensor([0.25, 0.5], dtype=torch.float64)
        draw.counted(Rng.samples(0, [0, 1]), t, torch.ones(2))
        draw.commit()
        assert draw.counts.tolist() == [0, 0, 0, 0]
        draw.counted(Rng.samples(0, [2, 3]), t, torch.ones(2, requires_grad=True))
        assert draw.counts.tolist() == [0, 0, 0, 0]
        draw.commit()
        assert draw.counts.tolist() == [1, 1, 0, 0]

    def test_cuts_and_processes_do_not_matter(self) -> None:
        rows = torch.randn(24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        t = (torch.arange(24) % 3 + 1).double() / 4

        def part(draw: Importance, cut: slice) -> None:
            draw.record(Rng.samples(0, range(24)[cut]), t[cut], rows[cut])

        whole, micro = Importance(steps=4, history=3), Importance(steps=4, history=3)
        part(whole, slice(0, 24))
        whole.commit()
        for start in (16, 0, 8):  # in any order
            part(micro, slice(start, start + 8))
        micro.commit()
        first, second = Importance(steps=4, history=3), Importance(steps=4, history=3)
        part(first, slice(0, 12))
        part(second, slice(12, 24))
        others: list[Tensor] = []

        def overheard(mine: Tensor) -> Tensor:
            others.append(mine)
            return mine

        second.commit(overheard)
        first.commit(lambda mine: torch.cat([others[0], mine]))
        for draw in (micro, first):
            assert torch.equal(draw.losses, whole.losses) and torch.equal(draw.counts, whole.counts)

    def test_state(self) -> None:
        draw = self.told({1: [9.0, 3.0], 4: [1.0, 2.0, 3.0]})
        draw.record(Rng.samples(0, [99]), torch.ones(1), torch.ones(1))
        other = Importance(steps=4, history=3)
        other.load_state({key: value.clone() for key, value in draw.state().items()})
        other.commit()
        assert torch.equal(other.losses, draw.losses) and torch.equal(other.counts, draw.counts)
        draw.load_state(other.state())
        draw.commit()  # what was pending belongs to another past
        assert torch.equal(other.losses, draw.losses)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Steps(0),
        lambda: LogNormal(std=0.0),
        lambda: LogitNormal(std=-1.0),
        lambda: Mode(-1.1),
        lambda: Mode(1.76),
        lambda: Importance(steps=0),
        lambda: Importance(share=0.0),
        lambda: Importance(history=0),
        lambda: LowDiscrepancy(Importance()),
        lambda: Steps(7)(Process(LinearBetas()), Rng.samples(0, range(2))),
        lambda: Importance(steps=7)(Process(LinearBetas()), Rng.samples(0, range(2))),
    ],
)
def test_refused(wrong: Callable[[], object]) -> None:
    with pytest.raises(ValueError):
        wrong()
