"""How a command ends: an exit code, and for what went wrong one sentence."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer

from carrara.cli.voice import clean
from carrara.errors import CarraraError, StorageError, is_out_of_memory

__all__ = ["exit_code"]

_USAGE, _STORAGE, _INTERRUPTED, _PIPE = 2, StorageError.exit_code, 130, 141

# The base of typer's errors of usage has no public name of its own that is the same in all its versions.
_UsageError: Any = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")


def exit_code(arguments: Sequence[str]) -> int:
    """Runs the command that the arguments name; errors that a user can mend are told in a sentence."""
    for stream in (sys.stdout, sys.stderr):
        if callable(reconfigure := getattr(stream, "reconfigure", None)):
            reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no reason to stop
    try:
        code = _ended(lambda: _invoke(arguments))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read our output has seen enough
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE


def _invoke(arguments: Sequence[str]) -> int:
    from carrara.cli.app import app

    command = typer.main.get_command(app)
    with command.make_context("carrara", list(arguments)) as context:  # not its `main`, which has endings of its own
        command.invoke(context)
    return 0


def _ended(command: Callable[[], int]) -> int:
    try:
        return command()
    except BrokenPipeError:
        raise
    except _UsageError as error:
        context = getattr(error, "ctx", None)
        where = f"; see `{context.command_path} --help`" if context is not None else ""
        text = error.format_message().rstrip(".")
        return _fail(text[:1].lower() + text[1:] + where, _USAGE, error)
    except typer.Exit as error:
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED
    except CarraraError as error:
        return _fail(str(error), error.exit_code, error)
    except ValueError as error:  # a library call refused what the user asked for
        return _fail(str(error) or type(error).__name__, _USAGE, error)
    except OSError as error:
        named = f"{error.filename}: " if error.filename else ""
        return _fail(f"{named}{error.strerror or error}", _STORAGE, error)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _fail(f"out of memory: {str(error).splitlines()[0] if str(error) else 'none is left'}", _USAGE, error)


def _fail(text: str, code: int, error: BaseException) -> int:
    """Says what went wrong, a line each problem."""
    if os.environ.get("CARRARA_TRACEBACK"):
        import traceback

        traceback.print_exception(error)
    for line in clean(text).splitlines() or [""]:
        print(f"error: {line}", file=sys.stderr)
    return code
