"""From a folder to tensors: what the numbers are, what the cache promises, and who is held out."""

from __future__ import annotations

import gc
import io
import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import png
import pytest
import tifffile
import torch
from PIL import Image

from carrara.data import DataSettings, Pictures, cache, open_pictures
from carrara.data.formats import decode
from carrara.data.preparation import content_hash
from carrara.data.split import groups, held_out
from carrara.errors import DataError, StorageError

RNG = np.random.default_rng(0)


def write(path: Path, pixels: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.squeeze()).save(path, **options)


def noise(height: int = 16, width: int = 16, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def fill(folder: Path, number: int, **kind: int) -> list[np.ndarray]:
    made = [noise(seed=i, **kind) for i in range(number)]
    for i, pixels in enumerate(made):
        write(folder / f"{i:03}.png", pixels)
    return made


def opened(folder: Path, **settings: Any) -> Pictures:
    settings = {"size": 16, "heldout": 0.0, **settings}
    return open_pictures(DataSettings(folder=str(folder), **settings), folder.parent / "cache")


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_tensor_is_exact(tmp_path: Path) -> None:
    made = fill(tmp_path / "d", 5)
    pictures = opened(tmp_path / "d")
    got = pictures.tensor([3, 1])
    want = torch.from_numpy(np.stack([made[3], made[1]])).permute(0, 3, 1, 2).float() / 255 * 2 - 1
    assert torch.equal(got, want)
    assert (got.dtype, got.shape, got.is_contiguous()) == (torch.float32, (2, 3, 16, 16), True)
    assert np.array_equal(pictures.pixels([3, 1]), np.stack([made[3], made[1]]))
    assert torch.equal(pictures.tensor(torch.tensor([3, 1])), want)
    back = ((got + 1) / 2 * 255).round().to(torch.uint8)
    assert torch.equal(back, torch.from_numpy(pictures.pixels([3, 1])).permute(0, 3, 1, 2))
    with pytest.raises(ValueError, match="there are 5 pictures"):
        pictures.tensor([5])
    with pytest.raises(ValueError, match="index -1"):
        pictures.tensor([-1])


def test_black_and_white_are_minus_one_and_one(tmp_path: Path) -> None:
    write(tmp_path / "d" / "a.png", np.zeros((16, 16, 3), np.uint8))
    write(tmp_path / "d" / "b.png", np.full((16, 16, 3), 255, np.uint8))
    got = opened(tmp_path / "d").tensor([0, 1])
    assert (got[0] == -1).all()
    assert (got[1] == 1).all()


def test_eight_orientations_are_one_tensor(tmp_path: Path) -> None:
    undo = [None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM]
    undo += [
        Image.Transpose.TRANSPOSE,
        Image.Transpose.ROTATE_90,
        Image.Transpose.TRANSVERSE,
        Image.Transpose.ROTATE_270,
    ]
    upright = Image.fromarray(noise(20, 36))
    (tmp_path / "d").mkdir()
    for orientation, turn in enumerate(undo, 1):
        tags = Image.Exif()
        tags[0x0112] = orientation
        (upright.transpose(turn) if turn is not None else upright).save(
            tmp_path / "d" / f"{orientation}.png", exif=tags
        )
    pictures = opened(tmp_path / "d")
    got = pictures.tensor(range(8))
    assert torch.equal(got, got[:1].expand_as(got))
    assert len(set(pictures.content)) == 1


def test_transparency_lies_on_the_declared_background(tmp_path: Path) -> None:
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[..., 0] = 255
    write(tmp_path / "d" / "a.png", pixels)
    assert (opened(tmp_path / "d").tensor([0]) == 1).all()
    assert (opened(tmp_path / "d", background="black").tensor([0]) == -1).all()
    blue = opened(tmp_path / "d", background="#0000ff").pixels([0])
    assert (blue == (0, 0, 255)).all()
    kept = opened(tmp_path / "d", channels=4)
    assert kept.channels == 4
    assert np.array_equal(kept.pixels([0])[0], pixels)


def test_16_bits_keep_their_levels(tmp_path: Path) -> None:
    """A fine ramp comes through file, resize and cache monotone, with more levels than 8 bits have."""
    ramp = np.linspace(0, 65535, 1024).astype(np.uint16)[None, :, None].repeat(1024, 0)
    (tmp_path / "d").mkdir()
    Image.fromarray(ramp[..., 0]).save(tmp_path / "d" / "grey.png")
    pictures = opened(tmp_path / "d", size=512)
    assert (pictures.channels, pictures.depth) == (1, 16)
    row = pictures.tensor([0])[0, 0, 0]
    assert (row.diff() >= 0).all()
    assert len(row.unique()) >= 500
    eight = opened(tmp_path / "d", size=512, depth=8)
    assert eight.depth == 8
    assert len(eight.tensor([0]).unique()) == 256
    assert (eight.tensor([0]) - pictures.tensor([0])).abs().max() < 1.01 / 255


def test_16_bit_colour(tmp_path: Path) -> None:
    deep = RNG.integers(0, 65536, (16, 16, 3), dtype=np.uint16)
    (tmp_path / "d").mkdir()
    with (tmp_path / "d" / "a.png").open("wb") as file:
        png.Writer(16, 16, greyscale=False, bitdepth=16).write(file, deep.reshape(16, -1).tolist())
    pictures = opened(tmp_path / "d")
    assert torch.equal(pictures.tensor([0])[0], torch.from_numpy(deep).permute(2, 0, 1).float() / 65535 * 2 - 1)


@pytest.mark.parametrize("kind", ["tiff", "npy"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_five_channels(tmp_path: Path, kind: str, dtype: Any) -> None:
    pixels = RNG.integers(0, np.iinfo(dtype).max, (16, 16, 5), dtype=dtype)
    (tmp_path / "d").mkdir()
    if kind == "tiff":
        tifffile.imwrite(tmp_path / "d" / "a.tif", pixels, photometric="minisblack", planarconfig="contig")
    else:
        np.save(tmp_path / "d" / "a.npy", pixels)
    pictures = opened(tmp_path / "d")
    assert (pictures.channels, pictures.depth) == (5, 8 * pixels.dtype.itemsize)
    assert np.array_equal(pictures.pixels([0])[0], pixels)
    assert pictures.tensor([0]).shape == (1, 5, 16, 16)


def test_mixed_channels_are_refused_with_names(tmp_path: Path) -> None:
    fill(tmp_path / "d", 3)
    write(tmp_path / "d" / "grey.png", noise(channels=1))
    with pytest.raises(
        DataError, match=r"000\.png and 2 more: colour with 8 bits; grey\.png: grey with 8 bits; set channels = 3"
    ):
        opened(tmp_path / "d")
    assert opened(tmp_path / "d", channels=3).tensor([3]).shape == (1, 3, 16, 16)
    assert opened(tmp_path / "d", channels=1).tensor([0]).shape == (1, 1, 16, 16)
    np.save(tmp_path / "d" / "five.npy", noise(channels=5))
    pictures = opened(tmp_path / "d", channels=3, allow_broken=0.3)
    assert pictures.findings.problems == (("five.npy", "it has 5 channels and 3 are asked for"),)


def test_mixed_depths_are_refused(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    np.save(tmp_path / "d" / "a.npy", noise())
    np.save(tmp_path / "d" / "b.npy", noise().astype(np.uint16) * 257)
    with pytest.raises(DataError, match="set depth = 8 or 16"):
        opened(tmp_path / "d")
    both = opened(tmp_path / "d", depth=16).tensor([0, 1])
    assert torch.equal(both[0], both[1])
    both = opened(tmp_path / "d", depth=8).tensor([0, 1])
    assert torch.equal(both[0], both[1])


def test_sizes_and_fits(tmp_path: Path) -> None:
    write(tmp_path / "d" / "wide.png", noise(20, 40))
    pictures = opened(tmp_path / "d", size=(8, 12))
    assert pictures.size == (8, 12)
    assert pictures.tensor([0]).shape == (1, 3, 8, 12)
    padded = opened(tmp_path / "d", size=16, fit="pad").pixels([0])[0]
    assert (padded[:4] == 255).all()
    assert (padded[-4:] == 255).all()
    assert not (padded[4:12] == 255).all(axis=(1, 2)).any()
    assert not pictures.findings.upscaled
    assert opened(tmp_path / "d", size=32).findings.upscaled == ("wide.png",)


def test_parquet_pictures(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    made = [noise(seed=i) for i in range(80)]
    cells = []
    for pixels in made:
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PNG")
        cells.append({"bytes": out.getvalue(), "path": None})
    cells[7] = {"bytes": None, "path": "../secret.png"}
    cells[8] = {"bytes": None, "path": None}
    (tmp_path / "d").mkdir()
    table = pa.table({"image": cells, "caption": [f"number {i}" for i in range(80)]})
    pq.write_table(table, tmp_path / "d" / "x.parquet", row_group_size=30)
    pictures = opened(tmp_path / "d")
    assert len(pictures) == 78
    reasons = {problem.name: problem.reason for problem in pictures.findings.problems}
    assert "climbs out" in reasons["x.parquet:7"]
    assert "empty" in reasons["x.parquet:8"]
    for i in (0, 6, 7, 77):
        number = int(pictures.captions[i][0].split()[1])
        assert np.array_equal(pictures.pixels([i])[0], made[number])


# --- what cannot be read ----------------------------------------------------------------------------------------------


def plant(folder: Path) -> dict[str, str]:
    """Five bad files among the good; name -> a word of the reason."""
    whole = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(whole, "JPEG")
    (folder / "cut.jpg").write_bytes(whole.getvalue()[:800])
    (folder / "empty.png").write_bytes(b"")
    (folder / "page.png").write_bytes(b"<!doctype html><title>404</title>")
    (folder / "words.jpg").write_bytes(b"this is text")
    head = png_head(60_000, 60_000)
    (folder / "bomb.png").write_bytes(head)
    return {
        "cut.jpg": "cut off",
        "empty.png": "empty",
        "page.png": "web page",
        "words.jpg": "not a picture",
        "bomb.png": "bomb",
    }


def png_head(width: int, height: int) -> bytes:
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    body = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(b"0"))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def test_bad_files_are_skipped_counted_and_named(tmp_path: Path) -> None:
    made = fill(tmp_path / "d", 60)
    want = plant(tmp_path / "d")
    pictures = opened(tmp_path / "d")
    got = {problem.name: problem.reason for problem in pictures.findings.problems}
    assert set(got) == set(want)
    assert all(word in got[name] for name, word in want.items())
    assert len(pictures) == pictures.findings.pictures == 60  # and none stands in for another
    assert np.array_equal(pictures.pixels(range(60)), np.stack(made))
    assert list(pictures.names) == sorted(pictures.names)
    said = "\n".join(pictures.findings.sentences())
    assert "5 pictures skipped" in said
    again = opened(tmp_path / "d")  # from the cache
    assert again.findings == pictures.findings


def test_too_many_bad_files_are_refused(tmp_path: Path) -> None:
    fill(tmp_path / "d", 10)
    plant(tmp_path / "d")
    with pytest.raises(DataError, match=r"5 of 15 pictures cannot be used.*allow_broken above 0\.1"):
        opened(tmp_path / "d")
    assert len(opened(tmp_path / "d", allow_broken=0.5)) == 10


def test_nothing_readable(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    plant(tmp_path / "d")
    with pytest.raises(DataError, match="none of the 5 pictures"):
        opened(tmp_path / "d", allow_broken=1.0)


def test_uncaptioned_is_refused_until_allowed(tmp_path: Path) -> None:
    fill(tmp_path / "d", 3)
    (tmp_path / "d" / "000.txt").write_text("x")
    with pytest.raises(DataError, match="2 of 3 pictures have no caption"):
        opened(tmp_path / "d")
    pictures = opened(tmp_path / "d", allow_uncaptioned=True)
    assert pictures.captions == (("x",), (), ())
    assert pictures.findings.uncaptioned == ("001.png", "002.png")


def test_captions_stay_with_their_pictures_when_some_are_skipped(tmp_path: Path) -> None:
    made = fill(tmp_path / "d", 20)
    for i in range(20):
        (tmp_path / "d" / f"{i:03}.txt").write_text(f"number {i}")
    for i in (0, 7):
        (tmp_path / "d" / f"{i:03}.png").write_bytes(b"")
    pictures = opened(tmp_path / "d")
    for i in range(len(pictures)):
        number = int(pictures.captions[i][0].split()[1])
        assert np.array_equal(pictures.pixels([i])[0], made[number])


# --- inputs -----------------------------------------------------------------------------------------------------------


def test_inputs_share_the_geometry(tmp_path: Path) -> None:
    """A mask that marks the red square still does after crop and resize, at another resolution, with its values."""
    folder = tmp_path / "d"
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[8:40, 40:72, 0] = 255
    mask = np.where(pixels[..., 0] > 0, 7, 3).astype(np.uint8)
    write(folder / "a.png", pixels)
    write(folder / "m.png", mask[::2, ::2])
    write(folder / "depth.png", mask * 30)
    row = {"file_name": "a.png", "text": "x", "mask_file_name": "m.png", "depth_file_name": "depth.png"}
    (folder / "metadata.jsonl").write_text(json.dumps(row))
    pictures = opened(folder, size=16)
    assert pictures.inputs == {"depth": 1, "mask": 1}
    got = pictures.input_tensors([0])
    assert got["mask"].shape == (1, 1, 16, 16)
    values = ((got["mask"] + 1) / 2 * 255).round()
    assert set(values.unique().tolist()) == {3, 7}
    assert torch.equal(values == 7, pictures.tensor([0])[:, :1] > 0)
    assert len(pictures.names) == 1


def test_an_input_of_other_proportions_is_a_problem(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    fill(folder, 4)
    write(folder / "m.png", noise(16, 16, 1)), write(folder / "odd.png", noise(16, 24, 1))
    rows = [
        {"file_name": f"00{i}.png", "text": "x", "mask_file_name": "odd.png" if i == 2 else "m.png"} for i in range(4)
    ]
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    pictures = opened(folder, allow_broken=0.5)
    assert len(pictures) == 3
    assert "other proportions" in pictures.findings.problems[0].reason


# --- cache ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that a cache is built."""
    made: list[int] = []
    build = cache._build

    def counted(*args: Any) -> None:
        made.append(1)
        build(*args)

    monkeypatch.setattr(cache, "_build", counted)
    return made


def test_cache_is_reused(tmp_path: Path, builds: list[int]) -> None:
    fill(tmp_path / "d", 5)
    seen: list[tuple[int, int]] = []
    settings = DataSettings(folder=str(tmp_path / "d"), size=16)
    first = open_pictures(settings, tmp_path / "c", progress=lambda done, total: seen.append((done, total)))
    again = open_pictures(settings, tmp_path / "c", progress=lambda done, total: seen.append((done, total)))
    assert len(builds) == 1
    assert seen == [(i, 5) for i in range(1, 6)]
    assert first.fingerprint == again.fingerprint
    assert torch.equal(first.tensor(range(5)), again.tensor(range(5)))
    opened(tmp_path / "d", captions=(), heldout=0.5, flip=True)  # nothing that changes the pixels
    assert isinstance(first._cache.images, np.memmap)


@pytest.mark.parametrize("change", ["edit", "add", "remove", "rename", "touch-same-size"])
def test_a_changed_folder_gets_a_new_cache(tmp_path: Path, builds: list[int], change: str) -> None:
    folder = tmp_path / "d"
    fill(folder, 4)
    before = opened(folder)
    path = folder / "001.png"
    if change == "edit":
        write(path, noise(seed=77))
    elif change == "add":
        write(folder / "100.png", noise(seed=77))
    elif change == "remove":
        path.unlink()
    elif change == "rename":
        path.rename(folder / "zzz.png")
    else:  # other pixels, but the same size and modification time
        info = path.stat()
        data = (folder / "002.png").read_bytes()
        path.write_bytes(data[: info.st_size].ljust(info.st_size, b"\0"))
        os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    after = opened(folder)
    assert len(builds) == 2
    assert after.fingerprint != before.fingerprint or change == "rename"
    assert before.tensor([0]).shape == (1, 3, 16, 16)


def test_old_caches_go_when_nobody_uses_them(tmp_path: Path) -> None:
    fill(tmp_path / "d", 4)

    def caches() -> int:
        return len(list((tmp_path / "cache").glob("pictures-*")))

    first = opened(tmp_path / "d")
    opened(tmp_path / "d", size=8)
    write(tmp_path / "d" / "new.png", noise(seed=9))
    second = opened(tmp_path / "d")
    assert caches() == 3  # the first is still in use, and another size is another matter
    assert first.tensor([0]).shape == (1, 3, 16, 16)
    del first
    gc.collect()
    write(tmp_path / "d" / "newer.png", noise(seed=10))
    third = opened(tmp_path / "d")
    assert caches() == 3
    assert len(second) + len(third) == 11


def test_other_settings_get_another_cache(tmp_path: Path, builds: list[int]) -> None:
    fill(tmp_path / "d", 3)
    opened(tmp_path / "d"), opened(tmp_path / "d", size=8), opened(tmp_path / "d", fit="pad")
    assert len(builds) == 3
    opened(tmp_path / "d")
    assert len(builds) == 3


@pytest.mark.parametrize("damage", ["flip", "truncate", "index", "missing", "header", "empty"])
def test_a_damaged_cache_is_built_again(tmp_path: Path, builds: list[int], damage: str) -> None:
    made = fill(tmp_path / "d", 6)
    first = opened(tmp_path / "d")
    folder = first._cache.folder
    images, index = folder / "images.npy", folder / "index.json"
    data = bytearray(images.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        images.write_bytes(data)
    elif damage == "truncate":
        images.write_bytes(data[:-1])
    elif damage == "index":
        index.write_text(index.read_text().replace("[0, 1", "[1, 0", 1))
    elif damage == "missing":
        images.unlink()
    elif damage == "header":
        data[30] ^= 255
        images.write_bytes(data)
    else:
        index.write_text("")
    again = opened(tmp_path / "d")
    assert len(builds) == 2
    assert np.array_equal(again.pixels(range(6)), np.stack(made))


def test_nothing_is_left_when_building_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "d", 3)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache._Array, "add", full)
    with pytest.raises(StorageError, match="No space left on device"):
        opened(tmp_path / "d")
    assert not list((tmp_path / "cache").rglob("*.npy"))
    monkeypatch.undo()
    assert len(opened(tmp_path / "d")) == 3


def test_too_little_space_is_said_before_it_is_used_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "d", 3)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 10))  # type: ignore[attr-defined]
    with pytest.raises(StorageError, match="are free"):
        opened(tmp_path / "d")


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    fill(tmp_path / "d", 2)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="could not be written"):
        open_pictures(DataSettings(folder=str(tmp_path / "d")), tmp_path / "file" / "cache")


def test_concurrent_builders(tmp_path: Path) -> None:
    made = fill(tmp_path / "d", 8)
    got: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: got.append(opened(tmp_path / "d").pixels(range(8)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 4
    assert all(np.array_equal(one, np.stack(made)) for one in got)
    assert len(list((tmp_path / "cache").glob("pictures-*"))) == 1


def test_default_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CARRARA_CACHE", str(tmp_path / "x"))
    assert cache.default_cache() == tmp_path / "x"
    monkeypatch.delenv("CARRARA_CACHE")
    assert cache.default_cache() == Path.home() / ".cache" / "carrara"


# --- held out ---------------------------------------------------------------------------------------------------------


def held(pictures: Pictures) -> set[str]:
    return {pictures.names[i] for i in pictures.heldout}


def test_split_is_a_partition_by_content(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    fill(folder, 200, height=4, width=4)
    pictures = opened(folder, size=4, heldout=0.2)
    assert sorted([*pictures.train, *pictures.heldout]) == list(range(200))
    assert 20 <= len(pictures.heldout) <= 60
    before = held(pictures)
    for i in range(200, 260):
        write(folder / f"{i:03}.png", noise(4, 4, seed=i))
    after = held(opened(folder, size=4, heldout=0.2))
    assert {name for name in after if int(name[:3]) < 200} == before
    assert held(opened(folder, size=2, heldout=0.2)) == after  # another size, the same split
    assert not len(opened(folder, size=4, heldout=0.0).heldout)


def test_duplicates_stay_on_one_side(tmp_path: Path) -> None:
    """The same picture under other names, in other containers, as grey or colour, with an opaque alpha."""
    folder = tmp_path / "d"
    for i in range(40):
        pixels = noise(8, 8, 1, seed=i)
        write(folder / f"{i}.png", pixels)
        write(folder / f"{i}.bmp", pixels.repeat(3, 2))
        write(folder / f"{i}.webp", np.concatenate([pixels.repeat(3, 2), np.full_like(pixels, 255)], 2), lossless=True)
    pictures = opened(folder, size=8, channels=1, heldout=0.3)
    stems = {name: {n.rsplit(".", 1)[0] for n in names} for name, names in
             (("held", held(pictures)), ("train", {pictures.names[i] for i in pictures.train}))}  # fmt: skip
    assert not stems["held"] & stems["train"]
    assert len(pictures.heldout) % 3 == 0
    assert len(pictures.heldout) > 0


def test_held_out_by_caption(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    for i in range(60):
        write(folder / f"class {i % 12}" / f"{i}.png", noise(4, 4, seed=i))
    pictures = opened(folder, size=4, heldout=0.3, heldout_by="caption")
    there = {pictures.labels[i] for i in pictures.heldout}
    assert there
    assert not there & {pictures.labels[i] for i in pictures.train}


def test_groups_join_content_and_words() -> None:
    keys = groups(["a", "b", "a", "c", "d"], ["x", "y", "y", "z", ""])
    assert keys[0] == keys[1] == keys[2]
    assert len({keys[0], keys[3], keys[4]}) == 3


def test_at_least_one_on_each_side() -> None:
    keys = [f"k{i}" for i in range(3)]
    for share in (0.0001, 0.9999):
        assert 1 <= held_out(keys, share).sum() <= 2
    assert not held_out(["only"] * 4, 0.5).any()
    assert abs(held_out([f"k{i}" for i in range(20_000)], 0.1).mean() - 0.1) < 0.01


def test_a_split_of_the_folders_own_wins_and_its_leaks_are_said(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    for i in range(4):
        write(folder / "train" / f"{i}.png", noise(seed=i))
    write(folder / "test" / "x.png", noise(seed=0))
    pictures = opened(folder, heldout=0.5)
    assert held(pictures) == {"test/x.png"}
    assert any("1 training picture also held out" in text for text in pictures.findings.sentences())


# --- fingerprint ------------------------------------------------------------------------------------------------------


def test_fingerprint(tmp_path: Path) -> None:
    fill(tmp_path / "d", 3)
    first = opened(tmp_path / "d").fingerprint
    shutil.copytree(tmp_path / "d", tmp_path / "copy")
    assert opened(tmp_path / "copy").fingerprint == first  # content, not place or time
    assert opened(tmp_path / "d", size=8).fingerprint != first
    (tmp_path / "d" / "000.txt").write_text("x")
    assert opened(tmp_path / "d", allow_uncaptioned=True).fingerprint != first


def test_content_is_blind_to_hidden_colours() -> None:
    def made(hidden: int) -> str:
        pixels = noise(channels=4)
        pixels[:8, :, 3], pixels[8:, :, 3] = 0, 200
        pixels[:8, :, :3] = hidden
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PNG")
        return content_hash(decode(out.getvalue()))

    assert made(0) == made(99)
