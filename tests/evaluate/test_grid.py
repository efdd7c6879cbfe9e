"""Pictures to bytes: values, channels, geometry, and the refusal to show what is not a number."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from carrara.errors import NonFiniteError
from carrara.evaluate.grid import data_uri, fit_scale, pictures, png_bytes, sheet, split_channels, strip, to_uint8


def test_every_byte_survives_the_round_trip():
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    back = to_uint8(levels.float() / 127.5 - 1)
    assert back.shape == (1, 16, 16, 1)
    assert (back[..., 0] == levels[:, 0].numpy()).all()


def test_values_beyond_the_range_are_cut_and_low_precision_works():
    x = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0], dtype=torch.bfloat16).reshape(1, 1, 1, 5)
    assert to_uint8(x).ravel().tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_values_are_named_not_blackened(value):
    x = torch.zeros(4, 3, 2, 2)
    x[2, 1, 0, 0] = value
    with pytest.raises(NonFiniteError, match=r"1 of 4 pictures.*number 2"):
        to_uint8(x)
    with pytest.raises(NonFiniteError):
        sheet(x, 2)


@pytest.mark.parametrize(
    "x", [torch.zeros(3, 4, 4), torch.zeros(1, 0, 4, 4), torch.zeros(1, 3, 4, 4, dtype=torch.uint8)]
)
def test_wrong_pictures_are_refused(x):
    with pytest.raises(ValueError, match="expected"):
        to_uint8(x)


@pytest.mark.parametrize("channels,mode", [(1, "L"), (2, "RGB"), (3, "RGB"), (4, "RGBA"), (7, "RGB")])
def test_any_number_of_channels_is_shown(channels, mode):
    x = torch.rand(2, channels, 5, 6) * 2 - 1
    first, _ = pictures(x)
    assert (first.mode, first.size) == (mode, (6, 5))
    assert sheet(x, 2).mode == "RGB"
    if channels == 7:
        assert (np.asarray(first) == to_uint8(x)[0, :, :, :3]).all()


def test_split_channels_keeps_the_order():
    x = torch.rand(2, 5, 3, 3)
    split = split_channels(x)
    assert split.shape == (10, 1, 3, 3)
    assert torch.equal(split[7, 0], x[1, 2])


@pytest.mark.parametrize("n,columns,gap,scale", [(5, 2, 2, 1), (5, 9, 0, 3), (1, 1, 4, 2)])
def test_sheet_geometry(n, columns, gap, scale):
    x = torch.rand(n, 3, 4, 6) * 2 - 1
    image = sheet(x, columns, gap=gap, scale=scale)
    used, rows = min(columns, n), -(-n // min(columns, n))
    assert image.size == (used * (6 * scale + gap) + gap, rows * (4 * scale + gap) + gap)
    expected = to_uint8(x).repeat(scale, axis=1).repeat(scale, axis=2)
    pixels = np.asarray(image)
    for i in range(n):
        top, left = gap + i // used * (4 * scale + gap), gap + i % used * (6 * scale + gap)
        assert (pixels[top : top + 4 * scale, left : left + 6 * scale] == expected[i]).all()


def test_captions_stay_below_their_picture():
    x = torch.ones(2, 3, 16, 60)
    plain = sheet(x, 2)
    labels = ["", "a caption that is\nfar too long for its cell and averylongwordwithoutanyspaceinit \x00"]
    labelled = sheet(x, 2, labels=labels)
    assert labelled.width == plain.width
    assert labelled.height > plain.height + 12
    pixels = np.asarray(labelled).astype(int)
    assert (pixels[2:18, 2:62] == 255).all()
    dark = (pixels[18:] < 150).all(axis=-1)
    assert dark[:, 64:124].any()
    assert not dark[:, :64].any()
    assert not dark[:, 124:].any()


def test_wrong_sheets_are_refused():
    x = torch.zeros(2, 1, 4, 4)
    with pytest.raises(ValueError, match="1 labels for 2"):
        sheet(x, 2, labels=["a"])
    for images, columns, options in ((x[:0], 1, {}), (x, 0, {}), (x, 1, {"scale": 0}), (x, 1, {"gap": -1})):
        with pytest.raises(ValueError, match="at least one"):
            sheet(images, columns, **options)
    with pytest.raises(ValueError, match="at least one"):
        strip(x[:0])


def test_strip_is_one_row_and_png_is_repeatable():
    x = torch.rand(3, 1, 4, 4)
    image = strip(x, gap=1, scale=fit_scale(4, at_least=10))
    assert image.size == (3 * 13 + 1, 14)
    assert png_bytes(image) == png_bytes(image)
    uri = data_uri(image)
    assert uri.startswith("data:image/png;base64,")
    back = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    assert (np.asarray(back) == np.asarray(image)).all()


@pytest.mark.parametrize("side,scale", [(1, 96), (32, 3), (33, 3), (96, 1), (500, 1)])
def test_fit_scale(side, scale):
    assert fit_scale(side) == scale
