"""Neighbours, on points whose answers are known."""

from __future__ import annotations

import pytest
import torch

from carrara.evaluate.fidelity import fidelity, nearest, retrieval


def test_the_nearest_is_found_whatever_the_chunk() -> None:
    references = torch.tensor([[0.0, 0.0], [3.0, 4.0], [10.0, 0.0]])
    queries = torch.tensor([[0.0, 1.0], [9.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
    for chunk in (1, 3, 100):
        found = nearest(queries, references, chunk=chunk)
        assert found.number.tolist() == [0, 2, 1, 0]
        torch.testing.assert_close(found.distance, torch.tensor([1.0, 1.0, 0.0, 0.0]))
    with pytest.raises(ValueError, match="one length"):
        nearest(queries, torch.zeros(2, 3))


def test_fidelity_asks_for_the_prompt_among_all_captions() -> None:
    found = nearest(torch.eye(3), torch.eye(3))
    share, right = fidelity(["a", "b", "x"], found, [("a",), ("z", "b"), ("c",)])
    assert right == [True, True, False]
    assert share == pytest.approx(2 / 3)


def test_retrieval_counts_the_first_k() -> None:
    texts, pictures = torch.eye(3), torch.tensor([[1.0, 0.9, 0.0], [0.0, 0.8, 0.0], [0.0, 0.0, 1.0]])
    assert retrieval(texts, pictures, [0, 1, 2], k=1) == pytest.approx(2 / 3)  # text 1 prefers picture 0
    assert retrieval(texts, pictures, [0, 1, 2], k=2) == 1.0
