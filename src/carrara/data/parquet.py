"""Pictures inside parquet files: an `image` column of bytes, or of {bytes, path}, with captions and labels beside it.

Read with pyarrow, which is an optional extra. Rows are read in order, a small batch at a time, so that a file of any
size streams; captions and labels are read without touching the pictures.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError, StorageError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

__all__ = [
    "CellReader",
    "IMAGE_COLUMNS",
    "class_names",
    "image_columns",
    "open_parquet",
    "plain_columns",
    "read_batches",
]

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "picture")
_BATCH = 32  # rows of pictures in memory at once


def open_parquet(path: Path, name: str) -> pq.ParquetFile:
    """The parquet file; Raises DataError where pyarrow is missing or the file is damaged."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise DataError(f"{name} needs pyarrow to be read; install it with: pip install 'carrara[parquet]'") from None
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{name} is not a parquet file that can be read: {str(error).splitlines()[0]}") from None
    except OSError as error:
        raise StorageError(f"{name} could not be read: {error}") from None


def _holds_bytes(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        fields = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
        return "bytes" in fields and _holds_bytes(fields["bytes"])
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def image_columns(file: pq.ParquetFile) -> tuple[str, ...]:
    """The columns that hold pictures, the main one first; empty where there is none under a known name."""
    schema = file.schema_arrow
    holding = [field.name for field in schema if _holds_bytes(field.type)]
    main = next((name for name in IMAGE_COLUMNS if name in holding), None)
    return () if main is None else (main, *(name for name in holding if name != main))


def plain_columns(file: pq.ParquetFile) -> list[str]:
    """The columns without pictures in them."""
    return [field.name for field in file.schema_arrow if not _holds_bytes(field.type)]


def class_names(file: pq.ParquetFile, column: str = "label") -> tuple[str, ...]:
    """The names of the numbers in a label column, where the file's own metadata gives them."""
    metadata = file.schema_arrow.metadata or {}
    try:
        if b"huggingface" in metadata:
            names = json.loads(metadata[b"huggingface"])["info"]["features"][column]["names"]
        elif b"class_names" in metadata:
            text = metadata[b"class_names"].decode()
            names = json.loads(text) if text.lstrip().startswith("[") else text.split(",")
        else:
            return ()
        return tuple(str(name) for name in (names.values() if isinstance(names, dict) else names))
    except (ValueError, KeyError, TypeError):
        return ()


def read_batches(file: pq.ParquetFile, name: str, columns: Sequence[str], rows: int) -> Iterator[list[dict[str, Any]]]:
    """The columns as rows of plain values, `rows` of them at a time; Raises DataError where the file is damaged."""
    import pyarrow as pa

    try:
        for batch in file.iter_batches(batch_size=rows, columns=list(columns)):
            yield batch.to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{name} is a damaged parquet file: {str(error).splitlines()[0]}") from None


class CellReader:
    """Reads picture cells of parquet files; cheap in ascending order, correct in any."""

    def __init__(self) -> None:
        self._batches: dict[tuple[Path, str], tuple[Iterator[Any], int, list[Any]]] = {}

    def read(self, path: Path, name: str, column: str, row: int) -> bytes | str | None:
        """The bytes in the cell, the path it names where it has no bytes, or None where it is empty."""
        key = (path, column)
        if key not in self._batches or row < self._batches[key][1]:
            file = open_parquet(path, name)
            self._batches[key] = (read_batches(file, name, [column], _BATCH), 0, [])
        batches, start, cells = self._batches[key]
        while row >= start + len(cells):
            start += len(cells)
            batch = next(batches, None)
            if batch is None:
                raise DataError(f"{name} has fewer rows than it had when it was listed; it was changed meanwhile")
            cells = [cell[column] for cell in batch]
        self._batches[key] = (batches, start, cells)
        cell = cells[row - start]
        return (cell.get("bytes") or cell.get("path")) if isinstance(cell, dict) else cell
