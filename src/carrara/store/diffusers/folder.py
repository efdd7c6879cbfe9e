"""The folder of a diffusers pipeline, read as data and written.

    model_index.json       {"_class_name": ..., NAME: [LIBRARY, CLASS] or [null, null], other keys}
    NAME/config.json       scheduler_config.json, tokenizer_config.json, preprocessor_config.json: by the class
    NAME/*.safetensors     the weights, see store/weights.py

Nothing that stands in these files is imported, looked up as code or fetched. Names are plain, no file lies outside of
the folder, and what is there beside and not understood is listed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from carrara.errors import RecipeError, StorageError
from carrara.store.atomic import MANIFEST, new_directory, read_json, storage_errors
from carrara.store.diffusers.foreign import ForeignPart, ForeignPipeline, Renamed
from carrara.store.diffusers.tensors import TensorSource
from carrara.store.safetensors_io import save_plain
from carrara.store.weights import WeightFiles, contained, find_weights, plain_name

__all__ = ["INDEX", "read_part", "read_pipeline", "write_pipeline"]

INDEX = "model_index.json"
_CONFIGS = ("scheduler_config.json", "config.json", "tokenizer_config.json", "preprocessor_config.json")
_WITHOUT_WEIGHTS = re.compile(r".*(Scheduler|Tokenizer(Fast)?|(Image|Feature)(Processor|Extractor)(Fast)?|Processor)")
_WEIGHTS = re.compile(r".*\.(safetensors|bin|pt|pth|ckpt|msgpack|onnx|onnx_data|h5|pb|gguf)|.*\.index(\..+)?\.json")
_ABOUT = re.compile(r"README.*|LICENSE.*|\.git.*|\.cache|" + re.escape(MANIFEST), re.IGNORECASE)
_FORMER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # names in attention until 0.15
_FORMER_NAME = re.compile(rf"(.*\battentions\.\d+\.)({'|'.join(_FORMER)})(\.(?:weight|bias))")


def read_pipeline(folder: Path, *, variant: str | None = None, weights: bool = True) -> ForeignPipeline:
    """The pipeline of a folder; of its weights only the heads are read, or without `weights` nothing.

    A component that has no weights of the `variant` gives those without one, which is noted. Raises StorageError for a
    folder that is damaged, or names what is no plain name.
    """
    index = read_json(contained(folder / INDEX, folder))
    kind = index.get("_class_name")
    if not isinstance(kind, str) or not _identifier(kind):
        raise StorageError(f"{folder / INDEX} names {_short(kind)} as its class, which is no name of one")
    parts, absent, options, notes = {}, [], {}, []
    for name, told in index.items():
        if not (isinstance(told, list) and len(told) == 2 and all(isinstance(x, str | None) for x in told)):
            if name != "_class_name":
                options[name] = told
        elif told == [None, None]:
            absent.append(name)
        else:
            part = parts[name] = _part(folder, name, told, variant, weights)
            if (said := part.config.get("_class_name", part.kind)) != part.kind:
                notes.append(f"{name} is a {part.kind}, and its own config says {_short(said)}")
            if (got := part.variant) != variant and part.tensors is not None:
                notes.append(f"{name} is of {f'variant {got}' if got else 'no variant'}, the only one that is there")
    read = {folder / INDEX, *(path for name, part in parts.items() for path in _files_of(folder / name, part))}
    with storage_errors(f"{folder} cannot be read"):
        unread = tuple(sorted(path.relative_to(folder).as_posix() for path in _all(folder) if path not in read))
    return ForeignPipeline(str(folder), kind, parts, tuple(absent), options, unread, tuple(notes))


def read_part(
    folder: Path,
    library: str,
    kind: str,
    *,
    variant: str | None = None,
    root: Path | None = None,
    weights: bool = True,
) -> ForeignPart:
    """One component's folder; no file of it lies outside of `root`, or of the folder. Raises StorageError."""
    root = root or folder
    with storage_errors(f"{folder} cannot be read"):
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if not names:
        raise StorageError(f"{folder} is missing or empty")
    found = [name for name in _CONFIGS if name in names]
    config = read_json(contained(folder / found[0], root)) if found else {}
    if not found and not _WITHOUT_WEIGHTS.fullmatch(kind):
        raise StorageError(f"{folder} has no config.json")
    tensors: TensorSource | None = None
    got = None
    if weights and not _WITHOUT_WEIGHTS.fullmatch(kind):
        files_of = find_weights(folder, variant=variant, root=root)
        tensors = Renamed(files_of, _present) if library == "diffusers" else files_of
        got = files_of.variant
    files: dict[str, Path | bytes] = {
        name: contained(folder / name, root)
        for name in names
        if name not in found[:1] and not _WEIGHTS.fullmatch(name) and not _ABOUT.fullmatch(name)
        if (folder / name).is_file()
    }
    return ForeignPart(library, kind, config, tensors, files, got)


