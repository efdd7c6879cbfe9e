"""A model card: README.md with a YAML head, made from plain facts, so that every component folder explains itself.

Facts come from recipes, data sets and users: each is escaped for where it stands (a quoted YAML scalar, Markdown text,
a table cell, a code block), so none of them can change the page around it.
"""

from __future__ import annotations

import difflib
import re
import string
from collections.abc import Iterable, Mapping
from typing import Any

from carrara.evaluate.plot import number

__all__ = ["FACTS", "card", "plain", "table"]

FACTS = ("name", "what", "license", "tags", "trained_on", "training", "figures", "load", "limits", "attribution")

_PLAIN = re.compile(r"[a-z][a-z0-9]*([.-][a-z0-9]+)*")
_RESERVED = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}
_ESCAPED = set("\\`*_{}[]<>#|~&$")
_SCHEMES = ("https://", "http://")


def card(facts: Mapping[str, Any]) -> str:
    """The card's text.

    Args:
        facts: all but `name` may be missing.
            name: str, what it is called.
            what: str, one paragraph or more on what it is and does.
            license: str, an identifier as SPDX writes it in small letters ("apache-2.0").
            tags: strings.
            trained_on: str, the data: what, how many, from where.
            training: {setting: value}, how it was trained.
            figures: {figure: number}, what was measured; units in the name.
            load: str, the folder or name given to `carrara.load`.
            limits: strings, what it cannot do.
            attribution: strings, or (string, address) pairs, which become links.

    Raises:
        ValueError: no name, or a fact that is not known.
    """
    for key in facts:
        if key not in FACTS:
            near = difflib.get_close_matches(key, FACTS, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"a model card has no fact {key!r}; known are {', '.join(FACTS)}{hint}")
    if not facts.get("name"):
        raise ValueError("a model card needs 'name', a text that is not empty")
    parts = [
        _head(facts),
        f"# {plain(facts['name'])}",
        _paragraphs(facts.get("what", "")),
        _section("Use", _snippet(facts["load"]) if facts.get("load") else ""),
        _section("Figures", table(("figure", "value"), facts.get("figures") or {})),
        _section("Trained on", _paragraphs(facts.get("trained_on", ""))),
        _section("Training", table(("setting", "value"), facts.get("training") or {})),
        _section("Limits", _list(map(plain, facts.get("limits") or ()))),
        _section("Licence", plain(facts["license"]) if facts.get("license") else "None has been stated."),
        _section("Attribution", _list(map(_credit, facts.get("attribution") or ()))),
    ]
    return "\n\n".join(p for p in parts if p) + "\n"


def _head(facts: Mapping[str, Any]) -> str:
    lines = ["---", *([f"license: {_scalar(facts['license'])}"] if facts.get("license") else [])]
    lines.append("library_name: carrara")
    tags = list(dict.fromkeys(["carrara", "diffusion", *map(str, facts.get("tags") or ())]))
    lines += ["tags:", *(f"- {_scalar(tag)}" for tag in tags), "---"]
    return "\n".join(lines)


def _scalar(value: object) -> str:
    """A YAML string: plain where that is beyond doubt, else double-quoted with everything unusual escaped."""
    text = str(value)
    if _PLAIN.fullmatch(text) and text not in _RESERVED:
        return text
    return '"' + "".join(map(_yaml, text)) + '"'


def _yaml(c: str) -> str:
    if c in '"\\':
        return "\\" + c
    if 0xD800 <= ord(c) <= 0xDFFF:
        return "\\uFFFD"
    if c == " " or (c.isprintable() and c != "\ufeff"):
        return c
    return f"\\u{ord(c):04X}" if ord(c) < 0x10000 else f"\\U{ord(c):08X}"


def _one_line(value: object) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())


def plain(value: object) -> str:
    """Markdown for a plain text: one line, no markup, no list or heading at its beginning."""
    escaped = "".join("\\" + c if c in _ESCAPED else c for c in _one_line(value))
    if re.match(r"[-+=:]|\d+[.)](\s|$)", escaped):
        at = next(i for i, c in enumerate(escaped) if c in string.punctuation)
        escaped = f"{escaped[:at]}\\{escaped[at:]}"
    return escaped.replace("![", "\\![")


def _paragraphs(value: object) -> str:
    return "\n\n".join(filter(None, map(plain, re.split(r"\n\s*\n", str(value).replace("\r\n", "\n")))))


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}" if body else ""


def _list(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items if item)


def table(header: tuple[str, str], rows: Mapping[str, Any]) -> str:
    """A table of names and values in Markdown; "" for none."""
    if not rows:
        return ""
    lines = [f"| {header[0]} | {header[1]} |", "| --- | ---: |"]
    return "\n".join([*lines, *(f"| {plain(k)} | {plain(_value(v))} |" for k, v in rows.items())])


def _value(value: object) -> str:
    return number(value, 4) if value is None or isinstance(value, int | float | str) else str(value)


def _snippet(path: object) -> str:
    """Three lines of Python; the path is a literal, so it stays inside its quotes and on its line."""
    load = f"system = carrara.load({str(path)!a})"
    code = f"import carrara\n{load}\nframes = system.generate(['a red apple'], seeds=[0])"
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))
    return f"{fence}python\n{code}\n{fence}"


def _credit(item: str | tuple[str, str]) -> str:
    """A text, or a link where an address comes with it; only web addresses become links."""
    if isinstance(item, str):
        return plain(item)
    text, address = item
    if not address.startswith(_SCHEMES) or re.search(r"[\s<>\\]", address):
        return f"{plain(text)} ({plain(address)})"
    return f"[{plain(text)}](<{address}>)"
