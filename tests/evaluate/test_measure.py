"""The whole measure on models whose figures are known: the data themselves, a single picture, noise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from carrara.data import DataSettings, Pictures, open_pictures
from carrara.errors import DataError, RecipeError
from carrara.evaluate.extractor import Extractor, pixel_extractor
from carrara.evaluate.measure import Measured, measure
from carrara.evaluate.model import Model
from carrara.evaluate.samples import Making
from carrara.evaluate.yardstick import Yardstick
from carrara.image import to_pixels
from carrara.system import Frame
from carrara.text import Labels, Unconditional

SIZE = 8


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    """Sixty captioned pictures, smooth ones, so that each is its own."""
    place = tmp_path_factory.mktemp("data")
    for i in range(60):
        coarse = np.random.default_rng(i).integers(0, 256, (3, 3, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(place / f"{i:02}.png")
        (place / f"{i:02}.txt").write_text(f"picture {i}\n")
    return open_pictures(DataSettings(str(place), size=SIZE, heldout=0.3), place / "cache")


class Known:
    """A system that shows the training picture of its prompt as `change` alters it."""

    def __init__(self, pictures: Pictures, change: Any, *, told: bool = True, size: int = SIZE) -> None:
        self.by_name = {said[0]: i for i, said in enumerate(pictures.captions)}
        self.pictures, self.change, self.size = pictures, change, size
        self.text = Labels(("x",)) if told else Unconditional()
        if told:
            self.text = SimpleNamespace(parameters=list, state_dict=dict, to=lambda _: None)
        self.generator = torch.nn.Linear(1, 1)
        self.decoder = SimpleNamespace(
            pictures=SimpleNamespace(shape=(3, size, size), kind="pixels"),
            parameters=list,
            state_dict=dict,
            depth=8,
        )

    def generate(self, prompts: list[str], *, seeds: list[int], settings: Any, candidates: int) -> Any:
        rows = [self.by_name.get(prompt, 0) for prompt in prompts]
        images = torch.stack(
            [self.change(self.pictures.tensor([i])[0], seed) for i, seed in zip(rows, seeds, strict=True)]
        )
        if self.size != SIZE:
            images = images.repeat_interleave(self.size // SIZE, 2).repeat_interleave(self.size // SIZE, 3)
        yield Frame(1, True, tuple(seeds), 8, None, lambda: images)


def model(system: Any) -> Model:
    return Model("known", Path("known"), system, {}, {"generator": 12.0})


def measured(pictures: Pictures, place: Path, system: Any, **more: Any) -> Measured:
    usual: dict[str, Any] = {"reference": "train", "count": 40, "bits": 4, "cache": place / "cache"}
    yard = Yardstick(pictures=pictures, extractor=pixel_extractor(), **{**usual, **more})
    return measure(model(system), yard, place / "out", making=Making(batch=8), say=lambda *_: lambda _: None)


def same(x: torch.Tensor, seed: int) -> torch.Tensor:
    return x


def noisy(x: torch.Tensor, seed: int) -> torch.Tensor:
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    return (x + 0.9 * noise).clamp(-1, 1)


def one(x: torch.Tensor, seed: int) -> torch.Tensor:
    return torch.tensor([1.0, -1.0, -1.0])[:, None, None].expand_as(x)  # far from all; a grey one would be near them


def test_the_data_themselves(pictures: Pictures, tmp_path: Path) -> None:
    """A model that shows each training picture once is at distance 0, right in all its prompts, and a copyist."""
    found = measured(pictures, tmp_path, Known(pictures, same), count=len(pictures.train))
    f = found.facts["figures"]
    assert f["fd_pixels"] == pytest.approx(0, abs=1e-6)
    assert -0.2 < f["kid_pixels"] < 0  # without bias for sets drawn apart, which these are not
    assert f["prompt_fidelity_top1"] == 1
    assert (f["precision_pixels"], f["recall_pixels"], f["coverage_pixels"]) == (1, 1, 1)
    assert f["memorised_share"] == 1
    assert f["nearest_training_distance"] == pytest.approx(0, abs=1e-4)
    assert f["diversity_pixels"] == 0  # of a prompt
    assert f["parameters"] == 2
    assert f["training_seconds"] == 12
    assert found.right == [True] * 32
    assert all(pair.distance < 1e-4 and torch.equal(pair.sample, pair.training) for pair in found.pairs)
    assert found.facts["marks"]["fd_pixels"] == f"n<d: {len(pictures.train)} samples, 3072 dimensions"
    assert not found.facts["reference"]["trained_on"]


def test_one_picture_for_everything(pictures: Pictures, tmp_path: Path) -> None:
    f = measured(pictures, tmp_path, Known(pictures, one)).facts["figures"]
    assert f["prompt_fidelity_top1"] < 0.1
    assert f["coverage_pixels"] < 0.3
    assert f["recall_pixels"] == 0
    assert f["memorised_share"] == 0
    assert f["kid_pixels"] > 0.1


def test_noise(pictures: Pictures, tmp_path: Path) -> None:
    """Different pictures of a prompt, far from the data."""
    f = measured(pictures, tmp_path, Known(pictures, noisy)).facts["figures"]
    assert f["diversity_pixels"] > 0
    assert f["memorised_share"] == 0
    assert f["nearest_training_distance"] > f["nearest_training_distance_heldout"] / 4


def test_told_nothing(pictures: Pictures, tmp_path: Path) -> None:
    found = measured(pictures, tmp_path, Known(pictures, noisy, told=False))
    facts = found.facts
    assert facts["missing"]["prompt_fidelity_top1"] == "the model is told nothing"
    assert found.right is None
    assert found.varied_prompts == []
    assert facts["figures"]["diversity_pixels"] > 0
    assert facts["missing"]["cmmd"] == "no --clip was given"
    clip = replace(pixel_extractor(), read=lambda prompts: torch.zeros(len(prompts), 3072))
    facts = measured(pictures, tmp_path / "clip", Known(pictures, noisy, told=False), clip=clip).facts
    assert facts["figures"]["cmmd"] > 0  # of pictures alone
    assert facts["missing"]["clip_score"] == "the model is told nothing"


def test_larger_pictures_are_measured_at_the_size_of_the_data(pictures: Pictures, tmp_path: Path) -> None:
    found = measured(pictures, tmp_path, Known(pictures, same, size=4 * SIZE))
    assert found.samples.shape == (32, 3, SIZE, SIZE)
    assert found.facts["figures"]["prompt_fidelity_top1"] == 1
    assert "another size" in found.facts["missing"]["bits_per_dim"]


def test_repeats(pictures: Pictures, tmp_path: Path) -> None:
    found = measured(pictures, tmp_path, Known(pictures, noisy), repeats=3).facts
    assert found["samples"]["repeats"] == 3
    low, high = found["intervals"]["fd_pixels"]
    assert low < found["figures"]["fd_pixels"] < high
    assert {"kid_pixels", "precision_pixels", "memorised_share", "prompt_fidelity_top1"} <= set(found["intervals"])


def test_the_reference_is_seen_once(pictures: Pictures, tmp_path: Path) -> None:
    """Of two models the second finds the reference's features; and so does the same network loaded again."""

    class Seeing(torch.nn.Module):
        seen = 0

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            Seeing.seen += len(x)
            return x.mean((2, 3)) * self.weight

    counts = []
    for name in ("a", "b"):
        extractor = Extractor("seeing", Seeing().requires_grad_(False), None, (0.0,) * 3, (1.0,) * 3)
        yard = Yardstick(pictures=pictures, extractor=extractor, reference="train", cache=tmp_path / "cache", count=40)
        before = Seeing.seen
        measure(model(Known(pictures, noisy)), yard, tmp_path / name, making=Making(), say=lambda *_: lambda _: None)
        counts.append(Seeing.seen - before)
    assert counts[0] == len(pictures) + 40 + 64  # training pictures once, though they are the reference, too
    assert counts[1] == 40 + 64


