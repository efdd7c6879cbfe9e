"""The command line: one verb a job. Everything heavy is imported inside the verbs, so that `--help` answers at once.

Exit codes: 0 done, 2 usage or recipe, 3 data, 4 non-finite numbers, 5 storage, 130 interrupted, 143 preempted with the
state saved. What a user did wrong is one sentence on standard error, never a traceback; CARRARA_TRACEBACK=1 shows where
it was raised.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs one command, of the process unless `arguments` are given, and ends with its exit code (SystemExit)."""
    from carrara.cli.ending import exit_code

    sys.exit(exit_code(sys.argv[1:] if arguments is None else list(arguments)))
