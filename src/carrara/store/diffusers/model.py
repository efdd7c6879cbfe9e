"""Models of diffusers, whole: a folder or a single file becomes a model folder, and a model folder theirs again.

    found = import_model(Path("stable-diffusion-v1-5"), Path("model"))
    export_model(Path("model"), Path("copy"))

What is not a weight is kept as it came (kept.py), so that the copy of an imported model has the same files, names and
numbers, and what was fine-tuned in between is written in their place.
"""

from __future__ import annotations

import dataclasses
import gzip
import importlib.util
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from carrara.errors import RecipeError, StorageError
from carrara.store.component import load, save_system
from carrara.store.diffusers.export import returned
from carrara.store.diffusers.folder import read_part, write_pipeline
from carrara.store.diffusers.foreign import ForeignPart, ForeignPipeline
from carrara.store.diffusers.kept import keep, read_kept
from carrara.store.diffusers.pipeline import IGNORED, ForeignSystem, read_system
from carrara.store.diffusers.single import Family, Prediction, read_single
from carrara.system import System

__all__ = ["export_model", "import_model", "licence_of"]

_CLIP = "CLIPTokenizer"
_VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"  # as CLIP was published, and as other packages ship it
_PACKAGES = ("open_clip", "clip")
_MERGES = 49152 - 256 - 2
_MARKS = ("<|startoftext|>", "<|endoftext|>")


def import_model(
    source: Path,
    out: Path,
    *,
    variant: str | None = None,
    dtype: torch.dtype | None = None,
    size: int | None = None,
    family: Family | None = None,
    prediction: Prediction | None = None,
    tokenizers: Path | None = None,
    configs: Mapping[str, Mapping[str, Any]] | None = None,
) -> ForeignSystem:
    """Makes a model folder of a pipeline's folder, or of a whole model in one file.

    variant     of a folder's weights, such as "fp16"
    dtype       of the networks' weights; None is that which they are stored in
    size        of the pictures, in pixels; None is what the model was trained for
    family, prediction, tokenizers
                of a single file: what its weights do not tell, and a folder with its tokenizers' files
    configs     of a single file of another size than was ever published: its components' configurations by name

    Raises StorageError for what is damaged or missing and RecipeError for what is not read; nothing is left then.
    """
    if source.is_dir():
        if one := next((name for name, value in (("family", family), ("prediction", prediction)) if value), None):
            raise RecipeError(f"{one} is for a single file, and {source} is a folder, which says it; leave it out")
        return _imported(source, out, variant, dtype, size)
    if variant is not None:
        raise RecipeError(f"variant is for a folder, and {source} is a file; leave it out")
    pipeline = read_single(source, family=family, prediction=prediction, configs=configs)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".import-") as place:
        folder = Path(place) / source.stem
        write_pipeline(folder, with_tokenizers(pipeline, tokenizers))
        found = _imported(folder, out, None, dtype, size)
    said = tuple(note for note in pipeline.notes if "vocabulary" not in note)
    return dataclasses.replace(found, notes=(*said, *found.notes))


def _imported(
    folder: Path, out: Path, variant: str | None, dtype: torch.dtype | None, size: int | None
) -> ForeignSystem:
    found = read_system(folder, variant=variant, dtype=dtype, size=size)
    left = tuple(name for name in IGNORED if name in found.pipeline.parts)
    facts: dict[str, Any] = {"imported_from": folder.resolve().name, "pipeline": found.pipeline.kind}
    if licence := licence_of(folder):
        facts["license"] = licence
    lossless = dtype is None or dtype is torch.float32
    save_system(
        out,
        found.system,
        facts=dict.fromkeys(("text", "generator", "decoder"), facts),
        beside=lambda place: keep(place, found.pipeline, left_out=left, stored=lossless),
    )
    return found


