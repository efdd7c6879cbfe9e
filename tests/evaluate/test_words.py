"""How figures are told: never without what they stand on, in one order, and the same everywhere."""

from __future__ import annotations

from typing import Any

import pytest

from carrara.evaluate.figures import Figures, share_interval
from carrara.evaluate.words import ordered, reference_words, value_words, word

FACTS: dict[str, Any] = {
    "figures": {
        "fd_inception_v3": 83.125, "kid_inception_v3": 0.0123, "parameters": 1234567.0, "prompt_fidelity_top1": 0.5,
    },
    "intervals": {"kid_inception_v3": [0.01, 0.015]},
    "marks": {"fd_inception_v3": "n<d: 500 samples, 2048 dimensions"},
    "reference": {"folder": "/data/emoji", "split": "train", "pictures": 1570},
}  # fmt: skip


def test_a_figure_with_what_it_stands_on() -> None:
    assert value_words("fd_inception_v3", FACTS) == "83.1 (n<d)"
    assert value_words("kid_inception_v3", FACTS) == "12.3 (10.0 to 15.0)"
    assert value_words("prompt_fidelity_top1", FACTS) == "50.0 %"
    assert value_words("parameters", FACTS) == "1,234,567"
    assert reference_words(FACTS) == "1,570 training pictures of emoji"


def test_named_after_the_network() -> None:
    assert word("fd_inception_v3", "Inception-v3").label == "FD-Inception-v3"
    assert word("kid_dinov2", "DINOv2").label == "KID-DINOv2, x 1000"
    assert word("prompt_fidelity_top1_dinov2", "DINOv2").label == "prompt fidelity, DINOv2"
    assert word("prompt_fidelity_top1_contrastive", "DINOv2").label == "prompt fidelity, contrastive"


def test_kid_leads() -> None:
    names = ["seconds_per_picture", "fd_x", "bits_per_dim", "kid_x", "precision_x", "prompt_fidelity_top1_x"]
    assert ordered(names) == ["kid_x", "fd_x", "prompt_fidelity_top1_x", "precision_x", "bits_per_dim",
                              "seconds_per_picture"]  # fmt: skip


def test_figures_and_their_intervals() -> None:
    found = Figures()
    found.add("one", [2.0])
    found.add("several", [1.0, 2.0, 3.0])
    found.share("share", [0.25], 100)
    found.attempt("works", lambda: 3.0)

    def fails() -> float:
        raise ValueError("too few")

    found.attempt("fails", fails)
    assert found.values == {"one": 2, "several": 2, "share": 0.25, "works": 3}
    assert set(found.intervals) == {"several", "share"}
    low, high = found.intervals["several"]
    assert (low, high) == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-3)
    assert found.missing == {"fails": "too few"}


def test_shares_of_several_sets_are_one_share_of_all() -> None:
    found = Figures()
    found.share("none", [0.0, 0.0], 16)
    found.share("some", [0.0, 0.25], 16)
    assert found.values == {"none": 0, "some": 0.125}
    assert found.intervals == {name: list(share_interval(found.values[name], 32)[1:]) for name in ("none", "some")}


@pytest.mark.parametrize("share, n, low, high", [(0.5, 100, 0.4038, 0.5962), (0, 10, 0, 0.2775), (1, 10, 0.7225, 1)])
def test_wilson(share: float, n: int, low: float, high: float) -> None:
    assert share_interval(share, n)[1:] == pytest.approx((low, high), abs=1e-4)
