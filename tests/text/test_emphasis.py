"""Emphasis: the grammar in its docstring, sign by sign, and weights that do what they say."""

from __future__ import annotations

import itertools
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from carrara.text import emphasise, parse_emphasis

UP = 1.1


@pytest.mark.parametrize(
    "prompt, parts",
    [
        ("", []),
        ("a cat", [("a cat", 1)]),
        ("a (red) cat", [("a ", 1), ("red", UP), (" cat", 1)]),
        ("((red))", [("red", UP * UP)]),
        ("[red]", [("red", 1 / UP)]),
        ("[[a]b]", [("a", 1 / UP / UP), ("b", 1 / UP)]),
        ("(red:1.3) cat", [("red", 1.3), (" cat", 1)]),
        ("(red : 0.5 )", [("red ", 0.5)]),
        ("(red:.5)(blue:-2.)(green:+3)", [("red", 0.5), ("blue", -2), ("green", 3)]),
        ("(a (b:2) c)", [("a ", UP), ("b", 2 * UP), (" c", UP)]),
        (r"\(red\) \[x\] \\ \y", [(r"(red) [x] \ \y", 1)]),
        (r"(a\):2)", [("a)", 2)]),
        ("a) b] (c", [("a) b] ", 1), ("c", UP)]),
        ("[a (b", [("a ", 1 / UP), ("b", UP / UP)]),
        ("a: b (c: d) e:2)", [("a: b ", 1), ("c: d", UP), (" e:2)", 1)]),
        ("[a:2]", [("a:2", 1 / UP)]),
        ("(a:1.2.3) (b:1e3)", [("a:1.2.3", UP), (" ", 1), ("b:1e3", UP)]),
        ("(a [b) c]", [("a ", UP), ("b", UP / UP), (" c", 1 / UP)]),
        ("(a)(b)", [("ab", UP)]),
        ("()", []),
        ("(a:999999)", [("a", 100)]),
    ],
)
def test_grammar(prompt: str, parts: list[tuple[str, float]]) -> None:
    found = parse_emphasis(prompt)
    assert [part.text for part in found] == [text for text, _ in parts]
    assert [part.weight for part in found] == pytest.approx([weight for _, weight in parts])


@given(st.text(alphabet="()[]:\\1.5-+ ab\n", max_size=60))
def test_any_text_is_a_prompt(prompt: str) -> None:
    """Nothing is lost but brackets, escapes and weights, and no weight is out of bounds."""
    found = parse_emphasis(prompt)
    assert all(part.text and abs(part.weight) <= 100 for part in found)
    assert all(a.weight != b.weight for a, b in itertools.pairwise(found))
    assert sum(part.text.count(sign) for part in found for sign in "ab\n") >= sum(prompt.count(sign) for sign in "ab")
    plain = "".join(sign for sign in prompt if sign not in "()[]\\")
    assert [(part.text, part.weight) for part in parse_emphasis(plain)] == ([(plain, 1.0)] if plain else [])


@pytest.mark.parametrize("piece", ["(", "[", "(a", "a)", "(a)", "((a:2)", "\\", ":", ": ", ":1", ":1.", "([", "(a:1"])
def test_hostile_prompts_are_read_in_time(piece: str) -> None:
    began = time.process_time()
    found = parse_emphasis(piece * 30000)
    assert time.process_time() - began < 4
    assert all(abs(part.weight) <= 100 for part in found)


def test_deep_brackets_count_no_more() -> None:
    ((_, deep),) = parse_emphasis("(" * 16 + "a" + ")" * 16)
    ((_, deeper),) = parse_emphasis("(" * 500 + "a" + ")" * 500)
    assert deep == deeper == pytest.approx(UP**16)


def test_weights_and_means() -> None:
    draws = torch.Generator().manual_seed(0)
    tokens = torch.randn(3, 7, 5, generator=draws) + 0.3
    weights = torch.rand(3, 7, generator=draws) + 0.5
    weights[1] = 1
    plain = emphasise(tokens, weights, restore=False)
    assert torch.equal(plain, tokens * weights[:, :, None])
    kept = emphasise(tokens, weights)
    torch.testing.assert_close(kept.mean((1, 2)), tokens.mean((1, 2)))
    assert torch.equal(kept[1], tokens[1])  # a row without weights is what it was, bit by bit
    alone = emphasise(tokens[:1], weights[:1])
    torch.testing.assert_close(kept[:1], alone)
    ratio = kept / plain
    torch.testing.assert_close(ratio, ratio[:, :1, :1].expand_as(ratio))
    nothing = emphasise(tokens, torch.zeros(3, 7))
    assert not nothing.any()
