"""The weights of a component's folder: one file, or shards with an index, of one variant, in either library's names.

    model.safetensors                                 of transformers
    diffusion_pytorch_model.safetensors               of diffusers
    model.fp16.safetensors                            a variant
    model.safetensors.index.json                      which shard holds which tensor
    model.safetensors.index.fp16.json                 ... of a variant; earlier model.fp16.safetensors.index.json, or
                                                      model.safetensors.fp16.index.json
    pytorch_model.bin, diffusion_pytorch_model.bin    the same as torch.save writes it, see torch_file.py

What kind of file one is, is told by its first bytes, never by its name. A name in an index is a plain file name, and no
file lies outside of the folder, by whatever link.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from torch import Tensor

from carrara.errors import StorageError
from carrara.store.atomic import read_json, storage_errors
from carrara.store.safetensors_file import SafetensorsFile
from carrara.store.torch_file import TorchFile

__all__ = ["TensorFile", "WeightFiles", "contained", "find_weights", "open_tensors", "plain_name", "read_tensors"]

_STEMS = {"diffusion_pytorch_model": "diffusion_pytorch_model", "model": "pytorch_model"}  # safetensors -> torch.save


class TensorFile(Protocol):
    """The tensors of a file, or of several, read one by one."""

    @property
    def title(self) -> str:
        """What they are called in an error, such as a path."""
        ...

    @property
    def names(self) -> Collection[str]:
        """Of all tensors."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one tensor."""
        ...

    def read(self, name: str) -> Tensor:
        """One tensor, as it lies there; StorageError for a damaged file."""
        ...


@dataclass(frozen=True)
class WeightFiles:
    """Which file of a folder holds which tensor; `files` are those that were read, an index included."""

    folder: Path
    where: Mapping[str, TensorFile]
    files: tuple[Path, ...] = field(default=())
    variant: str | None = None

    @property
    def title(self) -> str:
        """The folder."""
        return str(self.folder)

    @property
    def names(self) -> Collection[str]:
        """Of all tensors."""
        return self.where.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one tensor; KeyError where there is none."""
        return self.where[name].shape(name)

    def read(self, name: str) -> Tensor:
        """A tensor; StorageError where it is not there, or a file is damaged."""
        if name not in self.where:
            raise StorageError(f"{self.title} has no tensor {name}; its weights are not those of its config.json")
        return self.where[name].read(name)


def open_tensors(path: Path) -> TensorFile:
    """The tensors of a file, of safetensors or as torch.save writes them, told by its first bytes, never by its name.

    Raises StorageError for a file that is neither.
    """
    if not path.is_file():
        raise StorageError(f"{path} is {'not a regular file' if path.exists() else 'missing'}")
    try:
        with open(path, "rb") as file:
            first = file.read(9)
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}") from error
    if first[8:9] == b"{" or (path.suffix == ".safetensors" and not first.startswith((b"PK\x03\x04", b"\x80"))):
        return SafetensorsFile(path)
    return TorchFile(path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All of the tensors that `open_tensors` opens."""
    file = open_tensors(path)
    return {name: file.read(name) for name in file.names}


def find_weights(folder: Path, *, variant: str | None = None, root: Path | None = None) -> WeightFiles:
    """The weights of a folder, safetensors before what torch.save wrote.

    Of several variants it takes that of the name, else the one without a name, else the only one. No file lies outside
    of `root`, which is the folder itself where it is not said. Raises StorageError for none, for several of which none
    is asked for, and for shards that are not those of their index.
    """
    root = root or folder
    found: dict[str | None, Path] = {}
    for ending in ("safetensors", "bin"):
        found = _candidates(folder, ending)
        if found:
            break
    chosen = variant if variant in found else None
    if chosen not in found and len(found) == 1:
        (chosen,) = found
    if chosen not in found:
        raise StorageError(_absent(folder, found, variant))
    path = contained(found[chosen], root)
    if not path.name.endswith(".json"):
        file = open_tensors(path)
        return WeightFiles(folder, _Lazily(file), (path,), chosen)
    return _shards(folder, path, root, chosen)