def licence_of(folder: Path) -> str | None:
    """What the head of a folder's README states as its licence."""
    try:
        lines = (folder / "README.md").read_text(encoding="utf-8")[:65536].splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    if not lines or lines[0].strip() != "---":
        return None
    for line in lines[1:]:
        if line.strip() == "---":
            return None
        name, colon, value = line.partition(":")
        if colon and name.strip() == "license" and (said := value.strip().strip("\"'")):
            return said[:100] if said.isprintable() else None
    return None


def export_model(folder: Path, out: Path, *, variant: str | None = None, shard_bytes: int | None = None) -> System:
    """Writes an imported model as the pipeline that it was, with the weights that it has now.

    Raises RecipeError for a model that was not imported or whose parts are others.
    """
    kept = read_kept(folder)
    if kept is None:
        raise RecipeError(
            f"{folder} was not imported from a pipeline of diffusers, so that there is nothing to write it back to"
        )
    system = load(folder)
    write_pipeline(out, returned(system, kept), variant=variant, shard_bytes=shard_bytes)
    return system


# --- tokenizers, which single files have not --------------------------------------------------------------------------


def with_tokenizers(pipeline: ForeignPipeline, place: Path | None) -> ForeignPipeline:
    """The pipeline with the files of its tokenizers: of a folder, or CLIP's as an installed package has them.

    The folder is a pipeline's, with tokenizer, tokenizer_2 ..., or holds one tokenizer, which is CLIP's.
    """
    parts = dict(pipeline.parts)
    for name, part in pipeline.parts.items():
        if name.startswith("tokenizer") and not part.files:
            parts[name] = dataclasses.replace(part, files=_files(name, part, place))
    return dataclasses.replace(pipeline, parts=parts)


def _files(name: str, part: ForeignPart, place: Path | None) -> Mapping[str, Path | bytes]:
    clip = part.kind.startswith(_CLIP)
    if place is not None:
        if not place.is_dir():
            raise StorageError(f"{place} is no folder; give that of a pipeline, or of one tokenizer")
        own = place / name
        if own.is_dir():
            return read_part(own, part.library, part.kind, root=place).files
        if clip and any((place / file).is_file() for file in ("vocab.json", "tokenizer.json")):
            return read_part(place, part.library, part.kind).files
        if clip and (place / "tokenizer").is_dir():
            return read_part(place / "tokenizer", part.library, part.kind, root=place).files
    elif clip and (found := _packaged()) is not None:
        return clip_vocabulary(found)
    wanted = f"{place} has no folder {name}" if place is not None else "a single file has no vocabulary"
    also = ", or install open_clip_torch, whose vocabulary is read" if clip and place is None else ""
    raise RecipeError(
        f"{wanted}: give a folder with the files of the {part.kind} (vocab.json, merges.txt or such){also}"
    )


def _packaged() -> bytes | None:
    """CLIP's vocabulary as an installed package has it, read as data: the package is not imported."""
    for package in _PACKAGES:
        try:
            spec = importlib.util.find_spec(package)
        except (ImportError, ValueError):
            continue
        for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
            if (path := Path(folder) / _VOCABULARY).is_file():
                return path.read_bytes()
    return None


def clip_vocabulary(packed: bytes) -> dict[str, Path | bytes]:
    """vocab.json and merges.txt of CLIP's published list of merges (Radford et al. 2021)."""
    try:
        lines = gzip.decompress(packed).decode("utf-8").split("\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise StorageError(f"{_VOCABULARY} is damaged: {error}") from error
    merges = [line for line in lines[1 : 1 + _MERGES] if line.strip()]
    letters = _letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(line.split()) for line in merges), *_MARKS]
    vocabulary = json.dumps({word: number for number, word in enumerate(words)}, ensure_ascii=False)
    return {"vocab.json": vocabulary.encode(), "merges.txt": "\n".join(["#version: 0.2", *merges, ""]).encode()}


def _letters() -> list[str]:
    """The letters that stand for the 256 bytes: printable ones for themselves, others from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [*map(chr, printable), *(chr(256 + number) for number in range(len(others)))]
