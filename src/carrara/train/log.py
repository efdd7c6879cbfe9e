"""What a run says: one JSON object a line in log.jsonl, a progress line for people, TensorBoard for who wants it."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, cast

from carrara.errors import RecipeError
from carrara.store.atomic import write_file

__all__ = ["Event", "Log", "Progress", "TensorBoard", "peak_memory_bytes", "read_log", "reset_peak_memory"]

Event = dict[str, Any]


class Log:
    """Appends events to a JSONL file, each flushed at once; events after step `keep_to` are first dropped.

    A disk that refuses a line costs the line, not the run: `broken` then says why, once.
    """

    def __init__(self, path: Path, keep_to: int) -> None:
        self.broken: str | None = None
        self._told = False
        if path.exists():
            kept = [event for event in read_log(path) if event.get("step", 0) <= keep_to]
            write_file(path, "".join(_line(event) for event in kept).encode())
        self._file: IO[str] = open(path, "a", encoding="utf-8")  # noqa: SIM115 (lives as long as the run)

    def write(self, event: Mapping[str, Any]) -> None:
        """Appends one event."""
        try:
            self._file.write(_line(event))
            self._file.flush()
        except (OSError, ValueError) as error:
            if not self._told:
                self.broken, self._told = f"the log cannot be written any more: {error}", True

    def sync(self) -> None:
        """Makes the lines durable."""
        with suppress(OSError, ValueError):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Ends the log."""
        with suppress(OSError, ValueError):
            self._file.close()


def _line(event: Mapping[str, Any]) -> str:
    return json.dumps(_plain(event), ensure_ascii=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no word for it
    return value


def read_log(path: Path) -> list[Event]:
    """The events of a log file; lines that were cut off in the writing are left out."""
    events: list[Event] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict):
                    events.append(event)
    return events


class TensorBoard:
    """Writes a run's numbers for TensorBoard: give an instance to `fit` as `on_event`.

    Raises RecipeError when the tensorboard package is missing.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import tensorboard  # noqa: F401
        except ImportError:
            raise RecipeError("TensorBoard is not installed; `pip install 'carrara[tensorboard]'`") from None
        self._folder = folder
        self._writer: Any = None

    def __call__(self, event: Event) -> None:
        """Takes one event of a run."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=event.get("step", 0) + 1)
        for name, value in _scalars(event):
            self._writer.add_scalar(f"{event['event']}/{name}", value, event["step"])
        if event["event"] == "done":
            self._writer.close()


def _scalars(event: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for name, value in event.items():
        if isinstance(value, Mapping):
            found += _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and name != "step":
            found.append((prefix + name, float(value)))
    return found


class Progress:
    """Tells a person how far a run is: a live line in a terminal, otherwise a line every ten seconds.

    It writes to standard error; a stream that has gone away makes it fall silent.
    """

    _EVERY = 10.0  # seconds between lines where there is no terminal

    def __init__(self, steps: int, *, stream: IO[str] | None = None, clock: Callable[[], float] = time.monotonic):
        self._steps = steps
        self._stream = _Forgiving(stream or sys.stderr)
        self._clock = clock
        self._said_at = -math.inf
        self._recent: deque[tuple[float, int]] = deque(maxlen=200)
        self._live: Any = None
        self._task: Any = None
        if self._stream.isatty():
            self._open_live()

    def _open_live(self) -> None:
        from rich import progress
        from rich.console import Console

        self._live = progress.Progress(
            progress.TextColumn("step"),
            progress.MofNCompleteColumn(),
            progress.BarColumn(),
            progress.TextColumn("{task.description}"),
            console=Console(file=cast(IO[str], self._stream)),
            refresh_per_second=4,
        )
        self._task = self._live.add_task("", total=self._steps)
        self._live.start()

    def step(self, event: Mapping[str, Any]) -> None:
        """Shows a step's numbers."""
        now = self._clock()
        self._recent.append((now, int(event["step"])))
        if self._live is None and now - self._said_at < self._EVERY:
            return
        self._said_at = now
        text = (
            f"{self._left(now)} left, {event['images_per_second']:.1f} images/s, loss {event['loss']:.4g}, "
            f"gradient {event['grad_norm']:.3g}, {event['memory'] / 2**20:,.0f} MiB"
        )
        if self._live is not None:
            self._live.update(self._task, completed=event["step"], description=text)
        else:
            self._print(f"step {event['step']}/{self._steps}, {text}")

    def _left(self, now: float) -> str:
        (then, first), (_, last) = self._recent[0], self._recent[-1]
        if last == first:
            return "?"
        seconds = int((now - then) / (last - first) * (self._steps - last))
        hours, rest = divmod(seconds, 3600)
        return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"

    def say(self, sentence: str) -> None:
        """Says something once."""
        if self._live is not None:
            self._live.console.print(sentence, markup=False, highlight=False)
        else:
            self._print(sentence)

    def close(self) -> None:
        """Ends the live line."""
        if self._live is not None:
            self._live.stop()

    def _print(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()


class _Forgiving:
    """A stream that goes on as if nothing were when nobody is listening any more."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._gone = False

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, call: Callable[..., object], *words: str) -> None:
        if not self._gone:
            try:
                call(*words)
            except (OSError, ValueError):  # a broken pipe, a lost terminal, a closed stream
                self._gone = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def peak_memory_bytes(device: Any) -> int:
    """The most memory that was held at once: on a GPU by torch, otherwise by this process (its resident set)."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):  # unlike ru_maxrss not inherited from the parent process
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        import psutil

        return int(psutil.Process().memory_info().rss)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_peak_memory(device: Any) -> bool:
    """Starts the count of `peak_memory_bytes` again; whether the system let us."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM becomes what is resident now
    except OSError:
        return False
    return True