class _Lazily(Mapping[str, TensorFile]):
    """All of a file's tensors are in it; a file that has to be converted is, when this is asked for."""

    def __init__(self, file: TensorFile) -> None:
        self._file = file

    def __getitem__(self, name: str) -> TensorFile:
        if name not in self._file.names:
            raise KeyError(name)
        return self._file

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.names)

    def __len__(self) -> int:
        return len(self._file.names)


def _candidates(folder: Path, ending: str) -> dict[str | None, Path]:
    """The whole files, else the indexes, by their variant."""
    stems = "|".join(_STEMS if ending == "safetensors" else _STEMS.values())
    variant = r"(?:\.(?P<{}>[\w-]+))?"
    with storage_errors(f"{folder} cannot be read"):
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    whole = rf"(?:{stems}){variant}\.{ending}".format("a")
    index = rf"(?:{stems}){variant}\.{ending}{variant}\.index{variant}\.json".format("a", "b", "c")
    found: dict[str | None, Path] = {}
    for pattern in (whole, index):
        for name in names:
            if match := re.fullmatch(pattern, name):
                said = [value for value in match.groupdict().values() if value]
                if len(said) < 2 and not (said and re.fullmatch(r".*-\d{5}-of-\d{5}", said[0])):
                    found.setdefault(said[0] if said else None, folder / name)
    return found


def _absent(folder: Path, found: Mapping[str | None, Path], variant: str | None) -> str:
    if found:
        names = ", ".join(sorted(str(name) for name in found))
        asked = f"no variant {variant!r}, and " if variant else ""
        return f"{folder} has {asked}several variants of model.safetensors: {names}; say which"
    return (
        f"{folder} has no model.safetensors and no diffusion_pytorch_model.safetensors, whole or in shards, nor what "
        "torch.save wrote in their place; save it with transformers or diffusers:  model.save_pretrained(FOLDER)"
    )


def _shards(folder: Path, index: Path, root: Path, variant: str | None) -> WeightFiles:
    told = read_json(index).get("weight_map")
    if not isinstance(told, dict) or not told:
        raise StorageError(f"{index} does not say which file holds which tensor")
    for name in told.values():
        if not plain_name(name):
            raise StorageError(f"{index} names {ascii(name)[:80]} as a shard, which is no plain file name")
    files = {name: open_tensors(contained(folder / name, root)) for name in dict.fromkeys(told.values())}
    for name, file in files.items():
        listed = {tensor for tensor, shard in told.items() if shard == name}
        if wrong := sorted(listed ^ set(file.names)):
            where = "is listed for" if wrong[0] in listed else "is in"
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            other = "does not hold it" if wrong[0] in listed else "does not list it there"
            who = name if wrong[0] in listed else index.name
            raise StorageError(f"{folder}: {wrong[0]}{more} {where} the shard {name}, and {who} {other}")
    where_is = {tensor: files[shard] for tensor, shard in told.items()}
    return WeightFiles(folder, where_is, (index, *(folder / name for name in files)), variant)


def plain_name(name: object) -> bool:
    """Whether this is the name of a file or folder beside the one that names it, and nothing else."""
    return isinstance(name, str) and name not in ("", ".", "..") and not re.search(r"[/\\:\0-\x1f]", name)


def contained(path: Path, root: Path) -> Path:
    """The path, which lies in `root` whatever links it goes through; StorageError for one that does not.

    A snapshot of the hub's cache, whose files are links into the folder `blobs` of the same model, may use that one.
    """
    try:
        real, home = path.resolve(), root.resolve()
    except (OSError, RuntimeError) as error:
        raise StorageError(f"{path} cannot be read: {error}") from error
    allowed = [home]
    for parent in (home, *home.parents):
        if parent.parent.name == "snapshots" and parent.parent.parent.name.startswith("models--"):
            allowed.append(parent.parent.parent / "blobs")
    if not any(real.is_relative_to(place) for place in allowed):
        raise StorageError(f"{path} is a link to what lies outside of {root}; put the file itself there")
    return path