def test_too_few(pictures: Pictures, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="15 samples are too few"):
        measured(pictures, tmp_path, Known(pictures, same), count=15)
    heldout = len(pictures.heldout)
    assert heldout >= 16
    few = open_pictures(DataSettings(pictures.settings.folder, size=SIZE, heldout=0.02), tmp_path / "cache")
    with pytest.raises(DataError, match=r"heldout: .* too few for a reference; 16 are needed"):
        measured(few, tmp_path, Known(pictures, same), reference="heldout")


def test_nothing_held_out(pictures: Pictures, tmp_path: Path) -> None:
    settings = DataSettings(pictures.settings.folder, size=SIZE, heldout=0.0)
    whole = open_pictures(settings, tmp_path / "cache")
    found = measured(whole, tmp_path, Known(whole, same)).facts
    assert "no picture of the folder is held out" in found["missing"]["memorised_share"]


def test_pixels_are_those_that_would_be_stored(pictures: Pictures, tmp_path: Path) -> None:
    """What overshoots is cut and rounded before it is measured."""
    found = measured(pictures, tmp_path, Known(pictures, lambda x, seed: x * 1.5))
    stored = to_pixels(pictures.tensor([0]) * 1.5)
    assert stored.max() == 255
    levels = (found.samples * 127.5 + 127.5).round()
    assert torch.allclose(levels, found.samples * 127.5 + 127.5, atol=1e-3)
