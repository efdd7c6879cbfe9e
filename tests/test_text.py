"""Text encoders: what they make, what they refuse, and the contrastive objective against its closed forms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from carrara.nn import ImageEncoder, TextTransformer
from carrara.run import finish
from carrara.text import (
    ContrastiveText,
    Labels,
    Unconditional,
    Unknown,
    Whitening,
    contrastive_loss,
    known_words,
    train_tokenizer,
    words,
)
from carrara.types import Condition

CAPTIONS = ["red apple", "green apple", "grinning face", "cat face", "face with tears of joy", "lady beetle"]


@pytest.fixture(scope="module")
def encoder() -> ContrastiveText:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(CAPTIONS, vocabulary=300)
    network = TextTransformer(vocabulary=300, width=32, depth=2, heads=2, length=12, pooled=16)
    return ContrastiveText(tokenizer, network, ImageEncoder(width=16, widths=(16, 32), blocks=(1, 1))).eval()


def test_the_tokenizer_does_not_depend_on_the_order_of_captions() -> None:
    assert train_tokenizer(CAPTIONS, vocabulary=320) == train_tokenizer(CAPTIONS[::-1], vocabulary=320)
    with pytest.raises(ValueError, match="300"):
        train_tokenizer(CAPTIONS, vocabulary=100)


def test_any_text_is_encoded_and_padding_is_masked(encoder: ContrastiveText) -> None:
    ids, mask = encoder.tokenize(["red apple", "", "Ünïcode 🍎 漢字"])
    assert ids.shape == mask.shape == (3, 12)
    assert mask[1].sum() == 2  # the two marks of the empty prompt
    assert mask.sum(1).min() >= 2


def test_bytes_that_are_no_text_are_refused(encoder: ContrastiveText) -> None:
    """What a shell hands over of a prompt that is not UTF-8."""
    prompt = b"a \xff apple".decode(errors="surrogateescape")
    for work in (encoder.cuts, encoder.tokenize, encoder.lengths):
        with pytest.raises(ValueError, match=r"apple' is no text: it has bytes that are not UTF-8"):
            work(["a red apple", prompt])


def test_the_null_condition_is_the_empty_prompt_and_rows_do_not_depend_on_each_other(encoder: ContrastiveText) -> None:
    with torch.no_grad():
        together: Condition = finish(encoder.start(["red apple", "", "face with tears of joy"]))
        for row, prompt in enumerate(["red apple", "", "face with tears of joy"]):
            alone: Condition = finish(encoder.start([prompt]))
            assert together.tokens is not None and together.vector is not None
            assert alone.tokens is not None and alone.vector is not None
            torch.testing.assert_close(together.tokens[row], alone.tokens[0], rtol=0, atol=2e-6)
            torch.testing.assert_close(together.vector[row], alone.vector[0], rtol=0, atol=2e-6)


def test_what_is_too_long_is_said(encoder: ContrastiveText) -> None:
    long = "a grinning face with a very long tail of words"
    (cut,) = encoder.cuts(["red apple", long])
    assert cut.row == 1
    assert long.endswith(cut.lost)
    assert not encoder.cuts(["red apple"])


def test_what_is_lost_is_said_to_the_token(encoder: ContrastiveText) -> None:
    """A single token too many is told; lengths are those of the whole prompts, with their two marks."""
    for lost in (-2, -1, 0, 1, 2, 30):
        prompt = "q" * (encoder.length - 3 + lost)  # a token each, and three more: the two marks and the first space
        assert encoder.lengths([prompt]) == [encoder.length + lost]
        assert [cut.lost for cut in encoder.cuts([prompt])] == (["q" * lost] if lost > 0 else [])


def test_the_fingerprint_tells_trainings_apart(encoder: ContrastiveText) -> None:
    space = encoder.space
    assert space.kind == "text"
    assert encoder.space == space
    with torch.no_grad():
        encoder.network.words.weight[5, 3] += 1  # type: ignore[union-attr, index]
        assert encoder.space.fingerprint != space.fingerprint
        encoder.network.words.weight[5, 3] -= 1  # type: ignore[union-attr, index]
        before = encoder.space.fingerprint
        encoder.log_scale += 1  # the picture tower and the scale do not change what the text says
    assert encoder.space.fingerprint == before


def test_contrastive_loss_is_the_mean_of_two_cross_entropies() -> None:
    torch.manual_seed(1)
    text, pictures = F.normalize(torch.randn(5, 7), dim=1), F.normalize(torch.randn(5, 7), dim=1)
    scale = torch.tensor(math.log(9.0))
    logits = 9.0 * text @ pictures.T
    index = torch.arange(5)
    expected = (
        F.cross_entropy(logits, index, reduction="none") + F.cross_entropy(logits.T, index, reduction="none")
    ) / 2
    torch.testing.assert_close(contrastive_loss(text, pictures, scale, torch.eye(5, dtype=torch.bool)), expected)


def test_equal_captions_are_each_others_right_answers() -> None:
    text = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), dim=1)
    same = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]]).bool()
    loss = contrastive_loss(text, text, torch.tensor(math.log(100.0)), same)
    # two right answers of equal score: the best that can be reached is log 2
    torch.testing.assert_close(loss, torch.tensor([math.log(2), math.log(2), 0.0]), atol=1e-5, rtol=0)


def test_labels_are_one_hot_with_a_null_class() -> None:
    labels = Labels(("cat", "dog"))
    condition: Condition = finish(labels.start(["dog", "", "cat"]))
    assert condition.vector is not None
    assert condition.vector.tolist() == [[0, 1, 0], [0, 0, 1], [1, 0, 0]]
    with pytest.raises(ValueError, match=r'"dgo" is no class.*did you mean dog'):
        finish(labels.start(["dgo"]))
    with pytest.raises(ValueError, match="distinct"):
        Labels(("a", "a"))


def test_an_unconditional_model_refuses_prompts_instead_of_ignoring_them() -> None:
    assert finish(Unconditional().start(["", ""])) == Condition()
    with pytest.raises(ValueError, match="no text encoder"):
        finish(Unconditional().start(["a cat"]))


def test_whitening_gives_mean_zero_and_unit_covariance_and_is_measured_once(encoder: ContrastiveText) -> None:
    torch.manual_seed(2)
    mixing = torch.randn(6, 6) * torch.tensor([9.0, 5.0, 1.0, 0.5, 0.3, 0.2])
    x = torch.randn(4000, 6) @ mixing.T + 3
    whitening = Whitening(6)
    assert torch.equal(whitening(x / 100), x / 100)
    whitening.measure(x)
    y = whitening(x)
    torch.testing.assert_close(y.mean(0), torch.zeros(6), atol=1e-4, rtol=0)
    values = torch.linalg.eigvalsh(torch.cov(y.T))
    original = torch.linalg.eigvalsh(torch.cov(x.double().T)).float()
    torch.testing.assert_close(values, (original / (original + 1e-4 * original[-1])).sort().values, atol=1e-3, rtol=0)


def test_whitening_of_few_rows_keeps_others_within_bounds() -> None:
    torch.manual_seed(3)
    whitening = Whitening(64)
    few = torch.randn(3, 64)
    whitening.measure(few)
    torch.testing.assert_close(whitening(few).norm(dim=1), torch.full((3,), (4 / 3) ** 0.5), atol=1e-2, rtol=0)
    assert whitening(torch.randn(50, 64)).norm(dim=1).max() < 4.001 * 8
    whitening.measure(few[:1].expand(5, 64))  # one caption for all of the pictures
    assert bool(whitening(torch.randn(50, 64)).isfinite().all())
    assert whitening(torch.randn(50, 64)).norm(dim=1).max() < 4.001 * 8


def test_measuring_changes_what_a_generator_reads_and_its_fingerprint_but_not_the_features() -> None:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(CAPTIONS, vocabulary=300)
    network = TextTransformer(vocabulary=300, width=32, depth=2, heads=2, length=12, pooled=16)
    text = ContrastiveText(tokenizer, network, ImageEncoder(width=16, widths=(16, 32), blocks=(1, 1))).eval()
    before, features = text.space, text.text_features(CAPTIONS)
    text.measure(CAPTIONS)
    assert text.space.fingerprint != before.fingerprint
    assert torch.equal(text.text_features(CAPTIONS), features)
    with torch.no_grad():
        condition: Condition = finish(text.start(CAPTIONS))
    assert condition.tokens is not None and condition.mask is not None
    assert bool((condition.tokens[~condition.mask] == 0).all())
    torch.testing.assert_close(condition.tokens[condition.mask].mean(0), torch.zeros(32), atol=1e-4, rtol=0)


def test_words_are_compared_without_case_and_punctuation() -> None:
    assert words("A Red-apple, isn't IT? ２") == ["a", "red", "apple", "isn", "t", "it", "2"]
    assert words("漢字 cats 🍎!") == ["漢", "字", "cats", "🍎"]
    assert words("?! ...") == []
    asset = known_words(["A red apple", "red cat", "apple"])
    assert asset.data == b"a\napple\ncat\nred\n"
    assert known_words(["cat red", "apple a red", "apple"]).data == asset.data


def test_only_a_prompt_without_any_known_word_is_unknown(encoder: ContrastiveText) -> None:
    prompts = ["red zebra", "zebra", "", "?!", "appel faces", "APPLE"]
    assert encoder.unknown(prompts) == []  # its words were not kept
    config: Any = encoder.config
    knowing = ContrastiveText(**{**config, "words": known_words(CAPTIONS)})
    assert knowing.unknown(prompts) == [Unknown(1, ()), Unknown(4, ("apple", "face"))]
    knowing.load_state_dict(encoder.state_dict())
    assert knowing.space == encoder.space  # what it makes of a prompt is the same
