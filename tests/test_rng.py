"""Keyed randomness: a draw is a function of its words and its number, and of nothing else."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch

from carrara.rng import Rng, keyed, permutation


def test_equal_words_give_equal_draws_in_every_process() -> None:
    code = "from carrara.rng import keyed; print(keyed(0, 'noise', 3).integers(2**62))"
    other = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert other == keyed(0, "noise", 3).integers(2**62)


def test_the_stream_is_fixed_for_good() -> None:
    """Pictures of a seed must be the same in every version: this is the definition, and not a measurement."""
    import hashlib

    key = np.frombuffer(hashlib.blake2b(b"int:0\x1fstr:a", digest_size=16).digest(), dtype="<u8")
    expected = np.random.Generator(np.random.Philox(key=key)).standard_normal(5)
    np.testing.assert_array_equal(keyed(0, "a").standard_normal(5), expected)


def test_words_are_told_apart() -> None:
    words = [(0,), (1,), ("0",), (0, 0), ("0", "0"), ("00",), (0, "0"), ("a", "b"), ("ab",), ("a", "b", ""), (-1,), ()]
    draws = [keyed(*each).integers(2**62) for each in words]
    assert len(set(draws)) == len(words)


def test_integers_count_by_value_whatever_their_type() -> None:
    expected = keyed(3, "x").integers(2**62)
    for three in (np.int64(3), np.uint8(3), torch.tensor(3)):
        assert keyed(three, "x").integers(2**62) == expected  # type: ignore[arg-type]
    for wrong in (3.0, None, (3,)):
        with pytest.raises(TypeError):
            keyed(wrong)  # type: ignore[arg-type]


def test_rows_are_independent_of_their_neighbours() -> None:
    seeds = [5, 0, 7, 2**63, 3]
    together = Rng.seeds(seeds, "prior")
    draws = [together.normal((3, 4)), together.uniform((2,)), together.integers(1000, (6,)), together.normal(())]
    for i, seed in enumerate(seeds):
        alone = Rng.seeds([seed], "prior")
        again = [alone.normal((3, 4)), alone.uniform((2,)), alone.integers(1000, (6,)), alone.normal(())]
        for a, b in zip(again, draws, strict=True):
            assert torch.equal(a[0], b[i])


def test_draws_follow_one_another() -> None:
    rng = Rng.seeds([0, 1])
    a, b = rng.normal((8,)), rng.normal((8,))
    assert not torch.equal(a, b)
    assert not torch.equal(a[0], a[1])
    again = Rng.seeds([0, 1])
    assert torch.equal(again.normal((8,)), a) and torch.equal(again.normal((8,)), b)


def test_forks_are_streams_of_their_own() -> None:
    rng = Rng.seeds([0, 1])
    before = rng.fork("a").normal((8,))
    rng.normal((8,))
    assert torch.equal(rng.fork("a").normal((8,)), before)  # whatever was drawn here
    streams = [rng.fork("b"), rng.fork("a", 1), rng.fork("a", 2), rng.fork("a").fork("a"), Rng.seeds([0, 1])]
    draws = [before, *(stream.normal((8,)) for stream in streams)]
    for a, b in itertools.combinations(draws, 2):
        assert not torch.equal(a, b)
    assert torch.equal(rng.fork("a", 1).normal((8,)), rng.fork("a").fork(1).normal((8,)))


def test_rows_go_on_from_where_they_are() -> None:
    rng = Rng.seeds([4, 5, 6])
    rng.normal((2,))
    some = rng.rows(slice(1, 3))
    assert len(some) == 2
    assert torch.equal(some.normal((2,)), rng.normal((2,))[1:])


def test_samples_are_named_by_their_number() -> None:
    """Whichever ranks and micro-batches a batch is split over, a sample's draws are the same, and all differ."""
    whole = Rng.samples(0, range(16), "train").normal((3,))
    parts = [Rng.samples(0, range(i, i + 4), "train").normal((3,)) for i in (0, 4, 8, 12)]
    assert torch.equal(torch.cat(parts), whole)
    assert len({tuple(row) for row in whole.tolist()}) == 16
    assert not torch.equal(Rng.samples(1, range(16), "train").normal((3,)), whole)
    assert not torch.equal(Rng.samples(0, range(16), "other").normal((3,)), whole)


def test_types_and_shapes() -> None:
    rng = Rng.seeds([0, 1, 2])
    assert rng.normal((2, 2)).dtype == torch.float32 and rng.normal(()).shape == (3,)
    assert rng.uniform().dtype == torch.float64 and rng.uniform((4,)).shape == (3, 4)
    draws = rng.integers(10, (500,))
    assert draws.dtype == torch.int64 and set(draws.flatten().tolist()) == set(range(10))
    x = torch.zeros(3, 2, 5, dtype=torch.float64)
    assert rng.normal_like(x).shape == x.shape and rng.normal_like(x).dtype == torch.float64
    with pytest.raises(ValueError, match="2 rows and this rng has 3 streams"):
        rng.normal_like(x[:2])


def test_moments() -> None:
    """Within bounds that chance exceeds once in a billion."""
    draws = Rng.seeds(range(200), "moments").normal((500,)).double()
    n = draws.numel()
    assert abs(draws.mean()) < 6.1 / n**0.5
    assert abs(draws.var() - 1) < 6.1 * (2 / n) ** 0.5
    assert abs((draws[:-1] * draws[1:]).mean()) < 6.1 / n**0.5  # neighbouring seeds
    uniform = Rng.seeds(range(200)).uniform((500,))
    assert uniform.min() >= 0 and uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 6.1 * (1 / 12 / n) ** 0.5


def test_global_generators_are_untouched() -> None:
    before, state = torch.get_rng_state(), np.random.get_state()[1].copy()
    Rng.seeds([0]).normal((5,))
    permutation(9, 0)
    assert torch.equal(before, torch.get_rng_state())
    np.testing.assert_array_equal(state, np.random.get_state()[1])


def test_permutation() -> None:
    order = permutation(1000, 0, "order", 3)
    assert order.dtype == np.int64 and sorted(order.tolist()) == list(range(1000))
    np.testing.assert_array_equal(order, permutation(1000, 0, "order", 3))
    assert not np.array_equal(order, permutation(1000, 0, "order", 4))
    assert permutation(0, 0).shape == (0,)
