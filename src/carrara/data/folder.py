"""A folder of pictures, whatever its layout: which pictures there are and what belongs to each.

Understood are metadata files (`metadata.py`), caption files beside the pictures, one folder a class, `train` and `test`
folders, and parquet files of pictures. Nothing is decoded here. Everything that was found, chosen or left out is in the
listing's findings.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ..errors import DataError, StorageError
from .captions import caption_values, label_caption, name_caption, read_sidecar, wordy
from .findings import Findings, Problem, count, examples, printable
from .formats import PICTURE_SUFFIXES, sniff
from .metadata import CAPTION_COLUMNS, METADATA_NAMES, Metadata, read_metadata
from .parquet import class_names, image_columns, open_parquet, plain_columns, read_batches
from .paths import inside, nfc
from .settings import DataSettings

__all__ = ["Listing", "Place", "Row", "list_folder"]


class Place(NamedTuple):
    """Where the bytes of a picture lie: a file, or a cell of a parquet file."""

    path: str  # relative to the data folder
    stamp: str  # changes when the file does: size and times
    column: str = ""  # of a parquet file
    row: int = -1

    @property
    def name(self) -> str:
        """For people: the path, with the row where there is one."""
        return self.path if self.row < 0 else f"{self.path}:{self.row}"


@dataclass(frozen=True)
class Row:
    """One picture of the data set and what belongs to it."""

    place: Place
    captions: tuple[str, ...] = ()
    source: str = ""  # where the captions come from; "" without
    label: str = ""
    split: str = ""  # "train", "heldout", or "" where the folder does not say
    inputs: Mapping[str, Place] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The picture's name in the data set."""
        return self.place.name


@dataclass(frozen=True)
class Listing:
    """The pictures of a folder in a fixed order, before any is decoded."""

    root: Path  # resolved
    rows: tuple[Row, ...]
    findings: Findings
    inputs: tuple[str, ...]  # names of the further pictures that every row has

    @property
    def stamp(self) -> str:
        """A hash that changes when a picture is added, removed or changed."""
        digest = hashlib.blake2b(digest_size=16)
        for row in self.rows:
            for place in (row.place, *(row.inputs[name] for name in self.inputs)):
                digest.update(
                    f"{place.path}\0{place.stamp}\0{place.column}\0{place.row}\n".encode(errors="surrogatepass")
                )
        return digest.hexdigest()


SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "validation", "valid", "val", "dev", "eval", "heldout"), "heldout"),
}
_OUTPUT_MARKS = ("component.json", "model.json", "run.lock", "log.jsonl")  # a run or a model lies there
_HIDDEN = ("__MACOSX", "Thumbs.db", "desktop.ini", "$RECYCLE.BIN")


