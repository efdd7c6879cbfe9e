"""The weights of a folder: which files they are, whole or in shards, of which variant; and what is refused."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from carrara.errors import StorageError
from carrara.store.weights import contained, find_weights, open_tensors, plain_name, read_tensors

TENSORS = {"a": torch.randn(2, 3), "b": torch.randn(4)}


def whole(path: Path, tensors: dict[str, torch.Tensor] = TENSORS) -> Path:
    save_file(tensors, path)
    return path


def sharded(folder: Path, stem: str = "model", index: str = "model.safetensors.index.json") -> dict[str, str]:
    """One tensor a shard; what the index says."""
    told = {name: f"{stem}-0000{i}-of-00002.safetensors" for i, name in enumerate(TENSORS, 1)}
    for name, shard in told.items():
        whole(folder / shard, {name: TENSORS[name]})
    (folder / index).write_text(json.dumps({"metadata": {"total_size": 40}, "weight_map": told}))
    return told


def indexed(folder: Path, told: Any, name: str = "model.safetensors.index.json") -> None:
    (folder / name).write_text(json.dumps({"weight_map": told}))


def same(folder: Path, **options: Any) -> None:
    found = find_weights(folder, **options)
    assert set(found.names) == set(TENSORS)
    assert all(torch.equal(found.read(name), tensor) for name, tensor in TENSORS.items())
    assert all(found.shape(name) == tensor.shape for name, tensor in TENSORS.items())


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "model.fp16.safetensors", "diffusion_pytorch_model.safetensors",
     "diffusion_pytorch_model.non_ema.safetensors", "diffusion_pytorch_model.bin", "pytorch_model.fp16.bin"],
)  # fmt: skip
def test_one_file(name: str, tmp_path: Path) -> None:
    """Also safetensors under another suffix: the first bytes tell."""
    whole(tmp_path / name)
    same(tmp_path)
    assert find_weights(tmp_path).files == (tmp_path / name,)


def test_a_pickle_of_another_suffix(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "model.safetensors")  # noqa: TID251
    same(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(print))
    with pytest.raises(StorageError, match=r"a pickle that torch.save did not write"):
        _ = find_weights(tmp_path).read("a")


@pytest.mark.parametrize(
    ("stem", "index", "variant"),
    [
        ("model", "model.safetensors.index.json", None),
        ("anything", "diffusion_pytorch_model.safetensors.index.json", None),
        ("diffusion_pytorch_model.fp16", "diffusion_pytorch_model.safetensors.index.fp16.json", "fp16"),
        ("model.fp16", "model.fp16.safetensors.index.json", "fp16"),
        ("model", "model.safetensors.fp16.index.json", "fp16"),
    ],
)
def test_shards(stem: str, index: str, variant: str | None, tmp_path: Path) -> None:
    sharded(tmp_path, stem, index)
    same(tmp_path)
    assert find_weights(tmp_path).variant == variant


def test_variants(tmp_path: Path) -> None:
    whole(tmp_path / "model.fp16.safetensors", {"a": torch.zeros(1)})
    sharded(tmp_path)
    same(tmp_path)
    assert list(find_weights(tmp_path, variant="fp16").names) == ["a"]
    whole(tmp_path / "model.ema.safetensors")
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(StorageError, match=r"several variants of model.safetensors: ema, fp16; say which"):
        find_weights(tmp_path)
    with pytest.raises(StorageError, match=r"no variant 'bf16', and several variants"):
        find_weights(tmp_path, variant="bf16")


def test_none(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"has no model.safetensors and no diffusion_pytorch_model.safetensors"):
        find_weights(tmp_path)


NAMES = [
    "../secret.safetensors",
    "/etc/passwd",
    "a/b.safetensors",
    "..",
    ".",
    "",
    "a\\b",
    "c:x",
    "a\0b",
    "a\nb",
    3,
    None,
]


@pytest.mark.parametrize("name", NAMES)
def test_shards_are_plain_file_names(name: Any, tmp_path: Path) -> None:
    whole(tmp_path / "secret.safetensors")
    inside = tmp_path / "inside"
    inside.mkdir()
    indexed(inside, {"a": name})
    assert not plain_name(name)
    with pytest.raises(StorageError, match=r"as a shard, which is no plain file name"):
        find_weights(inside)


@pytest.mark.parametrize("told", [[], {}, "x", None, 3])
def test_an_index_of_nothing(told: Any, tmp_path: Path) -> None:
    indexed(tmp_path, told)
    with pytest.raises(StorageError, match=r"does not say which file holds which tensor"):
        find_weights(tmp_path)


def test_an_index_and_its_shards_agree(tmp_path: Path) -> None:
    told = sharded(tmp_path)
    indexed(tmp_path, {**told, "c": told["a"]})
    with pytest.raises(
        StorageError, match=r"c is listed for the shard model-00001-of-00002.safetensors, and .* not hold"
    ):
        find_weights(tmp_path)
    indexed(tmp_path, {"a": told["a"]})
    same_shard = {"a": told["a"], "b": told["a"]}
    indexed(tmp_path, same_shard)
    with pytest.raises(StorageError, match=r"b is listed for the shard"):
        find_weights(tmp_path)
    whole(tmp_path / told["a"])
    indexed(tmp_path, {"a": told["a"]})
    with pytest.raises(StorageError, match=r"b is in the shard .* and model.safetensors.index.json does not list it"):
        find_weights(tmp_path)
    (tmp_path / told["a"]).unlink()
    with pytest.raises(StorageError, match=r"is missing"):
        find_weights(tmp_path)


def test_links_stay_inside(tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir(), inside.mkdir()
    whole(outside / "x.safetensors")
    os.symlink(outside / "x.safetensors", inside / "model.safetensors")
    with pytest.raises(StorageError, match=r"a link to what lies outside"):
        find_weights(inside)
    same(inside, root=tmp_path)
    (inside / "model.safetensors").unlink()
    os.symlink("loop", inside / "loop")
    with pytest.raises(StorageError):
        open_tensors(contained(inside / "loop", inside))


def test_the_hubs_cache_links_to_its_blobs(tmp_path: Path) -> None:
    model = tmp_path / "models--org--name"
    snapshot = model / "snapshots" / "0123abc" / "text_encoder"
    snapshot.mkdir(parents=True)
    (model / "blobs").mkdir()
    whole(model / "blobs" / "ffff")
    os.symlink("../../../blobs/ffff", snapshot / "model.safetensors")
    same(snapshot)
    (snapshot / "model.safetensors").unlink()
    whole(model / "other")
    os.symlink("../../../other", snapshot / "model.safetensors")
    with pytest.raises(StorageError, match=r"a link to what lies outside"):
        find_weights(snapshot)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, said in (("pipe", "not a regular file"), (".", "not a regular file"), ("none", "missing")):
        with pytest.raises(StorageError, match=said):
            open_tensors(tmp_path / name)


def test_all_of_a_file(tmp_path: Path) -> None:
    found = read_tensors(whole(tmp_path / "a.ckpt"))
    assert found.keys() == TENSORS.keys() and all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)
