"""Conventions of other trainings: padding, chunks, emphasis, layers that are skipped, several encoders as one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from carrara.errors import RecipeError, StorageError
from carrara.run import finish
from carrara.store import load_component, save_component
from carrara.store.transformers import PretrainedSource, pretrained_source, read_text
from carrara.text import Absent, Convention, Joined, Labels, PretrainedText, Reading, emphasise
from carrara.types import Condition
from tiny_text import make

UNMASKED = Convention(masked=False)
LONG = "red green apple face cat with tears of joy a lady beetle grinning red cat"  # 15 tokens


def read(folder: Path, length: int = 8, skip: int = 0, **convention: Any) -> PretrainedText:
    told = {"masked": False, **convention}
    source = PretrainedSource(path=str(folder), whiten=False, length=length, skip=skip, convention=Convention(**told))
    return read_text(source)


def encode(encoder: Any, prompts: list[str], *reading: Reading) -> Condition:
    with torch.no_grad():
        made: Condition = finish(encoder.start(prompts, *reading))
    return made


def tokens_of(condition: Condition) -> Tensor:
    assert condition.tokens is not None
    return condition.tokens


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    make(folder, "clip")
    return folder


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("t5")
    make(folder, "t5")
    return folder


# --- padding ----------------------------------------------------------------------------------------------------------


def test_padding_is_what_the_folder_says(tmp_path: Path) -> None:
    """Its special tokens first, then its tokenizer's own; a name that is no token is refused."""
    make(tmp_path, "clip")
    assert read(tmp_path).convention.pad == 0  # tokenizer.json's padding
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": {"content": "<|endoftext|>"}}))
    assert read(tmp_path).convention.pad == 17
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": "<pad>"}))
    assert read(tmp_path).convention.pad == 1
    assert read(tmp_path, pad=5).convention.pad == 5
    assert read(tmp_path, masked=True).convention.pad is None  # nothing reads it
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": "nowhere"}))
    with pytest.raises(StorageError, match='pad_token = "nowhere", which its tokenizer does not have'):
        read(tmp_path)
    (tmp_path / "special_tokens_map.json").unlink()
    (tmp_path / "tokenizer_config.json").unlink()
    whole = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps({**whole, "padding": None}))
    assert read(tmp_path).convention.pad == 17  # CLIP's own


def test_padding_is_read_only_where_nothing_is_masked(clip: Path, t5: Path) -> None:
    for folder in (clip, t5):
        plain, other = (tokens_of(encode(read(folder, pad=pad), ["red cat"])) for pad in (0, 5))
        assert (plain[0, -1] - other[0, -1]).abs().max() > 0.1
        assert torch.allclose(plain[0, :2], other[0, :2], atol=1e-5) == (folder == clip)  # which looks back alone
        hidden = [encode(read(folder, masked=True, pad=pad), ["red cat"]) for pad in (0, 5)]
        assert torch.equal(tokens_of(hidden[0]), tokens_of(hidden[1]))
        assert not tokens_of(hidden[0])[0, -1].any()


def test_what_is_told_is_in_the_fingerprint(clip: Path) -> None:
    """What a generator learns from is; chunks and emphasis, which only say more of a prompt, are not."""
    plain = read(clip).space.fingerprint
    for told in ({"masked": True}, {"pad": 3}, {"vector": False}, {"zero_empty": True}, {"lower": True}):
        assert read(clip, **told).space.fingerprint != plain
    assert read(clip, chunks=3, emphasis=True, restore=False).space.fingerprint == plain
    assert read(clip, masked=True, pad=3).space == read(clip, masked=True).space


def test_a_component_keeps_its_convention(clip: Path, tmp_path: Path) -> None:
    encoder = read(clip, chunks=2, emphasis=True, zero_empty=True, lower=True)
    save_component(tmp_path / "text", "text", encoder)
    again = load_component(tmp_path / "text", "text", verify=True)
    assert again.convention == encoder.convention and again.space == encoder.space
    prompts = ["(RED) cat", "", LONG]
    assert torch.equal(tokens_of(encode(again, prompts)), tokens_of(encode(encoder, prompts)))


