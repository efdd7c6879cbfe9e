"""Carrara: diffusion models from a folder of pictures to a trained, measured and served generator.

    import carrara

    for frame in carrara.load("runs/demo/system").generate(["a red apple"], seeds=[0]):
        ...

A system is a text encoder, a generator and a decoder. The mathematics is in `carrara.diffusion`, the networks in
`carrara.nn`. Importing the package costs nothing: PyTorch is loaded with the first name that needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from carrara.errors import CarraraError
    from carrara.rng import Rng
    from carrara.store import load
    from carrara.system import Frame, System
    from carrara.types import Batch, Condition, Estimate, Gaussian, Request, Space

__all__ = [
    "Batch",
    "CarraraError",
    "Condition",
    "Estimate",
    "Frame",
    "Gaussian",
    "Request",
    "Rng",
    "Space",
    "System",
    "__version__",
    "load",
]

__version__ = "0.1.0"

_HOME = {  # name -> the module that defines it
    "Batch": "carrara.types",
    "CarraraError": "carrara.errors",
    "Condition": "carrara.types",
    "Estimate": "carrara.types",
    "Frame": "carrara.system",
    "Gaussian": "carrara.types",
    "Request": "carrara.types",
    "Rng": "carrara.rng",
    "Space": "carrara.types",
    "System": "carrara.system",
    "load": "carrara.store",
}


def __getattr__(name: str) -> Any:
    """Load an exported name's module when the name is first used (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'carrara' has no attribute {name!r}; it exports {', '.join(__all__)}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
