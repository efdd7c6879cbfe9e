"""A decoder's figures as a page, and the sentence that belongs to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from carrara.evaluate.plot import number
from carrara.evaluate.reconstruction import Reconstruction
from carrara.evaluate.report import KeyFigure, Report
from carrara.evaluate.words import ordered, reference_words, value_words, word

__all__ = ["reconstruction_page", "what_was_tried"]

_ARROWS = {1: "\N{UPWARDS ARROW}", -1: "\N{DOWNWARDS ARROW}", 0: ""}


def what_was_tried(facts: Mapping[str, Any]) -> str:
    """One sentence that every figure needs beside it: which pictures, through what, seen by whom."""
    height, width = facts["size"]
    z = " x ".join(map(str, facts["z"]["shape"]))
    return (
        f"{reference_words(facts)} at {height} x {width} pixels, encoded as {facts['z']['kind']} {z} and decoded; the "
        f"Frechet distance is to themselves, by {facts['extractor']['name']} ({facts['extractor']['key']}). Intervals "
        "are of 95 %."
    )


def reconstruction_page(found: Reconstruction) -> Report:
    """The page."""
    facts = found.facts
    name = facts["extractor"]["name"]
    report = Report(facts["name"], f"A decoder, tried on {reference_words(facts)}")
    keys = ("psnr_db", "ssim", "above_bicubic_db", "vocabulary_used")
    report.figures(
        *(
            KeyFigure(word(key).label, float(facts["figures"][key]) * word(key).times, word(key).unit, word(key).about)
            for key in keys
            if key in facts["figures"]
        )
    )
    report.prose(what_was_tried(facts))
    for key, mark in facts["marks"].items():
        report.note(f"{word(key, name).label}: {mark}")
    rows = {"as given": found.given, "encoded and decoded": found.made}
    if found.enlarged is not None:
        rows = {"as given": found.given, "by bicubic": found.enlarged, "by the decoder": found.made}
    report.heading("There and back", f"The first {number(len(found.given))} of the pictures.")
    report.compare(rows, cell=96)
    report.heading("Figures", "Arrows say what is better.")
    report.table(
        ["figure", "value", "", "what it says"],
        [
            [word(key, name).label, value_words(key, facts), _ARROWS[word(key, name).better], word(key, name).about]
            for key in ordered(list(facts["figures"]))
        ],
    )
    if facts["missing"]:
        report.table(["not measured", "why"], [[word(key, name).label, why] for key, why in facts["missing"].items()])
    return report