def test_what_does_not_go_together_is_refused(clip: Path, tmp_path: Path) -> None:
    make(tmp_path, "bert")
    with pytest.raises(RecipeError, match="masked = false is for networks that read padding"):
        read(tmp_path)
    with pytest.raises(RecipeError, match="pad = 99, and the network knows ids below 20"):
        read(clip, pad=99)
    with pytest.raises(RecipeError, match="whitening is of real tokens and the vector"):
        read_text(PretrainedSource(path=str(clip), convention=UNMASKED))
    with pytest.raises(ValueError, match="chunks = 0; give 1"):
        Convention(chunks=0)
    with pytest.raises(ValueError, match="pad = -1"):
        Convention(pad=-1)
    table = {"kind": "pretrained", "path": "a", "whiten": False, "convention": {"masked": False, "chunks": 3}}
    told = pretrained_source(table)
    assert told is not None and told.convention == Convention(masked=False, chunks=3)


# --- the empty prompt, case -------------------------------------------------------------------------------------------


def test_the_empty_prompt_is_zeros_where_it_should_be(clip: Path) -> None:
    plain, zeros = read(clip), read(clip, zero_empty=True)
    prompts = ["", "red", " "]
    encoded, zeroed = encode(plain, prompts), encode(zeros, prompts)
    assert encoded.vector is not None and zeroed.vector is not None
    assert tokens_of(encoded)[0].any() and not tokens_of(zeroed)[0].any() and not zeroed.vector[0].any()
    assert torch.equal(tokens_of(encoded)[1:], tokens_of(zeroed)[1:])
    assert torch.equal(tokens_of(zeroed)[2], tokens_of(encoded)[0])  # a blank is read as nothing is


def test_lower_case(clip: Path) -> None:
    lower, plain = read(clip, lower=True), read(clip)
    shouted = encode(lower, ["  RED Cat "])
    assert torch.equal(tokens_of(shouted), tokens_of(encode(plain, ["red cat"])))
    assert not torch.allclose(tokens_of(shouted), tokens_of(encode(plain, ["RED Cat"])))


# --- chunks -----------------------------------------------------------------------------------------------------------


def test_a_long_prompt_is_read_in_chunks(clip: Path) -> None:
    """Each is what the encoder makes of its words alone, marks around them; the vector is the first one's."""
    words = LONG.split()
    one, three = read(clip), read(clip, chunks=3)
    parts = [" ".join(words[i : i + 6]) for i in (0, 6, 12)]
    condition, alone = encode(three, [LONG]), encode(one, parts)
    assert condition.mask is None and condition.vector is not None and alone.vector is not None
    torch.testing.assert_close(tokens_of(condition)[0], tokens_of(alone).flatten(0, 1))
    torch.testing.assert_close(condition.vector[0], alone.vector[0])
    assert tokens_of(encode(three, ["red cat"])).shape == (1, 8, 24)
    assert one.space.shape == three.space.shape == (8, 24, 24)
    assert [cut.lost for cut in one.cuts([LONG])] == [" ".join(words[6:])]
    assert three.cuts([LONG]) == []
    assert [cut.lost for cut in three.cuts(["", LONG + " of joy a lady"])] == ["lady"]
    assert one.lengths([LONG, ""]) == [17, 2] and three.lengths([LONG, ""]) == [21, 2]


def test_no_prompt_depends_on_those_beside_it(clip: Path) -> None:
    """A shorter one has a mask that hides what it lacks; what it has is what it has alone."""
    encoder = read(clip, chunks=3)
    beside = encode(encoder, ["red cat", LONG, "", "red " * 7])
    assert beside.mask is not None
    assert beside.mask.sum(1).tolist() == [8, 24, 8, 16]
    for row, prompt in enumerate(["red cat", LONG, "", "red " * 7]):
        encoder._kept.clear()
        own = encode(encoder, [prompt])
        assert own.mask is None
        torch.testing.assert_close(tokens_of(beside)[row, beside.mask[row]], tokens_of(own)[0])
        assert not tokens_of(beside)[row, ~beside.mask[row]].any()
    assert encode(encoder, [LONG, LONG]).mask is None


def test_chunks_of_a_masked_encoder_mask_their_own_padding(clip: Path) -> None:
    encoder = read(clip, chunks=2, masked=True)
    condition = encode(encoder, ["red " * 7, "cat"])
    assert condition.mask is not None
    assert condition.mask.int().tolist() == [[1] * 8 + [1] * 3 + [0] * 5, [1] * 3 + [0] * 13]


# --- emphasis ---------------------------------------------------------------------------------------------------------


