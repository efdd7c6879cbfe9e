"""Tensors in files: safetensors only, never a pickle.

What is written is read back and compared; numbers that are not finite are refused where the caller says so.
Names that share one tensor (tied weights) are stored once, with the other names in the file's metadata.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from carrara.errors import NonFiniteError, StorageError
from carrara.store.atomic import storage_errors
from carrara.store.safetensors_file import ALIASES, SafetensorsFile

__all__ = ["load_tensors", "nonfinite", "refuse_nonfinite", "save_plain", "save_tensors"]


def nonfinite(tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The names, in order, of the tensors that hold a NaN or an infinity."""
    return tuple(
        name
        for name, tensor in tensors.items()
        if (tensor.is_floating_point() or tensor.is_complex()) and not bool(torch.isfinite(tensor).all())
    )


def refuse_nonfinite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Raises NonFiniteError, naming the first tensor, when any of them is not finite; `what` opens the sentence."""
    if bad := nonfinite(tensors):
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise NonFiniteError(f"{what}: {bad[0]}{more} holds NaN or infinite numbers; nothing was written")


def save_tensors(path: Path, tensors: Mapping[str, Tensor], *, finite: bool = True) -> None:
    """Writes tensors to a safetensors file, fsyncs it, reads it back and compares every bit.

    `finite=True` refuses NaN and infinity (NonFiniteError) before anything is written.
    Raises StorageError when the disk refuses or gives back something else.
    """
    if finite:
        refuse_nonfinite(tensors, f"{path.name} is not saved")
    unique, aliases = _untie(tensors)
    kept = {name: tensor.detach().to("cpu").contiguous() for name, tensor in unique.items()}
    _save(path, kept, {ALIASES: json.dumps(aliases, sort_keys=True)} if aliases else None)


def save_plain(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """`save_tensors` as other programs write: every name with its own numbers, whatever they are."""
    kept: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        copy = tensor.detach().to("cpu").contiguous()
        place = copy.untyped_storage().data_ptr()
        kept[name] = copy.clone() if place in seen and copy.numel() else copy
        seen.add(place)
    _save(path, kept, dict(metadata))


def _save(path: Path, kept: dict[str, Tensor], notes: dict[str, str] | None) -> None:
    with storage_errors(f"cannot write {path}"):
        with open(path, "ab") as file:  # the library makes files that only their owner can read: keep the usual mode
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        try:
            save_file(kept, path, metadata=notes)
        except SafetensorError as error:
            raise StorageError(f"cannot write {path}: {error}") from error
        os.chmod(path, mode)
        with open(path, "r+b") as file:
            if notes is not None and len(notes) > 1:
                _order(file)
            os.fsync(file.fileno())
    _compare(path, kept)


def _order(file: BinaryIO) -> None:
    """Writes the head again with its metadata in order: the library's is another one each time."""
    length = int.from_bytes(file.read(8), "little")
    head = json.loads(file.read(length))
    head = {"__metadata__": dict(sorted(head.pop("__metadata__").items())), **head}
    text = json.dumps(head, ensure_ascii=False, separators=(",", ":")).encode()
    if len(text) <= length:  # the same characters in another order, and spaces up to the tensors
        file.seek(8)
        file.write(text.ljust(length))
        file.flush()


def _untie(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    first: dict[tuple[object, ...], str] = {}
    unique: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    for name, tensor in tensors.items():
        key = (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.numel() and key in first:
            aliases[name] = first[key]
        else:
            first[key] = name
            unique[name] = tensor
    return unique, aliases


def _compare(path: Path, kept: Mapping[str, Tensor]) -> None:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            same = set(file.keys()) == set(kept) and all(
                _same_bits(file.get_tensor(name), tensor) for name, tensor in kept.items()
            )
    except (SafetensorError, OSError) as error:
        raise StorageError(f"{path} was written and cannot be read back: {error}") from error
    if not same:
        raise StorageError(f"{path} was written and reads back differently; the disk is not to be trusted")


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    flat_a, flat_b = a.reshape(-1), b.reshape(-1)
    return torch.equal(flat_a.view(torch.uint8), flat_b.view(torch.uint8)) if a.numel() else True


def load_tensors(path: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Every tensor of a safetensors file, tied names included. Raises StorageError for a missing or broken file."""
    file = SafetensorsFile(path)
    tensors = {name: file.read(name).to(device) for name in file.entries}
    return tensors | {name: tensors[source] for name, source in file.aliases.items()}
