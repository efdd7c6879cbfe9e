"""Safetensors files of anybody's: what the format allows is read, all else is refused in one sentence."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from carrara.errors import StorageError
from carrara.store.safetensors_file import SafetensorsFile
from carrara.store.safetensors_io import save_tensors


def entry(start: int, end: int, shape: Any = None, dtype: Any = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [end - start] if shape is None else shape, "data_offsets": [start, end]}


def written(path: Path, head: Any, size: int) -> Path:
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
    return path


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    types = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int16,
             torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64]  # fmt: skip
    wanted = {str(dtype): torch.randn(3, 4).abs().to(dtype) for dtype in types}
    wanted |= {"none": torch.zeros(0, 3), "one": torch.tensor(2.0)}
    save_file(wanted, tmp_path / "a.safetensors", metadata={"format": "pt"})
    found = SafetensorsFile(tmp_path / "a.safetensors")
    assert set(found.names) == set(wanted) and found.metadata == {"format": "pt"}
    for name, tensor in wanted.items():
        assert found.read(name).dtype == tensor.dtype and found.shape(name) == tensor.shape
        assert torch.equal(found.read(name).reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
    with pytest.raises(StorageError, match=r"has no tensor other"):
        found.read("other")


def test_further_names_of_a_tensor(tmp_path: Path) -> None:
    x = torch.randn(3)
    save_tensors(tmp_path / "a.safetensors", {"a": x, "b": x})
    found = SafetensorsFile(tmp_path / "a.safetensors")
    assert len(found.entries) == 1 and set(found.names) == {"a", "b"}
    assert torch.equal(found.read("a"), x) and torch.equal(found.read("b"), x)


@pytest.mark.parametrize(
    ("head", "size", "said"),
    [
        ({"a": entry(0, 4), "b": entry(3, 7)}, 7, "'b' overlaps another"),
        ({"a": entry(0, 4), "b": entry(0, 4)}, 4, "'b' overlaps another"),
        ({"a": entry(0, 4), "b": entry(5, 9)}, 9, "'b' comes after a gap"),
        ({"a": entry(1, 4)}, 4, "'a' comes after a gap"),
        ({"a": entry(0, 4)}, 5, "1 bytes are left over"),
        ({"a": entry(0, 4)}, 3, "1 bytes are missing"),
        ({"a": entry(0, 4, [5])}, 4, "'a' has 4 bytes, and its shape takes 5"),
        ({"a": entry(4, 0, [4])}, 4, "'a' has -4 bytes"),
        ({"a": entry(0, 4, [2**32, 2**32])}, 4, "'a' has a shape whose size overflows"),
        ({"a": entry(0, 4, [2**63])}, 4, "no sizes"),
        ({"a": entry(0, 4, [-4])}, 4, "no sizes"),
        ({"a": entry(0, 4, [True])}, 4, "no sizes"),
        ({"a": entry(0, 4, [4.0])}, 4, "no sizes"),
        ({"a": entry(0, 4, 4)}, 4, "no sizes"),
        ({"a": entry(0, 4, [1] * 65)}, 4, "no sizes"),
        ({"a": entry(0, 4, dtype="F33")}, 4, "of a type that does not exist here, 'F33'"),
        ({"a": entry(0, 4, dtype=["U8"])}, 4, "of a type that does not exist here"),
        ({"a": {"dtype": "U8", "shape": [4]}}, 4, "not exactly a dtype, a shape and data_offsets"),
        ({"a": {**entry(0, 4), "more": 1}}, 4, "not exactly"),
        ({"a": [0, 4]}, 4, "not exactly"),
        ({"__metadata__": {"a": 1}}, 0, "no table of texts"),
        ({"__metadata__": []}, 0, "no table of texts"),
        ([], 0, "its head is no JSON: it does not begin with a brace"),
        (b"{" * 50, 0, "its head is no JSON"),
        (b'{"a":' * 50_000, 0, "its head is no JSON"),
        (b'{"\xff": 1}', 0, "its head is no JSON"),
        (b'{"a": {"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,1]}}', 1, "its head is no JSON"),
        (b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{}}', 1, "the name 'a' is there twice"),
        (b'{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}', 1, "the name 'dtype' is there twice"),
    ],
)
def test_what_is_wrong_is_said(head: Any, size: int, said: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a.safetensors", head, size)
    with pytest.raises(StorageError, match=rf"a.safetensors is not a readable safetensors file: .*{said}") as caught:
        SafetensorsFile(path)
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "it is empty"),
        (b"\x02\0\0", "it has 3 bytes and is cut off"),
        (b"\xff" * 8 + b"{}", "it has 10 bytes and is cut off"),
        ((3).to_bytes(8, "little") + b"{}", "it has 10 bytes and is cut off"),
    ],
)
def test_files_that_are_too_short(data: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(StorageError, match=said):
        SafetensorsFile(tmp_path / "a.safetensors")


def test_a_giant_head_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with open(path, "wb") as file:
        file.write((90 << 20).to_bytes(8, "little") + b"{")
        file.truncate(100 << 20)  # takes no room on the disk
    with pytest.raises(StorageError, match=r"its head has 94,371,840 bytes, and at most 16,777,216 are read"):
        SafetensorsFile(path)


@pytest.mark.parametrize("aliases", ['{"b": "c"}', '{"a": "a"}', "[]", "{", '{"b": 1}'])
def test_broken_further_names(aliases: str, tmp_path: Path) -> None:
    head = {"__metadata__": {"carrara.aliases": aliases}, "a": entry(0, 1)}
    with pytest.raises(StorageError, match=r"broken metadata"):
        SafetensorsFile(written(tmp_path / "a.safetensors", head, 1))


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, said in ((tmp_path / "pipe", "not a regular"), (tmp_path, "not a regular"), (tmp_path / "x", "missing")):
        with pytest.raises(StorageError, match=said):
            SafetensorsFile(path)