@dataclass
class _Scan:
    """Files under the root by what they may be; paths are relative, sorted."""

    pictures: dict[str, str] = field(default_factory=dict)  # path -> stamp
    sidecars: dict[str, str] = field(default_factory=dict)
    metadata: list[str] = field(default_factory=list)
    parquet: dict[str, str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    decisions: list[str] = field(default_factory=list)


def list_folder(settings: DataSettings) -> Listing:
    """Every picture of `settings.folder` with its captions, label, split and inputs.

    Raises DataError where there is nothing to train on or the metadata is wrong, StorageError where the folder cannot
    be read.
    """
    scan, root = _scan(settings.path)
    metadata = read_metadata(root, [name for name in scan.metadata if not _is_pictures(root, name, scan)])
    rows, missing, unlisted = _file_rows(scan, metadata)
    rows += _parquet_rows(root, scan)
    if not rows:
        raise DataError(_nothing(settings, scan, missing))
    rows = _with_splits(rows, scan)
    if not metadata.files:
        rows = _with_labels(rows, scan)
    rows, sources = _with_captions(root, rows, settings, scan)
    rows, inputs = _with_inputs(rows, settings, scan)
    if metadata.repeated:
        scan.decisions.append(
            f"{count(metadata.repeated, 'metadata row')} named a picture again; their captions were joined."
        )
    if metadata.files and not any(column in metadata.columns for column in CAPTION_COLUMNS):
        scan.decisions.append(
            f"The metadata has no text or caption column (it has {printable(', '.join(map(str, metadata.columns)))})."
        )
    findings = Findings(
        folder=printable(str(settings.path)),
        pictures=len(rows),
        named=len(metadata.entries),
        captions=sources,
        classes=tuple(sorted({row.label for row in rows if row.label})),
        problems=tuple(scan.problems),
        uncaptioned=tuple(row.name for row in rows if not row.captions) if sources else (),
        unlisted=tuple(unlisted),
        missing=tuple(missing),
        ignored=tuple(scan.ignored),
        decisions=tuple(scan.decisions),
    )
    return Listing(root, tuple(rows), findings, inputs)


def _nothing(settings: DataSettings, scan: _Scan, missing: Sequence[str]) -> str:
    said = f"no pictures in {printable(str(settings.path))}"
    if scan.problems:
        said += f"; refused were {examples(f'{p.name} ({p.reason})' for p in scan.problems)}"
    if missing:
        said += f"; the metadata names {examples(missing)}, which are not there"
    if scan.ignored:
        said += f"; it holds {count(len(scan.ignored), 'other file')}: {examples(scan.ignored)}"
    return said + ". Give a folder with pictures (PNG, JPEG, WebP, AVIF, GIF, BMP, TIFF, NPY) or a parquet file of them"


# --- what files there are ---------------------------------------------------------------------------------------------


def _scan(path: Path) -> tuple[_Scan, Path]:
    scan = _Scan()
    try:
        root = path.resolve(strict=True)
        if root.is_file():
            if root.suffix.lower() != ".parquet":
                raise DataError(
                    f"{printable(str(path))} is a file; give the folder that holds the pictures, or a parquet file"
                )
            scan.parquet[root.name] = _stamp(root.stat())
            return scan, root.parent
        _scan_folder(root, root, "", scan)
    except FileNotFoundError:
        raise DataError(f"there is no folder {printable(str(path))}") from None
    except RecursionError:
        raise StorageError(f"{printable(str(path))} has folders nested too deeply to be read") from None
    except (OSError, ValueError) as error:
        raise StorageError(
            f"{printable(str(path))} could not be read: {getattr(error, 'strerror', None) or error}"
        ) from None
    return scan, root


def _stamp(info: os.stat_result) -> str:
    return f"{info.st_size}-{info.st_mtime_ns}-{info.st_ctime_ns}"


def _scan_folder(root: Path, folder: Path, prefix: str, scan: _Scan) -> None:
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    names = {entry.name for entry in entries}
    if prefix and any(mark in names for mark in _OUTPUT_MARKS):
        scan.decisions.append(f"{printable(prefix)} is a run or a model, and its pictures are not data.")
        return
    if {"index.json", "images.npy"} <= names:
        return  # one of our own caches
    for entry in entries:
        if entry.name.startswith(".") or entry.name in _HIDDEN:
            continue
        _scan_entry(root, entry, f"{prefix}{entry.name}", scan)


def _scan_entry(root: Path, entry: os.DirEntry[str], name: str, scan: _Scan) -> None:
    path = Path(entry.path)
    try:
        if entry.is_symlink():
            if not inside(root, path):
                scan.problems.append(Problem(name, "the link leaves the folder"))
                return
            if entry.is_dir():
                scan.decisions.append(f"The linked folder {printable(name)} was not followed.")
                return
        if entry.is_dir(follow_symlinks=False):
            _scan_folder(root, path, f"{name}/", scan)
            return
        info = entry.stat()
    except OSError as error:
        scan.problems.append(Problem(name, f"it could not be opened: {error.strerror or error}"))
        return
    if not stat.S_ISREG(info.st_mode):
        scan.ignored.append(name)
        return
    _sort_file(path, name, info, scan)


def _sort_file(path: Path, name: str, info: os.stat_result, scan: _Scan) -> None:
    suffix = path.suffix.lower()
    if path.name in METADATA_NAMES:
        scan.metadata.append(name)
        if suffix == ".parquet":
            scan.parquet[name] = _stamp(info)
    elif suffix == ".parquet":
        scan.parquet[name] = _stamp(info)
    elif suffix in PICTURE_SUFFIXES or _looks_like_a_picture(path):
        scan.pictures[name] = _stamp(info)
    elif suffix in (".txt", ".caption"):
        scan.sidecars[name] = suffix[1:]
    else:
        scan.ignored.append(name)


def _looks_like_a_picture(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return sniff(file.read(32)) is not None
    except OSError:
        return False


def _is_pictures(root: Path, name: str, scan: _Scan) -> bool:
    """Whether a metadata.parquet holds the pictures themselves; else it is taken off the list of those."""
    if not name.endswith(".parquet"):
        return False
    file = open_parquet(root / name, name)
    if "file_name" in file.schema_arrow.names:
        scan.parquet.pop(name, None)
        return False
    return bool(image_columns(file))


# --- rows -------------------------------------------------------------------------------------------------------------


def _file_rows(scan: _Scan, metadata: Metadata) -> tuple[list[Row], list[str], list[str]]:
    """Rows of picture files; names that the metadata has and the folder lacks; and the other way round."""
    known = scan.pictures
    composed = {nfc(name): name for name in known} if metadata.entries else {}
    refused = {problem.name for problem in scan.problems}

    def find(name: str) -> str | None:
        if name in known:
            return name
        return composed.get(nfc(name)) or composed.get(nfc(name.replace("\\", "/")))

    rows: dict[str, Row] = {}
    missing, further = [], set()
    for wanted, entry in metadata.entries.items():
        inputs = {}
        for key, other in entry.inputs.items():
            place = find(other)
            if place is not None:
                further.add(place)
            inputs[key] = Place(place or other, known[place] if place else "")
        name = find(wanted)
        if name is None:
            if wanted not in refused:
                missing.append(wanted)
            continue
        rows[name] = Row(
            Place(name, known[name]),
            entry.captions,
            "metadata" if entry.captions else "",
            entry.label,
            entry.split,
            inputs,
        )
    unlisted = []
    for name, stamp in known.items():
        if name in rows or name in further:
            continue
        rows[name] = Row(Place(name, stamp))
        if metadata.files:
            unlisted.append(name)
    return [rows[name] for name in sorted(rows)], sorted(missing), sorted(unlisted)


def _parquet_rows(root: Path, scan: _Scan) -> list[Row]:
    rows: list[Row] = []
    for name, stamp in sorted(scan.parquet.items()):
        file = open_parquet(root / name, name)
        columns = image_columns(file)
        if not columns:
            scan.ignored.append(name)
            scan.decisions.append(
                f"{printable(name)} has no column of pictures (it has {printable(', '.join(file.schema_arrow.names))})."
            )
            continue
        classes = class_names(file)
        plain = [c for c in (*CAPTION_COLUMNS, "label", "split") if c in plain_columns(file)]
        for row, cells in enumerate(_cells(file, name, plain)):
            try:
                said = next((caption_values(cells[c]) for c in CAPTION_COLUMNS if cells.get(c) is not None), ())
            except ValueError as error:
                raise DataError(f"{name}, row {row}: {error}") from None
            inputs = {column: Place(name, stamp, column, row) for column in columns[1:]}
            rows.append(
                Row(
                    Place(name, stamp, columns[0], row),
                    said,
                    "metadata" if said else "",
                    _label(cells.get("label"), classes),
                    str(cells.get("split") or "").lower(),
                    inputs,
                )
            )
    return rows


def _cells(file: Any, name: str, columns: Sequence[str]) -> Iterator[Mapping[str, object]]:
    if not columns:
        yield from ({} for _ in range(file.metadata.num_rows))
        return
    for batch in read_batches(file, name, columns, 4096):
        yield from batch


def _label(value: object, classes: Sequence[str]) -> str:
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(classes):
        return classes[value]
    return str(value).strip()


# --- splits, classes, captions, inputs --------------------------------------------------------------------------------


def _top(name: str) -> str:
    """The word that may name a split: the first folder, or a word of a parquet file's name."""
    first = name.split("/")[0].lower()
    if "/" in name:
        return first
    if first.endswith(".parquet") or ".parquet:" in first:
        return next((word for word in re.split(r"[-_.:\s]+", first) if word in SPLITS), "")
    return ""


def _with_splits(rows: list[Row], scan: _Scan) -> list[Row]:
    """Rows with "train" or "heldout": from a split column, else from folders of those names when both are there."""
    if any(row.split for row in rows):
        if unknown := sorted({row.split for row in rows if row.split and row.split not in SPLITS}):
            raise DataError(f"the split column has {examples(unknown)}; use train, test or validation")
        scan.decisions.append("The split into training and held-out pictures comes from the split column.")
        return [replace(row, split=SPLITS.get(row.split, "train")) for row in rows]
    found = {SPLITS[top] for top in {_top(row.name) for row in rows} if top in SPLITS}
    if found != {"train", "heldout"}:
        return rows
    scan.decisions.append("The split into training and held-out pictures comes from the folders' names.")
    return [replace(row, split=SPLITS.get(_top(row.name), "train")) for row in rows]


def _with_labels(rows: list[Row], scan: _Scan) -> list[Row]:
    """Rows labelled by their folder, when there are several folders and all lie at one depth."""
    files = [row for row in rows if row.place.row < 0]
    if len(files) < len(rows) or any(row.label for row in rows):
        return rows
    folders = {
        row.name: list(PurePosixPath(row.name).parts[bool(row.split) and _top(row.name) in SPLITS : -1]) for row in rows
    }
    depths = {len(parts) for parts in folders.values()}
    names = {parts[-1] for parts in folders.values() if parts}
    if depths == {0} or len(names) < 2:
        return rows
    if len(depths) > 1:
        scan.decisions.append("Pictures lie at several depths of folders, so folder names are not taken for classes.")
        return rows
    return [replace(row, label=folders[row.name][-1]) for row in rows]


def _with_captions(
    root: Path, rows: list[Row], settings: DataSettings, scan: _Scan
) -> tuple[list[Row], dict[str, int]]:
    explicit = [source for source in settings.captions if source not in ("class", "name")]
    used: set[str] = set()
    done = [_explicit(root, row, explicit, scan, used) for row in rows]
    scan.ignored.extend(sorted(set(scan.sidecars) - used))
    if not any(row.captions for row in done):
        done = _implicit(done, settings, scan)
    sources = Counter(row.source for row in done if row.captions)
    if len(sources) > 1:
        scan.decisions.append(
            f"Of several captions for a picture the first kind counts, in the order {', '.join(explicit)}."
        )
    return done, {source: sources[source] for source in settings.captions if sources[source]}


def _explicit(root: Path, row: Row, sources: Sequence[str], scan: _Scan, used: set[str]) -> Row:
    """The row with the captions of the first source that has any."""
    stem = row.name.rsplit(".", 1)[0] if "." in row.name.rsplit("/", 1)[-1] else row.name
    beside = {kind: name for kind in ("caption", "txt") for name in (f"{stem}.{kind}",) if name in scan.sidecars}
    used.update(beside.values())
    for source in sources:
        if source == "metadata":
            if row.captions:
                return row
        elif source in beside and row.place.row < 0:
            try:
                said = read_sidecar(root / beside[source], source)
            except (OSError, ValueError) as error:
                scan.decisions.append(f"{printable(row.name)} has no caption: {printable(str(error))}.")
                continue
            if said:
                return replace(row, captions=said, source=source)
    return replace(row, captions=(), source="")


def _implicit(rows: list[Row], settings: DataSettings, scan: _Scan) -> list[Row]:
    """Captions from classes, else from file names, where nothing says more."""
    for source in settings.captions:
        if source == "class" and any(row.label for row in rows):
            scan.decisions.append("Each picture's caption is the name of its class.")
            return [
                replace(row, captions=(label_caption(row.label),), source="class") if row.label else row for row in rows
            ]
        if source == "name":
            names = [row.name for row in rows if row.place.row < 0]
            asked = settings.captions == ("name",)
            if names and (asked or wordy(names)):
                why = "as asked" if asked else "for want of anything else, and because the names look like words"
                scan.decisions.append(f"Captions come from the file names, {why}.")
                said = {name: name_caption(name) for name in names}
                return [
                    replace(row, captions=(said[row.name],), source="name") if said.get(row.name) else row
                    for row in rows
                ]
    return rows


def _with_inputs(rows: list[Row], settings: DataSettings, scan: _Scan) -> tuple[list[Row], tuple[str, ...]]:
    """Rows that have every input that is wanted; the others are problems."""
    offered = {name for row in rows for name in row.inputs}
    wanted = tuple(sorted(offered)) if settings.inputs is None else settings.inputs
    if unknown := [name for name in wanted if name not in offered]:
        raise DataError(
            f"inputs asks for {examples(unknown)}, and the data has {examples(sorted(offered)) or 'none'}; "
            f"name the files of an input in a column such as {unknown[0]}_file_name"
        )
    kept = []
    for row in rows:
        lacking = [name for name in wanted if name not in row.inputs]
        absent = [row.inputs[name].path for name in wanted if name in row.inputs and not row.inputs[name].stamp]
        if lacking:
            scan.problems.append(Problem(row.name, f"it has no {lacking[0]}, which other pictures have"))
        elif absent:
            scan.problems.append(Problem(row.name, f"its input {absent[0]} is not there"))
        else:
            kept.append(row)
    if not kept:
        raise DataError(f"no picture has all of its inputs ({', '.join(wanted)}); {scan.problems[-1].reason}")
    return kept, wanted
