"""Who may import whom, and what an import costs: the floors are a contract, and a light import stays light."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest
from importlinter.cli import lint_imports

HEAVY = ("torch", "numpy", "PIL", "pydantic", "tokenizers", "safetensors", "pyarrow", "tifffile")


def loaded_by(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after `statement`."""
    code = f"import json, sys; {statement}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


@pytest.mark.filterwarnings("ignore::DeprecationWarning:importlinter")
def test_floors(capsys: pytest.CaptureFixture[str]) -> None:
    """Imports point down only, siblings are independent, every module has its floor (pyproject.toml)."""
    status = lint_imports(no_cache=True)
    assert status == 0, capsys.readouterr().out


def test_import_carrara_loads_nothing_heavy() -> None:
    assert not loaded_by("import carrara; carrara.__version__, dir(carrara)") & set(HEAVY)


def test_command_line_loads_nothing_heavy() -> None:
    """`carrara --help` answers at once: what the verbs need is imported inside them."""
    assert importlib.util.find_spec("carrara.cli") is not None, "carrara/cli.py is missing"
    assert not loaded_by("import carrara.cli") & set(HEAVY)


def test_an_exported_name_loads_its_module() -> None:
    assert "torch" in loaded_by("import carrara; carrara.Condition")


def test_unknown_name_says_what_there_is() -> None:
    import carrara

    with pytest.raises(AttributeError, match=r"no attribute 'Sytem'; it exports .*System"):
        carrara.Sytem  # noqa: B018
