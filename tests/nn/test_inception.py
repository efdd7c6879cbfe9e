"""Inception-v3 in the layout of the published weights: its names and sizes, and what sets it apart from others."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from carrara.nn.inception import InceptionV3


def network(shrink: int = 16) -> InceptionV3:
    torch.manual_seed(0)
    return InceptionV3(shrink=shrink, classes=1008 // shrink).eval().requires_grad_(False)


def test_names_and_sizes_of_the_published_file() -> None:
    with torch.device("meta"):
        whole = InceptionV3()
    state = whole.state_dict()
    assert len(state) == 94 * 6 + 2  # 94 convolutions, and the classes
    without_classes = 21_768_352 + 17_216  # Keras's without its norms' scales, and these
    assert sum(p.numel() for p in whole.parameters()) == without_classes + 1008 * 2049
    assert state["Mixed_6c.branch7x7dbl_4.conv.weight"].shape == (160, 160, 7, 1)
    assert state["Mixed_7c.branch3x3dbl_3b.bn.running_var"].shape == (384,)
    assert state["fc.weight"].shape == (1008, 2048)


def test_a_small_one_has_its_shape() -> None:
    small = network()
    features = small(torch.randn(2, 3, 299, 299))
    assert features.shape == (2, 128)
    assert small.logits(features).shape == (2, 63)
    assert list(small.state_dict()) == list(network(8).state_dict())


def test_sizes_on_the_way() -> None:
    small, seen = network(), []
    for name in ("Conv2d_1a_3x3", "Conv2d_4a_3x3", "Mixed_5d", "Mixed_6e", "Mixed_7c"):
        small.get_submodule(name).register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape[2:])))
    small(torch.randn(1, 3, 299, 299))
    assert seen == [(149, 149), (71, 71), (35, 35), (17, 17), (8, 8)]


def test_pooling_does_not_count_the_padding_and_the_last_takes_the_maximum() -> None:
    """A constant picture stays constant under an average without padding, and under a maximum."""
    small = network()
    x = torch.ones(1, 128, 8, 8)
    for name, pooled in (("Mixed_7c", F.max_pool2d(x, 3, 1, 1)), ("Mixed_5b", torch.ones(1, 12, 8, 8))):
        block = small.get_submodule(name)
        inputs = x if name == "Mixed_7c" else torch.ones(1, 12, 8, 8)
        branch = block(inputs)[:, -block.branch_pool.conv.out_channels :]
        torch.testing.assert_close(branch, block.branch_pool(pooled))


def test_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="shrink is 3"):
        InceptionV3(shrink=3)
