"""What a user can do wrong: each mistake ends with its exit code and a sentence that says what to do."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from .conftest import run, tiny, write_pictures


def refused(code: int, *words: object, cwd: Path, says: str) -> str:
    """The command ends with the code and with `error:` lines of which one matches; returns them."""
    said = run(*words, cwd=cwd)
    assert said.code == code, (said.code, said.err)
    lines = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert lines
    assert re.search(says, said.err), said.err
    return said.err


SYSTEM = "carrara-pics/system"
TEXT, GENERATOR = "carrara-pics/text.toml", "carrara-pics/generator.toml"


@pytest.mark.parametrize(
    "words, code, says",
    [
        # no such verb, option or value
        (["sampel"], 2, "did you mean 'sample'|Did you mean 'sample'"),
        (["sample"], 2, "MODEL.*carrara sample --help"),
        (["sample", SYSTEM, "x", "--step", "3"], 2, "--steps"),
        (["demo", "--minutes", "soon"], 2, "--minutes"),
        (["demo", "--minutes", "1e309"], 2, "minutes"),
        (["demo", "--minutes", "0"], 2, "minutes"),
        (["demo", "--seed", "-1"], 2, "--seed"),
        (["doctor", "now"], 2, "now"),
        # folders of pictures
        (["data", "check", "nowhere"], 3, "there is no folder nowhere"),
        (["data", "check", "none"], 3, "no pictures in none"),
        (["data", "check", "pics/00.png"], 3, "is a file"),
        (["data", "check", "pics", "--size", "0"], 2, "--size"),
        (["data", "check", "pics", "--size", "big"], 2, "--size"),
        (["data", "check", "pics", "--text", SYSTEM], 2, "whole model; its text encoder is carrara-pics/system/text"),
        (["data", "check", "pics", "--out", "a-file/x"], 5, "a-file"),
        (["init", "nowhere"], 3, "there is no folder nowhere"),
        (["init", "none"], 3, "no pictures in none"),
        (["init", "broken", "--out", "new"], 3, "could be read"),
        (["init", "pics"], 5, "--force"),
        (["init", "pics", "--size", "41", "--out", "new"], 2, "multiple of 8, such as 40"),
        (["init", "pics", "--minutes", "0", "--out", "new"], 2, "--minutes"),
        (["init", "pics", "--minutes", "1e309", "--out", "new"], 2, "--minutes"),
        (["init", "pics", "--minutes", "nan", "--out", "new"], 2, "--minutes"),
        # recipes
        (["train", "no.toml"], 2, "no.toml does not exist"),
        (["train", "pics"], 2, "pics is a folder.*carrara init"),
        (["train", "pics/00.png"], 2, "00.png is no TOML file.*carrara init"),
        (["train", TEXT, "--set", "train.steps"], 2, "train.batch=32"),
        (["train", TEXT, "--set", "train.stesp=3"], 2, 'train.stesp: no such.*"steps"'),
        (["train", TEXT, "--set", "train.steps=many"], 2, "text.toml:[0-9]+: train.steps: given 'many'"),
        (["train", TEXT, "--set", "train.steps=0"], 2, "steps"),
        (["train", TEXT, "--set", "train.steps=1e309"], 2, "train.steps"),
        (["train", TEXT, "--set", "train.learning_rate=1e309"], 2, "learning_rate"),
        (["train", TEXT, "--set", "minutes=1e309"], 2, "minutes"),
        (["train", TEXT, "--set", "minutes=-1"], 2, "minutes"),
        (["train", TEXT, "--set", "data=5"], 2, "data"),
        (["train", TEXT, "--set", "data.folder=nowhere"], 3, "there is no folder nowhere"),
        (["train", TEXT, "--set", "device=gpu"], 2, "device"),
        (["train", TEXT, "--set", "task.kind=contrastve"], 2, '"contrastive"'),
        (["train", TEXT, "--out", "a-file/x"], 5, "a-file"),
        (["train", TEXT, "--out", "new", "--cache", "a-file/x"], 5, "a-file"),
        (["train", TEXT, "--json"], 2, "--dry-run"),
        (["train", TEXT, *tiny("text"), "--set", "train.seed=1"], 2, "begun with other settings"),
        (["train", TEXT, *tiny("text"), "--set", "train.steps=2"], 2, "steps .was 4"),
        (["train", TEXT, *tiny("text"), "--set", "train.decay=constant"], 2, "decay .was 'cosine'"),
        (["train", GENERATOR, "--out", "new", "--set", "task.text=none"], 5, "task.text: none .*name the folder"),
        (["train", GENERATOR, "--out", "new", "--set", "task.text=untrained"], 5, "carrara train untrained.toml"),
        (["train", GENERATOR, "--out", "new", "--set", "task.decoder=untrained"], 5, "carrara train untrained.toml"),
        (["train", GENERATOR, "--out", "new", "--set", "task.text=carrara-pics/decoder"], 2,
         "task.text: carrara-pics/decoder is a decoder; expected a text encoder"),
        (["train", GENERATOR, "--out", "new", "--set", "task.text=labels"], 2, "class folders"),
        (["train", GENERATOR, "--out", "new", "--set", "data.size=48"], 2, "40"),
        (["train", GENERATOR, "--out", "new", "--set", "task.network.heads=5"], 2, "task.network"),
        (["train", GENERATOR, "--out", "new", "--set", "task.network.in_channels=5"], 2, "leave it out"),
        (["train", "broken.toml"], 2, "broken.toml.*line 2"),
        (["train", "empty.toml"], 2, "(?s)out: missing.*data: missing.*task: missing"),
        (["train", "typo.toml"], 2, 'typo.toml:5: data.szie: no such setting; did you mean "size"'),
        (["train", "binary.toml"], 2, "binary.toml is no TOML file"),
        # assembling
        (["assemble", "new"], 2, "--generator"),
        (["assemble", "--generator", "carrara-pics/generator", "new"], 2, "--text"),
        (["assemble", "--generator", "carrara-pics/text", "new"], 2, "--text|expected a generator"),
        (["assemble", "--generator", "carrara-pics/generator", "--text", "carrara-pics/text", "new"], 2, "--decoder"),
        (["assemble", "--generator", "pics", "new"], 5, "pics has no component.json; a part is made by .carrara train"),
        (["assemble", "--generator", "nowhere", "new"], 5, "nowhere does not exist"),
        (["assemble", "--generator", "nowhere", "--text", "carrara-pics/text", "new"], 5, "nowhere does not exist"),
        (["assemble", "--generator", "unfinished", "new"], 5, "unfinished .*has not finished; the same .carrara train"),
        (["assemble", "--generator", "nowhere", "--text", "carrara-pics/text", "--decoder", "carrara-pics/decoder",
          "new"], 5, "nowhere"),
        (["assemble", "--generator", "carrara-pics/generator", "--text", "carrara-pics/text", "--decoder",
          "carrara-pics/decoder", "a-file/x"], 5, "a-file"),
        (["demo", "--out", "a-file/x"], 5, "a-file"),
        (["init", "pics", "--out", "a-file/x"], 5, "a-file"),
        # sampling
        (["sample", "nowhere", "x"], 5, "nowhere does not exist"),
        (["sample", "pics", "x"], 5, "model.json"),
        (["sample", "carrara-pics", "x"], 5, "the model is in carrara-pics/system"),
        (["sample", "carrara-pics/text", "x"], 2, "a single text encoder; .*carrara assemble"),
        (["sample", SYSTEM], 2, "give a prompt"),
        (["sample", SYSTEM, "x", "--seed", "lucky"], 2, "--seed"),
        (["sample", SYSTEM, "x", "--seed", "-1"], 2, "--seed"),
        (["sample", SYSTEM, "x", "--count", "0"], 2, "--count"),
        (["sample", SYSTEM, "x", "--batch", "0"], 2, "--batch"),
        (["sample", SYSTEM, "x", "--steps", "0"], 2, "--steps"),
        (["sample", SYSTEM, "x", "--sampler", "dpmpp"], 2, 'did you mean "dpmpp-'),
        (["sample", SYSTEM, "x", "--guidance", "1e309"], 2, "finite"),
        (["sample", SYSTEM, "x", "--guidance", "nan"], 2, "finite"),
        (["sample", SYSTEM, "x", "--guidance", "strong"], 2, "--guidance"),
        (["sample", SYSTEM, "x", "--size", "big"], 2, "64x96"),
        (["sample", SYSTEM, "x", "--size", "41"], 2, "multiples of 8"),
        (["sample", SYSTEM, "x", "--prompts", "no.txt"], 5, "no.txt"),
        (["sample", SYSTEM, "--prompts", "blank.txt"], 2, "no prompts"),
        (["sample", SYSTEM, "--prompts", "pics/00.png"], 2, "UTF-8"),
        (["sample", SYSTEM, "x", "--out", "a-file/x"], 5, "a-file"),
        (["sample", SYSTEM, "x", "--device", "gpu"], 2, "device"),
        # likelihoods
        (["likelihood"], 2, "MODEL.*carrara likelihood --help"),
        (["likelihood", SYSTEM], 2, "--data"),
        (["likelihood", SYSTEM, "--data", "pics"], 2, "latents .*which latents have not"),
        (["likelihood", "nowhere", "--data", "pics"], 5, "nowhere does not exist"),
        (["likelihood", "carrara-pics/text", "--data", "pics"], 2, "carrara assemble"),
        (["likelihood", SYSTEM, "--data", "pics", "--out", "a-file/x"], 5, "a-file"),
        # benchmarks
        (["bench", "sampler"], 2, "sampler"),
        (["bench", "samplers", "now"], 2, "now"),
        (["bench", "samplers", "--evaluations", "many"], 2, "5,10,20"),
        (["bench", "samplers", "--evaluations", ""], 2, "5,10,20"),
        (["bench", "samplers", "--evaluations", "5,0"], 2, "from 1 to 500"),
        (["bench", "samplers", "--evaluations", "501"], 2, "from 1 to 500"),
        (["bench", "samplers", "--rows", "1"], 2, "--rows"),
        (["bench", "samplers", "--count", "0"], 2, "--count"),
        (["bench", "samplers", "--prompt", "x"], 2, "--model"),
        (["bench", "samplers", "--guidance", "2"], 2, "--model"),
        (["bench", "samplers", "--model", SYSTEM, "--prompt", "x", "--guidance", "nan"], 2, "finite"),
        (["bench", "samplers", "--model", "nowhere"], 5, "nowhere does not exist"),
        (["bench", "samplers", "--model", "carrara-pics/text"], 2, "carrara assemble"),
        (["bench", "samplers", "--model", SYSTEM], 2, "give a prompt"),
        (["bench", "samplers", "--model", SYSTEM, "--prompt", "x", "--device", "gpu"], 2, "device"),
        (["bench", "samplers", "--out", "a-file/x"], 5, "a-file"),
        # showing
        (["show", "nowhere"], 5, "nowhere does not exist"),
        (["show", "pics"], 5, "component.json"),
        (["show", "carrara-pics"], 5, "the model is in carrara-pics/system"),
        (["show", "unfinished"], 5, "has not finished; the same .carrara train"),
        (["show", "a-file"], 5, "a-file"),
    ],
)  # fmt: skip
def test_refusal(desk: Path, words: list[str], code: int, says: str) -> None:
    said = refused(code, *words, cwd=desk, says=says)
    assert len(said.splitlines()) <= 12
    assert not (desk / "new").exists() or not any((desk / "new").iterdir())


@pytest.fixture(scope="module")
def desk(project: Path) -> Path:
    """The project with files that are no good."""
    (project / "none").mkdir()
    (project / "none" / "notes.md").write_text("nothing here")
    (project / "broken").mkdir()
    for i in range(3):
        (project / "broken" / f"{i}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (project / "a-file").write_text("not a folder")
    (project / "unfinished" / "checkpoints").mkdir(parents=True)
    (project / "untrained.toml").write_text('out = "untrained"\n')
    (project / "blank.txt").write_text("\n  \n")
    (project / "broken.toml").write_text('out = "x"\nminutes = = 3\n')
    (project / "empty.toml").write_text("")
    (project / "typo.toml").write_text(
        'out = "x"\n[task]\nkind = "autoencoder"\n[data]\nszie = 40  # size\nfolder = "pics"\n'
    )
    (project / "binary.toml").write_bytes(b"\xff\xfe\x00")
    return project


def test_all_problems_of_a_recipe_are_told_with_their_lines(desk: Path) -> None:
    recipe = desk / "many.toml"
    recipe.write_text('out = 3\n[data]\nfolder = "pics"\nsize = "big"\n[task]\nkind = "autoencoder"\nloss = 1\n')
    said = refused(2, "train", "many.toml", cwd=desk, says="many.toml:1: out: given 3")
    assert "many.toml:4: data.size: given 'big'" in said
    assert "many.toml:7: task.loss" in said
    assert all(line.startswith("error: ") for line in said.splitlines())


def test_data_with_gaps(tmp_path: Path) -> None:
    """Pictures without a caption among others: the report is written, and the exit code says that training refuses."""
    write_pictures(tmp_path / "gaps")
    for number in range(4):
        (tmp_path / "gaps" / f"{number:02}.txt").unlink()
    said = refused(3, "data", "check", "gaps", "--size", 16, cwd=tmp_path, says="allow_uncaptioned")
    assert "have no caption" in said
    assert "cannot be trained on as it is" in said
    report = json.loads((tmp_path / "carrara-gaps" / "check.json").read_text())
    assert not report["ok"]
    assert (tmp_path / "carrara-gaps" / "check.html").stat().st_size > 1000


def test_parts_that_do_not_fit(project: Path, tmp_path: Path) -> None:
    """Another decoder of the same shape is told apart by its weights."""
    recipe = "carrara-pics/decoder.toml"
    said = run("train", recipe, "--out", tmp_path / "other", *tiny("decoder", "train.seed=1"), cwd=project)
    assert said.code == 0, said.err
    words = ["--generator", "carrara-pics/generator", "--text", "carrara-pics/text", "--decoder", tmp_path / "other"]
    refused(2, "assemble", *words, tmp_path / "new", cwd=project, says="fingerprint")
    assert not (tmp_path / "new").exists()
    words[-1] = "carrara-pics/decoder"
    refused(5, "assemble", *words, "pics", cwd=project, says="pics exists and is no model folder")


def test_damaged_weights(copied: Path) -> None:
    weights = copied / "generator" / "weights.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-9])
    for verb in (["sample", copied, "x"], ["show", copied], ["show", copied / "generator"]):
        refused(5, *verb, cwd=copied.parent, says="damaged or cut off")
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    refused(5, "show", copied, "--verify", cwd=copied.parent, says="other contents")
    weights.write_bytes(b"\xff" * len(data))
    refused(5, "sample", copied, "x", cwd=copied.parent, says="safetensors")
    weights.unlink()
    refused(5, "show", copied, cwd=copied.parent, says="missing")


@pytest.mark.parametrize(
    "text, code, says",
    [
        ("", 5, "not JSON"),
        ("[]", 5, "holds no JSON object"),
        ('{"format_version": 99}', 5, "update Carrara"),
        ('{"format_version": 1}', 5, "lacks its role"),
        ('{"format_version": 1, "role": "generator", "config": {}, "files": {"../x": {}}}', 5, "damaged"),
    ],
)
def test_damaged_descriptions(copied: Path, text: str, code: int, says: str) -> None:
    (copied / "generator" / "component.json").write_text(text)
    refused(code, "sample", copied, "x", cwd=copied.parent, says=says)
    refused(code, "show", copied, cwd=copied.parent, says=says)


@pytest.mark.parametrize("text", ["", "{}", '{"format_version": 1, "text": "../text"}', '{"format_version": 1}'])
def test_damaged_model_json(copied: Path, text: str) -> None:
    (copied / "model.json").write_text(text)
    refused(5, "sample", copied, "x", cwd=copied.parent, says="model.json")
    refused(5, "show", copied, cwd=copied.parent, says="model.json")


def test_a_missing_part(copied: Path) -> None:
    shutil.rmtree(copied / "decoder")
    refused(5, "sample", copied, "x", cwd=copied.parent, says="decoder")
    refused(5, "show", copied, cwd=copied.parent, says="decoder")


def test_pictures_that_are_not_finite_are_not_written(copied: Path) -> None:
    weights = copied / "generator" / "weights.safetensors"
    tensors = load_file(weights)
    name = max(tensors, key=lambda name: tensors[name].numel())
    tensors[name] = torch.full_like(tensors[name], torch.nan)
    save_file(tensors, weights)
    component = json.loads((copied / "generator" / "component.json").read_text())
    component["files"]["weights.safetensors"]["bytes"] = weights.stat().st_size
    (copied / "generator" / "component.json").write_text(json.dumps(component))
    refused(
        4, "sample", copied, "x", "--trace", "--out", "out", cwd=copied.parent, says="not finite.*seed 0.*--sampler"
    )
    assert not (copied.parent / "out").exists()
