"""The book of jobs: what was accepted, who works on it, and what came of it, in SQLite or PostgreSQL.

    store = JobStore("sqlite:///jobs.db")                         or "postgresql+psycopg://host/name"
    job, new = store.accept("emoji", {"prompt": "red apple"})
    (taken,) = store.take("worker-1", ["emoji"], most=1)
    store.finish(taken.id, "worker-1", [("image/png", data)])     True once

A job is taken by one worker at a time, which holds it while it renews its lease. A worker that is gone loses its jobs
to the next one that asks, so that an accepted job survives the end of any process; results and the state "done" are
written in one transaction by who holds the lease, so that it ends once. Whoever lost a lease is told so at its next
renewal, and its results are refused.

    queued -> running -> done, failed, cancelled          (running -> queued when a lease runs out)
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

__all__ = ["Conflict", "Full", "Job", "JobStore", "Result", "STATES"]

STATES = QUEUED, RUNNING, DONE, FAILED, CANCELLED = ("queued", "running", "done", "failed", "cancelled")
_ENDED = (DONE, FAILED, CANCELLED)

_TABLES = sa.MetaData()
_JOBS = sa.Table(
    "carrara_jobs",
    _TABLES,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("model", sa.String(200), nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("key", sa.String(64), unique=True),  # of the idempotency key and its owner
    sa.Column("digest", sa.String(64), nullable=False),  # of the body
    sa.Column("work", sa.Float, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("state", sa.String(10), nullable=False),
    sa.Column("accepted", sa.Float, nullable=False),
    sa.Column("started", sa.Float),
    sa.Column("ended", sa.Float),
    sa.Column("worker", sa.String(200)),
    sa.Column("lease", sa.Float),  # until when
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("cancel", sa.Boolean, nullable=False),
    sa.Column("error", sa.Text),
    sa.Column("bytes", sa.Integer, nullable=False),
    sa.Index("carrara_jobs_queue", "state", "priority", "accepted"),
)
_RESULTS = sa.Table(
    "carrara_results",
    _TABLES,
    sa.Column("job", sa.String(40), sa.ForeignKey("carrara_jobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("media_type", sa.String(100), nullable=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
)


class Conflict(Exception):
    """The idempotency key was used for another request."""


class Full(Exception):
    """The queue holds as much as it may."""


class Job(NamedTuple):
    """What the book says of a job; times are seconds since 1970, `error` what it failed of."""

    id: str
    model: str
    body: Mapping[str, Any]
    state: str
    work: float
    priority: int
    accepted: float
    started: float | None
    ended: float | None
    attempts: int
    cancelling: bool
    error: Mapping[str, Any] | None


class Result(NamedTuple):
    """A picture of a job."""

    media_type: str
    data: bytes


class JobStore:
    """The book. Safe for use from many threads, processes and, with PostgreSQL, hosts.

    lease     seconds that a job is held without renewal
    attempts  after so many workers have lost it, a job has failed
    most      jobs in the queue, and `work` of them in all, beyond which no more is accepted
    """

    def __init__(
        self,
        url: str,
        *,
        lease: float = 30.0,
        attempts: int = 3,
        most: int = 1000,
        work: float = float("inf"),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.lease, self.attempts, self.most, self.work = lease, attempts, most, work
        self._clock = clock
        self._engine = _opened(url)
        self._sqlite = self._engine.dialect.name == "sqlite"
        _TABLES.create_all(self._engine)

    def close(self) -> None:
        """Gives its connections back."""
        self._engine.dispose()

    # --- for who asks ------------------------------------------------------------------------------------------------

    def accept(
        self,
        model: str,
        body: Mapping[str, Any],
        *,
        work: float = 1.0,
        priority: int = 0,
        key: str | None = None,
        owner: str = "",
    ) -> tuple[Job, bool]:
        """Writes a job down, and says whether it is new: a `key` of one owner with the same body is the same job.

        When this returns, the job is on the disk. Raises Conflict for a key with another body, Full for no room.
        """
        text = json.dumps(body, sort_keys=True, allow_nan=False)
        digest = hashlib.sha256(f"{model}\x1f{text}".encode()).hexdigest()
        keyed = None if key is None else hashlib.sha256(f"{owner}\x1f{key}".encode()).hexdigest()
        with self._writing(alone=True) as connection:
            if keyed is not None and (row := _one(connection, _JOBS.c.key == keyed)) is not None:
                if row.digest != digest:
                    raise Conflict("this idempotency key was used for another request")
                return _job(row), False
            self._check_room(connection, work)
            name = f"job-{secrets.token_hex(16)}"
            connection.execute(
                sa.insert(_JOBS).values(
                    id=name, model=model, body=text, key=keyed, digest=digest, work=work, priority=priority,
                    state=QUEUED, accepted=self._clock(), attempts=0, cancel=False, bytes=0,
                )
            )  # fmt: skip
            row = _one(connection, _JOBS.c.id == name)
            assert row is not None
            return _job(row), True

    def _check_room(self, connection: Connection, work: float) -> None:
        count, sum_ = connection.execute(
            sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(_JOBS.c.work), 0.0)).where(
                _JOBS.c.state.in_((QUEUED, RUNNING))
            )
        ).one()
        if count >= self.most or (count and sum_ + work > self.work):
            raise Full(f"{count} jobs are waiting")

    def get(self, name: str) -> Job | None:
        """A job by its id; None for one that is not in the book."""
        with self._engine.connect() as connection:
            row = _one(connection, _JOBS.c.id == name)
            return None if row is None else _job(row)

    def results(self, name: str) -> list[Result]:
        """The pictures of a job that is done, in their order."""
        with self._engine.connect() as connection:
            rows = connection.execute(
                sa.select(_RESULTS.c.media_type, _RESULTS.c.data)
                .where(_RESULTS.c.job == name)
                .order_by(_RESULTS.c.number)
            )
            return [Result(row.media_type, bytes(row.data)) for row in rows]

    def ahead(self, name: str) -> int:
        """How many jobs are in the queue before this one; 0 for one that is not in the queue."""
        with self._engine.connect() as connection:
            row = _one(connection, _JOBS.c.id == name)
            if row is None or row.state != QUEUED:
                return 0
            earlier = sa.or_(
                _JOBS.c.priority > row.priority,
                sa.and_(_JOBS.c.priority == row.priority, _JOBS.c.accepted < row.accepted),
            )
            return int(
                connection.execute(
                    sa.select(sa.func.count()).where(_JOBS.c.state == QUEUED, _JOBS.c.model == row.model, earlier)
                ).scalar_one()
            )

    def cancel(self, name: str) -> Job | None:
        """Cancels a job: at once in the queue, otherwise at its worker's next step. One that has ended stays so."""
        with self._writing() as connection:
            here = _JOBS.c.id == name
            connection.execute(
                sa.update(_JOBS)
                .where(here, _JOBS.c.state == QUEUED)
                .values(state=CANCELLED, cancel=True, ended=self._clock())
            )
            connection.execute(sa.update(_JOBS).where(here, _JOBS.c.state == RUNNING).values(cancel=True))
            row = _one(connection, here)
            return None if row is None else _job(row)

    def counts(self) -> dict[str, int]:
        """How many jobs are in each state."""
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(_JOBS.c.state, sa.func.count()).group_by(_JOBS.c.state))
            return dict.fromkeys(STATES, 0) | {row[0]: row[1] for row in rows}

    # --- for who works -----------------------------------------------------------------------------------------------

    def take(self, worker: str, models: Collection[str], most: int) -> list[Job]:
        """At most so many jobs for these models, the most urgent first, held by the worker for `lease` seconds.

        Those of workers whose lease has run out come back to the queue first, or have failed after `attempts`.
        """
        if not models or most < 1:
            return []
        with self._writing() as connection:
            self._reclaim(connection)
            chosen = (
                sa.select(_JOBS.c.id)
                .where(_JOBS.c.state == QUEUED, _JOBS.c.model.in_(list(models)))
                .order_by(_JOBS.c.priority.desc(), _JOBS.c.accepted, _JOBS.c.id)
                .limit(most)
            )
            if not self._sqlite:
                chosen = chosen.with_for_update(skip_locked=True)
            names = list(connection.execute(chosen).scalars())
            if not names:
                return []
            now = self._clock()
            connection.execute(
                sa.update(_JOBS)
                .where(_JOBS.c.id.in_(names))
                .values(
                    state=RUNNING, worker=worker, lease=now + self.lease, attempts=_JOBS.c.attempts + 1,
                    started=sa.func.coalesce(_JOBS.c.started, now),
                )
            )  # fmt: skip
            rows = {row.id: row for row in connection.execute(sa.select(_JOBS).where(_JOBS.c.id.in_(names)))}
            return [_job(rows[name]) for name in names]

    def _reclaim(self, connection: Connection) -> None:
        now = self._clock()
        lost = sa.and_(_JOBS.c.state == RUNNING, _JOBS.c.lease < now)
        connection.execute(sa.update(_JOBS).where(lost, _JOBS.c.cancel).values(state=CANCELLED, ended=now, worker=None))
        said = json.dumps({"message": f"its worker was lost {self.attempts} times", "code": "worker_lost"})
        connection.execute(
            sa.update(_JOBS)
            .where(lost, _JOBS.c.attempts >= self.attempts)
            .values(state=FAILED, ended=now, worker=None, error=said)
        )
        connection.execute(sa.update(_JOBS).where(lost).values(state=QUEUED, worker=None, lease=None))

    def renew(self, worker: str, names: Collection[str]) -> tuple[set[str], set[str]]:
        """Holds jobs for another `lease`: those that are still the worker's, and those of them to be cancelled."""
        with self._writing() as connection:
            mine = sa.and_(_JOBS.c.id.in_(list(names)), _JOBS.c.state == RUNNING, _JOBS.c.worker == worker)
            connection.execute(sa.update(_JOBS).where(mine).values(lease=self._clock() + self.lease))
            rows = list(connection.execute(sa.select(_JOBS.c.id, _JOBS.c.cancel).where(mine)))
            return {row.id for row in rows}, {row.id for row in rows if row.cancel}

    def finish(self, name: str, worker: str, results: Sequence[Result]) -> bool:
        """Writes what came of a job; False, and nothing is written, for a worker that does not hold it any more."""
        with self._writing() as connection:
            size = sum(len(result.data) for result in results)
            if not self._ends(connection, name, worker, state=DONE, bytes=size):
                return False
            for number, result in enumerate(results):
                connection.execute(
                    sa.insert(_RESULTS).values(job=name, number=number, media_type=result.media_type, data=result.data)
                )
            return True

    def fail(self, name: str, worker: str, error: Mapping[str, Any]) -> bool:
        """Writes what a job failed of; False for a worker that does not hold it any more."""
        with self._writing() as connection:
            return self._ends(connection, name, worker, state=FAILED, error=json.dumps(dict(error)))

    def cancelled(self, name: str, worker: str) -> bool:
        """Writes that a job was cancelled by who worked on it; False for a worker that does not hold it any more."""
        with self._writing() as connection:
            return self._ends(connection, name, worker, state=CANCELLED)

    def release(self, worker: str) -> int:
        """Puts back what a worker holds, which goes away by its own will; it is no attempt."""
        with self._writing() as connection:
            held = sa.and_(_JOBS.c.state == RUNNING, _JOBS.c.worker == worker)
            connection.execute(
                sa.update(_JOBS).where(held, _JOBS.c.cancel).values(state=CANCELLED, ended=self._clock())
            )
            return int(
                connection.execute(
                    sa.update(_JOBS)
                    .where(held)
                    .values(state=QUEUED, worker=None, lease=None, attempts=_JOBS.c.attempts - 1)
                ).rowcount
            )

    def _ends(self, connection: Connection, name: str, worker: str, **values: Any) -> bool:
        held = sa.and_(_JOBS.c.id == name, _JOBS.c.state == RUNNING, _JOBS.c.worker == worker)
        done = connection.execute(sa.update(_JOBS).where(held).values(ended=self._clock(), **values))
        return bool(done.rowcount == 1)

    # --- keeping it small --------------------------------------------------------------------------------------------

    def purge(self, *, age: float, size: int) -> int:
        """Forgets jobs that ended `age` seconds ago, and the oldest while all have more than `size` bytes; how many."""
        with self._writing() as connection:
            rows = list(
                connection.execute(
                    sa.select(_JOBS.c.id, _JOBS.c.ended, _JOBS.c.bytes)
                    .where(_JOBS.c.state.in_(_ENDED))
                    .order_by(_JOBS.c.ended)
                )
            )
            total, now = sum(row.bytes for row in rows), self._clock()
            gone: list[str] = []
            for row in rows:
                if row.ended >= now - age and total <= size:
                    break
                gone.append(row.id)
                total -= row.bytes
            for first in range(0, len(gone), 500):
                some = gone[first : first + 500]
                connection.execute(sa.delete(_RESULTS).where(_RESULTS.c.job.in_(some)))
                connection.execute(sa.delete(_JOBS).where(_JOBS.c.id.in_(some)))
            return len(gone)

    @contextmanager
    def _writing(self, *, alone: bool = False) -> Iterator[Connection]:
        """A transaction; `alone`, what is read in it stays so. SQLite's are always alone."""
        with self._engine.begin() as connection:
            if self._sqlite:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            elif alone:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            yield connection


_LOCK = 0x0CA88A8A  # any number that is ours


def _opened(url: str) -> Engine:
    try:
        engine = sa.create_engine(url, pool_pre_ping=True)
    except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, ModuleNotFoundError) as error:
        raise ValueError(f'the URL of jobs is "{url}": {error}') from error
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _sqlite_settings)
    elif engine.dialect.name != "postgresql":
        raise ValueError(
            f'the URL of jobs names {engine.dialect.name}; give "sqlite:///FILE" or "postgresql+psycopg://..."'
        )
    return engine


def _sqlite_settings(connection: Any, _: object) -> None:
    connection.isolation_level = None  # transactions are begun here, not by the driver
    for line in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=10000", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {line}")


def _one(connection: Connection, where: Any) -> Any:
    return connection.execute(sa.select(_JOBS).where(where)).one_or_none()


def _job(row: Any) -> Job:
    return Job(
        row.id,
        row.model,
        json.loads(row.body),
        row.state,
        row.work,
        row.priority,
        row.accepted,
        row.started,
        row.ended,
        row.attempts,
        row.cancel,
        None if row.error is None else json.loads(row.error),
    )
