"""metadata.jsonl, metadata.csv and metadata.parquet: which captions, labels and further pictures belong to a picture.

The layout is the one of Hugging Face's ImageFolder: a `file_name` column with paths relative to the metadata file's own
directory, `text` (or `caption`) with a string or a list of strings, `<name>_file_name` for further pictures of the row;
here also `label` and `split`. Several files, one a folder, are allowed; all of one kind. Nothing in a csv file is taken
for "not available": a caption may well be "None" or "NA".
"""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import DataError, StorageError
from .captions import caption_values
from .findings import printable
from .paths import joined, leaves

__all__ = ["CAPTION_COLUMNS", "Entry", "METADATA_NAMES", "Metadata", "read_metadata"]

METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
CAPTION_COLUMNS = ("text", "caption", "captions", "texts")


@dataclass
class Entry:
    """What the metadata says of one picture; rows that name the same picture are joined."""

    captions: tuple[str, ...] = ()
    label: str = ""
    split: str = ""
    inputs: dict[str, str] = field(default_factory=dict)  # name -> path relative to the data folder


@dataclass
class Metadata:
    """All metadata files of a folder as one table, keyed by path relative to the data folder."""

    entries: dict[str, Entry] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    repeated: int = 0  # rows that named a picture again
    columns: dict[str, None] = field(default_factory=dict)  # ordered set


def read_metadata(root: Path, files: Sequence[str]) -> Metadata:
    """The metadata files at the relative paths `files`, joined.

    Raises DataError for mixed kinds, a row that cannot be read, a missing `file_name` column, or a path that leaves the
    folder; StorageError where a file cannot be opened.
    """
    kinds = sorted({PurePosixPath(name).suffix for name in files})
    if len(kinds) > 1:
        raise DataError(
            f"the folder has metadata files of different kinds ({', '.join(files[:4])}); keep one kind, "
            "so that it is clear which of them is meant"
        )
    table = Metadata(files=tuple(files))
    for name in files:
        folder = "" if "/" not in name else name.rsplit("/", 1)[0]
        for place, row in _rows(root / name, name):
            table.columns.update(dict.fromkeys(row))
            _add(table, folder, place, row)
    return table


def _rows(path: Path, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    readers = {".jsonl": _json_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}
    try:
        yield from readers[path.suffix](path, name)
    except UnicodeDecodeError:
        raise DataError(f"{name} is not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise StorageError(f"{name} could not be read: {error.strerror or error}") from None


def _json_rows(path: Path, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            place = f"{name}, line {number}"
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise DataError(
                    f"{place} is not JSON: {error}; each line is one object such as "
                    '{"file_name": "a.png", "text": "a red apple"}'
                ) from None
            if not isinstance(row, dict):
                raise DataError(f"{place} is a {type(row).__name__}; each line is one object with a file_name")
            yield place, row


def _csv_rows(path: Path, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        try:
            for row in reader:
                place = f"{name}, line {reader.line_num}"
                if None in row:
                    raise DataError(
                        f"{place} has more cells than there are columns; put captions with commas in quotes"
                    )
                yield place, row
        except csv.Error as error:
            raise DataError(f"{name}, line {reader.line_num} cannot be read as csv: {error}") from None


def _parquet_rows(path: Path, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    from .parquet import open_parquet, plain_columns, read_batches

    file = open_parquet(path, name)
    number = 0
    for batch in read_batches(file, name, plain_columns(file), 4096):
        for row in batch:
            number += 1
            yield f"{name}, row {number}", row


def _add(table: Metadata, folder: str, place: str, row: Mapping[str, Any]) -> None:
    if "file_name" not in row:
        near = difflib.get_close_matches("file_name", list(row), 1, 0.5)
        hint = f'; rename "{near[0]}" to "file_name"' if near else ""
        raise DataError(f"{place} has no file_name column (it has {', '.join(map(str, row)) or 'nothing'}){hint}")
    name = _path(row["file_name"], folder, place, "file_name")
    if name in table.entries:
        table.repeated += 1
    entry = table.entries.setdefault(name, Entry())
    column = next((column for column in CAPTION_COLUMNS if row.get(column) is not None), None)
    if column is not None:
        try:
            entry.captions = tuple(dict.fromkeys((*entry.captions, *caption_values(row[column]))))
        except ValueError as error:
            raise DataError(f"{place}: {error}") from None
    entry.label = entry.label if row.get("label") is None else str(row["label"]).strip()
    entry.split = entry.split if row.get("split") is None else str(row["split"]).strip().lower()
    for key, value in row.items():
        if key.endswith("_file_name") and value not in (None, ""):
            entry.inputs[key.removesuffix("_file_name")] = _path(value, folder, place, key)
        elif key.endswith("file_names"):
            raise DataError(
                f"{place}: column {key} (several pictures a row) is not read; use one column a picture, "
                "such as mask_file_name"
            )


def _path(value: object, folder: str, place: str, column: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{place}: {column} is {printable(repr(value))}; give a path relative to the metadata file")
    if reason := leaves(value):
        raise DataError(
            f'{place}: {column} "{printable(value)}" is refused: {reason}. '
            "Give a path relative to the metadata file that stays inside the folder"
        )
    return joined(folder, value)
