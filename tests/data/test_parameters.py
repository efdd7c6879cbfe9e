"""A1111's text: written as its readers take it, and read back from anything."""

from __future__ import annotations

import json
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrara.data.parameters import Parameters, read_parameters, write_parameters

FIELD = st.text(
    alphabet=st.characters(exclude_categories=("Cs",), exclude_characters="\n\r\x85\u2028\u2029"), max_size=20
)


def test_a_text_as_it_is_published() -> None:
    found = read_parameters(
        "a photo of (an astronaut:1.2), 8k\nsecond line\nNegative prompt: blurry\nbad\n"
        "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 965400086, Size: 512x768, Model hash: 45dee52b, Model: name, "
        'Lora hashes: "a: 12, b: 34", Version: v1.9.4'
    )
    assert found.prompt == "a photo of (an astronaut:1.2), 8k\nsecond line"
    assert found.negative == "blurry\nbad"
    assert found.settings == {
        "Steps": "20", "Sampler": "Euler a", "CFG scale": "7", "Seed": "965400086", "Size": "512x768",
        "Model hash": "45dee52b", "Model": "name", "Lora hashes": "a: 12, b: 34", "Version": "v1.9.4",
    }  # fmt: skip


@given(st.lists(FIELD, min_size=3, max_size=6), FIELD, FIELD)
def test_what_is_written_is_read(values: list[str], prompt: str, negative: str) -> None:
    """And by the expression that the web interface itself reads with."""
    settings = {f"Name {number}": value.strip() for number, value in enumerate(values)}
    written = Parameters(prompt.strip(), negative.strip(), settings)
    text = write_parameters(written)
    found = read_parameters(text)
    assert dict(found.settings) == settings
    if not prompt.strip().startswith("Negative prompt:"):
        assert (found.prompt, found.negative) == (written.prompt, written.negative)
    theirs = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', text.split("\n")[-1])
    unquoted = {name: json.loads(value) if value[:1] == '"' else value.strip() for name, value in theirs}
    assert unquoted == settings


def test_a_prompt_alone() -> None:
    for text in ("a red apple", "a: b, c: d", "a red apple\nand: more", ""):
        assert read_parameters(text) == Parameters(text, "", {})
    assert read_parameters("Negative prompt: x") == Parameters("", "x", {})


@given(st.text(alphabet='ab: ,"\\\n{}1-/Negative prompt', max_size=200))
def test_any_text_is_read(text: str) -> None:
    found = read_parameters(text)
    assert all(isinstance(value, str) for value in (found.prompt, found.negative, *found.settings.values()))
    assert len(found.prompt) + len(found.negative) <= len(text)


@pytest.mark.parametrize(
    "piece",
    ["a", "ab:", "ab: ", 'ab: "', 'ab: "x', 'ab: "\\\\', ",", " ", "\t", '"', "\\", "a b-c/d", "ab: c,", 'ab: ",'],
)
def test_hostile_lines_are_read_in_time(piece: str) -> None:
    began = time.process_time()
    for text in (piece * ((1 << 20) // len(piece)), "ab: " + piece * 200_000 + '"'):
        found = read_parameters(text)
        assert len(found.settings) <= 256
    assert time.process_time() - began < 4


def test_a_name_that_is_said_twice() -> None:
    assert read_parameters("x\nSeed: 1, Seed: 2, Steps: 3, Size: 4x4").settings["Seed"] == "1"
