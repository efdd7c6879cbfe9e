"""What was measured on: the machine, its threads, the versions of everything that matters."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["facts"]

_PACKAGES = (
    "torch", "diffusers", "denoising-diffusion-pytorch", "accelerate", "ema-pytorch", "transformers", "safetensors",
    "numpy", "pydantic",
)  # fmt: skip
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def facts(command: str) -> dict[str, Any]:
    """The facts of this process, as plain values."""
    from carrara import __version__

    return {
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": _machine(),
        "threads": _threads(),
        "versions": {"python": platform.python_version(), "carrara": __version__, **_versions()},
    }


def _machine() -> dict[str, Any]:
    import psutil

    fields = _processor()
    flags = fields.get("flags", "").split()
    return {
        "processor": fields.get("model name") or platform.processor() or platform.machine(),
        "cores": _cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "flags": {name: name in flags for name in _FLAGS},
        "system": f"{platform.system()} {platform.machine()}",
        "load_before": round(os.getloadavg()[0], 2),  # processes that wanted to run in the last minute
        "busy_before": psutil.cpu_percent(0.2) / 100,  # share of all cores, just before
    }


def _processor() -> dict[str, str]:
    """The first processor's lines in /proc/cpuinfo; nothing where there is no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _threads() -> int:
    told = os.environ.get("OMP_NUM_THREADS", "")
    return int(told) if told.isdigit() else _cores()  # what torch takes, which need not be imported here


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
