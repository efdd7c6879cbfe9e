"""Pictures from any folder: found, checked, decoded once, and read back as batches that depend on a step alone."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cache import default_cache
    from .findings import Findings, Problem
    from .loader import Loader
    from .pictures import Pictures, open_pictures
    from .report import Report, check
    from .settings import DataSettings
    from .write import write_picture

__all__ = [
    "DataSettings",
    "Findings",
    "Loader",
    "Pictures",
    "Problem",
    "Report",
    "check",
    "default_cache",
    "open_pictures",
    "write_picture",
]

_HOMES = {
    "DataSettings": "settings",
    "Findings": "findings",
    "Loader": "loader",
    "Pictures": "pictures",
    "Problem": "findings",
    "Report": "report",
    "check": "report",
    "default_cache": "cache",
    "open_pictures": "pictures",
    "write_picture": "write",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
