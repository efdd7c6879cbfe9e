"""Pipelines of diffusers on the command line: imported, sampled, exported, for every family, from folders it wrote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from benchmarks.parity import FAMILIES, write
from PIL import Image
from safetensors.torch import load_file, save_file

from carrara.store import load

from .conftest import done, run

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipelines")


def imported(place: Path, family: str, *words: object) -> tuple[Path, Path]:
    """The folder that diffusers wrote, and the model of it."""
    source, model = place / family, place / f"{family}-model"
    if not source.exists():
        write(family, source)
    if not model.exists():
        done("import", source, model, "--size", 32, *words)
    return source, model


def tensors(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {path.relative_to(folder).as_posix(): load_file(path) for path in sorted(folder.rglob("*.safetensors"))}


def same(a: Path, b: Path) -> None:
    """Two pipelines have the same files, configurations, names and bytes of tensors."""
    ignored = {"manifest.json"}
    names = [{p.relative_to(x).as_posix() for p in x.rglob("*") if p.is_file()} - ignored for x in (a, b)]
    assert names[0] == names[1]
    for name in names[0]:
        if name.endswith(".json"):
            assert json.loads((a / name).read_text()) == json.loads((b / name).read_text()), name
        elif not name.endswith(".safetensors"):
            assert (a / name).read_bytes() == (b / name).read_bytes(), name
    mine, theirs = tensors(a), tensors(b)
    for name, found in mine.items():
        assert found.keys() == theirs[name].keys()
        assert all(found[k].dtype == theirs[name][k].dtype and torch.equal(found[k], theirs[name][k]) for k in found)


@pytest.mark.parametrize("family", FAMILIES)
def test_imported_sampled_and_exported(family: str, place: Path) -> None:
    import diffusers

    source, model = imported(place, family)
    words: list[object] = []
    if family == "sd1-inpainting":
        for name, colour in (("image", (200, 30, 30)), ("mask", (255, 255, 255))):
            Image.new("RGB", (32, 32), colour).save(place / f"{name}.png")
        words = ["--image", place / "image.png", "--mask", place / "mask.png"]
    done("sample", model, "a red apple", "--steps", 2, "--out", place / f"{family}-out", *words)
    with Image.open(next((place / f"{family}-out").glob("0000-*.png"))) as picture:
        assert picture.size == (32, 32)
    said = done("export", model, place / f"{family}-back").out
    assert "is a pipeline of diffusers" in said
    same(source, place / f"{family}-back")
    diffusers.DiffusionPipeline.from_pretrained(place / f"{family}-back")
    shown = json.loads(done("show", model, "--json").out)
    assert shown["parts"][1]["facts"]["imported_from"] == family


def test_what_is_trained_on_is_written(place: Path, tmp_path: Path) -> None:
    """The weights that a model has now, in the place of those that it came with."""
    source, model = imported(place, "sd1")
    shutil.copytree(model, tmp_path / "model")
    weights = tmp_path / "model" / "generator" / "weights.safetensors"
    from carrara.store import save_component

    system = load(model)
    with torch.no_grad():
        for parameter in system.generator.parameters():  # type: ignore[attr-defined]
            parameter.mul_(1.5)
    save_component(weights.parent, "generator", system.generator)  # type: ignore[arg-type]
    done("export", tmp_path / "model", tmp_path / "out")
    before, after = tensors(source), tensors(tmp_path / "out")
    for name in before:
        scale = 1.5 if name.startswith("unet/") else 1.0
        assert all(torch.equal(after[name][key], before[name][key] * scale) for key in before[name])


def test_weights_of_sixteen_bits_stay_so(place: Path, tmp_path: Path) -> None:
    source, _ = imported(place, "sd1")
    shutil.copytree(source, tmp_path / "half")
    for path in (tmp_path / "half").rglob("*.safetensors"):
        halved = {name: x.half() if x.is_floating_point() else x for name, x in load_file(path).items()}
        save_file(halved, path.with_name(f"{path.stem}.fp16.safetensors"), {"format": "pt"})
        path.unlink()
    done("import", tmp_path / "half", tmp_path / "model", "--variant", "fp16", "--size", 32)
    assert {x.dtype for x in load(tmp_path / "model").generator.parameters()} == {torch.float16}  # type: ignore[attr-defined]
    done("export", tmp_path / "model", tmp_path / "out", "--variant", "fp16")
    same(tmp_path / "half", tmp_path / "out")
    done("import", tmp_path / "half", tmp_path / "wide", "--variant", "fp16", "--precision", "float32", "--size", 32)
    assert {x.dtype for x in load(tmp_path / "wide").generator.parameters()} == {torch.float32}  # type: ignore[attr-defined]
    done("export", tmp_path / "wide", tmp_path / "again", "--variant", "fp16")
    same(tmp_path / "half", tmp_path / "again")


def test_shards(place: Path, tmp_path: Path) -> None:
    _, model = imported(place, "sd1")
    done("export", model, tmp_path / "out", "--shard-gib", 0.001)
    assert not list((tmp_path / "out" / "vae").glob("*.index.json"))
    done("import", tmp_path / "out", tmp_path / "model", "--size", 32)


def test_an_autoencoder_alone(place: Path, tmp_path: Path) -> None:
    source, model = imported(place, "sd1")
    said = done("import", source / "vae", tmp_path / "vae", "--size", 32).out
    assert "is a decoder of latents 4 x 8 x 8" in said
    from carrara.store import load_component

    alone, whole = load_component(tmp_path / "vae", "decoder"), load(model).decoder
    z = torch.randn(1, 4, 8, 8)
    assert torch.equal(alone.decode(z), whole.decode(z))  # type: ignore[attr-defined]
    assert alone.space == whole.space


def test_licence(place: Path, tmp_path: Path) -> None:
    source, _ = imported(place, "sd1")
    shutil.copytree(source, tmp_path / "sd1")
    (tmp_path / "sd1" / "README.md").write_text("---\nlicense: creativeml-openrail-m\ntags:\n- x\n---\n# Model\n")
    done("import", tmp_path / "sd1", tmp_path / "model", "--size", 32)
    assert "creativeml-openrail-m" in done("show", tmp_path / "model").out


@pytest.mark.parametrize(
    "words, code, says",
    [
        (("none", "out"), 5, "does not exist"),
        (("empty", "out"), 5, "model_index.json"),
        (("sd1", "out", "--family", "sd1"), 2, "family is for a single file"),
        (("sd1", "out", "--data", "."), 2, "--data is for an autoencoder alone"),
        (("sd1", "out", "--size", "30"), 2, ""),
        (("sd1", "full"), 5, "full"),
        (("sd1/vae", "out", "--variant", "fp16"), 2, "--variant is for a whole model"),
        (("text.safetensors", "out"), 5, "text.safetensors"),
    ],
)
def test_refused(words: tuple[str, ...], code: int, says: str, place: Path, tmp_path: Path) -> None:
    imported(place, "sd1")
    shutil.copytree(place / "sd1", tmp_path / "sd1")
    for name in ("empty", "full"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "text.safetensors").write_text("no weights at all")
    said = run("import", *words, cwd=tmp_path)
    assert said.code == code and says in said.err, said.err
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"
    assert not list(tmp_path.glob(".import-*"))


def test_updates_are_put_into_a_model(place: Path, tmp_path: Path) -> None:
    """As many times as is said; a picture says which it was made with."""
    _, model = imported(place, "sd1")
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    draw = torch.Generator().manual_seed(0)
    pair = {f"{name}.lora_A.weight": torch.randn(2, 16, generator=draw),
            f"{name}.lora_B.weight": torch.randn(16, 2, generator=draw)}  # fmt: skip
    save_file(pair, tmp_path / "a.safetensors")
    made = {}
    for out, words in (("none", ()), ("off", ("--lora", "a.safetensors:0")), ("on", ("--lora", "a.safetensors")),
                       ("twice", ("--lora", "a.safetensors:0.5", "--lora", "a.safetensors:0.5"))):  # fmt: skip
        said = done("sample", model, "a cat", "--steps", 2, "--out", out, "--json", *words, cwd=tmp_path)
        found = json.loads(said.out)
        made[out] = Image.open(tmp_path / found["pictures"][0]["path"]).tobytes()
    assert found["lora"][0]["file"] == "a.safetensors" and found["lora"][0]["strength"] == 0.5
    assert made["none"] == made["off"] != made["on"]
    assert max(abs(a - b) for a, b in zip(made["on"], made["twice"], strict=True)) <= 1
    assert b"a.safetensors" in (tmp_path / "on" / "0000-a-cat-seed0.png").read_bytes()
    for word, code, says in (("a.safetensors:x", 2, "is no number"), ("b.safetensors", 5, "b.safetensors"),
                             ("a.safetensors:nan", 2, "finite")):  # fmt: skip
        said = run("sample", model, "a cat", "--lora", word, cwd=tmp_path)
        assert said.code == code and says in said.err, said.err


def test_export_refuses(place: Path, tmp_path: Path) -> None:
    _, model = imported(place, "sd1")
    own = tmp_path / "own"
    shutil.copytree(model, own)
    shutil.rmtree(own / "diffusers")
    said = run("export", own, tmp_path / "out")
    assert said.code == 2 and "was not imported" in said.err
    assert run("export", tmp_path / "none", tmp_path / "out").code != 0
    assert not (tmp_path / "out").exists()
