"""Two processes train what one trains."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch

from carrara.errors import RecipeError
from carrara.train import fit
from carrara.train.checkpoint import checkpoints, read_checkpoint
from carrara.train.log import read_log
from carrara.train.parallel import World, _buckets, world
from train.toy import ToyLoader, ToyTask, one_of_two, process, settings


def test_two_processes_train_what_one_trains(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pair, single = tmp_path / "pair", tmp_path / "single"
    children = [process(one_of_two, rank, port, str(pair)) for rank in range(2)]
    fit(ToyTask(dropout=0.0), ToyLoader(), settings(steps=6), single, progress=False)
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    assert (pair / "rank-0").read_bytes() == (pair / "rank-1").read_bytes()
    ends = [read_checkpoint(checkpoints(folder)[-1]).tables for folder in (pair, single)]
    for name in ("weights", "ema"):
        for key, value in ends[1][name].items():
            torch.testing.assert_close(ends[0][name][key], value, atol=1e-6, rtol=0)
    logs = [
        [event for event in read_log(folder / "log.jsonl") if event["event"] == "step"] for folder in (pair, single)
    ]
    assert [event["lr"] for event in logs[0]] == [event["lr"] for event in logs[1]]
    for a, b in zip(*logs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-6)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], abs=1e-5)


def test_a_process_is_alone_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    alone = world()
    assert alone == World() and alone.first
    assert alone.total(1.0, 2.0) == (1.0, 2.0) and alone.any(True) and not alone.any(False)
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(RecipeError, match="RANK is 3 and WORLD_SIZE is 1"):
        world()
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(RecipeError, match="torchrun"):
        world()
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert world() == World(1, 4, 0) and not world().first


def test_messages_hold_one_type_and_not_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("carrara.train.parallel._BUCKET", 10)
    tensors = [torch.zeros(4), torch.zeros(5), torch.zeros(3), torch.zeros(20), torch.zeros(2).double()]
    assert [[t.numel() for t in bucket] for bucket in _buckets(tensors)] == [[4, 5], [3], [20], [2]]
