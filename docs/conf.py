"""How the documentation is built: `make docs`. Sphinx, MyST and furo; warnings are errors."""

from __future__ import annotations

import pkgutil
import re
from typing import Any

import carrara

project = "Carrara"
author = "The Carrara authors"
copyright = "The Carrara authors. Apache-2.0"
version = release = carrara.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"Carrara {release}"
html_theme_options = {"navigation_with_keys": True}

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 100

_CODE = re.compile(r"`+[^`]+`+")


def _escaped(line: str) -> str:
    """One line of plain text with `code` as reStructuredText: formulas such as |x|^2 and a* stay what they are."""
    parts, end = [], 0
    for code in _CODE.finditer(line):
        parts += [re.sub(r"([\\*|_])", r"\\\1", line[end : code.start()]), f"``{code.group().strip('`')}``"]
        end = code.end()
    return "".join([*parts, re.sub(r"([\\*|_])", r"\\\1", line[end:])])


def plain_docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Our docstrings are plain text: paragraphs with `code`, formulas and tables in indented blocks."""
    text: list[str] = []
    block = False
    for line in lines:
        indented = line.startswith("    ")
        if indented and not block:
            text += ["", "::", ""]
        elif block and line.strip() and not indented:
            text.append("")
            block = False
        block = block or indented
        text.append(line if block else _escaped(line))
    lines[:] = [*text, ""]


def list_modules(app: Any, page: str, source: list[str]) -> None:
    """In the API page, a section for each module in place of `{modules}`; packages show their docstring alone."""
    if page != "api":
        return
    sections = []
    for module in sorted(pkgutil.walk_packages(carrara.__path__, "carrara."), key=lambda module: module.name):
        if not module.name.split(".")[-1].startswith("_"):
            option = ":no-members:\n" if module.ispkg else ""
            sections.append(f"## {module.name}\n\n```{{eval-rst}}\n.. automodule:: {module.name}\n   {option}```\n")
    source[0] = source[0].replace("{modules}", "\n".join(sections))


def setup(app: Any) -> None:
    """Sphinx calls this."""
    app.connect("autodoc-process-docstring", plain_docstring)
    app.connect("source-read", list_modules)


# Two modules may have a class of one name (a report of a folder, a report of a model); the links are by module then.
suppress_warnings = ["ref.python"]
