"""The three parts as one request: seeds, batches, previews, sizes, and parts that do not fit."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from carrara.decoder import Latents, Pixels
from carrara.diffusion import (
    ClassifierFree,
    Denoiser,
    DiffusionGenerator,
    Editing,
    Flow,
    Linear,
    Process,
    SamplingSettings,
    ScaledTime,
    dpmpp_2m,
    heun,
    uniform,
)
from carrara.errors import CarraraError, NonFiniteError, RecipeError, StorageError
from carrara.nn import DiT, ImageEncoder, KLAutoencoder, TextTransformer, UNet
from carrara.store import assemble, load, load_component, save_component
from carrara.system import Frame, System
from carrara.text import ContrastiveText, Unconditional, train_tokenizer

# Rows of a float32 network call at another batch size differ by a few units in the last place of a sum; over the steps
# of a sampling with untrained networks this stays below the following, of values up to 1.
TOLERANCE = 2e-5


def make(seed: int = 0) -> System:
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(["red apple", "cat face"], vocabulary=300)
    words = TextTransformer(vocabulary=300, width=32, depth=1, heads=2, length=10, pooled=16)
    text = ContrastiveText(tokenizer, words, ImageEncoder(width=16, widths=(16, 32), blocks=(1, 1)))
    decoder = Latents(KLAutoencoder(latent=4, widths=(8, 16, 16), decoder_blocks=(0, 1, 1)), size=32)
    decoder.measure([torch.rand(4, 3, 32, 32) * 2 - 1])
    network = DiT(in_channels=4, out_channels=4, size=4, patch=2, width=32, depth=2, heads=2, context=32, vector=16)
    for parameter in network.parameters():  # zero-initialised outputs would make every picture alike
        torch.nn.init.normal_(parameter, std=0.05)
    settings = SamplingSettings(heun, partial(uniform, steps=4), ClassifierFree(2.0))
    denoiser = Denoiser(network, Process(Linear()), Flow(), ScaledTime())
    generator = DiffusionGenerator(denoiser, decoder.space, reads=text.space, settings=settings)
    return System(text.eval(), generator.eval(), decoder.eval())


@pytest.fixture(scope="module")
def system() -> System:
    return make()


def pictures(system: System, prompts: list[str], seeds: list[int], **more: object) -> torch.Tensor:
    with torch.no_grad():
        *_, last = system.generate(prompts, seeds=seeds, **more)  # type: ignore[arg-type]
    assert last.final
    return last.images


def test_every_image_of_a_batch_equals_itself_alone(system: System) -> None:
    prompts = ["red apple", "cat face", "", "an apple that is red", "cat", "red", "face", "apple face"]
    together = pictures(system, prompts, list(range(8)))
    for i, prompt in enumerate(prompts):
        torch.testing.assert_close(together[i], pictures(system, [prompt], [i])[0], rtol=0, atol=TOLERANCE)


def test_seed_zero_is_a_seed_and_two_seeds_differ(system: System) -> None:
    a, b = pictures(system, ["cat"], [0]), pictures(system, ["cat"], [1])
    assert torch.equal(a, pictures(system, ["cat"], [0]))
    assert (a - b).abs().max() > 1e-3
    state = torch.random.get_rng_state()
    pictures(system, ["cat"], [0])
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_picture_is_its_seeds_wherever_it_stands(system: System) -> None:
    """Seeds in any order, some of them twice: what comes out is what each gives alone."""
    together = pictures(system, ["cat"], [7, 0, 3, 7])
    torch.testing.assert_close(together[0], together[3], rtol=0, atol=TOLERANCE)
    for picture, seed in zip(together, [7, 0, 3], strict=False):
        torch.testing.assert_close(picture, pictures(system, ["cat"], [seed])[0], rtol=0, atol=TOLERANCE)


def test_frames_are_the_finished_steps_then_the_pictures(system: System) -> None:
    with torch.no_grad():
        frames = list(system.generate(["cat"], seeds=[3, 4]))
        assert [frame.final for frame in frames] == [False] * 4 + [True]
        assert [frame.step for frame in frames] == [1, 2, 3, 4, 4]
        assert all(frame.trace is not None for frame in frames[:-1])
        assert frames[0].images.shape == frames[-1].images.shape == (2, 3, 32, 32)
        # the last estimate is what the last stride goes to
        torch.testing.assert_close(frames[-2].images, frames[-1].images, rtol=0, atol=TOLERANCE)


def test_a_request_can_be_stopped(system: System) -> None:
    frames = system.generate(["cat"], seeds=[0])
    next(frames)
    frames.close()  # type: ignore[attr-defined]
    with pytest.raises(StopIteration):
        next(frames)


def test_settings_sizes_and_negative_prompts(system: System) -> None:
    other = SamplingSettings(dpmpp_2m, partial(uniform, steps=3), ClassifierFree(1.0))
    assert pictures(system, ["cat"], [0], settings=other).shape == (1, 3, 32, 32)
    assert pictures(system, ["cat"], [0], size=(48, 64)).shape == (1, 3, 48, 64)
    plain = pictures(system, ["cat"], [0])
    assert (plain - pictures(system, ["cat"], [0], negative=["red apple"])).abs().max() > 1e-4
    torch.testing.assert_close(plain, pictures(system, ["cat"], [0], negative=[""]))
    with pytest.raises(ValueError, match="multiples of 8"):
        pictures(system, ["cat"], [0], size=(30, 30))
    with pytest.raises(ValueError, match="seeds"):
        pictures(system, ["cat", "dog"], [0])
    with pytest.raises(ValueError, match="this system reads image and mask"):
        pictures(system, ["cat"], [0], inputs={"depth": torch.zeros(1, 1, 32, 32)})
    with pytest.raises(ValueError, match="list of prompts"):
        pictures(system, "cat", [0])  # type: ignore[arg-type]


def editing(system: System, strength: float | None = None, resamplings: int = 2) -> SamplingSettings:
    settings = system.generator.settings  # type: ignore[attr-defined]
    return dataclasses.replace(settings, editing=Editing(strength, resamplings=resamplings))


def test_a_picture_to_begin_from(system: System) -> None:
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    given = {"image": image}
    plain = pictures(system, ["cat"], [0, 1])
    assert torch.equal(pictures(system, ["cat"], [0, 1], inputs=given, settings=editing(system, 1.0)), plain)
    same = pictures(system, ["cat"], [0, 1], inputs=given, settings=editing(system, 0.0))
    with torch.no_grad():
        torch.testing.assert_close(same, system.decoder.decode(system.decoder.encode(image)))  # type: ignore[attr-defined]
    half = pictures(system, ["cat"], [0, 1], inputs=given, settings=editing(system, 0.5))
    assert (half - plain).abs().max() > 1e-3 < (half - same).abs().max()
    assert (half - pictures(system, ["cat"], [0, 1], inputs=given)).abs().max() > 1e-3  # the default is 0.6: 3 of 4
    for i in range(2):
        one = {"image": image[i : i + 1]}
        alone = pictures(system, ["cat"], [i], inputs=one, settings=editing(system, 0.5))
        torch.testing.assert_close(half[i], alone[0], rtol=0, atol=TOLERANCE)
    wide = {"image": torch.zeros(1, 3, 48, 64)}
    assert pictures(system, ["cat"], [0, 1], inputs=wide).shape == (2, 3, 48, 64)  # one picture serves all seeds
    assert len(list(system.generate(["cat"], seeds=[0], inputs=wide))) == 3 + 1


def test_a_mask_keeps_the_picture(system: System) -> None:
    image, mask = torch.rand(2, 3, 32, 32) * 2 - 1, torch.zeros(1, 1, 32, 32)
    mask[..., 5:20, 9:30] = 1
    mask[..., 20, :] = 0.5
    for size in ((32, 32), (32, 48)):
        given = {"image": torch.nn.functional.interpolate(image, size), "mask": torch.zeros(1, 1, *size)}
        given["mask"][..., :32, :32] = mask
        found = pictures(system, ["cat", "red"], [0, 1], inputs=given, settings=editing(system))
        kept = (given["mask"] == 0).expand_as(found)
        assert torch.equal(found[kept], given["image"][kept])
        assert (found - given["image"])[..., 5:20, 9:30].abs().mean() > 0.01
    frames = list(system.generate(["cat"], seeds=[0, 1], inputs=given, settings=editing(system)))
    assert [frame.final for frame in frames] == [False] * (4 + 3) + [True]  # three strides once more
    none = {"image": image, "mask": torch.zeros(1, 1, 32, 32)}
    assert torch.equal(pictures(system, ["cat"], [0, 1], inputs=none), image)


def test_pixels_are_edited_too() -> None:
    torch.manual_seed(0)
    network = UNet(in_channels=1, out_channels=1, channels=8, multipliers=(1, 2), blocks=1, attention=(), groups=4)
    decoder = Pixels(channels=1, size=8)
    generator = DiffusionGenerator(Denoiser(network, Process(Linear()), Flow(), ScaledTime()), decoder.space)
    system = System(Unconditional(), generator.eval(), decoder)
    image, mask = torch.rand(1, 1, 8, 8) * 2 - 1, (torch.rand(1, 1, 8, 8) > 0.5).float()
    settings = SamplingSettings(heun, partial(uniform, steps=4))
    found = pictures(system, [""], [0, 1], inputs={"image": image, "mask": mask}, settings=settings)
    kept = (mask == 0).expand(2, 1, 8, 8)
    assert torch.equal(found[kept], image.expand(2, 1, 8, 8)[kept])
    assert (found[0] - found[1]).abs().max() > 0.1
    nothing = SamplingSettings(heun, partial(uniform, steps=4), editing=Editing(0.0))
    assert torch.equal(pictures(system, [""], [0], inputs={"image": image}, settings=nothing), image)


IMAGE, MASK = torch.zeros(1, 3, 32, 32), torch.zeros(1, 1, 32, 32)


@pytest.mark.parametrize(
    "inputs, size, says",
    [
        ({"mask": MASK}, None, "without an image"),
        ({"image": IMAGE, "low": IMAGE}, None, "'low'.*reads image and mask"),
        ({"image": IMAGE[0]}, None, "a row a picture"),
        ({"image": IMAGE.expand(3, 3, 32, 32)}, None, "a row a picture"),
        ({"image": IMAGE[:, :1]}, None, r"expected floating-point \(2, 3, height, width\)"),
        ({"image": (IMAGE + 1).to(torch.uint8)}, None, "torch.uint8"),
        ({"image": IMAGE + 255}, None, r"values from 255 to 255; expected \[-1, 1\]"),
        ({"image": IMAGE * torch.nan}, None, "values from nan"),
        ({"image": IMAGE, "mask": MASK - 1}, None, r"expected \[0, 1\]"),
        ({"image": IMAGE, "mask": IMAGE}, None, r"the mask is.*expected floating-point \(2, 1,"),
        ({"image": IMAGE, "mask": MASK[..., :16]}, None, "mask has 32 x 16 pixels and the image 32 x 32"),
        ({"image": IMAGE}, (48, 48), "48 x 48 was asked for, and the image has 32 x 32"),
        ({"image": IMAGE[..., :30]}, None, "multiples of 8"),
    ],
)
def test_inputs_that_do_not_fit(system: System, inputs: dict[str, torch.Tensor], size: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        pictures(system, ["cat"], [0, 1], inputs=inputs, size=size)


def test_a_generator_that_begins_from_nothing_reads_no_picture(system: System) -> None:
    class Fresh(torch.nn.Module):
        space, reads = system.generator.space, None

    with pytest.raises(ValueError, match="no part of this system reads any"):
        pictures(System(system.text, Fresh(), system.decoder), ["cat"], [0], inputs={"image": IMAGE})  # type: ignore[arg-type]


def test_guidance_of_one_asks_for_no_null_branch_and_changes_nothing(system: System) -> None:
    settings = system.generator.settings  # type: ignore[attr-defined]
    one = dataclasses.replace(settings, guidance=ClassifierFree(1.0))
    torch.testing.assert_close(
        pictures(system, ["cat"], [0], settings=one),
        pictures(system, ["cat"], [0], settings=one, negative=["red apple"]),
        rtol=0,
        atol=TOLERANCE,
    )


def test_parts_that_do_not_fit_are_refused(system: System) -> None:
    other = make(seed=1)
    with pytest.raises(RecipeError, match="fingerprint"):
        System(other.text, system.generator, system.decoder)
    with pytest.raises(RecipeError, match="fingerprint"):
        System(system.text, system.generator, other.decoder)
    with pytest.raises(RecipeError, match="latent"):
        System(system.text, system.generator, Pixels(channels=3, size=32))
    with pytest.raises(RecipeError, match="text encoder"):
        System(Unconditional(), system.generator, system.decoder)

    class Fewer(torch.nn.Module):
        space = system.text.space._replace(vocabulary=7)

    with pytest.raises(RecipeError, match=r"for a vocabulary of \d+ and this text encoder has one of 7;"):
        System(Fewer(), system.generator, system.decoder)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "prompts, seeds, says",
    [
        ([], [], "at least one"),
        (["red apple"], 0, "a list of whole numbers"),
        (["red apple"], [1.5], "a list of whole numbers"),
        (["red apple"], [-1], "0 or more"),
        ([None], [0], "a list of texts"),
        ("red apple", [0], "a list of prompts"),
        (["red apple", "cat"], [0], "one of each a picture"),
    ],
)
def test_requests_that_make_no_sense(system: System, prompts: object, seeds: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        list(system.generate(prompts, seeds=seeds))  # type: ignore[arg-type]


def test_a_frame_that_is_not_finite_is_never_a_picture(tmp_path: Path) -> None:
    frame = Frame(1, True, (0,), 8, None, lambda: torch.full((1, 3, 4, 4), torch.nan))
    with pytest.raises(NonFiniteError):
        frame.save(tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("depth", [8, 16])
def test_frames_keep_the_depth(tmp_path: Path, depth: int) -> None:
    from carrara.data.formats import decode

    ramp = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
    frame = Frame(1, True, (0,), depth, None, lambda: ramp)
    frame.save(tmp_path / "x.png")
    read = decode((tmp_path / "x.png").read_bytes()).pixels
    assert read.dtype == (np.uint8 if depth == 8 else np.uint16)
    assert np.array_equal(read, frame.pixels()[0])


def folders(system: System, root: Path) -> dict[str, Path]:
    for role in ("text", "generator", "decoder"):
        save_component(root / role, role, getattr(system, role))
    return {role: root / role for role in ("text", "generator", "decoder")}


def test_a_system_survives_the_disk_bit_by_bit(system: System, tmp_path: Path) -> None:
    assemble(tmp_path / "model", **folders(system, tmp_path))
    again = load(tmp_path / "model")
    assert torch.equal(pictures(system, ["red apple"], [5]), pictures(again, ["red apple"], [5]))
    assemble(tmp_path / "model", **folders(system, tmp_path))  # a model folder may be made anew
    assert again.generator.space == system.generator.space


def test_damaged_folders_are_refused_with_a_sentence(system: System, tmp_path: Path) -> None:
    parts = folders(system, tmp_path)
    weights = parts["decoder"] / "weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    with pytest.raises(StorageError, match="bytes"):
        load_component(parts["decoder"], "decoder")
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(StorageError, match="damaged"):
        load_component(parts["decoder"], "decoder", verify=True)
    weights.write_bytes(whole)
    with pytest.raises(RecipeError, match="is a decoder; expected a text"):
        load_component(parts["decoder"], "text")
    description = parts["decoder"] / "component.json"
    text = description.read_text()
    for changed, match in (
        (text.replace('"kl"', '"klx"'), "klx"),
        (text.replace('"weights.safetensors": {', '"../weights.safetensors": {', 1), "plain file names|lacks"),
        (text.replace('"format_version": 1', '"format_version": 9'), "update Carrara"),
        (text[: len(text) // 2], "not JSON"),
        (text.replace('"size"', '"sise"'), "sise"),
    ):
        assert changed != text
        description.write_text(changed)
        with pytest.raises(CarraraError, match=match):
            load_component(parts["decoder"], "decoder")
    description.write_text(text)
    with pytest.raises(StorageError, match=r"no model\.json"):
        load(tmp_path)
    with pytest.raises(RecipeError, match="assemble"):
        load(parts["decoder"])