def test_emphasis_weighs_the_words_that_it_is_on(clip: Path) -> None:
    plain, weighing = read(clip), read(clip, emphasis=True)
    words = tokens_of(encode(plain, ["a red cat of joy"]))
    weights = torch.ones(1, 8)
    weights[0, 2:4] = 1.3
    weights[0, 5] = 1 / 1.1
    prompt = "a (red cat:1.3) of [joy]"
    torch.testing.assert_close(tokens_of(encode(weighing, [prompt])), emphasise(words, weights))
    bare = read(clip, emphasis=True, restore=False)
    torch.testing.assert_close(tokens_of(encode(bare, [prompt])), emphasise(words, weights, restore=False))
    assert torch.equal(tokens_of(encode(weighing, ["a red cat of joy"])), words)
    vectors = encode(weighing, [prompt]).vector, encode(plain, ["a red cat of joy"]).vector
    assert vectors[0] is not None and torch.equal(vectors[0], vectors[1])
    literal, brackets = tokens_of(encode(plain, ["a (red) cat"])), tokens_of(encode(weighing, [r"a \(red\) cat"]))
    assert torch.equal(literal, brackets)
    assert not torch.allclose(literal, tokens_of(encode(plain, ["a red cat"])))


def test_emphasis_over_the_edge_of_a_chunk_and_what_is_cut(clip: Path) -> None:
    words = LONG.split()
    prompt = " ".join([*words[:5], "(" + words[5], words[6] + ":2)", *words[7:]])
    plain, weighing = read(clip, chunks=2), read(clip, chunks=2, emphasis=True, restore=False)
    before, after = (tokens_of(encode(*pair)) for pair in ((plain, [LONG]), (weighing, [prompt])))
    weights = torch.ones(1, 16)
    weights[0, 6] = weights[0, 9] = 2
    torch.testing.assert_close(after, before * weights[:, :, None])
    lost = " ".join(words[12:])
    assert [cut.lost for cut in weighing.cuts([prompt, "(" + LONG + ")"])] == [lost, lost]
    assert weighing.lengths([prompt]) == plain.lengths([LONG])


# --- skipped layers ---------------------------------------------------------------------------------------------------


def test_layers_are_skipped_request_by_request(clip: Path) -> None:
    """Without loading anything again, and beside another request in one call."""
    encoder = read(clip)
    assert encoder.skips == 2
    for skip in (0, 1, 2):
        saved = encode(read(clip, skip=skip), ["red cat", ""])
        asked = encode(encoder, ["red cat", ""], Reading(skip=skip))
        assert torch.equal(tokens_of(saved), tokens_of(asked))
        assert saved.vector is not None and asked.vector is not None and torch.equal(saved.vector, asked.vector)
    ids, mask = encoder.tokenize(["red cat", "red cat", "joy"])
    with torch.no_grad():
        mixed, _ = encoder.encode(ids, mask, None, torch.tensor([1, 2, 0]))
        for row, skip in enumerate((1, 2, 0)):
            own = tokens_of(encode(encoder, ["red cat" if row < 2 else "joy"], Reading(skip=skip)))
            torch.testing.assert_close(mixed[row], own[0])
    assert read(clip, skip=1).skips == 1
    with pytest.raises(ValueError, match="skip = 3, and of this text encoder 2 layers can be skipped"):
        encode(encoder, ["red"], Reading(skip=3))
    with pytest.raises(ValueError, match="skip = -1; give 0"):
        Reading(skip=-1)


def test_a_system_reads_as_it_is_asked(clip: Path, t5: Path) -> None:
    from carrara.system import System

    def told(text: Any, reading: Reading | None) -> Tensor:
        system = object.__new__(System)
        object.__setattr__(system, "text", text)
        with torch.no_grad():
            return tokens_of(finish(system._read(["red", ""], reading)))

    encoder = read(clip)
    assert torch.equal(told(encoder, None), told(encoder, Reading()))
    assert torch.equal(told(encoder, Reading(skip=1)), tokens_of(encode(read(clip, skip=1), ["red", ""])))
    other = read(t5)
    assert torch.equal(told(other, None), told(other, Reading()))
    for text in (other, Labels(("red",))):
        with pytest.raises(ValueError, match="skip = 1, and of this system's text encoder 0 layers can be skipped"):
            told(text, Reading(skip=1))


# --- several as one ---------------------------------------------------------------------------------------------------


