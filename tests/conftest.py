"""What every test runs under: one thread a worker, no network, and repeatable draws."""

from __future__ import annotations

import os
import signal
import socket
import threading
from typing import Any

import pytest
import torch
from hypothesis import settings

# Two workers on two cores: a thread each, or they wait for one another.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)

# Libraries that tests compare with would otherwise ask a server for what they do not find.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

# A shell's background job ignores Ctrl-C, and hands that down; programs under test must hear it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A shared machine makes an example's time meaningless; a failure must come back on the next run.
settings.register_profile("carrara", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("carrara")

_LOCAL = {"127.0.0.1", "::1", "localhost"}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anything that would leave this machine fails the test."""
    connect = socket.socket.connect

    def local(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and address[0] not in _LOCAL:
            raise RuntimeError(f"a test tried to reach {address}; tests use no network")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local)


@pytest.fixture(autouse=True)
def _default_dtype() -> Any:
    """A test that changes PyTorch's defaults leaves them as they were."""
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)
