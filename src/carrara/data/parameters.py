r"""How a picture was made, in the text that AUTOMATIC1111's web interface writes and most programs read.

    a red apple                                     the prompt, of any number of lines
    Negative prompt: blurry                         the same, where there is one
    Steps: 20, Sampler: Euler a, CFG scale: 7, ...  pairs of a name and a value

A value with a comma, a colon or a line break is a JSON string. The last line is one of pairs if it has at least three,
else it belongs to the prompt; so any text can be read, and what it says is to be believed by nobody.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["Parameters", "read_parameters", "write_parameters"]

_NEGATIVE = "Negative prompt:"
_FEWEST = 3  # pairs of a line that is one of pairs
_MOST = 256  # pairs that are read
_PAIR = re.compile(r'\s*+(\w[\w \-/]{0,63}+):\s*+("(?:\\.|[^\\"])*+"(?=\s*+(?:,|$))|[^,]*+)(?:,|$)')


class Parameters(NamedTuple):
    """What such a text says; `settings` are its pairs in order, all as text."""

    prompt: str
    negative: str
    settings: Mapping[str, str]


def write_parameters(parameters: Parameters) -> str:
    """The text of a picture's parameters."""
    lines = [parameters.prompt.strip()]
    if parameters.negative.strip():
        lines.append(f"{_NEGATIVE} {parameters.negative.strip()}")
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in parameters.settings.items()))
    return "\n".join(lines).strip()


def read_parameters(text: str) -> Parameters:
    """The parameters that a text says, whatever it is; of a name that is said twice the first."""
    *lines, last = text.strip().split("\n")
    settings = _pairs(last)
    if len(settings) < _FEWEST:
        lines, settings = [*lines, last], {}
    at = next((number for number, line in enumerate(lines) if line.startswith(_NEGATIVE)), len(lines))
    negative = "\n".join(lines[at:]).removeprefix(_NEGATIVE)
    return Parameters("\n".join(lines[:at]).strip(), negative.strip(), settings)


def _pairs(line: str) -> dict[str, str]:
    found: dict[str, str] = {}
    at = 0
    while at < len(line) and len(found) < _MOST:
        if match := _PAIR.match(line, at):
            found.setdefault(match[1], _plain(match[2].strip()))
            at = match.end()
        else:
            comma = line.find(",", at)
            at = len(line) if comma < 0 else comma + 1
    return found


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:\n"]', value) else value


def _plain(value: str) -> str:
    if not (len(value) > 1 and value[0] == value[-1] == '"'):
        return value
    try:
        plain = json.loads(value)
    except ValueError:
        return value
    return plain if isinstance(plain, str) else value
