"""Trainings of the token decoder and of the autoregressive generator: learnt, resumed to the bit, and one system."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from carrara.autoregressive import AutoregressiveSettings
from carrara.config import build
from carrara.data import write_picture
from carrara.data.augment import Augment
from carrara.errors import RecipeError
from carrara.nn.quantize import VectorQuantizer
from carrara.rng import Rng
from carrara.store import assemble, kinds, load
from carrara.train.judge import heldout_figures
from carrara.train.log import read_log
from carrara.train.parallel import World
from carrara.train.recipe import Recipe, Run, read_recipe
from carrara.train.settings import Training
from carrara.train.state import State
from carrara.train.step import rows_of, train_step
from carrara.train.tasks import AutoregressiveTask, TokensTask
from train.resumed import same_bits, train

AUTOENCODER = {"kind": "kl", "down": 4, "widths": [8, 16], "encoder_blocks": [0, 1], "decoder_blocks": [0, 1]}
VQ = {"kind": "vq", "vocabulary": 24, "channels": 4}
CAUSAL = {"kind": "causal", "width": 32, "depth": 2, "heads": 2}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight patterns of 2 x 2 coloured fields, a class of two files each."""
    folder = tmp_path_factory.mktemp("tokens")
    for number in range(8):
        fields = np.random.default_rng(number).integers(0, 256, (2, 2, 3), dtype=np.uint8)
        for copy in range(2):
            pixels = fields.repeat(8, 0).repeat(8, 1)
            pixels[0, 0] += copy  # no duplicates
            write_picture(folder / "pictures" / f"pattern {number}" / f"{copy}.png", pixels)
    return folder


def run(pictures: Path, out: Path, task: dict[str, Any], *, heldout: float = 0.2, **settings: Any) -> Run:
    train = {"steps": 6, "batch": 8, "precision": "float32", "validate_every": 3, "sample_every": 0, "warmup": 1,
             "save_every": 0, "learning_rate": 0.01, "ema": 0.5, **settings}  # fmt: skip
    data = {"folder": str(pictures / "pictures"), "size": 16, "heldout": heldout}
    table = {"out": str(out), "data": data, "task": task, "train": train}
    return Run(build(Recipe, table, kinds()), cache=pictures / "cache")


def tokens_task(quantizer: dict[str, Any] = VQ) -> dict[str, Any]:
    return {"kind": "tokens", "autoencoder": AUTOENCODER, "quantizer": quantizer}


@pytest.fixture(scope="module")
def decoder(pictures: Path) -> Path:
    """A trained token decoder."""
    out = pictures / "decoder"
    train(run(pictures, out, tokens_task(), steps=60, validate_every=20, ema=0.9))
    return out


def test_the_decoder_learns(decoder: Path) -> None:
    events = read_log(decoder / "log.jsonl")
    figures = [event["figures"] for event in events if event["event"] == "validate"]
    assert figures[-1]["psnr_db"] > figures[0]["psnr_db"] + 1 and figures[-1]["psnr_db"] > 14
    assert set(figures[-1]) == {"loss", "psnr_db", "ssim", "perplexity"}
    assert figures[-1]["perplexity"] > 4
    steps = [event["parts"] for event in events if event["event"] == "step"]
    assert {"l1", "l2", "edges", "commitment", "perplexity"} <= set(steps[-1])
    facts = load_facts(decoder)
    assert facts["vocabulary"]["size"] == 24 and 0 < facts["vocabulary"]["used"] <= 1


def load_facts(folder: Path) -> dict[str, Any]:
    from carrara.store import read_component

    return read_component(folder).facts


@pytest.mark.parametrize("quantizer", [VQ, {"kind": "fsq", "levels": [4, 3, 2]}], ids=["vq", "fsq"])
def test_a_resumed_decoder_ends_with_the_same_bits(pictures: Path, tmp_path: Path, quantizer: dict[str, Any]) -> None:
    task = tokens_task(quantizer)
    same_bits(tmp_path, lambda place, **stop: train(run(pictures, place, task), **stop))


def test_a_resumed_generator_ends_with_the_same_bits(pictures: Path, decoder: Path, tmp_path: Path) -> None:
    task = {"kind": "autoregressive", "text": "labels", "decoder": str(decoder), "augment": {"shift": 0.1}}
    task["network"] = {**CAUSAL, "dropout": 0.1}
    same_bits(tmp_path, lambda place, **stop: train(run(pictures, place, task), **stop))


