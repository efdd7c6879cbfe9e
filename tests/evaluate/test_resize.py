"""What the networks that measure see: Pillow's antialiased bicubic filter, and a range that is never guessed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from carrara.evaluate.resize import levels, resize


def by_pillow(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Each channel by itself in floating point, (H, W, C)."""
    planes = [Image.fromarray(pixels[..., c].astype(np.float32)) for c in range(pixels.shape[2])]
    done = [np.asarray(plane.resize(size[::-1], Image.Resampling.BICUBIC)) for plane in planes]
    return np.clip(np.stack(done, -1), 0, 255)


@given(
    st.tuples(st.integers(3, 70), st.integers(3, 70)),
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.integers(0, 2**32 - 1),
)
def test_pillow(have: tuple[int, int], want: tuple[int, int], seed: int) -> None:
    """Larger and smaller, in both directions, by any factor: equal to a ten-thousandth of a grey level and a bit."""
    pixels = np.random.default_rng(seed).integers(0, 256, (1, *have, 3), dtype=np.uint8)
    found = resize(levels(pixels), want)[0].permute(1, 2, 0).numpy()
    assert np.abs(found - by_pillow(pixels[0], want)).max() < 1e-3


def test_a_fine_pattern_becomes_grey() -> None:
    """A chessboard of single pixels, made a fifth of its size: without a wide filter it would stay black and white."""
    board = np.indices((60, 60)).sum(0) % 2 * 255
    small = resize(levels(board[None, :, :, None].astype(np.uint8)), (12, 12))
    assert (small - 127.5).abs().max() < 4


def test_the_same_size_is_left_alone() -> None:
    images = levels(np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8))
    assert resize(images, (5, 7)) is images


def test_kinds_of_pictures() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    assert torch.equal(levels(grey)[0, 2], torch.arange(256.0).reshape(16, 16))
    deep = grey.astype(np.uint16) * 257
    assert torch.equal(levels(deep), levels(grey))


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((1, 4, 4, 3), np.float32), np.zeros((4, 4, 3), np.uint8), np.zeros((1, 4, 4, 4), np.uint8)],
)
def test_refusals(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError):
        levels(pixels)