def _part(folder: Path, name: str, told: list[Any], variant: str | None, weights: bool) -> ForeignPart:
    where = folder / INDEX
    if not plain_name(name):
        raise StorageError(f"{where} names {_short(name)} as a component, which is no plain name")
    library, kind = told
    if not _identifier(kind) or not isinstance(library, str) or not all(map(_identifier, library.split("."))):
        raise StorageError(f"{where} names {_short(told)} as its {name}, which is no library and class")
    contained(folder / name, folder)
    return read_part(folder / name, library, kind, variant=variant, root=folder, weights=weights)


def _present(name: str) -> str:
    """The name of a tensor today."""
    match = _FORMER_NAME.fullmatch(name)
    return match[1] + _FORMER[match[2]] + match[3] if match else name


def _files_of(folder: Path, part: ForeignPart) -> Iterator[Path]:
    yield from (path for path in part.files.values() if isinstance(path, Path))
    yield from (folder / name for name in _CONFIGS)
    source = part.tensors.source if isinstance(part.tensors, Renamed) else part.tensors
    if isinstance(source, WeightFiles):
        yield from source.files


def _all(folder: Path, depth: int = 3) -> Iterator[Path]:
    """The files of a folder and the folders in it; a link to a folder is not followed."""
    for path in sorted(folder.iterdir()):
        if _ABOUT.fullmatch(path.name):
            continue
        if path.is_dir() and not path.is_symlink() and depth:
            yield from _all(path, depth - 1)
        else:
            yield path


def _identifier(name: object) -> bool:
    return isinstance(name, str) and name.isidentifier() and len(name) < 200


def _short(value: object) -> str:
    return ascii(value)[:80]


# --- writing ----------------------------------------------------------------------------------------------------------


def write_pipeline(
    folder: Path, pipeline: ForeignPipeline, *, variant: str | None = None, shard_bytes: int | None = None
) -> None:
    """Writes a pipeline as diffusers does: there whole afterwards, or not at all.

    `variant` goes into the names of the weights' files. Weights of more than `shard_bytes` are cut into shards with an
    index; None is never. Raises StorageError where the folder is something else, or the disk refuses.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / INDEX).is_file())):
        raise StorageError(f"{folder} exists and is no pipeline's folder; choose another")
    if variant is not None and not re.fullmatch(r"[A-Za-z0-9_]+", variant):
        raise RecipeError(f"the variant is {variant!r}; expected letters, digits and _, such as fp16")
    for name in (*pipeline.parts, *pipeline.absent):
        if not plain_name(name) or name in pipeline.options:
            raise RecipeError(f"{name!r} cannot be the name of a component")
    index: dict[str, Any] = {**pipeline.options, "_class_name": pipeline.kind}
    index |= {name: [part.library, part.kind] for name, part in pipeline.parts.items()}
    index |= {name: [None, None] for name in pipeline.absent}
    with storage_errors(f"cannot write {folder}"), new_directory(folder) as place:
        for name, part in pipeline.parts.items():
            (place / name).mkdir()
            _write_part(place / name, part, variant, shard_bytes)
        _write_json(place / INDEX, index)


def _write_part(folder: Path, part: ForeignPart, variant: str | None, shard_bytes: int | None) -> None:
    for name, file in part.files.items():
        if not plain_name(name):
            raise RecipeError(f"{name!r} cannot be the name of a file")
        (folder / name).write_bytes(file if isinstance(file, bytes) else file.read_bytes())
    if part.config or part.tensors is not None:
        _write_json(folder / _config_name(part.kind), part.config)
    if part.tensors is not None:
        stem = "diffusion_pytorch_model" if part.library == "diffusers" else "model"
        _write_weights(folder, stem, part.tensors, variant, shard_bytes)


def _config_name(kind: str) -> str:
    endings = {
        "Scheduler": "scheduler_config.json", "Tokenizer": "tokenizer_config.json",
        "TokenizerFast": "tokenizer_config.json",
    }  # fmt: skip
    for ending, name in endings.items():
        if kind.endswith(ending):
            return name
    return "preprocessor_config.json" if _WITHOUT_WEIGHTS.fullmatch(kind) else "config.json"


def _write_weights(folder: Path, stem: str, source: TensorSource, variant: str | None, shard_bytes: int | None) -> None:
    middle = f".{variant}" if variant else ""
    shards: list[dict[str, int]] = [{}]
    for name in source.names:
        size = _bytes(source.read(name))
        if shard_bytes is not None and shards[-1] and sum(shards[-1].values()) + size > shard_bytes:
            shards.append({})
        shards[-1][name] = size
    names = [f"{stem}{middle}-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = [f"{stem}{middle}.safetensors"]
    for file, shard in zip(names, shards, strict=True):
        save_plain(folder / file, {name: source.read(name) for name in shard}, {"format": "pt"})
    if len(shards) > 1:
        where = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
        total = sum(size for shard in shards for size in shard.values())
        body = {"metadata": {"total_size": total}, "weight_map": where}
        _write_json(folder / f"{stem}.safetensors.index{middle}.json", body)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
