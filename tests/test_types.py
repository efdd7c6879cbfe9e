"""Conditions: stacked, padded, cut, mixed and partly dropped, without a row ever changing its meaning."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from carrara.types import Batch, Condition, Gaussian


def full(rows: int, length: int, seed: int = 0, mask: bool = True) -> Condition:
    g = torch.Generator().manual_seed(seed)
    return Condition(
        tokens=torch.randn(rows, length, 4, generator=g),
        mask=torch.rand(rows, length, generator=g) > 0.3 if mask else None,
        vector=torch.randn(rows, 3, generator=g),
        numbers={"a": torch.randn(rows, generator=g), "b": torch.randn(rows, generator=g)},
        image=torch.randn(rows, 1, 2, 2, generator=g),
        controls={"edge": torch.randn(rows, 1, 4, 4, generator=g)},
        adapters={"face": torch.randn(rows, 2, 4, generator=g)},
    )


def same(a: Condition, b: Condition) -> None:
    for part in dataclasses.fields(Condition):
        x, y = getattr(a, part.name), getattr(b, part.name)
        if isinstance(x, dict):
            assert set(x) == set(y)
            assert all(torch.equal(x[name], y[name]) for name in x)
        else:
            assert (x is None) == (y is None), part.name
            assert x is None or torch.equal(x, y), part.name


def test_stack_and_rows_are_inverse() -> None:
    a, b, c = full(2, 5), full(1, 5, seed=1), full(3, 5, seed=2)
    stacked = Condition.stack([a, b, c])
    same(stacked.rows(slice(0, 2)), a)
    same(stacked.rows(slice(2, 3)), b)
    same(stacked.rows([3, 4, 5]), c)
    same(stacked.rows(torch.tensor([5, 2])), Condition.stack([c.rows([2]), b]))
    assert Condition.stack([a]) is a
    same(Condition.stack([Condition(), Condition()]), Condition())


def test_stack_pads_and_masks() -> None:
    a, b = full(2, 3), full(1, 5, seed=1, mask=False)
    stacked = Condition.stack([a, b])
    assert stacked.tokens is not None and stacked.mask is not None and a.tokens is not None and a.mask is not None
    assert stacked.tokens.shape == (3, 5, 4) and stacked.mask.dtype == torch.bool
    assert torch.equal(stacked.tokens[:2, :3], a.tokens) and not stacked.tokens[:2, 3:].any()
    assert torch.equal(stacked.mask[:2, :3], a.mask) and not stacked.mask[:2, 3:].any()
    assert bool(stacked.mask[2].all())  # no mask means that every token counts
    # of one length and without masks there is nothing to say
    assert Condition.stack([full(1, 5, mask=False), b]).mask is None


def test_stack_refuses_what_differs() -> None:
    a = full(1, 3)
    for other, name in (
        (a.drop(["vector"]), "vector"),
        (a.drop(["image"]), "image"),
        (a.drop(["numbers"]), "numbers"),
        (a.drop(["tokens"]), "tokens"),
    ):
        with pytest.raises(ValueError, match=name):
            Condition.stack([a, other])
        with pytest.raises(ValueError, match=name):
            a.where(torch.tensor([True]), other)


def test_where_chooses_rows() -> None:
    a, null = full(4, 5), full(1, 2, seed=1)
    keep = torch.tensor([True, False, True, False])
    mixed = a.where(keep, null)
    padded = Condition.stack([a, null])
    same(mixed.rows([0, 2]), a.rows([0, 2]))
    same(mixed.rows([1]), padded.rows([4]))
    same(mixed.rows([3]), padded.rows([4]))
    same(a.where(torch.ones(4, dtype=torch.bool), null), a)
    b = full(4, 5, seed=2)
    same(a.where(keep, b).rows([1, 3]), b.rows([1, 3]))


def test_where_pads_the_shorter_side() -> None:
    a, null = full(2, 2), full(1, 6, seed=1)
    mixed = a.where(torch.tensor([True, False]), null)
    assert mixed.tokens is not None and mixed.tokens.shape == (2, 6, 4)
    assert mixed.mask is not None and not mixed.mask[0, 2:].any()


def test_drop() -> None:
    a = full(2, 3)
    dropped = a.drop(["tokens", "numbers", "adapters"])
    assert dropped.tokens is None and dropped.mask is None and dropped.numbers == {} and dropped.adapters == {}
    assert dropped.vector is a.vector and dropped.image is a.image
    assert a.tokens is not None  # frozen: the original stays
    with pytest.raises(ValueError, match=r"\['text'\]"):
        a.drop(["text"])


def test_to_changes_floating_parts_alone() -> None:
    a = full(2, 3).to("cpu", torch.float64)
    assert a.tokens is not None and a.mask is not None
    assert a.tokens.dtype == a.numbers["a"].dtype == torch.float64 and a.mask.dtype == torch.bool
    same(full(2, 3).to("cpu"), full(2, 3))
    assert full(2, 3).to("meta").controls["edge"].device.type == "meta"


def test_a_mask_alone_is_no_reason_to_pad() -> None:
    mask = torch.ones(1, 3, dtype=torch.bool)
    stacked = Condition.stack([Condition(mask=mask), Condition(mask=mask)])
    assert stacked.mask is not None and stacked.mask.shape == (2, 3)


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        full(1, 2).vector = None  # type: ignore[misc]


def test_gaussian_std() -> None:
    assert Gaussian(torch.zeros(2), 4.0).std == 2.0
    std = Gaussian(torch.zeros(2), torch.tensor([4.0, 9.0])).std
    assert isinstance(std, torch.Tensor) and std.tolist() == [2.0, 3.0]
    assert math.isclose(Gaussian(torch.zeros(2), 0.0).std, 0.0)


def test_batch_length() -> None:
    assert len(Batch(torch.zeros(3, 1, 2, 2), ("", "", ""), (0, 1, 2), (0, 1, 2))) == 3
