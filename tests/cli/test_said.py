"""`carrara sample --from picture.png`: a picture is made again from what it says, which can do no harm."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from carrara.data import write_picture
from carrara.data.parameters import read_parameters
from carrara.decoder import Pixels
from carrara.diffusion import Denoiser, DiffusionGenerator, Flow, Linear, Process, ScaledTime
from carrara.gan import GanGenerator
from carrara.nn import UNet
from carrara.store import assemble, save_component
from carrara.store.transformers import PretrainedSource, read_text
from carrara.text import Convention, Unconditional
from tiny_text import make

from .conftest import done, run


def assembled(place: Path, parts: dict[str, Any]) -> Path:
    for role, part in parts.items():
        save_component(place / role, role, part)
    assemble(place / "model", **{role: place / role for role in parts})
    return place / "model"


def text_model(place: Path, clip: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    convention = Convention(masked=False, vector=False, chunks=2, emphasis=True)
    text = read_text(PretrainedSource(path=str(clip), whiten=False, length=10, convention=convention))
    network = UNet(
        in_channels=1, out_channels=1, channels=8, multipliers=(1, 2), blocks=1, attention=(1,), groups=4, context=24
    )
    for parameter in network.parameters():  # the last layer begins at zero
        torch.nn.init.normal_(parameter, std=0.1)
    decoder = Pixels(channels=1, size=16)
    denoiser = Denoiser(network, Process(Linear()), Flow(), ScaledTime())
    generator = DiffusionGenerator(denoiser, decoder.space, reads=text.space)
    return assembled(place, {"text": text, "generator": generator, "decoder": decoder})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two untrained models of grey pixels, told by a tiny CLIP."""
    place = tmp_path_factory.mktemp("models")
    make(place / "clip", "clip")
    return text_model(place / "one", place / "clip", 0), text_model(place / "other", place / "clip", 1)


WORDS = ["a (red:1.4) apple", "--seed", 5, "--steps", 3, "--sampler", "heun", "--guidance", 3, "--negative", "a cat",
         "--size", "16x24", "--clip-skip", 1]  # fmt: skip


@pytest.fixture(scope="module")
def picture(models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made")
    done("sample", models[0], *WORDS, "--out", out)
    (path,) = out.glob("0000-*.png")
    return path


def pixels(folder: Path) -> np.ndarray:
    (path,) = folder.glob("0000-*.png")
    return np.asarray(Image.open(path))


def again(model: Path, picture: Path, out: Path, *words: object, code: int = 0) -> Any:
    said = run("sample", model, "--from", picture, *words, "--out", out)
    assert said.code == code, said.err
    return said


def said_by(path: Path, name: str, text: str) -> Path:
    info = PngImagePlugin.PngInfo()
    info.add_itxt(name, text)
    Image.new("L", (4, 4)).save(path, pnginfo=info)
    return path


def test_a_picture_says_how_it_was_made(picture: Path) -> None:
    with Image.open(picture) as image:
        image.load()
        record, parameters = json.loads(image.info["carrara"]), read_parameters(image.info["parameters"])
    assert record["format_version"] == 1
    wanted = {"prompt": WORDS[0], "negative": "a cat", "seed": 5, "size": [16, 24], "sampler": "heun", "guidance": 3}
    assert {name: record[name] for name in wanted} == wanted
    assert set(record["components"]) == {"text", "generator", "decoder"} and {"carrara", "torch", "model"} <= set(
        record
    )
    assert (parameters.prompt, parameters.negative) == (WORDS[0], "a cat")
    told = {"Steps": str(record["steps"]), "Sampler": "Heun", "CFG scale": "3", "Seed": "5", "Size": "24x16",
            "Clip skip": "2", "Model": "model", "Model hash": record["components"]["generator"]}  # fmt: skip
    assert {name: parameters.settings[name] for name in told} == told


def test_the_same_picture_again(models: tuple[Path, Path], picture: Path, tmp_path: Path) -> None:
    said = again(models[0], picture, tmp_path)
    assert np.array_equal(pixels(tmp_path), np.asarray(Image.open(picture)))
    assert "made with" not in said.out and "warning" not in said.err


@pytest.mark.parametrize(
    "words, says",
    [
        (["--seed", 6], "--seed is 6; NAME was made with 5."),
        (["--steps", 4], "--steps is 4; NAME was made with 3."),
        (["--sampler", "ddim"], '--sampler is "ddim"; NAME was made with "heun".'),
        (["--guidance", 1.5], "--guidance is 1.5; NAME was made with 3.0."),
        (["--negative", "joy"], '--negative is "joy"; NAME was made with "a cat".'),
        (["--size", "16x16"], "--size is 16x16; NAME was made with 16x24."),
        (["a lady"], 'the prompt is "a lady"; NAME was made with "a (red:1.4) apple".'),
        (["--clip-skip", 0], None),
    ],
)
def test_what_is_given_counts_more_and_what_differs_is_said(
    words: list[object], says: str | None, models: tuple[Path, Path], picture: Path, tmp_path: Path
) -> None:
    said = again(models[0], picture, tmp_path / "from", *words)
    if says:
        assert says.replace("NAME", picture.name) in said.out
        assert said.out.count("was made with") == 1
    given = [str(word) for word in words]
    plain = [str(word) for word in WORDS]
    if given[0].startswith("--"):
        plain[plain.index(given[0]) + 1] = given[1]
    else:
        plain[0] = given[0]
    done("sample", models[0], *plain, "--out", tmp_path / "plain")
    assert np.array_equal(pixels(tmp_path / "from"), pixels(tmp_path / "plain"))
    assert not np.array_equal(pixels(tmp_path / "from"), np.asarray(Image.open(picture)))


def test_another_model_is_said(models: tuple[Path, Path], picture: Path, tmp_path: Path) -> None:
    said = again(models[1], picture, tmp_path)
    assert f"{picture.name} was made by another model: its generator had other weights" in said.err
    assert not np.array_equal(pixels(tmp_path), np.asarray(Image.open(picture)))


def test_without_metadata_nothing_is_written(models: tuple[Path, Path], picture: Path, tmp_path: Path) -> None:
    again(models[0], picture, tmp_path, "--no-metadata")
    (path,) = tmp_path.glob("0000-*.png")
    assert np.array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(picture)))
    with Image.open(path) as image:
        assert not {"carrara", "parameters"} & set(image.info)
    said = again(models[0], path, tmp_path, code=3)
    assert "does not say how it was made; it was written with --no-metadata" in said.err


