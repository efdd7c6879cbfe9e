"""Guidance by inputs: off at scale 1, InstructPix2Pix's formula for any number of inputs, no question asked twice."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from carrara.config import build, describe
from carrara.diffusion import ClassifierFree, Clip, Follow, Guidance, Plain, guide
from carrara.run import finish
from carrara.store import kinds
from carrara.types import Condition, Estimate, Query, Sampling

X = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(0)).double()


def condition(text: float, **inputs: float) -> Condition:
    """A text that says a number, and inputs that do."""
    controls = {name: torch.full((2, 1, 1, 1), value, dtype=torch.float64) for name, value in inputs.items()}
    return Condition(vector=torch.full((2, 1), text, dtype=torch.float64), controls=controls)


def denoiser(x_t: Tensor, t: Tensor, told: Condition) -> Estimate:
    """Not additive: what one condition does depends on the others."""
    assert told.vector is not None
    total = told.vector.view(-1, 1, 1, 1) + 0.3
    for value in told.controls.values():
        total = total * (1.5 + value) + value
    return Estimate(x_t * total, x_t + total)


def estimate(guidance: Guidance, told: Condition, null: Condition) -> Estimate:
    branches = guidance.branches(denoiser, told, null, 0.5)
    answers = [b.denoiser(X, torch.full((2,), 0.5), b.condition) for b in branches]
    return guidance.combine(answers, denoiser, X, 0.5)


def mean(text: float, **inputs: float) -> Tensor:
    return denoiser(X, torch.zeros(2), condition(text, **inputs)).mean


TOLD, NULL = condition(1.0, edges=0.7, mask=-0.4), condition(0.0, edges=0.7, mask=-0.4)


@pytest.mark.parametrize("inner", [Plain(), ClassifierFree(2.5), Clip(ClassifierFree(2.0))], ids=repr)
def test_neutral_is_what_is_inside(inner: Guidance) -> None:
    for scales in ({}, {"edges": 1.0}, {"mask": 1.0, "edges": 1.0}):
        follow = Follow(inner, scales)
        assert len(follow.branches(denoiser, TOLD, NULL, 0.5)) == len(inner.branches(denoiser, TOLD, NULL, 0.5))
        assert all(map(torch.equal, estimate(follow, TOLD, NULL), estimate(inner, TOLD, NULL)))


def test_one_input_is_the_published_formula() -> None:
    """Brooks et al. 2023, eq. 3, with the image's scale s and the text's w."""
    told, null, s, w = condition(1.0, edges=0.7), condition(0.0, edges=0.7), 1.7, 2.5
    found = estimate(Follow(ClassifierFree(w), {"edges": s}), told, null)
    nothing, image, both = mean(0, edges=0), mean(0, edges=0.7), mean(1, edges=0.7)
    torch.testing.assert_close(found.mean, nothing + s * (image - nothing) + w * (both - image))
    assert torch.equal(found.mix, denoiser(X, torch.zeros(2), told).mix)


def test_several_inputs_in_their_order() -> None:
    a, b, w = 1.7, 0.2, 2.5
    found = estimate(Follow(ClassifierFree(w), {"mask": b, "edges": a}), TOLD, NULL)
    steps = [
        mean(0, edges=0, mask=0),
        mean(0, edges=0, mask=-0.4),
        mean(0, edges=0.7, mask=-0.4),
        mean(1, edges=0.7, mask=-0.4),
    ]
    changes = [after - before for before, after in pairwise(steps)]
    expected = steps[0] + b * changes[0] + a * changes[1] + w * changes[2]
    torch.testing.assert_close(found.mean, expected)


def test_an_input_without_a_scale_is_in_all_of_them() -> None:
    found = estimate(Follow(Plain(), {"edges": 3.0}), TOLD, NULL)
    with_it, without = mean(0, edges=0.7, mask=-0.4), mean(0, edges=0, mask=-0.4)
    torch.testing.assert_close(found.mean, mean(1, edges=0.7, mask=-0.4) + 2 * (with_it - without))


def test_equal_scales_are_classifier_free_guidance_by_everything() -> None:
    w = 2.2
    found = estimate(Follow(ClassifierFree(w), {"edges": w, "mask": w}), TOLD, NULL)
    expected = estimate(ClassifierFree(w), TOLD, condition(0.0, edges=0, mask=0))
    torch.testing.assert_close(found.mean, expected.mean)


@pytest.mark.parametrize(
    "scales, text, calls",
    [({}, 1.0, 1), ({}, 2.0, 2), ({"edges": 2.0}, 1.0, 3), ({"edges": 2.0}, 2.0, 3),
     ({"edges": 2.0, "mask": 2.0}, 2.0, 3), ({"edges": 2.0, "mask": 3.0}, 2.0, 4)],
)  # fmt: skip
def test_nothing_is_asked_twice(scales: dict[str, float], text: float, calls: int) -> None:
    """With a text that guides, the estimate without text but with all inputs is at hand."""

    def one() -> Sampling:
        answer = yield Query(X, 0.5)
        return answer.mean

    guidance = Follow(ClassifierFree(text), scales)
    rounds = guide(one(), guidance, denoiser, TOLD, NULL)
    asked = next(rounds)
    assert len(asked.asks) == calls
    rounds.close()
    torch.testing.assert_close(
        finish(guide(one(), guidance, denoiser, TOLD, NULL)), estimate(guidance, TOLD, NULL).mean
    )


def test_refusals_and_files() -> None:
    with pytest.raises(ValueError, match=r"no input \['depth'\]; its inputs are \['edges', 'mask'\]"):
        Follow(Plain(), {"depth": 2.0}).branches(denoiser, TOLD, NULL, 0.5)
    with pytest.raises(ValueError, match="not finite"):
        Follow(Plain(), {"edges": math.nan})
    follow = Follow(ClassifierFree(2.0), {"edges": 1.5})
    assert build(Guidance, describe(follow, kinds()), kinds()) == follow
