"""What a prompt becomes: for each family what its pipeline in diffusers makes of it, tokens, mask and vector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from carrara.run import finish
from carrara.store.diffusers.prompts import (
    flux_text,
    pixart_text,
    stable_diffusion_3_text,
    stable_diffusion_text,
    stable_diffusion_xl_text,
)
from carrara.store.transformers import PretrainedSource, read_text
from carrara.text import Convention, Reading
from carrara.types import Condition
from real_tokenizers import END, PROMPTS, add_clip, add_t5, needs_vocabularies

diffusers = pytest.importorskip("diffusers", reason="parity needs diffusers: pip install diffusers")

pytestmark = needs_vocabularies


def encode(text: Any, prompts: list[str], *reading: Reading) -> Condition:
    with torch.no_grad():
        made: Condition = finish(text.start(prompts, *reading))
    return made


def equal(ours: Tensor | None, theirs: Tensor) -> None:
    assert ours is not None and theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


@torch.no_grad()
def ask(pipeline: Any, prompts: list[str], negative: list[str] | None = None, **told: Any) -> Any:
    """What a pipeline makes of prompts, each a row."""
    said = {} if negative is None else {"negative_prompt": negative}
    return pipeline.encode_prompt(prompt=prompts, device=torch.device("cpu"), num_images_per_prompt=1, **said, **told)


@pytest.mark.parametrize("second", [False, True])
def test_stable_diffusion(second: bool, tmp_path: Path) -> None:
    """Its first version and its second, which pads with another token and has another activation."""
    act, pad = ("gelu", "!") if second else ("quick_gelu", END)
    encoder, tokenizer = add_clip(tmp_path, "", projected=False, act=act, pad=pad)
    pipeline = diffusers.StableDiffusionPipeline(
        vae=None, text_encoder=encoder, tokenizer=tokenizer, unet=None, scheduler=None, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    text = stable_diffusion_text(tmp_path)
    assert text.space.shape == (77, 24)
    told = {"do_classifier_free_guidance": True}
    wanted, null = ask(pipeline, PROMPTS, **told)
    condition = encode(text, PROMPTS)
    assert condition.mask is None and condition.vector is None
    equal(condition.tokens, wanted)
    equal(encode(text, [""] * len(PROMPTS)).tokens, null)
    _, negative = ask(pipeline, PROMPTS, PROMPTS[::-1], **told)
    equal(encode(text, PROMPTS[::-1]).tokens, negative)
    if not hasattr(encoder, "text_model"):  # as diffusers calls it still
        object.__setattr__(encoder, "text_model", encoder)
    for skip in (1, 2):
        wanted, _ = ask(pipeline, PROMPTS, clip_skip=skip, **told)
        equal(encode(text, PROMPTS, Reading(skip=skip)).tokens, wanted)
        equal(encode(stable_diffusion_text(tmp_path, skip=skip), PROMPTS).tokens, wanted)
    if second:  # padding is read, and which it is matters
        first = stable_diffusion_text(tmp_path, pad=49407)
        assert first.space.fingerprint != text.space.fingerprint
        tokens, other = condition.tokens, encode(first, PROMPTS).tokens
        assert tokens is not None and other is not None
        assert not torch.allclose(tokens[0, 6:], other[0, 6:], atol=1e-2)


def test_stable_diffusion_xl(tmp_path: Path) -> None:
    first, first_tokenizer = add_clip(tmp_path, "", projected=False)
    second, second_tokenizer = add_clip(tmp_path, "_2", projected=True, width=32, act="gelu", pad="!")
    parts = {"vae": None, "unet": None, "scheduler": None, "text_encoder": first, "tokenizer": first_tokenizer,
             "text_encoder_2": second, "tokenizer_2": second_tokenizer, "add_watermarker": False}  # fmt: skip
    for zeros in (True, False):
        pipeline = diffusers.StableDiffusionXLPipeline(**parts, force_zeros_for_empty_prompt=zeros)
        text = stable_diffusion_xl_text(tmp_path, zero_empty=zeros)
        assert text.space.shape == (77, 56, 32)
        tokens, null, vector, null_vector = ask(pipeline, PROMPTS)
        written = [i for i, prompt in enumerate(PROMPTS) if prompt or not zeros]
        condition = encode(text, PROMPTS)
        assert condition.mask is None and condition.tokens is not None and condition.vector is not None
        equal(condition.tokens[written], tokens[written])
        equal(condition.vector[written], vector[written])
        nothing = encode(text, [""] * len(PROMPTS))
        assert nothing.tokens is not None and nothing.vector is not None
        torch.testing.assert_close(nothing.tokens, null, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(nothing.vector, null_vector, rtol=1e-5, atol=1e-4)
        assert zeros == (not nothing.tokens.any()) == (not nothing.vector.any())
    tokens, _, vector, _ = ask(pipeline, PROMPTS, clip_skip=1)
    assert text.skips == 1
    skipped = encode(text, PROMPTS, Reading(skip=1))
    equal(skipped.tokens, tokens)
    equal(skipped.vector, vector)
    with pytest.raises(ValueError, match="skip = 2, and of these text encoders 1 layers can be skipped"):
        encode(text, PROMPTS, Reading(skip=2))


def test_the_refiner_of_sdxl(tmp_path: Path) -> None:
    encoder, tokenizer = add_clip(tmp_path, "_2", projected=True, width=32, act="gelu", pad="!")
    pipeline = diffusers.StableDiffusionXLImg2ImgPipeline(
        vae=None, unet=None, scheduler=None, text_encoder=None, tokenizer=None, text_encoder_2=encoder,
        tokenizer_2=tokenizer, add_watermarker=False, force_zeros_for_empty_prompt=False,
    )  # fmt: skip
    tokens, _, vector, _ = ask(pipeline, PROMPTS)
    condition = encode(stable_diffusion_xl_text(tmp_path, zero_empty=False), PROMPTS)
    equal(condition.tokens, tokens)
    equal(condition.vector, vector)


class Width:
    """What a pipeline without T5 asks its network for."""

    class config:
        joint_attention_dim = 64
        sample_size = 8
        patch_size = 2

    dtype = torch.float32


@pytest.mark.parametrize("t5", [True, False])
def test_stable_diffusion_3(t5: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts: dict[str, Any] = {"vae": None, "transformer": None, "scheduler": None}
    parts["text_encoder"], parts["tokenizer"] = add_clip(tmp_path, "", projected=True)
    parts["text_encoder_2"], parts["tokenizer_2"] = add_clip(
        tmp_path, "_2", projected=True, width=32, act="gelu", pad="!"
    )
    parts["text_encoder_3"], parts["tokenizer_3"] = add_t5(tmp_path, "_3", width=64) if t5 else (None, None)
    pipeline = diffusers.StableDiffusion3Pipeline(**parts)
    if not t5:
        monkeypatch.setattr(pipeline, "transformer", Width)
    tokens, null, vector, null_vector = ask(pipeline, PROMPTS, prompt_2=None, prompt_3=None, max_sequence_length=40)
    text = stable_diffusion_3_text(tmp_path, width=64, length=40)
    assert text.space.shape == (117, 64, 56)
    condition = encode(text, PROMPTS)
    assert condition.mask is None
    equal(condition.tokens, tokens)
    equal(condition.vector, vector)
    nothing = encode(text, [""] * len(PROMPTS))
    equal(nothing.tokens, null)
    equal(nothing.vector, null_vector)


def test_flux(tmp_path: Path) -> None:
    clip, clip_tokenizer = add_clip(tmp_path, "", projected=False)
    t5, t5_tokenizer = add_t5(tmp_path, "_2")
    pipeline = diffusers.FluxPipeline(
        scheduler=None, vae=None, transformer=None, text_encoder=clip, tokenizer=clip_tokenizer, text_encoder_2=t5,
        tokenizer_2=t5_tokenizer,
    )  # fmt: skip
    with torch.no_grad():
        tokens, vector, _ = pipeline.encode_prompt(PROMPTS, device=torch.device("cpu"), max_sequence_length=48)
    text = flux_text(tmp_path, length=48)
    assert text.space.shape == (48, 32, 24)
    condition = encode(text, PROMPTS)
    assert condition.mask is None
    equal(condition.tokens, tokens)
    equal(condition.vector, vector)


def test_pixart(tmp_path: Path) -> None:
    t5, tokenizer = add_t5(tmp_path, "")
    pipeline = diffusers.PixArtAlphaPipeline(
        tokenizer=tokenizer, text_encoder=t5, vae=None, transformer=None, scheduler=None
    )
    tokens, mask, null, null_mask = ask(pipeline, PROMPTS, [""] * len(PROMPTS), max_sequence_length=40)
    text = pixart_text(tmp_path, length=40)
    assert text.space.shape == (40, 32)
    for prompts, wanted, real in ((PROMPTS, tokens, mask.bool()), ([""] * len(PROMPTS), null, null_mask.bool())):
        condition = encode(text, prompts)
        assert condition.tokens is not None and condition.mask is not None and condition.vector is None
        assert torch.equal(condition.mask, real)
        equal(condition.tokens[real], wanted[real])


@pytest.mark.parametrize("family", ["clip", "t5"])
def test_ids_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    """With the published vocabularies, for any text; the padding, too."""
    clip = family == "clip"
    _, tokenizer = add_clip(tmp_path, "", projected=False, pad="!") if clip else add_t5(tmp_path, "")
    source = PretrainedSource(path=str(tmp_path / "text_encoder"), whiten=False, convention=Convention(masked=False))
    text = read_text(source)
    assert text.convention.pad == 0
    more = [
        "a\u0301 \u00e1",
        "tab\there",
        "x" * 300,
        "3.14159",
        "don't we'll they'VE",
        "\u202eabc",
        "ﷺ",
        "\u2581",
        "a  b",
    ]
    prompts = [*PROMPTS, *more]
    ids, mask = text.tokenize(prompts)
    theirs = tokenizer(prompts, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    for row, prompt in enumerate(prompts):
        assert ids[row].tolist() == theirs["input_ids"][row].tolist(), prompt
        assert mask[row].tolist() == theirs["attention_mask"][row].bool().tolist(), prompt
