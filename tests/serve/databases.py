"""Databases for the tests of jobs: a file of SQLite, and a real PostgreSQL of its own on a free port."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def binaries() -> Path | None:
    """Where initdb and postgres are; Debian's package keeps them off the PATH."""
    for path in (*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True), shutil.which("initdb")):
        if path is not None and (Path(path) / "initdb").is_file():
            return Path(path)
        if isinstance(path, str):
            return Path(path).parent
    return None


def _as_nobody_special() -> list[str]:
    """postgres refuses to run as root."""
    return ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """The URL of a PostgreSQL that lives in a folder for as long as this lasts."""
    found = binaries()
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("no PostgreSQL is installed (Debian's package: postgresql)")
        pytest.skip("no PostgreSQL is installed (Debian's package: postgresql)")
    data = folder / "data"
    data.mkdir(parents=True)
    if os.geteuid() == 0:
        shutil.chown(data, "postgres", "postgres")
        for parent in data.parents:  # it has to reach its folder
            if parent.owner() == "root" and parent != Path("/"):
                parent.chmod(parent.stat().st_mode | 0o011)
    port = _free_port()
    user = _as_nobody_special()
    subprocess.run(
        [*user, found / "initdb", "-D", data, "-U", "carrara", "--auth=trust", "-E", "UTF8", "--no-sync"],
        check=True,
        capture_output=True,
    )
    words = [*user, str(found / "postgres"), "-D", str(data), "-h", "127.0.0.1", "-p", str(port), "-k", "/tmp", "-F"]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            ready = subprocess.run([found / "pg_isready", "-h", "127.0.0.1", "-p", str(port), "-q"], check=False)
            if ready.returncode == 0:
                break
            assert server.poll() is None, "postgres did not start"
        yield f"postgresql+psycopg://carrara@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run(
            [*user, found / "pg_ctl", "-D", data, "-m", "immediate", "stop"], capture_output=True, check=False
        )
        server.wait(30)
