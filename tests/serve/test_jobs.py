"""The book of jobs, on SQLite and on a real PostgreSQL: nothing accepted is lost, and each job ends once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from carrara.serve.jobs import Conflict, Full, Job, JobStore, Result
from serve.databases import postgres


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with postgres(tmp_path_factory.mktemp("postgres")) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without any job."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'jobs.db'}"
    found: str = request.getfixturevalue("server")
    engine = sa.create_engine(found)
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE IF EXISTS carrara_results, carrara_jobs"))
    engine.dispose()
    return found


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(url: str, clock: Clock) -> Iterator[JobStore]:
    made = JobStore(url, lease=10, clock=clock)
    yield made
    made.close()


PICTURES = [Result("image/png", b"\x89PNG one"), Result("image/png", b"\x00two")]


def test_from_queue_to_pictures(store: JobStore, clock: Clock) -> None:
    job, new = store.accept("emoji", {"prompt": "red apple", "n": 2}, work=3.0)
    assert new and job.state == "queued" and job.accepted == 1000 and job.attempts == 0
    assert store.get(job.id) == job and store.get("job-none") is None
    clock.now += 2
    (taken,) = store.take("a", ["emoji"], most=5)
    assert (taken.id, taken.state, taken.started, taken.attempts) == (job.id, "running", 1002, 1)
    assert dict(taken.body) == {"prompt": "red apple", "n": 2}
    assert store.take("b", ["emoji"], most=5) == []
    clock.now += 3
    assert store.finish(job.id, "a", PICTURES)
    done = store.get(job.id)
    assert done is not None and (done.state, done.ended) == ("done", 1005)
    assert store.results(job.id) == PICTURES
    assert not store.finish(job.id, "a", PICTURES) and not store.fail(job.id, "a", {})
    assert store.counts() == {"queued": 0, "running": 0, "done": 1, "failed": 0, "cancelled": 0}


def test_it_is_there_after_a_restart(url: str) -> None:
    first = JobStore(url)
    job, _ = first.accept("emoji", {"prompt": "ä\u0301 😀 \\"})
    first.close()
    second = JobStore(url)
    assert second.get(job.id) == job
    second.close()


def test_the_most_urgent_first_and_only_ones_own_models(store: JobStore, clock: Clock) -> None:
    names: dict[str, str] = {}
    for name, model, priority in (("a", "x", 0), ("b", "y", 0), ("c", "x", 2), ("d", "x", 0), ("e", "x", 2)):
        clock.now += 1
        names[store.accept(model, {"name": name}, priority=priority)[0].id] = name
    ahead = {name: store.ahead(one) for one, name in names.items()}
    assert ahead == {"a": 2, "b": 0, "c": 0, "d": 3, "e": 1}
    assert [names[job.id] for job in store.take("w", ["x"], most=3)] == ["c", "e", "a"]
    assert [names[job.id] for job in store.take("w", ["x", "y"], most=9)] == ["b", "d"]
    assert store.take("w", [], most=1) == [] and store.take("w", ["x"], most=0) == []


def test_one_key_is_one_job(store: JobStore) -> None:
    first, new = store.accept("m", {"a": 1, "b": 2}, key="k", owner="me")
    again, second = store.accept("m", {"b": 2, "a": 1}, key="k", owner="me")
    assert new and not second and again.id == first.id
    assert store.accept("m", {"a": 1, "b": 2}, key="k", owner="you")[1]
    assert store.accept("m", {"a": 1, "b": 2})[1]
    with pytest.raises(Conflict):
        store.accept("m", {"a": 2}, key="k", owner="me")
    with pytest.raises(Conflict):
        store.accept("other", {"a": 1, "b": 2}, key="k", owner="me")
    with pytest.raises(ValueError):
        store.accept("m", {"a": float("nan")})


def test_one_key_from_many_threads_is_one_job(url: str) -> None:
    store = JobStore(url)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: store.accept("m", {"a": 1}, key="k"), range(24)))
    assert len({job.id for job, _ in found}) == 1 and sum(new for _, new in found) == 1
    store.close()


def test_a_full_queue_says_so(url: str) -> None:
    store = JobStore(url, most=3, work=10.0)
    store.accept("m", {}, work=4)
    store.accept("m", {}, work=4)
    with pytest.raises(Full):
        store.accept("m", {}, work=4)
    store.accept("m", {}, work=1)
    with pytest.raises(Full):
        store.accept("m", {}, work=0.1)
    (job, *_) = store.take("w", ["m"], most=1)
    store.finish(job.id, "w", [])
    store.accept("m", {}, work=1)
    store.close()
    with pytest.raises(ValueError, match=r"mysql|driver|plugin|module"):
        JobStore("mysql://host/name")
    with pytest.raises(ValueError, match="URL"):
        JobStore("nonsense")


def test_a_lost_worker_loses_its_jobs(store: JobStore, clock: Clock) -> None:
    job, _ = store.accept("m", {})
    store.take("a", ["m"], most=1)
    clock.now += 9
    assert store.renew("a", [job.id]) == ({job.id}, set())
    clock.now += 9
    assert store.take("b", ["m"], most=1) == []
    clock.now += 2
    (again,) = store.take("b", ["m"], most=1)
    assert again.id == job.id and again.attempts == 2 and again.started == 1000
    assert store.renew("a", [job.id]) == (set(), set())
    assert not store.finish(job.id, "a", PICTURES) and store.results(job.id) == []
    assert store.finish(job.id, "b", PICTURES[:1]) and store.results(job.id) == PICTURES[:1]


def test_a_job_that_kills_its_workers_fails(store: JobStore, clock: Clock) -> None:
    job, _ = store.accept("m", {})
    for number in range(3):
        assert len(store.take(f"w{number}", ["m"], most=1)) == 1
        clock.now += 11
    assert store.take("w4", ["m"], most=1) == []
    failed = store.get(job.id)
    assert failed is not None and failed.state == "failed" and failed.error is not None
    assert "lost 3 times" in failed.error["message"]


def test_going_away_puts_back(store: JobStore) -> None:
    job, _ = store.accept("m", {})
    store.take("a", ["m"], most=1)
    assert store.release("a") == 1
    (again,) = store.take("b", ["m"], most=1)
    assert again.id == job.id and again.attempts == 1


def state(store: JobStore, job: Job) -> str:
    found = store.get(job.id)
    assert found is not None
    return found.state


def test_cancelling(store: JobStore, clock: Clock) -> None:
    waiting, working, orphan = (store.accept("m", {"n": n}, priority=-n)[0] for n in range(3))
    assert store.cancel("job-none") is None
    store.cancel(waiting.id)
    assert state(store, waiting) == "cancelled"
    store.take("a", ["m"], most=2)
    for job in (working, orphan):
        cancelled = store.cancel(job.id)
        assert cancelled is not None and cancelled.state == "running" and cancelled.cancelling
    assert store.renew("a", [working.id]) == ({working.id}, {working.id})
    assert store.cancelled(working.id, "a") and state(store, working) == "cancelled"
    clock.now += 11
    assert store.take("b", ["m"], most=1) == [] and state(store, orphan) == "cancelled"
    store.cancel(working.id)
    assert state(store, working) == "cancelled"


def test_a_job_fails_with_what_it_was(store: JobStore) -> None:
    job, _ = store.accept("m", {})
    store.take("a", ["m"], most=1)
    assert store.fail(job.id, "a", {"message": "no such class", "code": "invalid"})
    found = store.get(job.id)
    assert found is not None and found.state == "failed"
    assert found.error == {"message": "no such class", "code": "invalid"}


def test_what_is_old_or_too_much_is_forgotten(store: JobStore, clock: Clock) -> None:
    names = []
    for _ in range(5):
        job, _ = store.accept("m", {}, key=f"{clock.now}")
        store.take("a", ["m"], most=1)
        store.finish(job.id, "a", [Result("image/png", b"x" * 100)])
        names.append(job.id)
        clock.now += 10
    waiting, _ = store.accept("m", {})
    assert store.purge(age=45, size=10**6) == 1  # ended 50 seconds ago, the next 40
    assert store.purge(age=10**6, size=250) == 2
    assert [store.get(name) is not None for name in names] == [False, False, False, True, True]
    assert store.results(names[0]) == [] and len(store.results(names[4])) == 1
    assert state(store, waiting) == "queued"
    assert store.purge(age=10**6, size=250) == 0


WORKER = """
import os, sys, time
from carrara.serve.jobs import JobStore, Result
url, name, ends = sys.argv[1:]
store = JobStore(url, lease=0.5, attempts=1000)
while True:
    for job in store.take(name, ["m"], most=2):
        time.sleep(0.01)
        if store.finish(job.id, name, [Result("text/plain", name.encode())]):
            with open(ends, "a") as file:
                file.write(job.id + "\\n")
    time.sleep(0.01)
"""


def test_workers_may_be_killed_at_any_time(url: str, tmp_path: Path) -> None:
    """Every accepted job is done, and none twice, however often workers are killed."""
    store = JobStore(url, lease=0.5, attempts=1000)
    jobs = [store.accept("m", {"n": n})[0] for n in range(60)]
    ends, chance = tmp_path / "ends", random.Random(0)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    workers: list[subprocess.Popen[bytes]] = []

    def begin() -> None:
        words = [sys.executable, "-c", WORKER, url, f"w{len(workers)}", str(ends)]
        workers.append(subprocess.Popen(words, env=environment))

    try:
        for _ in range(3):
            begin()
        kills = 0
        deadline = time.monotonic() + 120
        while store.counts()["done"] < len(jobs):
            assert time.monotonic() < deadline, store.counts()
            time.sleep(0.05)
            alive = [worker for worker in workers if worker.poll() is None]
            if kills < 6 and store.counts()["done"] > 5 * kills:
                os.kill(chance.choice(alive).pid, signal.SIGKILL)
                kills += 1
                begin()
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert kills == 6
    told = Counter(ends.read_text().split())
    assert max(told.values()) == 1
    assert all(len(store.results(job.id)) == 1 for job in jobs)
    store.close()
