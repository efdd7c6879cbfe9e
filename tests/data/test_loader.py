"""A batch is a pure function of the seed and the step: epochs are permutations, ranks are slices, resuming is free."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from carrara.data import DataSettings, Loader, Pictures, open_pictures


def pictures_of(folder: Path, number: int, side: int = 8, **settings: Any) -> Pictures:
    folder.mkdir(parents=True)
    for i in range(number):
        pixels = np.random.default_rng(i).integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:04}.png")
        (folder / f"{i:04}.txt").write_text("\n".join(f"{i} {word}" for word in "abc"))
    settings = {"size": side, "heldout": 0.0, **settings}
    return open_pictures(DataSettings(folder=str(folder), **settings), folder.parent / "cache")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    return pictures_of(tmp_path_factory.mktemp("loader") / "d", 23, flip=True)


def same(a: Any, b: Any) -> bool:
    return (
        torch.equal(a.images, b.images)
        and (a.captions, a.index, a.sample, a.labels) == (b.captions, b.index, b.sample, b.labels)
        and all(torch.equal(a.inputs[name], b.inputs[name]) for name in a.inputs)
    )


def test_pure_function_of_the_step(pictures: Pictures) -> None:
    """Any order, any loader, any number of times: the same rows."""
    forward = [Loader(pictures, 5, 3).batch(step) for step in range(12)]
    loader = Loader(pictures, 5, 3)
    for step in (11, 0, 7, 7, 3):
        assert same(loader.batch(step), forward[step])
    assert not same(Loader(pictures, 5, 4).batch(0), forward[0])


@pytest.mark.parametrize("batch", [1, 4, 23, 50, 100])
def test_every_epoch_is_a_permutation(pictures: Pictures, batch: int) -> None:
    """Also where a batch spans epochs or is larger than the data set."""
    loader = Loader(pictures, batch, 0)
    rows = [row for step in range(-(-4 * 23 // batch)) for row in loader.batch(step).index]
    epochs = [tuple(rows[start : start + 23]) for start in range(0, 4 * 23, 23)]
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs)
    assert len(set(epochs)) == 4


def test_the_fingerprint_is_of_pictures_and_flips(pictures: Pictures) -> None:
    assert Loader(pictures, 5, 3).fingerprint == Loader(pictures, 8, 4).fingerprint
    assert Loader(pictures, 5, 3).fingerprint != Loader(pictures, 5, 3, flip=False).fingerprint


def test_batch_size_does_not_change_the_samples(pictures: Pictures) -> None:
    """Sample g is one picture, caption and flip, whatever the batches are."""
    small, large = Loader(pictures, 3, 1), Loader(pictures, 12, 1)
    got = [small.batch(step) for step in range(4)]
    want = large.batch(0)
    assert torch.equal(torch.cat([one.images for one in got]), want.images)
    assert sum((one.captions for one in got), ()) == want.captions
    assert sum((one.sample for one in got), ()) == want.sample == tuple(range(12))


@pytest.mark.parametrize("world", [2, 3, 6])
def test_ranks_together_are_one(pictures: Pictures, world: int) -> None:
    for step in (0, 3, 8):
        whole = Loader(pictures, 6, 5).batch(step)
        parts = [Loader(pictures, 6, 5, rank=rank, world=world).batch(step) for rank in range(world)]
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        assert sum((part.sample for part in parts), ()) == whole.sample
        assert sum((part.captions for part in parts), ()) == whole.captions


def test_images_and_captions_belong_together(pictures: Pictures) -> None:
    batch = Loader(pictures, 40, 0).batch(2)
    for row, index in enumerate(batch.index):
        assert batch.captions[row].split()[0] == str(index)
        plain = pictures.tensor([index])[0]
        assert torch.equal(batch.images[row], plain) or torch.equal(batch.images[row], plain.flip(-1))


def test_captions_and_flips_are_drawn_anew_for_every_sample(pictures: Pictures) -> None:
    loader = Loader(pictures, 23, 0)
    batches = [loader.batch(step) for step in range(40)]
    said = [caption.split()[1] for batch in batches for caption in batch.captions]
    flipped = [
        not torch.equal(image, pictures.tensor([index])[0])
        for batch in batches
        for image, index in zip(batch.images, batch.index, strict=True)
    ]
    for word in "abc":
        assert abs(said.count(word) / len(said) - 1 / 3) < 0.06
    assert abs(np.mean(flipped) - 0.5) < 0.06
    first = dict(zip(batches[0].index, batches[0].captions, strict=True))
    second = dict(zip(batches[1].index, batches[1].captions, strict=True))
    assert first != second
    assert abs(np.corrcoef(flipped, [word == "a" for word in said])[0, 1]) < 0.1


def test_flip_can_be_turned_off(pictures: Pictures) -> None:
    batch = Loader(pictures, 30, 0, flip=False).batch(0)
    assert torch.equal(batch.images, pictures.tensor(batch.index))


def test_heldout_is_fixed(tmp_path: Path) -> None:
    pictures = pictures_of(tmp_path / "d", 40, heldout=0.3, flip=True)
    loader = Loader(pictures, 4, 0)
    batch = loader.heldout(5)
    assert batch.index == tuple(pictures.heldout[:5].tolist())
    assert torch.equal(batch.images, pictures.tensor(pictures.heldout[:5]))
    assert batch.captions == tuple(f"{i} a" for i in batch.index)
    assert same(batch, Loader(pictures, 8, 9, rank=1, world=2).heldout(5))
    assert len(loader.heldout(1000)) == len(pictures.heldout)
    seen = {index for step in range(30) for index in loader.batch(step).index}
    assert seen == set(pictures.train.tolist())


def test_random_crops(tmp_path: Path) -> None:
    """Each sample is a cut of its picture at a drawn place; held-out rows are cut at the centre; masks follow."""
    folder = tmp_path / "d"
    folder.mkdir()
    rows = []
    for i in range(6):
        ramp = np.broadcast_to(np.arange(24, dtype=np.uint8) * 10, (8, 24))
        Image.fromarray(np.stack([ramp, np.full_like(ramp, i), ramp], -1)).save(folder / f"{i}.png")
        Image.fromarray(np.ascontiguousarray(ramp)).save(folder / f"m{i}.png")
        rows.append(json.dumps({"file_name": f"{i}.png", "text": "x", "mask_file_name": f"m{i}.png"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    settings = DataSettings(folder=str(folder), size=8, fit="random-crop", heldout=0.0, flip=True)
    pictures = open_pictures(settings, tmp_path / "cache")
    assert pictures.pixels([2])[0, 0, :, 0].tolist() == [80, 90, 100, 110, 120, 130, 140, 150]
    loader = Loader(pictures, 300, 0)
    batch = loader.batch(1)
    assert torch.equal(batch.images[:, :1], batch.inputs["mask"])  # crop and flip are the mask's too
    starts = ((batch.images[:, 0, 0].min(dim=1).values + 1) / 2 * 25.5).round().tolist()
    assert set(starts) == set(range(17))
    assert same(batch, Loader(pictures, 300, 0).batch(1))
    marks = ((batch.images[:, 1, 0, 0] + 1) / 2 * 255).round().int().tolist()
    assert tuple(marks) == batch.index


def test_labels(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "d" / name).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(np.full((8, 8, 3), 40 * i + len(name), np.uint8)).save(tmp_path / "d" / name / f"{i}.png")
    pictures = open_pictures(DataSettings(folder=str(tmp_path / "d"), size=8, heldout=0.0), tmp_path / "c")
    batch = Loader(pictures, 4, 0).batch(0)
    assert batch.labels == tuple(pictures.labels[i] for i in batch.index) == batch.captions


def test_no_captions_are_empty(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for i in range(3):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(tmp_path / "d" / f"{i}.png")
    pictures = open_pictures(DataSettings(folder=str(tmp_path / "d"), size=8, heldout=0.0), tmp_path / "c")
    batch = Loader(pictures, 7, 0).batch(0)
    assert batch.captions == ("",) * 7
    assert batch.labels == ()
    with pytest.raises(ValueError, match="no pictures are held out"):
        Loader(pictures, 7, 0).heldout(4)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"batch": 0}, "at least 1"),
        ({"batch": 5, "world": 2}, "does not divide"),
        ({"batch": 4, "rank": 2, "world": 2}, "rank 2 of 2"),
    ],
)
def test_wrong_arguments(pictures: Pictures, wrong: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Loader(pictures, wrong.pop("batch"), 0, **wrong)
    with pytest.raises(ValueError, match="steps count from 0"):
        Loader(pictures, 4, 0).batch(-1)


def test_speed(tmp_path: Path) -> None:
    """Reading is no bottleneck: at least 20,000 pictures of 32 x 32 a second of one core."""
    pictures = pictures_of(tmp_path / "d", 200, side=32, flip=True)
    loader = Loader(pictures, 1024, 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    loader.batch(0)
    best = min(_timed(loader, step) for step in range(8))
    torch.set_num_threads(threads)
    assert 1024 / best > 20_000


def _timed(loader: Loader, step: int) -> float:
    start = time.process_time()
    loader.batch(step)
    return time.process_time() - start
