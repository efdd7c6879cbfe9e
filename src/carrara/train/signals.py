"""Being stopped: a first signal asks for an end after the current step, a second ends at once.

SIGTERM and SIGUSR1 come from batch systems, SIGINT from the keyboard, SIGHUP from a terminal that is closed.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from carrara.errors import Preempted

__all__ = ["StopSignals"]

_STOPS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")


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
            for which in (getattr(signal, name) for name in _STOPS if hasattr(signal, name)):
                if signal.getsignal(which) is signal.SIG_IGN:  # nohup, or a shell's background: as the user wished
                    continue
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
