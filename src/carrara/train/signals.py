"""Being stopped: a first SIGTERM, SIGINT or SIGUSR1 asks for an end after the current step, a second ends at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from carrara.errors import Preempted

__all__ = ["StopSignals"]


class StopSignals:
    """While open, remembers in `received` the name of the signal that came; at a second one raises Preempted.

    Signals can be caught in a program's main thread only; elsewhere nothing is changed.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        """Takes the signals over."""
        if threading.current_thread() is threading.main_thread():
            names = ("SIGTERM", "SIGINT", "SIGUSR1")
            for which in (getattr(signal, name) for name in names if hasattr(signal, name)):
                self._before[which] = signal.signal(which, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        """Gives the signals back."""
        for which, handler in self._before.items():
            signal.signal(which, handler if handler is not None else signal.SIG_DFL)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.received is None:
            self.received = name
            return
        raise Preempted(
            f"stopped at once by a second signal ({name}); the last checkpoint is whole, "
            "and the same command goes on from there"
        )
