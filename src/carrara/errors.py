"""Errors that end a command: one clear sentence and an exit code each, never a traceback.

Exit codes: 0 done, 2 usage or recipe, 3 data, 4 non-finite numbers, 5 storage, 143 preempted with the state saved.
Library code raises ValueError for a wrong argument; these are for what a user's files, data or machine did.
"""

from __future__ import annotations

__all__ = [
    "CarraraError",
    "DataError",
    "NonFiniteError",
    "Preempted",
    "RecipeError",
    "StorageError",
    "is_out_of_memory",
]


class CarraraError(Exception):
    """Something a user can mend; the message says what was given, what was expected and what to do."""

    exit_code = 2


class RecipeError(CarraraError, ValueError):
    """A recipe, a setting or a combination of parts that cannot work."""


class DataError(CarraraError):
    """Pictures or captions that cannot be used as they are."""

    exit_code = 3


class NonFiniteError(CarraraError):
    """A loss, a gradient or a picture became NaN or infinite."""

    exit_code = 4


class StorageError(CarraraError):
    """A file or folder that could not be read or written, is damaged, or is in use."""

    exit_code = 5


class Preempted(CarraraError):
    """Stopped by a signal after the state was saved; the same command goes on from there."""

    exit_code = 143


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; torch's own are RuntimeErrors, of the CPU by their words alone."""
    words = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc")
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)
