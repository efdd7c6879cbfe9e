"""Text encoders on the command line: pretrained ones from init to pictures, and prompts that mean nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from carrara.train.recipe import read_recipe

from .conftest import done, run, tiny

SYSTEM = "carrara-pics/system"


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny sentence encoder with a licence."""
    pytest.importorskip("transformers", reason="makes the tiny encoder: pip install transformers")
    from tiny_text import make

    folder = tmp_path_factory.mktemp("bert")
    make(folder, "bert")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    return folder


SMALL = ("task.network.channels=8", "task.network.multipliers=[1,1]", "task.network.attention=[]")


def test_from_init_to_pictures_under_a_pretrained_encoder(project: Path, bert: Path, tmp_path: Path) -> None:
    """Its files are needed for training alone: the generator's folder keeps what it read, whitened over captions."""
    pics = project / "pics"
    source = tmp_path / "encoder"
    shutil.copytree(bert, source)
    told = f'{{path = "{source}", length = 12}}'
    said = done("init", pics, "--size", 16, "--text", told, "--minutes", 1, "--out", tmp_path / "runs").out
    assert [path.name for path in sorted((tmp_path / "runs").glob("*.toml"))] == ["generator.toml"]
    recipe = tmp_path / "runs" / "generator.toml"
    assert read_recipe(recipe).task.text == {"kind": "pretrained", "path": str(source), "length": 12}
    assert "\n[task.text]\n" in recipe.read_text() and "tokens that are read of a prompt" in recipe.read_text()
    assert "--text" not in said.splitlines()[-2]  # assemble: nothing to be named
    said = done("train", recipe, *tiny("", *SMALL)).out
    assert "--text" not in said
    made = tmp_path / "runs" / "generator"
    assert "license: apache-2.0" in (made / "text" / "README.md").read_text()
    # goes on only with the same encoder, and with it from anywhere
    moved = source.rename(tmp_path / "moved")
    again = f'task.text={{kind = "pretrained", path = "{moved}", length = 12}}'
    assert "finished: 4 steps" in done("train", recipe, *tiny("", *SMALL, again)).out
    other = run("train", recipe, *tiny("", *SMALL, again.replace("= 12", "= 11")))
    assert other.code == 2 and "begun with another text encoder" in other.err
    shutil.rmtree(moved)
    system = tmp_path / "system"
    done("assemble", "--generator", made, system)
    facts = json.loads(done("show", system, "--json").out)["parts"][0]
    assert facts["kind"] == "pretrained"
    assert facts["facts"] == {
        "pretrained": "encoder", "architecture": "bert", "license": "apache-2.0", "whitened_over": "8 captions of pics"
    }  # fmt: skip
    long = "a red square and a blue circle with a face of joy and tears"
    said = run("sample", system, "zebra", long, "--steps", 2, "--out", tmp_path / "pictures")
    assert said.code == 0
    assert "not read: " in said.err and "no word of" not in said.err  # it has read everything, others have seen to that
    assert len(list((tmp_path / "pictures").glob("*seed*.png"))) == 2


def test_assemble_with_a_pretrained_encoder(project: Path, bert: Path, tmp_path: Path) -> None:
    """The one it was trained with, as it is; one that is read otherwise, or has other weights, is refused."""
    from tiny_text import make

    recipe, made = tmp_path / "generator.toml", tmp_path / "generator"
    recipe.write_text(
        f'out = "{made}"\ndata = {{folder = "{project / "pics"}", size = 16, channels = 3}}\n'
        '[task]\nkind = "diffusion"\nnetwork = {kind = "unet", blocks = 1}\n'
        f'text = {{kind = "pretrained", path = "{bert}", length = 12, whiten = false}}\n'
    )
    done("train", recipe, *tiny("", *SMALL))
    done("assemble", "--generator", made, "--text", f"pretrained:{bert}", tmp_path / "system")
    for name in ("weights.safetensors", "tokenizer.json"):
        parts = [(folder / "text" / name).read_bytes() for folder in (made, tmp_path / "system")]
        assert parts[0] == parts[1]
    make(tmp_path / "other", "bert", seed=1)
    for text, says in [
        (
            f"pretrained:{tmp_path / 'other'}",
            "has the shape that the generator was trained for, but other",
        ),
        (f'{{path = "{bert}", length = 9}}', "was trained for text"),
        (f'{{path = "{bert}", whiten = true}}', "whiten = true needs captions"),
        (f'{{path = "{bert}", lenght = 9}}', r'--text: lenght: no such setting; did you mean "length"?'),
        ("{path", "which is no TOML table"),
        ("pretrained:", "path is empty"),
        ("pretrained:some/name", "hf download some/name"),
    ]:
        said = run("assemble", "--generator", made, "--text", text, tmp_path / "system2")
        assert said.code in (2, 5) and says in " ".join(said.err.split()), said.err
        assert not (tmp_path / "system2").exists()
    said = run("assemble", "--generator", made, "--text", f"pretrained:{tmp_path / 'other'}", tmp_path / "system2")
    assert f"that is in {made / 'text'}, so leave --text out" in " ".join(said.err.split())


def test_recipes_that_name_no_encoder(project: Path, tmp_path: Path) -> None:
    recipe = project / "carrara-pics" / "generator.toml"
    for text, says in [
        ('{kind = "pretrained", paht = "x"}', 'text.paht: no such setting; did you mean "path"?'),
        ('{kind = "clip", path = "x"}', "a table stands for kind = "),
    ]:
        said = run("train", recipe, "--set", f"task.text={text}", cwd=project)
        assert said.code == 2 and says in said.err and "generator.toml" in said.err
    said = run("train", recipe, "--set", "task.text=pretrained:no/such", "--set", f"out={tmp_path}", cwd=project)
    assert said.code == 5 and "hf download no/such" in said.err
    said = run("init", "pics", "--text", "pretrained:package:nothing_of_the_kind/x", "--out", tmp_path, cwd=project)
    assert said.code == 5 and "nothing_of_the_kind, which is not installed" in said.err


def test_captions_are_counted_in_a_pretrained_encoders_tokens(project: Path, bert: Path, tmp_path: Path) -> None:
    said = done("data", "check", "pics", "--text", f"pretrained:{bert}", "--out", tmp_path, "--json", cwd=project)
    assert json.loads(said.out)["ok"]
    assert "which reads 18, two marks included" in (tmp_path / "check.html").read_text()


def test_a_prompt_without_a_known_word_is_said(project: Path, copied: Path, tmp_path: Path) -> None:
    """Known words are the training captions'; components of earlier versions do not have them, and load."""
    prompts = ["a Red square!", "qwzx", "grene", "zebra circle", "🍎", "!?"]
    said = json.loads(done("sample", copied, *prompts, "--steps", 1, "--json", "--out", tmp_path / "new").out)
    strange = [warning for warning in said["warnings"] if "no word of" in warning]
    assert [warning.split('"')[1] for warning in strange] == ["qwzx", "grene", "🍎"]
    assert "words that it knows: green" in strange[1]
    words = (copied / "text" / "words.txt").read_text().split()
    assert words == ["a", "blue", "circle", "green", "red", "square", "yellow"]

    body = json.loads((copied / "text" / "component.json").read_text())
    del body["config"]["words"], body["files"]["words.txt"]
    (copied / "text" / "component.json").write_text(json.dumps(body))
    (copied / "text" / "words.txt").unlink()
    said = json.loads(done("sample", copied, "qwzx", "--steps", 1, "--json", "--out", tmp_path / "old").out)
    assert not said["warnings"]
