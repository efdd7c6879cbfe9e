"""`--help` of every verb, word for word, and how light it is. CARRARA_SNAPSHOTS=1 writes the snapshots anew."""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from carrara import __version__
from carrara.cli.app import app, bench, data

from .conftest import done

SNAPSHOTS = Path(__file__).parent / "snapshots"
VERBS = ("", "demo", "doctor", "data", "data check", "init", "train", "import", "assemble", "sample", "evaluate",
         "compare", "export", "likelihood", "show", "bench", "bench samplers")  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_help(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    said = done(*verb.split(), "--help").out
    path = SNAPSHOTS / f"{verb.replace(' ', '-') or 'carrara'}.txt"
    if os.environ.get("CARRARA_SNAPSHOTS"):
        path.write_text(said)
    assert said == path.read_text(), "if this is meant, run the test again with CARRARA_SNAPSHOTS=1"


_PATHS = {"check": "data-check", "import_": "import", "samplers": "bench-samplers"}


def test_every_option_is_in_its_help_with_a_sentence() -> None:
    commands = {
        command.callback.__name__: command for group in (app, bench, data) for command in group.registered_commands
    }
    assert set(commands) == {"demo", "doctor", "check", "init", "train", "import_", "assemble", "sample",
                             "evaluate", "compare", "export", "likelihood", "show", "samplers"}  # fmt: skip
    for name, command in commands.items():
        text = (SNAPSHOTS / f"{_PATHS.get(name, name)}.txt").read_text()
        for parameter in inspect.signature(command.callback, eval_str=True).parameters.values():
            if parameter.annotation is typer.Context:
                continue
            (about,) = parameter.annotation.__metadata__
            assert about.help, f"{name}: {parameter.name} has no help"
            for option in [d for d in getattr(about, "param_decls", None) or () if d.startswith("--")]:
                assert option.split("/")[0] in text


def test_no_verb_is_help() -> None:
    assert done().out == done("--help").out


def test_version() -> None:
    assert done("--version").out == f"carrara {__version__}\n"


def test_help_is_light() -> None:
    """Less than 0.3 s of processor time, whatever else the machine does, and nothing heavy."""
    code = (
        "import sys\ntry:\n    from carrara.cli import main; main(['--help'])\nfinally:\n    print(sorted(sys.modules))"
    )
    before = os.times()
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert spent < 0.3
    modules = set(ast.literal_eval(ended.stdout.splitlines()[-1]))
    assert not modules & {"torch", "numpy", "PIL", "pydantic", "tokenizers", "safetensors", "rich.console"}
