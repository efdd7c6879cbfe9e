"""Files and folders that are there whole or not at all, and tensors that come back as they went."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from carrara.errors import NonFiniteError, StorageError
from carrara.store import atomic
from carrara.store.atomic import MANIFEST, new_directory, remove, require_space, verify, write_file, write_json
from carrara.store.safetensors_io import load_tensors, nonfinite, save_tensors


def make(path: Path, text: str = "one") -> Path:
    with new_directory(path, colour="red") as temporary:
        (temporary / "a.txt").write_text(text)
        (temporary / "inner").mkdir()
        (temporary / "inner" / "b.txt").write_text("b" * 100)
    return path


def test_a_folder_is_what_was_put_into_it(tmp_path: Path) -> None:
    path = make(tmp_path / "folder")
    manifest = verify(path)
    assert manifest["colour"] == "red"
    assert set(manifest["files"]) == {"a.txt", "inner/b.txt"}
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_folder_can_take_another_ones_place(tmp_path: Path) -> None:
    make(tmp_path / "folder")
    make(tmp_path / "folder", "two")
    assert (tmp_path / "folder" / "a.txt").read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_an_error_inside_leaves_what_was_there(tmp_path: Path) -> None:
    path = make(tmp_path / "folder")
    with pytest.raises(KeyError), new_directory(path) as temporary:
        (temporary / "a.txt").write_text("two")
        raise KeyError("stop")
    assert (path / "a.txt").read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
    verify(path)


@pytest.mark.parametrize("operation", ["fsync", "replace", "mkdir"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_refuses_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str, number: int
) -> None:
    path = make(tmp_path / "folder")

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, operation, refuse)
        with pytest.raises(StorageError, match=r"cannot write .*folder: (no space is left|the disk is read-only)"):
            make(path, "two")
    assert (path / "a.txt").read_text() == "one"
    verify(path)
    make(path, "two")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_every_flipped_bit_and_every_cut_is_found(tmp_path: Path) -> None:
    path = make(tmp_path / "folder")
    for name in ("a.txt", "inner/b.txt"):
        whole = (path / name).read_bytes()
        for place in range(len(whole)):
            (path / name).write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
            with pytest.raises(StorageError, match="damaged"):
                verify(path)
            (path / name).write_bytes(whole[:place])
            with pytest.raises(StorageError, match=rf"has {place} bytes and should have {len(whole)}"):
                verify(path, contents=False)
        (path / name).write_bytes(whole)
    verify(path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format_version": 1}', '{"format_version": "x", "files": {}}'])
def test_a_broken_manifest_is_a_sentence(tmp_path: Path, text: str) -> None:
    path = make(tmp_path / "folder")
    (path / MANIFEST).write_text(text)
    with pytest.raises(StorageError):
        verify(path)


def test_missing_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "folder")
    (tmp_path / "secret").write_text("x")
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["files"]["../secret"] = {"size": 1, "sha256": ""}
    (path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(StorageError, match="not a plain file inside"):
        verify(path)
    make(path)
    (path / "a.txt").unlink()
    with pytest.raises(StorageError, match=r"a\.txt is missing"):
        verify(path)
    (path / MANIFEST).unlink()
    with pytest.raises(StorageError, match="not a finished folder"):
        verify(path)


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "folder")
    manifest = json.loads((path / MANIFEST).read_text()) | {"format_version": 99}
    (path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(StorageError, match="update Carrara"):
        verify(path)


def test_a_file_is_written_whole_or_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "latest"
    write_file(path, b"one")

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "no")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(StorageError, match="no space is left"):
            write_file(path, b"two")
    assert path.read_bytes() == b"one"
    write_json(path, {"b": 1, "a": "è"})
    assert json.loads(path.read_text()) == {"a": "è", "b": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["latest"]


def test_space_is_asked_for_in_advance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_space(tmp_path / "not" / "there", 1, "nothing")
    monkeypatch.setattr(atomic, "free_bytes", lambda _: 2**20)
    with pytest.raises(StorageError, match=r"the run needs 2 MiB in .* and 1 MiB are free"):
        require_space(tmp_path, 2**21, "the run")
    remove(tmp_path / "nothing")


def test_tensors_come_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    tensors = {
        "weight": weight,
        "tied": weight,
        "turned": weight.t(),
        "half": weight.bfloat16(),
        "count": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "flag": torch.tensor([True, False]),
    }
    save_tensors(path, tensors)
    back = load_tensors(path)
    assert set(back) == set(tensors)
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)
    assert path.stat().st_size < 4 * 12 * 3 + 1000  # the tied weight is stored once
    (tmp_path / "plain").write_text("")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_numbers_that_are_not_finite_are_named(tmp_path: Path) -> None:
    tensors = {"good": torch.ones(2), "bad": torch.tensor([1.0, float("nan")]), "worse": torch.tensor(float("inf"))}
    assert nonfinite(tensors) == ("bad", "worse")
    with pytest.raises(NonFiniteError, match="bad and 1 more"):
        save_tensors(tmp_path / "x.safetensors", tensors)
    assert not list(tmp_path.iterdir())
    save_tensors(tmp_path / "x.safetensors", tensors, finite=False)
    assert nonfinite(load_tensors(tmp_path / "x.safetensors")) == ("bad", "worse")


@pytest.mark.parametrize("data", [b"", b"\x80\x04pickle", b"\xff" * 64, b"\x08" + b"\0" * 7 + b"notjson!"])
def test_a_file_that_is_no_safetensors_is_a_sentence(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(StorageError, match="not a readable safetensors file"):
        load_tensors(path)
    with pytest.raises(StorageError, match="is missing"):
        load_tensors(tmp_path / "none.safetensors")


def test_a_disk_that_gives_back_something_else_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from carrara.store import safetensors_io

    write = safetensors_io.save_file

    def flip(tensors: Any, path: Path, metadata: Any) -> None:
        write(tensors, path, metadata=metadata)
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))

    monkeypatch.setattr(safetensors_io, "save_file", flip)
    with pytest.raises(StorageError, match="reads back differently"):
        save_tensors(tmp_path / "x.safetensors", {"a": torch.ones(3)})
