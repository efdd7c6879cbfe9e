"""The public surface: every module states it in `__all__`, sorted, and every stated name is there."""

from __future__ import annotations

import importlib
import pkgutil
import types

import pytest

import carrara

# A package that cannot be imported still has a test of its own, which fails and shows why.
FOUND = pkgutil.walk_packages(carrara.__path__, "carrara.", onerror=lambda name: None)
MODULES = ["carrara", *(module.name for module in FOUND)]


@pytest.mark.parametrize("name", [name for name in MODULES if name != "carrara.__main__"])
def test_all(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    assert hasattr(module, "__all__"), f"{name} has no __all__"
    assert list(module.__all__) == sorted(set(module.__all__)), f"{name}.__all__ is not sorted"
    missing = [public for public in module.__all__ if not hasattr(module, public)]
    assert not missing, f"{name}.__all__ names {missing}, which it does not have"


def test_lazy_names_are_the_exports() -> None:
    """The package's table of homes, its `__all__` and what type checkers see are one list."""
    assert sorted([*carrara._HOME, "__version__"]) == carrara.__all__
    for name in carrara._HOME:
        assert not isinstance(getattr(carrara, name), types.ModuleType), f"carrara.{name} is a module"