def _state(it: Run, **more: Any) -> State:
    settings = Training(batch=8, precision="float32", ema=0.9, warmup=0, learning_rate=1e-2, seed=0, **more)
    return State(it.task, settings, torch.device("cpu"), "float32")


def _codes(state: State) -> tuple[Tensor, Tensor]:
    assert isinstance(state.task, TokensTask)
    quantizer = state.task.quantizer
    assert isinstance(quantizer, VectorQuantizer)
    return quantizer.codebook, quantizer.usage


def test_codes_learn_from_a_step_whichever_way_it_is_cut(pictures: Path, tmp_path: Path) -> None:
    """Micro-batches, and two processes whose gathered rows are known: the codes move alike."""
    parts = {}
    for name, accumulate in (("whole", 1), ("cut", 4)):
        it = run(pictures, tmp_path / name, tokens_task())
        state = _state(it, accumulate=accumulate)
        for step in range(3):
            train_step(state, it.loader.batch(step), World())
        parts[name] = _codes(state)
    for mine, other in zip(parts["whole"], parts["cut"], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)

    class Pair(World):
        """The first of two processes; the second one's rows are those that were put down."""

        def gather(self, rows: Tensor) -> Tensor:
            here = rows.double()
            if self.size == 1:
                put.append(here)
                return here
            return torch.cat((here, put.pop(0)))

    put: list[Tensor] = []
    second, first, alone = (run(pictures, tmp_path / name, tokens_task()) for name in ("second", "first", "alone"))
    batch = first.loader.batch(0)
    for it, rows, size in ((second, slice(4, 8), 1), (first, slice(0, 4), 2), (alone, slice(0, 8), 0)):
        task = it.task
        assert isinstance(task, TokensTask)
        part = rows_of(batch, rows)
        task.loss(part, Rng.samples(0, part.sample, "train", "tokens"))
        task.after_step(Pair(0, size) if size else World())
    assert not put
    torch.testing.assert_close(first.task.quantizer.codebook, alone.task.quantizer.codebook)  # type: ignore[attr-defined]
    torch.testing.assert_close(first.task.quantizer.usage, alone.task.quantizer.usage)  # type: ignore[attr-defined]


def test_averaged_weights_keep_the_codes(pictures: Path, tmp_path: Path) -> None:
    """The codes are no weights: averaging leaves them as they are, and only whole steps move them."""
    it = run(pictures, tmp_path / "run", tokens_task())
    state = _state(it)
    for step in range(3):
        train_step(state, it.loader.batch(step), World())
    codebook, usage = (tensor.clone() for tensor in _codes(state))
    with state.averaged():
        for now, before in zip(_codes(state), (codebook, usage), strict=True):
            assert torch.equal(now, before)
    heldout_figures(state, it.loader, 3)
    snapshot = state.snapshot()
    train_step(state, it.loader.batch(3), World())
    assert not torch.equal(_codes(state)[0], codebook)
    state.restore(snapshot)
    for now, before in zip(_codes(state), (codebook, usage), strict=True):
        assert torch.equal(now, before)


def test_the_generator_gives_back_what_it_learnt(pictures: Path, decoder: Path, tmp_path: Path) -> None:
    """Eight token pictures under eight names: a name's likeliest tokens are its picture's; saved, loaded, assembled."""
    task = {
        "kind": "autoregressive",
        "text": "labels",
        "decoder": str(decoder),
        "network": CAUSAL,
        "drop": 0.1,
        "settings": {"guidance": 1.5, "top_p": 0.95},
    }
    it = run(pictures, tmp_path / "generator", task, steps=100, batch=16, validate_every=50, ema=0.9)
    train(it)
    assemble(tmp_path / "system", generator=tmp_path / "generator", decoder=decoder)
    system = load(tmp_path / "system")
    assert system.generator.settings == AutoregressiveSettings(guidance=1.5, top_p=0.95)  # type: ignore[attr-defined]
    rows = [int(i) for i in it.pictures.train]
    names = [it.pictures.labels[i] for i in rows]
    with torch.no_grad():
        z = system.decoder.encode(it.pictures.tensor(rows))
        wanted = {name: system.decoder.decode(z[i : i + 1])[0] for i, name in enumerate(names)}  # type: ignore[attr-defined]
    assert len(z.flatten(1).unique(dim=0)) >= 8
    greedy = AutoregressiveSettings(temperature=0.0)
    *_, last = system.generate(list(wanted), seeds=range(len(wanted)), settings=greedy)
    for name, made in zip(wanted, last.images, strict=True):
        assert (made - wanted[name]).abs().mean() < 0.02, name
    figures = it.task.facts["figures"]
    assert set(figures) == {"loss", "bits_per_token", "bits_saved_by_text", "perplexity"}
    assert figures["bits_per_token"] == pytest.approx(figures["loss"] / math.log(2))
    assert figures["bits_saved_by_text"] > 0.2  # the name says what the picture is
    assert figures["perplexity"] == pytest.approx(math.exp(figures["loss"]))


