"""`carrara sample --input --from --follow --control`: what a model is told beside a prompt, and what can go wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from carrara.conditions import Control, Edges, Embedding, Layout, Mask, SmallImage, edges
from carrara.decoder import Pixels
from carrara.diffusion import Denoiser, DiffusionGenerator, Flow, Linear, Process, SamplingSettings, ScaledTime
from carrara.diffusion.guidance import ClassifierFree
from carrara.diffusion.limits import Clip
from carrara.fingerprint import fingerprint
from carrara.nn import ImageEncoder, UNet
from carrara.nn.control import control_of
from carrara.store import assemble, load, save_component
from carrara.text import Labels, Unconditional

from .conftest import done, draw, run

SIDE = 16


def moved(module: torch.nn.Module) -> torch.nn.Module:
    """What starts at zero says nothing; so every weight is moved."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module


def model(place: Path, *, told: bool = True) -> Path:
    """An untrained model of colour pixels, 16 x 16, that is told of everything, or of a class alone."""
    torch.manual_seed(0)
    decoder = Pixels(channels=3, size=SIDE)
    layout = Layout(channels=3, colours=3, cell=2)
    layout.palette.copy_(torch.tensor([[-1.0, -1, -1], [1, -1, -1], [1, 1, 1]]))
    tower = ImageEncoder(width=4, patch=4, widths=(8,), blocks=(1,))
    inputs = (
        Edges(),
        Edges(name="lines", drop=0.0),
        Mask(channels=3),
        layout,
        SmallImage(channels=3, size=(SIDE, SIDE), side=4),
        Embedding(tower, channels=3, size=(SIDE, SIDE), name="seen"),
    )
    inputs = inputs if told else ()
    widths = {part: {one.name: one.channels for one in inputs if one.part == part} for part in ("controls", "adapters")}
    text = Labels(("cat", "dog")) if not told else Unconditional()
    vector = None if told else 3
    network = UNet(channels=8, multipliers=(1, 2), blocks=1, attention=(), groups=4, vector=vector, **widths)
    denoiser = Denoiser(moved(network), Process(Linear()), Flow(), ScaledTime())
    settings = SamplingSettings(guidance=Clip(ClassifierFree(1.0)))
    generator = DiffusionGenerator(denoiser, decoder.space, reads=text.space, settings=settings, conditions=inputs)
    parts = {"text": text, "generator": generator, "decoder": decoder}
    for role, part in parts.items():
        save_component(place / role, role, part)
    assemble(place / "model", **{role: place / role for role in parts})
    return place / "model"


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model(tmp_path_factory.mktemp("told"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model(tmp_path_factory.mktemp("plain"), told=False)


@pytest.fixture(scope="module")
def control(plain: Path) -> Path:
    """A control of the plain model, by edges."""
    generator = load(plain).generator
    network = moved(control_of(generator.denoiser.network, channels=2))
    mine = fingerprint(generator.state_dict())
    save_component(plain.parent / "control", "control", Control(network, Edges(), generator.space, generator=mine))
    return plain.parent / "control"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture, its edges, a mask, a layout and a small image."""
    place = tmp_path_factory.mktemp("files")
    picture = draw(0, SIDE)[0]
    picture.save(place / "picture.png")
    values = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    lines = (edges(values)[0, 0].numpy() * 255).astype(np.uint8)
    Image.fromarray(lines).save(place / "lines.png")
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[:8] = 255
    Image.fromarray(mask).save(place / "mask.png")
    painted = np.zeros((2 * SIDE, 2 * SIDE, 3), np.uint8)
    painted[8:, 8:] = (255, 0, 0)
    Image.fromarray(painted).save(place / "layout.png")
    picture.resize((4, 4)).save(place / "small.png")
    (place / "cut.png").write_bytes((place / "picture.png").read_bytes()[:50])
    np.save(place / "five.npy", np.zeros((SIDE, SIDE, 5), np.uint8))
    return place


def made(folder: Path) -> np.ndarray:
    (path,) = folder.glob("0000*seed0.png")
    return np.asarray(Image.open(path))


def sample(model: Path, files: Path, out: Path, *words: str) -> np.ndarray:
    placed = [re.sub(r"=([\w-]+\.\w+)$", lambda m: f"={files / m[1]}", word) for word in words]
    placed = [str(files / word) if re.fullmatch(r"[a-z]+\.png", word) else word for word in placed]
    done("sample", model, "--steps", 2, *placed, "--out", out)
    return made(out)


LINES = ("--input", "lines=lines.png")


def test_each_input_counts(told: Path, files: Path, tmp_path: Path) -> None:
    plain = sample(told, files, tmp_path / "plain", *LINES)
    for number, words in enumerate(
        (
            ("--input", "edges=lines.png"),
            ("--input", "layout=layout.png"),
            ("--input", "small=small.png"),
            ("--input", "seen=picture.png"),
            ("--image", "picture.png", "--mask", "mask.png"),
        )
    ):
        assert not np.array_equal(sample(told, files, tmp_path / str(number), *LINES, *words), plain), words


def test_computed_from_a_picture_is_the_same_as_given(told: Path, files: Path, tmp_path: Path) -> None:
    given = sample(told, files, tmp_path / "given", *LINES, "--input", "edges=lines.png")
    same = sample(told, files, tmp_path / "same", *LINES, "--from", "edges=picture.png")
    assert np.array_equal(given, same)
    said = json.loads(done("sample", told, "--steps", 2, "--from", f"lines={files / 'picture.png'}", "--from",
                           f"layout={files / 'picture.png'}", "--json", "--out", tmp_path / "json").out)  # fmt: skip
    assert said["settings"]["from"] == {"lines": "picture.png", "layout": "picture.png"}
    with Image.open(said["pictures"][0]["path"]) as image:
        assert json.loads(image.info["carrara"])["settings"]["from"]["lines"] == "picture.png"


def test_what_a_mask_leaves_stays(told: Path, files: Path, tmp_path: Path) -> None:
    """--image and --mask, or --input: one and the same for a model that reads them."""
    found = sample(told, files, tmp_path / "a", *LINES, "--image", "picture.png", "--mask", "mask.png")
    picture = np.asarray(Image.open(files / "picture.png"))
    assert np.array_equal(found[8:], picture[8:])
    assert not np.array_equal(found[:8], picture[:8])
    again = sample(told, files, tmp_path / "b", *LINES, "--input", "image=picture.png", "--input", "mask=mask.png")
    assert np.array_equal(again, found)


def test_scales(told: Path, files: Path, tmp_path: Path) -> None:
    words = (*LINES, "--input", "edges=lines.png")
    plain = sample(told, files, tmp_path / "plain", *words)
    assert np.array_equal(sample(told, files, tmp_path / "one", *words, "--follow", "edges=1"), plain)
    assert not np.array_equal(sample(told, files, tmp_path / "two", *words, "--follow", "edges=3"), plain)
    given = ["--input", f"lines={files / 'lines.png'}", "--from", f"edges={files / 'picture.png'}"]
    given += ["--follow", "edges=3"]
    facts = json.loads(done("sample", told, "--steps", 2, *given, "--json", "--out", tmp_path / "json").out)
    assert facts["settings"]["guidance"]["kind"] == "clip"
    assert facts["settings"]["guidance"]["inner"]["scales"] == {"edges": 3.0}


def test_what_is_not_told_is_said(told: Path, plain: Path, files: Path, tmp_path: Path) -> None:
    said = done("sample", told, "--steps", 2, "--input", f"lines={files / 'lines.png'}", "--out", tmp_path / "out")
    assert "Not told of edges, mask, layout, small, seen, which this model can go without." in said.out
    assert "Not told" not in done("sample", plain, "cat", "--steps", 2, "--out", tmp_path / "plain").out


def test_what_was_most_likely_meant_otherwise_is_said(told: Path, files: Path, tmp_path: Path) -> None:
    lines = np.asarray(Image.open(files / "lines.png"))
    Image.fromarray(255 - lines).save(tmp_path / "inverted.png")
    Image.fromarray(np.zeros_like(lines)).save(tmp_path / "black.png")
    words = ("--steps", 1, "--image", files / "picture.png", "--mask", tmp_path / "black.png")
    said = done("sample", told, "--input", f"lines={tmp_path / 'inverted.png'}", *words, "--out", tmp_path / "out").err
    assert "lines: most of it is white, and edges are white lines on black" in " ".join(said.split())
    assert "mask: it is black throughout, so that nothing is made" in " ".join(said.split())
    right = ("--input", f"lines={files / 'lines.png'}", "--image", files / "picture.png", "--mask", files / "mask.png")
    assert not done("sample", told, "--steps", 1, *right, "--out", tmp_path / "right").err


def test_what_is_suggested_after_assembling_names_what_is_needed(told: Path, plain: Path, tmp_path: Path) -> None:
    for model, needed in ((told, ["--input", "lines=FILE"]), (plain, [])):
        parts = [word for role in ("text", "generator", "decoder") for word in (f"--{role}", model.parent / role)]
        last = done("assemble", *parts, tmp_path / model.parent.name).out.splitlines()[-1]
        words = last.split()
        assert words[:3] == ["Next:", "carrara", "sample"]
        assert (words[-2:] if "--input" in words else []) == needed


def test_controls(plain: Path, control: Path, files: Path, tmp_path: Path) -> None:
    """Taken along for one command, or into the model folder; without a picture the generator is as it was."""
    bare = sample(plain, files, tmp_path / "bare", "cat")
    assert np.array_equal(sample(plain, files, tmp_path / "silent", "cat", "--control", str(control)), bare)
    led = sample(plain, files, tmp_path / "led", "cat", "--control", str(control), "--input", "edges=lines.png")
    assert not np.array_equal(led, bare)
    parts = [word for role in ("text", "generator", "decoder") for word in (f"--{role}", plain.parent / role)]
    done("assemble", *parts, "--control", control, tmp_path / "whole")
    again = sample(tmp_path / "whole", files, tmp_path / "again", "cat", "--input", "edges=lines.png")
    assert np.array_equal(again, led)
    said = done("show", tmp_path / "whole").out
    assert "control: control, in" in said
    assert re.search(r"told of +edges", said)
    shown = json.loads(done("show", tmp_path / "whole", "--json").out)
    assert [part["role"] for part in shown["parts"]] == ["text", "generator", "decoder", "control"]


@pytest.mark.parametrize(
    "words, code, says",
    [
        ([], 2, "this model needs lines: give it --input lines=FILE, or --from lines=FILE to compute it"),
        (["--input", "depth=lines.png"], 2, "--input depth: this model knows edges, lines, mask, layout, small, seen"),
        (["--input", "edges"], 2, '--input "edges" is not NAME=FILE'),
        (["--input", "=lines.png"], 2, "is not NAME=FILE"),
        (["--input", "edges=lines.png", "--input", "edges=lines.png"], 2, "--input edges is given twice"),
        (["--input", "edges=lines.png", "--from", "edges=picture.png"], 2, "edges is given by --input and by --from"),
        (["--image", "picture.png", "--input", "image=picture.png"], 2, "--image and --input image are the same"),
        (["--input", "mask=mask.png"], 2, "give the image too"),
        (["--from", "mask=picture.png"], 2, "--from mask: it cannot be computed"),
        (["--input", "edges=none.png"], 5, "none.png cannot be read"),
        (["--input", "edges=cut.png"], 3, "cut.png cannot be used"),
        (["--input", "layout=five.npy"], 3, "five.npy cannot be used"),
        ([*LINES, "--follow", "edges=2"], 2, "--follow edges has no effect: edges was not given"),
        ([*LINES, "--follow", "lines=2"], 2, "--follow lines: this model was never without lines"),
        ([*LINES, "--follow", "lines"], 2, "is not NAME=X"),
        ([*LINES, "--input", "edges=lines.png", "--follow", "edges=much"], 2, '"much" is no number'),
        ([*LINES, "--input", "edges=lines.png", "--follow", "edges=nan"], 2, "not finite"),
        (
            [*LINES, "--image", "picture.png", "--mask", "mask.png", "--strength", "0.5"],
            2,
            "--strength has no effect: this model was trained to make what a mask covers",
        ),
        (
            [*LINES, "--input", "small=small.png", "--size", "16x24"],
            2,
            "small is for pictures of 16 x 16, and 16 x 24 were asked for; make that size, or leave small out",
        ),
    ],
)
def test_refusals(told: Path, files: Path, tmp_path: Path, words: list[str], code: int, says: str) -> None:
    placed = [re.sub(r"(^|=)(\w+\.(?:png|npy))$", lambda m: f"{m[1]}{files / m[2]}", word) for word in words]
    said = run("sample", told, "--steps", 2, *placed, "--out", tmp_path / "out")
    assert (said.code, says in said.err) == (code, True), said
    assert not (tmp_path / "out").exists()


def test_other_refusals(plain: Path, told: Path, files: Path, control: Path, tmp_path: Path) -> None:
    for words, says in (
        (["--input", f"edges={files / 'lines.png'}"], "--input edges: this model is told nothing but a prompt"),
        (["--follow", "edges=2"], "--follow is for diffusion models that are told more than a prompt"),
    ):
        said = run("sample", plain, "cat", *words, "--out", tmp_path / "out")
        assert (said.code, says in said.err) == (2, True), said
    said = run("sample", told, "--control", control, "--out", tmp_path / "out")
    assert said.code == 2
    assert "was trained for the generator with fingerprint" in said.err
    parts = [word for role in ("text", "generator", "decoder") for word in (f"--{role}", told.parent / role)]
    said = run("assemble", *parts, "--control", control, tmp_path / "whole")
    assert said.code == 2
    assert not (tmp_path / "whole").exists()
