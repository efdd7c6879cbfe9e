"""An engine in a thread of its own: requests go in from any thread, and out come futures and steps."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Self

from carrara.serve.engine import Engine, Ticket
from carrara.types import Rounds, Step

__all__ = ["Closed", "Job", "Worker"]


class Closed(Exception):
    """The worker takes no more requests."""


class Job:
    """A request that was handed in: `future` gives what it comes to, `cancel` ends it before its next call."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.future: Future[Any] = Future()
        self.ticket: Ticket | None = None

    def cancel(self) -> None:
        """Ends the request; its future raises `Cancelled`, unless it is done."""
        self._worker._post(lambda: self._worker._cancel(self))


class Worker:
    """Takes turns of an engine in a thread while there is something to do, and sleeps while there is not.

    `on_failure` is told what no request is to blame for; the worker is closed then, and every open request fails.
    """

    def __init__(self, engine: Engine, *, on_failure: Callable[[BaseException], None] = lambda error: None) -> None:
        self.engine = engine
        self._on_failure = on_failure
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._jobs: dict[Ticket, Job] = {}
        self._lock = threading.Lock()
        self._open, self._stopping = True, False
        self._thread = threading.Thread(target=self._work, name="carrara-engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    def submit(
        self,
        start: Callable[[], Rounds],
        *,
        priority: int = 0,
        patience: float | None = None,
        on_step: Callable[[Step], None] | None = None,
    ) -> Job:
        """Hands a request in: `start` makes it, in the worker's thread, where `on_step` is called too.

        With `patience` it has to be done within so many seconds. Raises Closed.
        """
        job = Job(self)

        def add() -> None:
            def ended(ticket: Ticket) -> None:
                self._jobs.pop(ticket, None)
                _settle(job.future, ticket)

            if not job.future.set_running_or_notify_cancel():
                return
            deadline = None if patience is None else self.engine.now() + patience
            try:
                rounds = start()
            except Exception as error:
                job.future.set_exception(error)
                return
            job.ticket = self.engine.add(rounds, priority=priority, deadline=deadline, on_step=on_step, on_end=ended)
            if not job.ticket.done:
                self._jobs[job.ticket] = job

        self._post(add)
        return job

    def close(self, *, finish: bool = False, timeout: float | None = None) -> bool:
        """Takes no more requests; what is open is cancelled, or with `finish` made first. Whether the thread ended."""
        with self._lock:
            if self._open:
                self._open = False
                self._inbox.put(lambda: self._stop(finish))
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _post(self, what: Callable[[], None]) -> None:
        with self._lock:
            if not self._open:
                raise Closed("the worker is closed; start another")
            self._inbox.put(what)

    def _cancel(self, job: Job) -> None:
        if job.ticket is not None:
            self.engine.cancel(job.ticket)

    def _stop(self, finish: bool) -> None:
        self._stopping = True
        if not finish:
            self.engine.close()

    def _work(self) -> None:
        try:
            busy = False
            while busy or not self._stopping:
                if not busy and not self._stopping:
                    self._inbox.get()()
                with contextlib.suppress(queue.Empty):
                    while True:
                        self._inbox.get_nowait()()
                busy = self.engine.turn()
        except BaseException as error:
            with self._lock:
                self._open = False
            for job in list(self._jobs.values()):
                job.future.set_exception(error)
            self._on_failure(error)


def _settle(future: Future[Any], ticket: Ticket) -> None:
    try:
        future.set_result(ticket.result())
    except Exception as error:
        future.set_exception(error)