def test_perplexity_is_that_of_all_heldout_rows(pictures: Path, decoder: Path, tmp_path: Path) -> None:
    """However the rows are cut: exp(mean), not a mean of exps."""
    task = {"kind": "autoregressive", "text": "labels", "decoder": str(decoder), "network": CAUSAL}
    it = run(pictures, tmp_path / "run", task, heldout=0.5)
    assert isinstance(it.task, AutoregressiveTask)
    with torch.no_grad():
        for parameter in it.task.module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    found = [heldout_figures(_state(it, accumulate=cuts), it.loader, 3) for cuts in (1, 8)]
    assert len(it.pictures.heldout) >= 3
    assert found[0]["perplexity"] == pytest.approx(found[1]["perplexity"], rel=1e-5)
    assert found[0]["perplexity"] == pytest.approx(math.exp(found[0]["loss"]))


def test_moved_pictures_are_learnt(pictures: Path, decoder: Path, tmp_path: Path) -> None:
    """With `augment` the tokens are those of moved pictures, row by row; held-out pictures stay where they are."""
    task = {"kind": "autoregressive", "text": "labels", "decoder": str(decoder), "network": CAUSAL, "drop": 0.0}
    plain, moving = (
        run(pictures, tmp_path / name, {**task, **more})
        for name, more in (("plain", {}), ("moving", {"augment": {"shift": 0.2, "scale": 0.3}}))
    )
    assert isinstance(plain.task, AutoregressiveTask) and isinstance(moving.task, AutoregressiveTask)
    batch = plain.loader.batch(0)
    rng = Rng.samples(0, batch.sample, "train")
    with torch.no_grad():
        condition = moving.task.told(batch)
        z = moving.task.decoder.encode(Augment(shift=0.2, scale=0.3)(batch.images, rng.fork("augment")))
        assert (z != moving.task.z(batch)).any(2).any(1).all()
        wanted = -moving.task.generator.log_prob(z, condition) / z[0].numel()
        torch.testing.assert_close(moving.task.loss(batch, rng).rows, wanted)
        part = rows_of(batch, slice(2, 5))
        torch.testing.assert_close(
            moving.task.loss(part, Rng.samples(0, part.sample, "train")).rows, wanted[2:5], rtol=1e-4, atol=1e-5
        )
        figures = [it.task.validate(batch, rng) for it in (plain, moving)]
        assert figures[0] == figures[1]


@pytest.mark.parametrize(
    "task, says",
    [
        ({"kind": "autoregressive", "decoder": "pixels"}, 'decodes pixels.*it makes tokens, and kind = "tokens"'),
        ({**tokens_task(), "loss": {"kl": 1e-6}}, "task.loss.kl: no such setting"),
        ({**tokens_task(), "autoencoder": {**AUTOENCODER, "latent": 5}}, "task.autoencoder.latent: given 5"),
        ({**tokens_task(), "quantizer": {"kind": "fsq", "levels": [1]}}, r"task.quantizer: levels = \(1,\)"),
    ],
)
def test_recipes_that_cannot_work_are_refused(pictures: Path, tmp_path: Path, task: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        run(pictures, tmp_path / "run", task)


def test_diffusion_in_tokens_is_refused(pictures: Path, decoder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r'decodes tokens.*it makes pixels or latent, and task.kind = "autoregressive"'
    ):
        run(pictures, tmp_path / "run", {"kind": "diffusion", "decoder": str(decoder)})


@pytest.mark.parametrize("name", ["tokens", "autoregressive"])
def test_the_emoji_recipes_are_recipes(name: str) -> None:
    path = Path(__file__).parents[2] / "recipes" / "emoji" / f"{name}.toml"
    recipe = read_recipe(path)
    assert recipe.out == f"runs/emoji/{name}" and recipe.data.size == 64
    assert 0 < recipe.minutes <= 25