def test_the_text_of_other_programs(models: tuple[Path, Path], picture: Path, tmp_path: Path) -> None:
    """Euler is DDIM in other words; what is not known is said."""
    with Image.open(picture) as image:
        image.load()
        own = image.info["parameters"]
    mine = said_by(tmp_path / "mine.png", "parameters", own)
    said = again(models[0], mine, tmp_path / "mine")
    assert np.array_equal(pixels(tmp_path / "mine"), np.asarray(Image.open(picture)))
    assert "warning" not in said.err
    text = (
        "red apple\nNegative prompt: cat\nSteps: 4, Sampler: Euler, Schedule type: Karras, CFG scale: 2.5, Seed: 9, "
        'Size: 16x16, Model: other, Denoising strength: 0.4, Odd: "\x1b[31m, x"'
    )
    said = again(models[0], said_by(tmp_path / "theirs.png", "parameters", text), tmp_path / "theirs")
    assert "of theirs.png this is not taken: Schedule type: Karras; Denoising strength: 0.4; Odd:" in said.err
    assert "\x1b" not in said.err
    done("sample", models[0], "red apple", "--negative", "cat", "--steps", 4, "--sampler", "ddim", "--guidance", 2.5,
         "--seed", 9, "--out", tmp_path / "plain")  # fmt: skip
    assert np.array_equal(pixels(tmp_path / "theirs"), pixels(tmp_path / "plain"))


def test_a_prompt_alone_is_taken(models: tuple[Path, Path], tmp_path: Path) -> None:
    path = said_by(tmp_path / "a.png", "parameters", "red apple\nSteps: many, Sampler: Euler of mine, CFG scale: high, "
                   "Seed: -1, Size: 0x9, Clip skip: 0")  # fmt: skip
    said = again(models[0], path, tmp_path / "out", "--steps", 2)
    for part in (
        "Steps: many",
        "Sampler: Euler of mine",
        "CFG scale: high",
        "Seed: -1",
        "Size: 0x9",
        "Clip skip: 0",
    ):
        assert part in said.err
    done("sample", models[0], "red apple", "--steps", 2, "--out", tmp_path / "plain")
    assert np.array_equal(pixels(tmp_path / "out"), pixels(tmp_path / "plain"))


def test_what_it_began_from_is_to_be_given_again(models: tuple[Path, Path], tmp_path: Path) -> None:
    write_picture(tmp_path / "begin.png", np.full((16, 16, 1), 200, np.uint8))
    words = ["red", "--steps", 4, "--image", tmp_path / "begin.png", "--strength", 0.5]
    done("sample", models[0], *words, "--out", tmp_path / "first")
    (path,) = (tmp_path / "first").glob("0000-*.png")
    said = again(models[0], path, tmp_path / "without")
    assert "this is not taken: --image begin.png, which is to be given again" in said.err
    again(models[0], path, tmp_path / "with", "--image", tmp_path / "begin.png")
    assert np.array_equal(pixels(tmp_path / "with"), pixels(tmp_path / "first"))
    done("sample", models[0], "red", "--steps", 4, "--out", tmp_path / "plain")
    assert np.array_equal(pixels(tmp_path / "without"), pixels(tmp_path / "plain"))


def record(**changes: Any) -> str:
    told = {"format_version": 1, "prompt": "red", "negative": "", "seed": 1, "size": [16, 16], "settings": {},
            "components": {}}  # fmt: skip
    return json.dumps({name: value for name, value in {**told, **changes}.items() if value is not None})


