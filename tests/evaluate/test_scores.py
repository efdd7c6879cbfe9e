"""Scores of single sets, at the values that follow from what they mean."""

from __future__ import annotations

import math

import pytest
import torch

from carrara.evaluate.memorisation import memorisation
from carrara.evaluate.scores import class_score, diversity, fit


def test_sure_and_evenly_spread_gives_the_number_of_classes() -> None:
    logits = torch.eye(8).repeat(20, 1) * 60
    mean, spread = class_score(logits[torch.randperm(160, generator=torch.Generator().manual_seed(0))].sort(0).values)
    assert mean >= 1
    even = torch.eye(8).repeat_interleave(20, 0) * 60  # taken in turn, each part has two of each class
    assert class_score(even) == pytest.approx((8, 0), abs=1e-6)
    assert spread >= 0


@pytest.mark.parametrize("logits", [torch.zeros(40, 5), torch.eye(5)[0].repeat(40, 1) * 60])
def test_unsure_or_all_alike_gives_one(logits: torch.Tensor) -> None:
    assert class_score(logits) == pytest.approx((1, 0), abs=1e-6)


def test_class_score_by_hand() -> None:
    torch.manual_seed(0)
    logits = torch.randn(40, 6)
    scores = []
    for part in range(10):
        p = torch.softmax(logits[part::10].double(), 1)
        mean = p.mean(0)
        scores.append(math.exp(sum(float((row * (row / mean).log()).sum()) for row in p) / 4))
    found = class_score(logits)
    assert found[0] == pytest.approx(sum(scores) / 10)
    with pytest.raises(ValueError, match="at least 20"):
        class_score(logits[:19])


def test_fit() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0], [1.0, 0.0]])
    y = torch.tensor([[5.0, 0.0], [1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    assert fit(x, y) == pytest.approx(100 * (1 + 0 + math.sqrt(0.5) + 0) / 4)
    with pytest.raises(ValueError, match="two equal"):
        fit(x, y[:3])


def test_diversity() -> None:
    torch.manual_seed(0)
    real = torch.randn(500, 16)
    prompts = [f"prompt {i // 10}" for i in range(200)]
    assert diversity(torch.randn(200, 16), prompts, real) == pytest.approx(1, abs=0.05)
    assert diversity(0.3 * torch.randn(200, 16), prompts, real) == pytest.approx(0.3, abs=0.02)
    apart = torch.randn(20, 16).repeat_interleave(10, 0)  # different prompts, each always the same picture
    assert diversity(apart, prompts, real) == 0
    with pytest.raises(ValueError, match="both must vary"):
        diversity(real[:3], ["a", "b", "c"], real)
    with pytest.raises(ValueError, match="both must vary"):
        diversity(real[:2], ["a", "a"], real[:1].repeat(9, 1))


def test_copies_are_found() -> None:
    torch.manual_seed(0)
    training, heldout, samples = (torch.randn(n, 12) for n in (200, 40, 30))
    samples[:6] = training[:6] + 1e-3
    found = memorisation(samples, training, heldout)
    assert found.share >= 0.2
    assert sorted(found.worst(6)) == [0, 1, 2, 3, 4, 5]
    assert found.number[:6].tolist() == [0, 1, 2, 3, 4, 5]
    assert found.threshold == pytest.approx(torch.cdist(heldout, training).min().item(), rel=1e-5)
    assert found.duplicates == 0


def test_honest_samples_are_not_suspected_beyond_chance() -> None:
    """The least of 40 distances is undercut by a sample in 1 of 41 cases."""
    torch.manual_seed(1)
    shares = [memorisation(torch.randn(30, 12), torch.randn(200, 12), torch.randn(40, 12)).share for _ in range(40)]
    assert sum(shares) / 40 < 0.06


def test_held_out_duplicates_do_not_hide_copies() -> None:
    torch.manual_seed(0)
    training, heldout = torch.randn(200, 12), torch.randn(20, 12)
    heldout[3] = training[9]
    found = memorisation(training[:10].clone(), training, heldout)
    assert found.share == 1
    assert found.duplicates == 1
    assert len(found.heldout) == 19
    with pytest.raises(ValueError, match="some must be of their own"):
        memorisation(training[:3], training, training[:5])
    with pytest.raises(ValueError, match="0 pictures are held out"):
        memorisation(training[:3], training, training[:0])
