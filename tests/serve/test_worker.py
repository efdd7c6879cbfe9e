"""The engine in its own thread: requests from any thread, and an end that loses none."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from carrara.run import finish
from carrara.serve import Cancelled, Closed, Engine, Late, Worker
from carrara.types import Ask, Round, Rounds, Step
from toy_requests import new_denoiser, requests


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker(Engine())
    yield made
    made.close(timeout=30)
    assert not made.alive


def endless(network: Any) -> Rounds:
    x = torch.zeros(1, 1)
    while True:
        ((x,),) = yield Round((Ask(network, (x,)),))


def slowly(x: Tensor) -> Tensor:
    time.sleep(0.002)
    return x


def test_requests_from_many_threads(worker: Worker) -> None:
    denoiser = new_denoiser()
    alone = {name: finish(rounds) for name, rounds in requests(denoiser).items()}
    steps: list[Step] = []

    def one(name: str) -> Tensor:
        found: Tensor = worker.submit(lambda: requests(denoiser)[name], on_step=steps.append).future.result(30)
        return found

    names = list(alone) * 4
    with ThreadPoolExecutor(8) as pool:
        for name, found in zip(names, pool.map(one, names), strict=True):
            assert torch.equal(found, alone[name])
    assert len(steps) == 4 * (10 + 7 + 25)


def test_cancelling_from_another_thread(worker: Worker) -> None:
    job = worker.submit(lambda: endless(slowly))
    time.sleep(0.02)
    job.cancel()
    with pytest.raises(Cancelled):
        job.future.result(30)
    job.cancel()  # nothing happens


def test_patience_ends(worker: Worker) -> None:
    with pytest.raises(Late):
        worker.submit(lambda: endless(slowly), patience=0.05).future.result(30)


def test_a_request_that_cannot_begin(worker: Worker) -> None:
    def start() -> Rounds:
        raise ValueError("no such model")

    with pytest.raises(ValueError, match="no such model"):
        worker.submit(start).future.result(30)


def test_a_future_that_was_cancelled_before_its_turn(worker: Worker) -> None:
    gate = threading.Event()

    def held(x: Tensor) -> Tensor:
        gate.wait(30)
        return x

    def once() -> Rounds:
        ((x,),) = yield Round((Ask(held, (torch.zeros(1, 1),)),))
        return x

    first = worker.submit(once)
    second = worker.submit(lambda: endless(slowly))
    assert second.future.cancel()
    gate.set()
    first.future.result(30)
    assert second.ticket is None


@pytest.mark.parametrize("whole", [True, False])
def test_closing(whole: bool) -> None:
    worker = Worker(Engine())
    denoiser = new_denoiser()
    job = worker.submit(lambda: requests(denoiser)["dpmpp_2m"])
    assert worker.close(finish=whole, timeout=30) and not worker.alive
    if whole:
        assert torch.equal(job.future.result(1), finish(requests(denoiser)["dpmpp_2m"]))
    else:
        with pytest.raises(Cancelled):
            job.future.result(1)
    with pytest.raises(Closed):
        worker.submit(lambda: endless(slowly))
    assert worker.close(timeout=1)


def test_what_nobody_is_to_blame_for_ends_all() -> None:
    seen: list[BaseException] = []
    told = threading.Event()

    def on_failure(error: BaseException) -> None:
        seen.append(error)
        told.set()

    class Broken(Engine):
        def turn(self) -> bool:
            if len(self):
                raise RuntimeError("the device is gone")
            return False

    worker = Worker(Broken(), on_failure=on_failure)
    job = worker.submit(lambda: endless(slowly))
    with pytest.raises(RuntimeError, match="device is gone"):
        job.future.result(30)
    assert told.wait(30) and len(seen) == 1
    with pytest.raises(Closed):
        worker.submit(lambda: endless(slowly))
