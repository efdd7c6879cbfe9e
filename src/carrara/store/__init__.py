"""Model folders: components that are complete alone, and systems that name three of them."""

from carrara.store.component import (
    ROLES,
    Component,
    assemble,
    load,
    load_component,
    read_component,
    save_component,
    save_system,
)
from carrara.store.kinds import kinds

__all__ = [
    "Component",
    "ROLES",
    "assemble",
    "kinds",
    "load",
    "load_component",
    "read_component",
    "save_component",
    "save_system",
]
