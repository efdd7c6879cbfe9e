"""The discriminator of parts: what a logit sees, and what it does not."""

from __future__ import annotations

import pytest
import torch

from carrara.nn.patch_discriminator import PatchDiscriminator
from nn.networks import perturb


@pytest.mark.parametrize("depth, seen", [(1, 16), (2, 34), (3, 70)])
def test_a_logit_sees_a_part(depth: int, seen: int) -> None:
    """16, 34 and 70 pixels a side: Pix2Pix's three patches."""
    torch.manual_seed(0)
    network = perturb(PatchDiscriminator(width=4, depth=depth, norm="none"))
    side = 4 * seen // 2**depth * 2**depth
    x = torch.zeros(1, 3, side, side, requires_grad=True)
    logits = network(x)
    assert logits.shape[:2] == (1, 1)
    middle = logits.shape[-1] // 2
    logits[0, 0, middle, middle].backward()
    assert x.grad is not None
    rows = x.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert int(rows.max() - rows.min() + 1) == seen


def test_rows_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    network = perturb(PatchDiscriminator(width=8))
    x = torch.randn(3, 3, 24, 32)
    torch.testing.assert_close(network(x)[1:2], network(x[1:2]))
    assert network(x).dtype == torch.float32


def test_pictures_that_are_too_small() -> None:
    network = PatchDiscriminator(width=4, depth=2)
    assert network(torch.zeros(1, 3, 12, 12)).shape == (1, 1, 1, 1)
    with pytest.raises(ValueError, match="needs 12 pixels a side"):
        network(torch.zeros(1, 3, 11, 12))
    with pytest.raises(ValueError, match="depth = 0"):
        PatchDiscriminator(depth=0)
