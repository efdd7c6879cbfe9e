"""Whole models: one file as the folder of the same weights, and the vocabulary that a file has not."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pytest
import torch
from benchmarks.parity import write
from safetensors.torch import load_file
from torch import Tensor

from carrara.errors import RecipeError, StorageError
from carrara.store import load
from carrara.store.diffusers.model import clip_vocabulary, import_model, licence_of
from store.test_diffusers_single import ldm_unet, ldm_vae, prefixed, written

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("written") / "sd1"
    write("sd1", path)
    return path


@pytest.fixture(scope="module")
def single(folder: Path) -> Path:
    """The folder's weights in one file, as they were published."""
    unet, vae, text = (
        load_file(next((folder / name).glob("*.safetensors"))) for name in ("unet", "vae", "text_encoder")
    )
    text = {name: x for name, x in text.items() if not name.endswith("position_ids")}
    return written(
        folder.with_name("one.safetensors"),
        prefixed("model.diffusion_model.", ldm_unet(unet, 1, {1, 2})),
        prefixed("first_stage_model.", ldm_vae(vae, 3)),
        prefixed("cond_stage_model.transformer.", text),
    )


def configs(folder: Path) -> dict[str, dict[str, object]]:
    return {name: json.loads((folder / name / "config.json").read_text()) for name in ("unet", "vae", "text_encoder")}


def picture(model: Path, like: Path) -> Tensor:
    """A picture sampled as another model is: the scheduler of a file is the published one."""
    with torch.no_grad():
        *_, last = load(model).generate(["a red apple"], seeds=[0], settings=load(like).generator.settings)  # type: ignore[attr-defined]
    return last.images


def test_a_file_is_the_folder_of_its_weights(folder: Path, single: Path, tmp_path: Path) -> None:
    told = {"family": "sd1", "configs": configs(folder), "size": 32}
    found = import_model(single, tmp_path / "a", tokenizers=folder, **told)  # type: ignore[arg-type]
    assert not any("vocabulary" in note for note in found.notes)
    import_model(single, tmp_path / "b", tokenizers=folder / "tokenizer", **told)  # type: ignore[arg-type]
    import_model(folder, tmp_path / "c", size=32)
    for name in ("text", "generator", "decoder"):
        one, other = (load_file(tmp_path / x / name / "weights.safetensors") for x in ("a", "c"))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    expected = picture(tmp_path / "c", tmp_path / "c")
    assert expected.std() > 0.1
    for name in ("a", "b"):
        torch.testing.assert_close(picture(tmp_path / name, tmp_path / "c"), expected, rtol=0, atol=1e-4)
    assert not list(tmp_path.glob(".import-*"))


def test_without_a_vocabulary(folder: Path, single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"family": "sd1", "configs": configs(folder), "size": 32}
    monkeypatch.setattr("carrara.store.diffusers.model._PACKAGES", ("no_such_package",))
    with pytest.raises(RecipeError, match=r"a single file has no vocabulary: give a folder.*open_clip_torch"):
        import_model(single, tmp_path / "out", **told)  # type: ignore[arg-type]
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecipeError, match="empty has no folder tokenizer"):
        import_model(single, tmp_path / "out", tokenizers=tmp_path / "empty", **told)  # type: ignore[arg-type]
    with pytest.raises(StorageError, match="is no folder"):
        import_model(single, tmp_path / "out", tokenizers=tmp_path / "none", **told)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="variant is for a folder"):
        import_model(single, tmp_path / "out", variant="fp16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty"]


def test_a_package_with_the_vocabulary_is_read_and_not_imported(
    folder: Path, single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "path" / "vocabulary_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (package / "bpe_simple_vocab_16e6.txt.gz").write_bytes(gzip.compress(b"version\n"))
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setattr("carrara.store.diffusers.model._PACKAGES", ("vocabulary_package",))
    told = {"family": "sd1", "configs": configs(folder), "size": 32}
    import_model(single, tmp_path / "out", **told)  # type: ignore[arg-type]
    assert "vocabulary_package" not in sys.modules
    import_model(single, tmp_path / "same", tokenizers=folder, **told)  # type: ignore[arg-type]
    made = [picture(tmp_path / name, tmp_path / "out") for name in ("out", "same")]
    torch.testing.assert_close(*made, rtol=0, atol=0)


def test_the_published_merges_are_a_vocabulary() -> None:
    """Bytes, bytes that end a word, merges, marks: the ids are those of the order."""
    files = clip_vocabulary(gzip.compress(b'"bpe" version\ni n\nt h\nth e</w>\n'))
    vocabulary = json.loads(bytes(files["vocab.json"]))  # type: ignore[arg-type]
    assert len(vocabulary) == 512 + 3 + 2
    assert vocabulary["!"] == 0 and vocabulary["!</w>"] == 256
    assert [vocabulary[word] for word in ("in", "th", "the</w>", "<|startoftext|>", "<|endoftext|>")] == [
        512, 513, 514, 515, 516,
    ]  # fmt: skip
    assert files["merges.txt"] == b"#version: 0.2\ni n\nt h\nth e</w>\n"
    with pytest.raises(StorageError, match="damaged"):
        clip_vocabulary(b"no gzip")


@pytest.mark.parametrize(
    "text, licence",
    [
        ("---\nlicense: mit\n---\n", "mit"),
        ('---\ntags: [a]\nlicense: "openrail++"\n---\n', "openrail++"),
        ("license: mit\n", None),
        ("---\n---\nlicense: mit\n", None),
        ("---\nlicense:\n---\n", None),
        ("", None),
    ],
)
def test_licence(text: str, licence: str | None, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(text)
    assert licence_of(tmp_path) == licence
    assert licence_of(tmp_path / "none") is None
