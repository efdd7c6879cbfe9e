"""Rotary positions turn what they should, and the product of two of them knows only how far apart they are."""

import pytest
import torch

from carrara.nn.rotary import rotate, turns

WIDTHS = (2, 6)


def turned(x: torch.Tensor, row: float, column: float) -> torch.Tensor:
    return rotate(x, turns((torch.tensor([row]), torch.tensor([column])), WIDTHS))


def test_a_place_of_zero_turns_nothing() -> None:
    x = torch.randn(2, 3, 1, 8)
    assert torch.equal(turned(x, 0, 0), x)
    assert torch.equal(turned(x, 0, 5)[..., :2], x[..., :2])
    assert not torch.allclose(turned(x, 0, 5), x)


def test_products_depend_on_differences_alone() -> None:
    q, k = torch.randn(2, 1, 1, 1, 8)
    product = float((turned(q, 3, 7) * turned(k, 1, 11)).sum())
    assert float((turned(q, 12, -4) * turned(k, 10, 0)).sum()) == pytest.approx(product, abs=1e-5)
    assert float((turned(q, 3, 7) * turned(k, 1, 12)).sum()) != pytest.approx(product, abs=1e-3)
    torch.testing.assert_close(turned(q, 3, 7).norm(), q.norm())


def test_pairs_turn_as_complex_numbers_do() -> None:
    x, angles = torch.randn(1, 1, 1, 6), 5 / 10000.0 ** (torch.arange(0, 6, 2).double() / 6)
    expected = torch.view_as_complex(x.double().unflatten(3, (3, 2))) * torch.polar(torch.ones(3).double(), angles)
    given = rotate(x, turns((torch.tensor([5]),), (6,)))
    torch.testing.assert_close(given, torch.view_as_real(expected).flatten(3).float())
