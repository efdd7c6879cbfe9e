"""What is written reads back bit by bit, whatever the channels and the depth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from carrara.data import write_picture
from carrara.data.formats import decode
from carrara.errors import StorageError


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("ending", [".png", ".tif", ".npy"])
def test_round_trip(tmp_path: Path, ending: str, dtype: Any, channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (9, 11, channels), dtype=dtype)
    path = tmp_path / f"new{ending}"
    if ending == ".png" and channels > 4:
        with pytest.raises(ValueError, match="channels"):
            write_picture(path, pixels)
        return
    write_picture(path, pixels)
    assert np.array_equal(decode(path.read_bytes()).pixels, pixels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_text_rides_along_in_a_png(tmp_path: Path, dtype: Any, channels: int) -> None:
    path = tmp_path / "a.png"
    said = {"carrara": '{"prompt": "ein roter Apfel, \u0444"}', "other": ""}
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (5, 6, channels), dtype=dtype)
    write_picture(path, pixels, said)
    with Image.open(path) as image:
        image.load()
        assert dict(image.text) == said
    assert np.array_equal(decode(path.read_bytes()).pixels, pixels)


def test_text_rides_along_in_a_tiff(tmp_path: Path) -> None:
    import tifffile

    write_picture(tmp_path / "a.tiff", np.zeros((5, 6, 7), np.uint8), {"carrara": "\u0444"})
    with tifffile.TiffFile(tmp_path / "a.tiff") as file:
        assert json.loads(file.pages[0].description) == {"carrara": "\u0444"}


def test_refusals(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="does not end in"):
        write_picture(tmp_path / "a.jpg", pixels)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        write_picture(tmp_path / "file" / "a.png", pixels)
