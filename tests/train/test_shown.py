"""What a diffusion task shows its objective: each picture's own z and caption, and one null condition everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from carrara.data import DataSettings, Loader, open_pictures, write_picture
from carrara.decoder import Decoder, Latents, Pixels
from carrara.diffusion import BoundLoss, ContinuousBoundLoss, Epsilon, LinearBetas
from carrara.diffusion.loss import Objective
from carrara.errors import RecipeError
from carrara.nn import ImageEncoder, KLAutoencoder, TextTransformer
from carrara.rng import Rng
from carrara.run import finish
from carrara.text import ContrastiveText, train_tokenizer
from carrara.train.tasks import DiffusionRecipe, DiffusionTask
from carrara.types import Condition

COUNT = 24


class Shown:
    """An objective that remembers what it was shown."""

    z: Tensor
    condition: Condition

    def __call__(self, denoiser: object, z: Tensor, condition: Condition, rng: Rng) -> Tensor:
        self.z, self.condition = z, condition
        return torch.zeros(len(z))


@pytest.fixture(scope="module")
def loader(tmp_path_factory: pytest.TempPathFactory) -> Loader:
    folder = tmp_path_factory.mktemp("shown") / "pictures"
    for number in range(COUNT):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        write_picture(folder / f"{number:02}.png", pixels)
        (folder / f"{number:02}.txt").write_text(f"number {number}")
    pictures = open_pictures(DataSettings(folder=str(folder), size=16, heldout=0.0), folder.parent / "cache")
    return Loader(pictures, 16, seed=3)


@pytest.fixture(scope="module")
def text() -> ContrastiveText:
    torch.manual_seed(0)
    words = TextTransformer(vocabulary=300, width=16, depth=1, heads=2, length=10)
    tower = ImageEncoder(width=16, widths=(16, 32), blocks=(1, 1))
    return ContrastiveText(train_tokenizer(["number"], vocabulary=300), words, tower).eval()


def shown(loader: Loader, text: ContrastiveText, decoder: Decoder, step: int, **settings: Any) -> tuple[Any, Shown]:
    network = {"kind": "dit", "patch": 1, "width": 16, "depth": 1, "heads": 2}
    recipe = DiffusionRecipe(network=network, **settings)
    task: DiffusionTask = recipe.create_with(text, decoder, loader.pictures, 0, torch.device("cpu"))
    task.objective = seen = Shown()  # type: ignore[assignment]
    batch = loader.batch(step)
    task.loss(batch, Rng.samples(0, batch.sample, "train"))
    return batch, seen


def test_a_dropped_caption_is_the_empty_prompt(loader: Loader, text: ContrastiveText) -> None:
    """Every row has its caption's condition or that of the prompt "", as sampling encodes it: the very same numbers."""
    batch, seen = shown(loader, text, Pixels(size=16), 1, drop=0.5)
    with torch.no_grad():
        null, told = (finish(text.start(prompts)) for prompts in ([""], list(batch.captions)))
    assert torch.equal(seen.z, batch.images)
    for name in ("tokens", "mask", "vector"):
        nothing, own, found = (getattr(condition, name) for condition in (null, told, seen.condition))
        assert nothing.ne(0).any()
        matches = [tuple(bool(_near(row, each)) for each in (nothing[0], own[i])) for i, row in enumerate(found)]
        if name != "mask":  # captions of no words at all would have the null's
            assert set(matches) == {(True, False), (False, True)}
        assert all(any(match) for match in matches)


def _near(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) if a.dtype == torch.bool else torch.allclose(a, b, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def decoder(loader: Loader) -> Latents:
    torch.manual_seed(0)
    made = Latents(KLAutoencoder(latent=4, widths=(8, 16, 16), decoder_blocks=(0, 1, 1)), size=16)
    made.measure([loader.pictures.tensor(range(COUNT))])
    return made.eval()


def test_kept_latents_belong_to_their_pictures(loader: Loader, text: ContrastiveText, decoder: Latents) -> None:
    """Whatever the order of the epoch is, z and condition are those of the row's own picture and caption."""
    for step in (0, 1, 2):
        batch, seen = shown(loader, text, decoder, step, drop=0.0)
        assert batch.captions == tuple(f"number {index}" for index in batch.index)
        with torch.no_grad():
            torch.testing.assert_close(seen.z, decoder.encode(batch.images), rtol=0, atol=1e-5)
            told = finish(text.start(list(batch.captions)))
        torch.testing.assert_close(seen.condition.vector, told.vector, rtol=0, atol=1e-5)


@pytest.mark.parametrize("objective", [ContinuousBoundLoss(), BoundLoss()], ids=lambda each: type(each).__name__)
def test_a_bound_is_refused_for_latents(
    loader: Loader, text: ContrastiveText, decoder: Latents, objective: Objective
) -> None:
    """Grey levels have a probability; latents have none, and bits a dimension of them would mean nothing."""
    settings = {"objective": objective, "schedule": LinearBetas(), "parameterization": Epsilon()}
    shown(loader, text, Pixels(size=16), 0, **settings)
    with pytest.raises(RecipeError, match="the decoder's latent have none"):
        shown(loader, text, decoder, 0, **settings)
