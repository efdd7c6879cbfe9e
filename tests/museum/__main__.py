"""`python tests/museum`: shows that every bug of the collection is caught; see `--help`."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # A folder that is run is on the path itself; its modules have names that other packages have, too.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from museum.command import main

    sys.exit(main(sys.argv[1:]))
