"""What the verbs say: sentences for people on standard output, warnings on standard error, JSON for machines."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Counter", "Voice", "clean", "command", "duration", "mebibytes", "table"]


class Voice:
    """Speaks sentences unless `silent`; warnings are always spoken, and remembered in `warnings`."""

    def __init__(self, *, silent: bool = False) -> None:
        self.silent = silent
        self.warnings: list[str] = []

    def say(self, text: str = "") -> None:
        """A sentence or a few lines on standard output."""
        if not self.silent:
            print(clean(text), flush=True)

    def warn(self, text: str) -> None:
        """A warning on standard error."""
        self.warnings.append(text)
        print(f"warning: {clean(text)}", file=sys.stderr, flush=True)

    @staticmethod
    def json(value: Mapping[str, Any]) -> None:
        """One JSON object on standard output."""
        print(json.dumps(_plain(value), indent=2, ensure_ascii=False), flush=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no word for it
    return str(value) if isinstance(value, Path) else value


class Counter:
    """Progress through `total` things on standard error: a live bar in a terminal, else a line every ten seconds."""

    _EVERY = 10.0

    def __init__(self, total: int, thing: str, *, silent: bool = False) -> None:
        self.total, self.thing = total, thing
        self._began = self._said = time.monotonic()
        self._silent = silent
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Counter:
        if not self._silent and sys.stderr.isatty():
            self._open()
        return self

    def _open(self) -> None:
        from rich import progress
        from rich.console import Console

        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            console=Console(file=sys.stderr),
            transient=True,
        )
        self._task = self._bar.add_task(self.thing, total=self.total)
        self._bar.start()

    def at(self, done: float) -> None:
        """So many things are done."""
        now = time.monotonic()
        passed = max(now - self._began, 1e-9)
        rate = done / passed
        left = duration((self.total - done) / rate) if rate > 0 else "?"
        text = f"{rate:.3g} {self.thing} a second, {left} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=int(done), description=text)
        elif not self._silent and now - self._said >= self._EVERY:
            self._said = now
            print(f"{int(done)} of {self.total} {self.thing}, {text}", file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def clean(text: str) -> str:
    """Text that may hold a file's words, without control characters that would drive the terminal."""
    return "".join(c if c == "\n" or c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)


def table(rows: Sequence[tuple[str, object]], indent: str = "  ") -> str:
    """Two columns, the first as wide as its longest entry."""
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{indent}{name:<{width}}  {value}".rstrip() for name, value in rows)


def duration(seconds: float) -> str:
    """Seconds for people: "48 s", "12 min", "3.5 h", "4.2 days"."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86400:.1f} days"


def mebibytes(count: float) -> str:
    """Bytes for people: "430 MiB", "2.1 GiB"."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"


def command(*words: object) -> str:
    """A command to copy: `carrara` and the words, quoted for a shell where need be."""
    import shlex

    return "carrara " + " ".join(shlex.quote(str(word)) for word in words)
