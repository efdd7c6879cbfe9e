"""Text chunks of a PNG: what other programs write is read, and what nobody should have written is refused in time."""

from __future__ import annotations

import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from carrara.data import write_picture
from carrara.data.png_text import MOST, read_png_text
from carrara.errors import DataError, StorageError

NAMES = ("parameters", "carrara")


def chunk(kind: bytes, data: bytes, *, check: bytes | None = None, length: int | None = None) -> bytes:
    crc = zlib.crc32(kind + data).to_bytes(4, "big") if check is None else check
    return struct.pack(">I", len(data) if length is None else length) + kind + data + crc


def write(path: Path, *chunks: bytes, end: bool = True) -> Path:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0\0"))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + (chunk(b"IEND", b"") if end else b""))
    return path


TEXTS = ["a red apple\nNegative prompt: é\nSteps: 3", '漢字 🍎, a "quote"', "", "x" * 5000]


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_written_is_read_here_and_by_pillow(text: str, tmp_path: Path) -> None:
    for name, other in (("parameters", "carrara"), ("carrara", "parameters")):
        path = tmp_path / f"{name}.png"
        write_picture(path, np.zeros((2, 3, 3), np.uint8), {name: text, other: "second"})
        assert read_png_text(path, NAMES) == {name: text, other: "second"}
        with Image.open(path) as image:
            image.load()
            assert image.info[name] == text


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("text", TEXTS)
def test_what_pillow_writes_is_read(text: str, packed: bool, tmp_path: Path) -> None:
    """tEXt, zTXt and iTXt, before the pixels; and behind them, as other programs do."""
    said = PngImagePlugin.PngInfo()
    said.add_text("parameters", text, zip=packed)
    said.add_itxt("carrara", text, lang="en", tkey="übersetzt", zip=packed)
    Image.new("RGB", (2, 2)).save(tmp_path / "one.png", pnginfo=said)
    assert read_png_text(tmp_path / "one.png", NAMES) == {"parameters": text, "carrara": text}
    assert read_png_text(tmp_path / "one.png", ("other",)) == {}
    body = (tmp_path / "one.png").read_bytes()
    late = body[:-12] + chunk(b"tEXt", b"late\0here") + body[-12:]
    (tmp_path / "late.png").write_bytes(late)
    assert read_png_text(tmp_path / "late.png", ("late",)) == {"late": "here"}


def test_the_first_of_a_name_counts_and_others_are_not_opened(tmp_path: Path) -> None:
    bomb = chunk(b"zTXt", b"other\0\0" + zlib.compress(b"x" * (64 << 20)))
    path = write(tmp_path / "a.png", bomb, chunk(b"tEXt", b"carrara\0one"), chunk(b"tEXt", b"carrara\0two"))
    assert read_png_text(path, NAMES) == {"carrara": "one"}


BOMB = zlib.compress(b"x" * (256 << 20), 9)
HOSTILE = {
    "a zTXt bomb": (chunk(b"zTXt", b"carrara\0\0" + BOMB), "more than 1,048,576 bytes"),
    "an iTXt bomb": (chunk(b"iTXt", b"carrara\0\1\0\0\0" + BOMB), "more than 1,048,576 bytes"),
    "a bomb in a bomb": (chunk(b"zTXt", b"carrara\0\0" + zlib.compress(BOMB * 9)), "more than"),
    "a long text": (chunk(b"tEXt", b"carrara\0" + b"x" * (MOST + 1)), "more than"),
    "a long chunk": (chunk(b"tEXt", b"carrara\0" + b"x" * (MOST + 999)), "more than"),
    "a wrong sum": (chunk(b"tEXt", b"carrara\0abc", check=b"1234"), "is damaged"),
    "cut off": (chunk(b"tEXt", b"carrara\0abc", length=9000), "is damaged"),
    "a huge length": (chunk(b"tEXt", b"carrara\0abc", length=0xFFFFFFFF), "more than"),
    "no deflate": (chunk(b"zTXt", b"carrara\0\0" + b"nothing at all"), "is damaged"),
    "half a deflate": (chunk(b"zTXt", b"carrara\0\0" + zlib.compress(b"a" * 99)[:-6]), "is damaged"),
    "an empty zTXt": (chunk(b"zTXt", b"carrara\0"), "is damaged"),
    "an iTXt without parts": (chunk(b"iTXt", b"carrara\0\0\0en"), "is damaged"),
    "an iTXt without flags": (chunk(b"iTXt", b"carrara\0"), "is damaged"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_chunks_are_refused_in_time(name: str, tmp_path: Path) -> None:
    data, says = HOSTILE[name]
    began = time.process_time()
    with pytest.raises(DataError, match=says):
        read_png_text(write(tmp_path / "a.png", data), NAMES)
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    "data",
    [
        chunk(b"tEXt", b"carrara"),  # no text at all
        chunk(b"tEXt", b"x" * 200 + b"carrara\0abc"),  # a name that is too long
        chunk(b"tEXt", b"\0carrara"),
        chunk(b"IEND", b"") + chunk(b"tEXt", b"carrara\0behind the end"),
    ],
)
def test_what_is_no_text_of_ours(data: bytes, tmp_path: Path) -> None:
    assert read_png_text(write(tmp_path / "a.png", data), NAMES) == {}


def test_bytes_that_are_no_letters_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", chunk(b"iTXt", b"carrara\0\0\0\0\0\xff\xfeabc"), end=False)
    assert read_png_text(path, NAMES)["carrara"].endswith("abc")


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("a.jpg", "empty.png"):
        with pytest.raises(DataError, match="is no PNG"):
            read_png_text(tmp_path / name, NAMES)
    with pytest.raises(StorageError, match=r"none\.png cannot be read"):
        read_png_text(tmp_path / "none.png", NAMES)
    (tmp_path / "many.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"abcd", b"") * 70000)
    with pytest.raises(DataError, match="more than 65,536 chunks"):
        read_png_text(tmp_path / "many.png", NAMES)