HOSTILE = {
    "no JSON": ("{", "no JSON"),
    "deep JSON": ("[" * 500_000, "no JSON"),
    "deep tables": ('{"a":' * 100_000, "no JSON"),
    "no number": ('{"format_version": NaN}', "no JSON"),
    "a list": ("[1]", "no format_version"),
    "no version": (record(format_version=None), "no format_version"),
    "a true version": (record(format_version=True), "no format_version"),
    "a later version": (record(format_version=2), "format version 2; this Carrara reads 1"),
    "a prompt of numbers": (record(prompt=[1]), "the prompt of its record is no text"),
    "a long prompt": (record(prompt="x" * 70_000), "no text of at most"),
    "a seed below zero": (record(seed=-1), "the seed of its record is no whole number"),
    "a huge seed": (record(seed=2**80), "no whole number"),
    "a number without end": ('{"format_version": 1, "seed": 1' + "0" * 9000 + "}", "no JSON"),
    "a huge size": (record(size=[16, 99999]), "no height and width"),
    "a size of text": (record(size="16x16"), "no height and width"),
    "settings of text": (record(settings="heun"), "are no table"),
    "components of numbers": (record(components=[1]), "are no table"),
    "too many steps": (record(settings={"times": {"kind": "uniform", "steps": 10**9}}), "1e+09 steps"),
    "endless steps": (record(settings={"times": {"steps": "?"}}).replace('"?"', "1e999"), "inf steps"),
    "steps within": (record(settings={"times": {"inner": {"steps": -5}}}), "-5 steps"),
    "deep settings": (record(settings={"a": json.loads("[" * 200 + "]" * 200)}), "more than 32 deep"),
    "too many candidates": (record(settings={"candidates": 10**6}), "the candidates of its record"),
    "too many layers": (record(skipped=-3), "the skipped of its record"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_records_are_refused_in_one_sentence(name: str, models: tuple[Path, Path], tmp_path: Path) -> None:
    text, says = HOSTILE[name]
    path = said_by(tmp_path / "a.png", "carrara", text)
    began = time.process_time()
    said = again(models[0], path, tmp_path / "out", code=3)
    assert time.process_time() - began < 4
    assert says in said.err and said.err.count("\n") == 1


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"sampler": {"kind": "os:system"}}, '"os:system" is no kind of sampler'),
        ({"sampler": {"kind": "heun", "command": "rm"}}, "no such setting"),
        ({"times": {"kind": "uniform", "steps": "many"}}, "expected int"),
        ({"temperature": 1.0}, "no such setting"),
    ],
)
def test_settings_that_are_not_for_the_model(
    settings: dict[str, Any], says: str, models: tuple[Path, Path], tmp_path: Path
) -> None:
    """Its own are taken then; nothing in a file names code."""
    path = said_by(tmp_path / "a.png", "carrara", record(settings=settings))
    said = again(models[0], path, tmp_path / "out", "--steps", 2)
    assert "the settings of a.png are not for this model, whose own are taken" in said.err and says in said.err
    done("sample", models[0], "red", "--seed", 1, "--steps", 2, "--out", tmp_path / "plain")
    assert np.array_equal(pixels(tmp_path / "out"), pixels(tmp_path / "plain"))


def test_more_skipped_layers_than_there_are(models: tuple[Path, Path], tmp_path: Path) -> None:
    path = said_by(tmp_path / "a.png", "carrara", record(skipped=9))
    said = again(models[0], path, tmp_path / "out", code=2)
    assert "--clip-skip 9: of this model's text encoder 2 layers can be skipped" in said.err


def test_a_generator_of_another_family(picture: Path, tmp_path: Path) -> None:
    from carrara.nn.gan_generator import ConvGenerator

    torch.manual_seed(0)
    decoder = Pixels(channels=1, size=8)
    network = ConvGenerator(out_channels=1, size=8, noise=8, style=16, widths=(16, 16))
    generator = GanGenerator(network, decoder.space)
    model = assembled(tmp_path, {"text": Unconditional(), "generator": generator, "decoder": decoder})
    bare = said_by(tmp_path / "bare.png", "carrara", record(prompt="", size=[8, 8]))
    again(model, bare, tmp_path / "out")
    theirs = said_by(
        tmp_path / "theirs.png", "parameters", "Steps: 4, Sampler: Euler, CFG scale: 2, Seed: 1, Size: 8x8"
    )
    again(model, theirs, tmp_path / "theirs")
    assert np.array_equal(pixels(tmp_path / "out"), pixels(tmp_path / "theirs"))
    with Image.open(next((tmp_path / "out").glob("0000-*.png"))) as image:
        image.load()
        said = read_parameters(image.info["parameters"])
    assert said.settings["Seed"] == "1" and "Steps" not in said.settings


def test_one_picture_and_files_that_are_none(models: tuple[Path, Path], picture: Path, tmp_path: Path) -> None:
    copy = tmp_path / "name=value.png"
    shutil.copy(picture, copy)
    again(models[0], copy, tmp_path / "out")
    said = again(models[0], picture, tmp_path / "out", "--from", copy, code=2)
    assert "settings are those of one picture" in said.err
    assert "none.png cannot be read" in again(models[0], tmp_path / "none.png", tmp_path / "out", code=5).err
