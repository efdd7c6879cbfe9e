"""Pictures are scaled by one factor, antialiased, and cut or padded; masks go the same way with their values kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from carrara.data.transform import place, resize


@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 64), st.integers(1, 64))
def test_placements(height: int, width: int, down: int, across: int) -> None:
    pixels = np.zeros((height, width, 1), np.uint8)
    ground = np.array([7], np.uint8)
    for fit in ("crop", "pad"):
        assert place((height, width), (down, across), fit)(pixels, ground).shape == (down, across, 1)
    whole = place((height, width), (down, across), "random-crop")(pixels, ground)
    assert whole.shape[0] >= down
    assert whole.shape[1] >= across
    assert whole.shape[0] == down or whole.shape[1] == across


@given(st.integers(4, 200), st.integers(4, 200), st.integers(4, 64))
def test_nothing_is_stretched(height: int, width: int, side: int) -> None:
    """The part that is kept has the proportions of the result."""
    left, top, right, bottom = place((height, width), (side, side), "crop").box
    assert (right - left) * width == pytest.approx((bottom - top) * height)
    assert left == pytest.approx(1 - right)
    assert top == pytest.approx(1 - bottom)
    padded = place((height, width), (side, side), "pad")
    assert max(padded.scaled) == side
    assert abs(padded.scaled[0] * width - padded.scaled[1] * height) <= max(height, width)


def test_the_right_size_is_left_alone() -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (16, 16, 5), dtype=np.uint16)
    for fit in ("crop", "pad", "random-crop"):
        placed = place((16, 16), (16, 16), fit)
        assert not placed.upscaled
        assert np.array_equal(placed(pixels, np.zeros(5, np.uint16)), pixels)
    cut = place((16, 24), (16, 16), "crop")(
        np.concatenate([pixels[:, :4], pixels, pixels[:, :4]], 1), np.zeros(5, np.uint16)
    )
    assert np.array_equal(cut, pixels)


def test_upscaling_is_known() -> None:
    assert place((20, 40), (32, 32), "crop").upscaled
    assert not place((32, 40), (32, 32), "crop").upscaled
    assert place((20, 30), (32, 32), "pad").upscaled
    assert not place((20, 33), (32, 32), "pad").upscaled


def test_8_bits_are_pillows_lanczos() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    want = np.asarray(Image.fromarray(pixels).resize((16, 12), Image.Resampling.LANCZOS))
    assert np.array_equal(resize(pixels, (12, 16)), want)
    five = np.concatenate([pixels, pixels[..., :2]], axis=2)
    assert np.abs(resize(five, (12, 16))[..., :3].astype(int) - want).max() <= 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_scaling_down_is_antialiased(dtype: Any) -> None:
    """A fine checkerboard becomes even grey, not a pattern."""
    top = np.iinfo(dtype).max
    board = (np.indices((64, 64)).sum(0) % 2 * top).astype(dtype)[..., None]
    small = resize(board, (8, 8)).astype(float) / top
    assert np.abs(small - 0.5).max() < 0.02


def test_16_bit_ramp_stays_fine_and_monotone() -> None:
    ramp = np.linspace(0, 65535, 2048).astype(np.uint16)[None, :, None].repeat(16, 0)
    small = resize(ramp, (8, 1024))[0, :, 0].astype(int)
    assert (np.diff(small) >= 0).all()
    assert len(np.unique(small)) >= 1000


def test_no_overshoot() -> None:
    """Lanczos rings at an edge; the values stay in range instead of wrapping round."""
    edge = np.zeros((32, 32, 1), np.uint16)
    edge[:, 16:] = 65535
    small = resize(edge, (20, 20))[..., 0]
    assert (small[:, :5] < 3000).all()
    assert (small[:, -5:] > 62000).all()


def test_nearest_keeps_the_values() -> None:
    labels = np.random.default_rng(0).choice([0, 3, 200, 255], (50, 70, 1)).astype(np.uint8)
    assert set(np.unique(resize(labels, (13, 17), nearest=True))) <= {0, 3, 200, 255}
    assert set(np.unique(resize(labels, (130, 170), nearest=True))) <= {0, 3, 200, 255}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_hidden_colours_do_not_bleed(dtype: Any) -> None:
    top = np.iinfo(dtype).max
    pixels = np.zeros((32, 32, 4), dtype)
    pixels[:, :16] = (top, 0, 0, top)
    pixels[:, 16:] = (0, top, 0, 0)  # fully clear green
    small = resize(pixels, (8, 8), alpha=True)
    assert small[..., 1].max() == 0
    assert (small[:, :3, 0] == top).all()


def test_padding_is_centred() -> None:
    pixels = np.full((10, 20, 3), 50, np.uint8)
    placed = place((10, 20), (16, 16), "pad")(pixels, np.array([1, 2, 3], np.uint8))
    assert (placed[:4] == (1, 2, 3)).all()
    assert (placed[4:12] == 50).all()
    assert (placed[12:] == (1, 2, 3)).all()


def test_a_mask_of_another_size_gets_the_same_cut() -> None:
    """The cut is relative: a mask of a quarter of the size shows the same part."""
    pixels = np.zeros((64, 128, 1), np.uint8)
    pixels[16:48, 48:80] = 255
    placed = place((64, 128), (32, 32), "crop")
    big = placed(pixels, np.zeros(1, np.uint8), nearest=True)
    small = placed(pixels[::4, ::4], np.zeros(1, np.uint8), nearest=True)
    assert np.array_equal(big, small)
