"""Samples in files: each picture by its own prompt and seed, going on, shared out, and never mixed up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from carrara.errors import NonFiniteError, RecipeError, StorageError
from carrara.evaluate import samples as module
from carrara.evaluate.samples import Asked, Making, Samples, Series


class _Frame:
    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def pixels(self) -> np.ndarray:
        if not bool(self.images.isfinite().all()):
            raise NonFiniteError("picture 0 of 1 has values that are not finite")
        return self.images.to(torch.uint8).numpy()


class Painter:
    """Paints the number of the seed and the length of the prompt."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.bad = False

    def generate(self, prompts: list[str], *, seeds: list[int], settings: Any, candidates: int) -> Any:
        self.asked.append(seeds)
        whole = torch.zeros(len(seeds), 2, 2, 3)
        for row, prompt, seed in zip(whole, prompts, seeds, strict=True):
            row[0], row[1] = seed % 251, len(prompt)
        yield _Frame(whole * float("nan") if self.bad else whole)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 4)


PROMPTS = ["a", "bb", "ccc"]
IDENTITY = {"model": "m", "seed": 7}


def made(folder: Path, painter: Painter, **identity: Any) -> Samples:
    return Samples(painter, folder, {**IDENTITY, **identity}, Making(batch=3))


def whole(samples: Samples, series: Series) -> np.ndarray:
    return np.concatenate([block.pixels for block in samples.blocks(series)])


def test_a_series() -> None:
    series = Series.drawn("set0", 0, PROMPTS, 7, 5)
    assert [one.seed for one in series.asked] == list(range(5, 12))
    assert sorted(series.prompts[:3]) == PROMPTS
    assert series.prompts[3:6] == series.prompts[:3]
    assert Series.drawn("set0", 0, PROMPTS, 4, 5).asked == series.asked[:4]
    assert [len(block) for block in series.blocks] == [4, 3]
    assert Series.drawn("set1", 1, PROMPTS, 2, 5).asked[0].seed == 1_000_005
    again = Series.drawn("varied2", 1000, PROMPTS, 6, 5, each=2)
    assert again.prompts[0::2] == again.prompts[1::2]
    assert len({one.seed for one in again.asked}) == 6


def test_each_picture_is_its_own(tmp_path: Path) -> None:
    painter, series = Painter(), Series("s", tuple(Asked("x" * i, 100 + i) for i in range(10)))
    samples = made(tmp_path, painter)
    ticks: list[int] = []
    assert samples.make(series, tick=ticks.append) == 10
    assert ticks == [4, 8, 10]
    assert max(map(len, painter.asked)) == 3  # a batch
    pixels = whole(samples, series)
    assert pixels[:, 0, 0, 0].tolist() == [100 + i for i in range(10)]
    assert pixels[:, 1, 0, 0].tolist() == list(range(10))
    assert all(block.seconds > 0 for block in samples.blocks(series))


def test_going_on(tmp_path: Path) -> None:
    """After a stop, and with more: what is whole is left as it is."""
    painter = Painter()
    few, more = (Series.drawn("s", 0, PROMPTS, n, 0) for n in (6, 11))
    made(tmp_path, painter).make(few)
    before = (tmp_path / "s-000000.safetensors").read_bytes()
    painter.asked.clear()
    samples = made(tmp_path, painter)
    samples.make(few)
    assert painter.asked == []
    samples.make(more)
    assert sorted(seed for seeds in painter.asked for seed in seeds) == list(range(4, 11))  # the second file, anew
    assert (tmp_path / "s-000000.safetensors").read_bytes() == before
    assert whole(samples, more)[:, 0, 0, 0].tolist() == list(range(11))
    assert whole(samples, few)[:, 0, 0, 0].tolist() == list(range(6))  # fewer are still there


def test_shares_make_the_whole(tmp_path: Path) -> None:
    series = Series.drawn("s", 0, PROMPTS, 11, 0)
    alone = made(tmp_path / "a", Painter())
    alone.make(series)
    painters = [Painter() for _ in range(2)]
    counts = [made(tmp_path / "b", painter).make(series, share=(i + 1, 2)) for i, painter in enumerate(painters)]
    assert counts == [7, 11]
    assert not {s for one in painters[0].asked for s in one} & {s for one in painters[1].asked for s in one}
    assert np.array_equal(whole(alone, series), whole(made(tmp_path / "b", Painter()), series))


def test_a_missing_share(tmp_path: Path) -> None:
    series = Series.drawn("s", 0, PROMPTS, 11, 0)
    samples = made(tmp_path, Painter())
    samples.make(series, share=(2, 2))
    with pytest.raises(StorageError, match=r"s-000000\.safetensors is missing or not whole"):
        list(samples.blocks(series))


def test_samples_of_something_else(tmp_path: Path) -> None:
    made(tmp_path, Painter())
    with pytest.raises(RecipeError, match=r"samples of another seed \(7 instead of 8\); choose another --out"):
        made(tmp_path, Painter(), seed=8)
    with pytest.raises(RecipeError, match="another settings"):
        made(tmp_path, Painter(), settings={"steps": 3})
    other = tmp_path / "other"
    made(other, Painter(), settings={"scale": 3.0, "times": {"steps": 2, "kind": "uniform"}})
    made(other, Painter(), settings={"times": {"kind": "uniform", "steps": 2}, "scale": 3.0})
    with pytest.raises(RecipeError, match=r"samples of another settings\.times\.steps \(2 instead of 3\);"):
        made(other, Painter(), settings={"times": {"kind": "uniform", "steps": 3}, "scale": 3.0})
    (tmp_path / "samples.json").write_text("{")
    with pytest.raises(StorageError, match="is damaged"):
        made(tmp_path, Painter())


def test_a_file_of_something_else(tmp_path: Path) -> None:
    series = Series.drawn("s", 0, PROMPTS, 3, 0)
    samples = made(tmp_path, Painter())
    save_file({"pixels": torch.zeros(3, 2)}, tmp_path / "s-000000.safetensors")
    with pytest.raises(StorageError, match="does not hold samples"):
        samples.make(series)
    (tmp_path / "s-000000.safetensors").write_bytes(b"cut")
    with pytest.raises(StorageError, match="not a readable safetensors file"):
        samples.make(series)


def test_pictures_that_are_not_finite(tmp_path: Path) -> None:
    painter = Painter()
    painter.bad = True
    samples, series = made(tmp_path, painter), Series.drawn("s", 0, PROMPTS, 3, 0)
    with pytest.raises(NonFiniteError, match=r"\(seeds 0 to 2\); this model cannot be measured"):
        samples.make(series)
    assert not list(tmp_path.glob("*.safetensors"))