def test_tokens_beside_and_behind_each_other(clip: Path, t5: Path) -> None:
    a, b, c = read(clip), read(clip, skip=1), read(t5, length=6)
    prompts = ["red cat", "", LONG]
    joined = Joined((a, b, c), ((0, 1), (2,)), (1, 0))
    ours, theirs = encode(joined, prompts), [encode(part, prompts) for part in (a, b, c)]
    assert joined.space.shape == (14, 48, 48) == (*tokens_of(ours).shape[1:], 48)
    tokens = tokens_of(ours)
    assert torch.equal(tokens[:, :8, :24], tokens_of(theirs[0])) and torch.equal(
        tokens[:, :8, 24:], tokens_of(theirs[1])
    )
    assert torch.equal(tokens[:, 8:, :24], tokens_of(theirs[2])) and not tokens[:, 8:, 24:].any()
    assert ours.mask is None and ours.vector is not None
    assert torch.equal(ours.vector[:, :24], theirs[1].vector) and torch.equal(ours.vector[:, 24:], theirs[0].vector)
    assert joined.skips == 1
    skipped = tokens_of(encode(joined, prompts, Reading(skip=1)))
    assert torch.equal(skipped[:, :8, :24], tokens_of(theirs[1]))
    assert torch.equal(skipped[:, 8:], tokens[:, 8:])
    assert joined.cuts(prompts) == a.cuts(prompts)  # the end that none of them reads
    without = encode(Joined((a, c), ((0,), (1,))), prompts)
    assert without.vector is None


def test_masks_are_joined_too(clip: Path, t5: Path) -> None:
    hidden, shown, t5s = read(clip, masked=True), read(clip), read(t5, length=6)
    prompts = ["red cat", "a lady beetle with tears"]
    mask = encode(Joined((shown, t5s, hidden), ((0,), (1,), (2,))), prompts).mask
    assert mask is not None and mask[:, :14].all()
    assert torch.equal(mask[:, 14:], encode(hidden, prompts).mask)
    long = Joined((read(clip, chunks=2), read(clip), t5s), ((0, 1), (2,)))
    condition = encode(long, [LONG, "red"])
    assert condition.mask is not None
    assert condition.mask.int().tolist() == [[1] * 22, [1] * 8 + [0] * 8 + [1] * 6]
    assert not tokens_of(condition)[0, 8:16, 24:].any()  # the second reads one chunk alone


def test_an_absent_encoder_is_zeros(clip: Path) -> None:
    absent = Absent(5, 60, pooled=4)
    assert absent.space.shape == (5, 60, 4)
    joined = Joined((read(clip), absent), ((0,), (1,)), (0, 1))
    condition = encode(joined, ["red", LONG])
    assert condition.tokens is not None and condition.vector is not None
    assert condition.tokens.shape == (2, 13, 60) and not condition.tokens[:, 8:].any()
    assert condition.tokens[:, :8, :24].any() and condition.vector.shape == (2, 28)
    assert [cut.row for cut in joined.cuts(["red", LONG])] == [1]
    with pytest.raises(ValueError, match="give numbers from 1"):
        Absent(0, 4)


def test_several_are_one_component(clip: Path, t5: Path, tmp_path: Path) -> None:
    """Each with a tokenizer of its own, though all are called the same."""
    joined = Joined((read(clip), read(t5, length=6), Absent(2, 24)), ((0,), (1,), (2,)), (0,)).eval()
    save_component(tmp_path / "text", "text", joined)
    names = sorted(path.name for path in (tmp_path / "text").glob("tokenizer*"))
    assert names == ["tokenizer-2.json", "tokenizer.json"]
    again = load_component(tmp_path / "text", "text", verify=True)
    assert again.space == joined.space
    prompts = ["red cat", "", LONG]
    ours, kept = encode(joined, prompts), encode(again, prompts)
    assert torch.equal(tokens_of(ours), tokens_of(kept))
    save_component(tmp_path / "twice", "text", again)
    for name in ("tokenizer.json", "tokenizer-2.json"):
        assert (tmp_path / "twice" / name).read_bytes() == (tmp_path / "text" / name).read_bytes()
    same = Joined((read(clip), read(clip, skip=1)), ((0, 1),))
    save_component(tmp_path / "same", "text", same)
    assert [path.name for path in (tmp_path / "same").glob("tokenizer*")] == ["tokenizer.json"]
    assert same.space.fingerprint != joined.space.fingerprint


@pytest.mark.parametrize(
    "tokens, vector, says",
    [
        ((), (0, 1), "at least one group"),
        (((0,),), (), "all are to be used"),
        (((0, 2),), (1,), "each has a number from 0"),
        (((0,), ()), (1,), "none of them empty"),
        (((0, 1),), (), r"side by side, read \[6, 8\] tokens"),
        (((0,),), (1,), "encoder 1 gives no vector"),
    ],
)
def test_layouts_that_mean_nothing(clip: Path, tokens: Any, vector: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Joined((read(clip), read(clip, length=6, vector=False)), tokens, vector)
