"""The benchmarks are no part of the package: they are found beside it."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from carrara.cli import main as command

sys.path.append(str(Path(__file__).resolve().parent.parent.parent))


@pytest.fixture(scope="session")
def in_process() -> Callable[..., str]:
    """`carrara` without a process of its own, which takes seconds to start."""
    return _in_process


def _in_process(*arguments: object, **_: str) -> str:
    out = io.StringIO()
    words = [str(word) for word in arguments]
    if words[0] in ("compare", "evaluate"):
        words += ["--extractor", "pixels"]
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as ended:
        command(words)
    assert not ended.value.code, words
    return out.getvalue()
