"""Neighbours: found as by comparing everything with everything, counted as the captions say, in any precision."""

from __future__ import annotations

import pytest
import torch

from carrara.evaluate.fidelity import Nearest, fidelity, nearest, retrieval


def test_nearest_is_the_smallest_of_all_distances() -> None:
    torch.manual_seed(0)
    queries, references = torch.randn(7, 2, 3), torch.randn(5, 2, 3)
    found = nearest(queries, references, chunk=3)
    every = (queries[:, None] - references[None]).flatten(2).norm(dim=2)
    assert torch.equal(found.index, every.argmin(1))
    torch.testing.assert_close(found.distance, every.amin(1))
    itself = nearest(references, references)
    assert torch.equal(itself.index, torch.arange(5))


@pytest.mark.parametrize("references", [torch.zeros(4, 7), torch.zeros(0, 6)])
def test_what_cannot_be_compared_is_refused(references: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="expected vectors of one length"):
        nearest(torch.zeros(2, 6), references)


def test_fidelity_counts_prompts_among_all_captions_of_the_nearest() -> None:
    found = Nearest(torch.tensor([0, 1, 1]), torch.zeros(3))
    share, right = fidelity(["red", "cat", "red"], found, [("red", "apple"), ("a cat", "cat")])
    assert right == [True, True, False]
    assert share == pytest.approx(2 / 3)
    assert fidelity([], Nearest(torch.empty(0), torch.empty(0)), []) == (0.0, [])


def test_retrieval_looks_at_the_k_best() -> None:
    pictures = torch.eye(4)
    texts = torch.tensor([[1.0, 0.5, 0.0, 0.0], [0.9, 1.0, 0.0, 0.0], [0.0, 0.0, 0.3, 0.4]])
    assert retrieval(texts, pictures, [0, 1, 3], k=1) == 1.0
    assert retrieval(texts, pictures, [1, 0, 2], k=1) == 0.0
    assert retrieval(texts, pictures, [1, 0, 2], k=2) == 1.0
    assert retrieval(texts, pictures, [3, 3, 0], k=9) == 1.0  # more than there are


def test_low_precision_around_it_makes_no_ties() -> None:
    """Scores that bfloat16 cannot tell apart are told apart."""
    pictures = torch.tensor([[1.0, 0.0], [1.0, 1e-4], [1.0, 2e-4]])
    texts = torch.tensor([[1.0, 1.0]])
    with torch.autocast("cpu", torch.bfloat16):
        assert retrieval(texts, pictures, [2], k=1) == 1.0
