"""A copy of the package with one file changed, before all else on the path: the working tree stays as it is.

The source is copied once; each overlay is a copy of that copy, compiled files included, so that only what was changed
is compiled anew. Whatever the tests start in processes of their own sees the same overlay, through PYTHONPATH.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from museum.exhibit import Exhibit

__all__ = ["PACKAGE", "ROOT", "check", "copied", "overlay"]

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "carrara"


def copied(package: Path, place: Path) -> Path:
    """A folder for the path in which the package is as it was; times are kept, since compiled files go by them."""
    shutil.copytree(package, place / package.name)
    return place


def overlay(base: Path, place: Path, exhibit: Exhibit) -> Path:
    """A copy of `base` in which the exhibit's change was made; ValueError where its text is not found once."""
    path = copied(base / PACKAGE.name, place) / PACKAGE.name / exhibit.file
    changed = exhibit.mutated(path.read_text(encoding="utf-8"))
    compile(changed, str(path), "exec")
    path.write_text(changed, encoding="utf-8")
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        compiled.unlink()  # the change may have been made within the same second, and be as long
    return place


def check(exhibit: Exhibit, package: Path = PACKAGE) -> None:
    """Raises ValueError where the exhibit's change cannot be made, changes nothing or is not Python."""
    path = package / exhibit.file
    if not path.is_file():
        raise ValueError(f'the exhibit "{exhibit.name}" changes src/carrara/{exhibit.file}, which does not exist')
    changed = exhibit.mutated(path.read_text(encoding="utf-8"))
    if exhibit.text == exhibit.replacement:
        raise ValueError(f'the exhibit "{exhibit.name}" changes nothing')
    try:
        compile(changed, str(path), "exec")
    except SyntaxError as error:
        raise ValueError(f'the exhibit "{exhibit.name}" is not Python: {error}') from error
