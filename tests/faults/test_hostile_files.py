"""Hostile and damaged files: nothing in them runs, and each is refused within 2 s of work, in one sentence."""

from __future__ import annotations

import pickle
import resource
import struct
from pathlib import Path

import pytest

from carrara.errors import StorageError
from carrara.store.diffusers.folder import read_pipeline
from carrara.store.weights import read_tensors
from faults.hostile import CASES, GOOD, Case, data, head, legacy, pipeline, tensor, zipped

_SECONDS = 2.0


def seconds() -> float:
    """Processor time of this process and of its children, which does not depend on what else the machine does."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def read(path: Path) -> int:
    """Everything that a file, or a pipeline's folder, holds; how many tensors."""
    if path.is_file():
        return len(read_tensors(path))
    sources = [part.tensors for part in read_pipeline(path).parts.values() if part.tensors is not None]
    return sum(source.read(name) is not None for source in sources for name in source.names)


def test_there_are_enough() -> None:
    assert len(CASES) >= 300
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_it_is_refused(case: Case, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (tmp_path / "files").mkdir()
    path = case.make(tmp_path / "files", canary)
    before = seconds()
    with pytest.raises(StorageError) as caught:
        read(path)
    took = seconds() - before
    said = str(caught.value)
    assert not canary.exists()
    assert "\n" not in said and "Traceback" not in said and said.isprintable()
    assert len(said) < len(str(path)) * 2 + 400
    assert took < _SECONDS, f"{took:.2f} s"


@pytest.mark.parametrize(
    "case",
    [
        data("zip.pt", zipped(tensor(), GOOD)),
        data("old.pt", legacy(tensor(), pickle.dumps(["0"], 2), struct.pack("<q2f", 2, 1, 2))),
        data("a.safetensors", head({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, 8)),
        pipeline("folder", lambda place, canary: None),
    ],
    ids=lambda case: case.name,
)
def test_the_files_that_these_were_made_of_are_read(case: Case, tmp_path: Path) -> None:
    assert read(case.make(tmp_path, tmp_path / "canary"))
