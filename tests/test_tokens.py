"""The token decoder: pictures to tokens and back, its space, and systems in which it stands."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from carrara.autoregressive import AutoregressiveGenerator, AutoregressiveSettings
from carrara.decoder import Decoding, Tiling, Tokens
from carrara.errors import RecipeError
from carrara.nn import FSQ, CausalTransformer, ImageEncoder, KLAutoencoder, TextTransformer, VectorQuantizer
from carrara.nn.quantize import Quantizer, Seen
from carrara.rng import Rng
from carrara.run import finish
from carrara.store import load_component, save_component
from carrara.system import System
from carrara.text import ContrastiveText, Labels, Unconditional, train_tokenizer
from carrara.types import Condition


def data(rows: int, seed: int = 0, side: int = 16) -> Tensor:
    return torch.rand(rows, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def make(quantizer: Quantizer | None = None, *, seed: int = 0, size: int | tuple[int, int] = 16) -> Tokens:
    """A decoder whose codes lie among the encodings of data."""
    torch.manual_seed(seed)
    quantizer = quantizer or VectorQuantizer(vocabulary=16, channels=4)
    autoencoder = KLAutoencoder(
        latent=quantizer.channels, down=4, widths=(8, 16), encoder_blocks=(0, 1), decoder_blocks=(0, 1)
    )
    tokens = Tokens(autoencoder, quantizer, size=size).eval()
    with torch.no_grad():
        z = tokens.read(data(32))
        quantizer.learn(Seen.all([quantizer.observe(z, quantizer(z).indices, Rng.samples(0, range(32)))]))
    return tokens


@pytest.mark.parametrize("quantizer", [None, FSQ(levels=(4, 3, 2))], ids=["vq", "fsq"])
@torch.no_grad()
def test_pictures_to_tokens_and_back(quantizer: Quantizer | None) -> None:
    tokens, x = make(quantizer), data(3, seed=1)
    z = tokens.encode(x)
    assert z.shape == (3, 4, 4) and z.dtype == torch.int64
    assert z.min() >= 0 and z.max() < tokens.quantizer.vocabulary == tokens.space.vocabulary
    assert torch.equal(z, tokens.encode(x, Rng.seeds([1, 2, 3])))  # nothing is drawn
    assert len(z.unique()) > 4
    decoded, encoding, codes = tokens.reconstruct(x)
    assert torch.equal(codes.indices, z) and encoding.shape == codes.z.shape
    torch.testing.assert_close(tokens.decode(z), decoded.clamp(-1, 1), rtol=0, atol=1e-5)
    assert torch.equal(finish(tokens.start(z, Condition(), Condition(), Rng.seeds([0, 1, 2]))), tokens.decode(z))
    assert torch.equal(tokens.preview(z), tokens.decode(z))
    parts = finish(tokens.start(z, Condition(), Condition(), Rng.seeds([0, 1, 2]), Decoding(Tiling(8, 0))))
    torch.testing.assert_close(parts, tokens.decode(z), rtol=0, atol=1e-5)


@pytest.mark.parametrize("down, widths", [(4, (8, 8)), (8, (8, 8, 8)), (16, (8, 8, 8, 8))])
@torch.no_grad()
def test_a_token_stands_for_any_part_of_a_picture(down: int, widths: tuple[int, ...]) -> None:
    blocks = (0,) * len(widths)
    autoencoder = KLAutoencoder(latent=2, down=down, widths=widths, encoder_blocks=blocks, decoder_blocks=blocks)
    tokens = Tokens(autoencoder, FSQ(levels=(3, 3)), size=(16, 32)).eval()
    assert tokens.space.shape == (16 // down, 32 // down)
    z = tokens.encode(data(2)[..., :16, :16].repeat(1, 1, 1, 2))
    assert z.shape[1:] == tokens.space.shape
    assert tokens.decode(z).shape == (2, *tokens.pictures.shape) == (2, 3, 16, 32)


def test_the_fingerprint_is_that_of_the_encoding_half() -> None:
    tokens = make()
    before = tokens.space
    assert before.kind == "tokens" and before.shape == (4, 4)
    with torch.no_grad():
        tokens.autoencoder.decoder[-1].bias.add_(1)  # type: ignore[index,union-attr]
        tokens.quantizer.usage.add_(1)
    assert tokens.space == before
    with torch.no_grad():
        tokens.quantizer.codebook[0].add_(1)  # type: ignore[operator]
    assert tokens.space != before
    assert make(seed=1).space.fingerprint != before.fingerprint


def test_the_log_variance_is_not_trained() -> None:
    names = {name for name, parameter in make().named_parameters() if not parameter.requires_grad}
    assert names == {"autoencoder.encoder.5.logvar.weight", "autoencoder.encoder.5.logvar.bias"}


def test_use_of_the_vocabulary_is_counted() -> None:
    tokens = make()
    use = tokens.measure([data(8), data(8, seed=3)])
    z = torch.cat([tokens.encode(data(8)), tokens.encode(data(8, seed=3))])
    assert use.used == len(z.unique()) / 16
    share = torch.bincount(z.flatten(), minlength=16) / z.numel()
    assert use.perplexity == pytest.approx(torch.special.entr(share.double()).sum().exp().item())
    with pytest.raises(ValueError, match="no pictures"):
        tokens.measure([])


@pytest.mark.parametrize("quantizer", [None, FSQ(levels=(4, 3, 2))], ids=["vq", "fsq"])
def test_saved_and_loaded(quantizer: Quantizer | None, tmp_path: Path) -> None:
    tokens = make(quantizer)
    save_component(tmp_path, "decoder", tokens)
    loaded = load_component(tmp_path, "decoder", verify=True)
    assert loaded.space == tokens.space
    assert torch.equal(loaded.encode(data(2)), tokens.encode(data(2)))
    assert torch.equal(loaded.quantizer.usage, tokens.quantizer.usage)


def test_what_does_not_fit_is_refused() -> None:
    autoencoder = KLAutoencoder(latent=4)
    with pytest.raises(ValueError, match="4 channels and the quantizer reads 3"):
        Tokens(autoencoder, FSQ(levels=(8, 8, 8)), size=64)
    with pytest.raises(ValueError, match="60 x 64 do not divide into tokens by 8"):
        Tokens(autoencoder, VectorQuantizer(channels=4), size=(60, 64))
    tokens = make()
    with pytest.raises(ValueError, match="from 0 to 16 were given, and they are numbers from 0 to 15"):
        tokens.decode(torch.tensor([[[0, 16]]]))
    with pytest.raises(ValueError, match="expected tokens"):
        tokens.decode(torch.zeros(1, 4, 4))


# In a system


def words() -> ContrastiveText:
    tokenizer = train_tokenizer(["red apple", "cat face"], vocabulary=300)
    network = TextTransformer(vocabulary=300, width=16, depth=1, heads=2, length=10, pooled=8)
    return ContrastiveText(tokenizer, network, ImageEncoder(width=8, widths=(8, 16), blocks=(1, 1))).eval()


def system(text: object = None) -> System:
    decoder = make()
    text = text or words()
    widths = {"context": 16, "vector": 8} if isinstance(text, ContrastiveText) else {}
    widths = {"vector": 3} if isinstance(text, Labels) else widths
    network = CausalTransformer(vocabulary=16, size=4, width=16, depth=1, heads=2, **widths)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    settings = AutoregressiveSettings(guidance=2.0, temperature=0.9)
    generator = AutoregressiveGenerator(network, decoder.space, reads=text.space, settings=settings)  # type: ignore[attr-defined]
    return System(text, generator.eval(), decoder)  # type: ignore[arg-type]


def pictures(made: System, prompts: list[str], seeds: list[int], **more: object) -> Tensor:
    *_, last = made.generate(prompts, seeds=seeds, **more)  # type: ignore[arg-type]
    return last.images


def test_a_system_of_tokens() -> None:
    """Frames are rows of tokens and then the pictures; each picture is what its seed gives alone."""
    made = system()
    frames = list(made.generate(["red apple", "cat face"], seeds=[0, 1]))
    assert [frame.final for frame in frames] == [False] * 4 + [True]
    assert all(frame.images.shape == (2, 3, 16, 16) for frame in frames)
    assert torch.equal(frames[-2].images, frames[-1].images)
    assert torch.equal(frames[-1].images[1], pictures(made, ["cat face"], [1])[0])
    with pytest.raises(ValueError, match="leave the size out"):
        pictures(made, ["cat"], [0], size=(32, 32))
    with pytest.raises(ValueError, match="no part of this system reads any"):
        pictures(made, ["cat"], [0], inputs={"image": data(1)})


def test_parts_of_another_vocabulary_or_training_are_refused() -> None:
    made = system(Unconditional())
    with pytest.raises(RecipeError, match="a vocabulary of 16 and this decoder has one of 24"):
        System(made.text, made.generator, make(FSQ(levels=(4, 3, 2))))
    with pytest.raises(RecipeError, match="other weights"):
        System(made.text, made.generator, make(seed=1))


# Candidates


def test_the_best_of_several_candidates_is_kept() -> None:
    """Each picture is one of its candidates, and of them the one that the text encoder matches to the prompt best."""
    made = system()
    prompts, seeds, count = ["red apple", "cat face", "cat"], [4, 2, 9], 6
    kept = pictures(made, prompts, seeds, candidates=count)
    assert kept.shape == (3, 3, 16, 16)
    assert isinstance(made.text, ContrastiveText)
    with torch.no_grad():
        likeness = (made.text.picture_features(kept) * made.text.text_features(prompts)).sum(1)
        plain = pictures(made, prompts, seeds)
        first = (made.text.picture_features(plain) * made.text.text_features(prompts)).sum(1)
    assert (likeness >= first - 1e-6).all() and (likeness > first + 1e-6).any()
    for i in range(3):  # on its own, and among more of them
        alone = pictures(made, [prompts[i]], [seeds[i]], candidates=count)
        torch.testing.assert_close(alone[0], kept[i], rtol=0, atol=2e-5)
    with torch.no_grad():
        more = pictures(made, prompts, seeds, candidates=12)
        again = (made.text.picture_features(more) * made.text.text_features(prompts)).sum(1)
    assert (again >= likeness - 1e-6).all()  # twelve hold the six
    assert torch.equal(pictures(made, prompts, seeds, candidates=1), plain)


def test_steps_show_the_first_candidates() -> None:
    made = system()
    steps = [frame.images for frame in made.generate(["cat", "red"], seeds=[0, 1], candidates=3)]
    plain = [frame.images for frame in made.generate(["cat", "red"], seeds=[0, 1])]
    assert len(steps) == len(plain)
    for mine, alone in zip(steps[:-1], plain[:-1], strict=True):
        torch.testing.assert_close(mine, alone, rtol=0, atol=2e-5)


def test_candidates_need_something_to_tell_them_apart() -> None:
    made = system()
    with pytest.raises(ValueError, match="give every picture a prompt"):
        pictures(made, ["cat", ""], [0, 1], candidates=2)
    with pytest.raises(ValueError, match="candidates = 0"):
        pictures(made, ["cat"], [0], candidates=0)
    for text, prompt in ((Labels(("a", "b")), "a"), (Unconditional(), "")):
        with pytest.raises(ValueError, match="has not learnt from pictures"):
            pictures(system(text), [prompt], [0], candidates=2)
