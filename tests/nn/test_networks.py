"""What every network promises: independent rows, gradients everywhere, low precision, compilation, configuration."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
import torch
from torch import Tensor

from carrara.config import Configured, Kinds, Role, build, describe
from carrara.types import Condition
from nn.networks import CASES, perturb, rows_of

EACH = pytest.mark.parametrize("name", sorted(CASES))


def close(a: Tensor, b: Tensor, tolerance: float = 2e-6) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance * float(b.abs().max().clamp(min=1.0)))


@EACH
def test_rows_are_independent(name: str) -> None:
    make, inputs, call = CASES[name]
    network, arguments = perturb(make()), inputs(4)
    with torch.no_grad():
        together = call(network, *arguments)
        for row in range(4):
            alone = call(network, *(rows_of(argument, slice(row, row + 1)) for argument in arguments))
            for a, b in zip(alone, together, strict=True):
                close(a, b[row : row + 1])


@EACH
def test_every_parameter_has_a_gradient(name: str) -> None:
    make, inputs, call = CASES[name]
    network = perturb(make())
    loss = sum(
        (output * torch.linspace(-1, 2, output.numel()).view_as(output)).square().mean()
        for output in call(network, *inputs(4))
    )
    assert isinstance(loss, Tensor)
    loss.backward()
    silent = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent


@EACH
def test_every_input_matters(name: str) -> None:
    """Each floating-point input, every part of a condition included, reaches the output."""
    make, inputs, call = CASES[name]
    network, arguments = perturb(make()), inputs(2)
    leaves: list[Tensor] = []

    def leaf(x: Tensor) -> Tensor:
        if x.is_floating_point():
            x = x.clone().requires_grad_()
            leaves.append(x)
        return x

    arguments = tuple(a.map(leaf) if isinstance(a, Condition) else leaf(a) for a in arguments)
    output = sum(output.square().sum() for output in call(network, *arguments))
    for gradient in torch.autograd.grad(output, leaves) if leaves else ():
        assert gradient.any()
        assert gradient.isfinite().all()


def _zeros(argument: Any) -> Any:
    return argument.map(torch.zeros_like) if isinstance(argument, Condition) else torch.zeros_like(argument)


@EACH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("empty", [False, True], ids=["noise", "zeros"])
def test_finite_in_low_precision(name: str, dtype: torch.dtype, empty: bool) -> None:
    """Cast and under autocast, on noise and on nothing at all: no NaN, and near what float32 makes."""
    make, inputs, call = CASES[name]
    network, arguments = perturb(make()), inputs(2)
    if empty:
        arguments = tuple(map(_zeros, arguments))
    with torch.no_grad():
        exact = call(network, *arguments)
        with torch.autocast("cpu", dtype):
            mixed = call(network, *arguments)
        cast = call(network.to(dtype), *arguments)
    for a, b, c in zip(exact, mixed, cast, strict=True):
        for low in (b, c):
            assert low.isfinite().all()
            assert float((low.float() - a).norm() / (1 + a.norm())) < 0.1


@pytest.mark.parametrize("name", ["autoencoder rms", "dit told", "text", "unet"])
def test_compiles_without_a_break(name: str) -> None:
    make, inputs, call = CASES[name]
    network, arguments = perturb(make()), inputs(2)
    compiled = torch.compile(call, fullgraph=True, backend="eager")
    with torch.no_grad():
        for a, b in zip(compiled(network, *arguments), call(network, *arguments), strict=True):
            close(a, b)


@EACH
def test_channels_last_makes_no_difference(name: str) -> None:
    make, inputs, call = CASES[name]
    network, arguments = perturb(make()), inputs(2)
    with torch.no_grad():
        expected = call(network, *arguments)
        network = network.to(memory_format=torch.channels_last)
        turned = tuple(
            a.contiguous(memory_format=torch.channels_last) if isinstance(a, Tensor) and a.ndim == 4 else a
            for a in arguments
        )
        for a, b in zip(call(network, *turned), expected, strict=True):
            close(a, b, 1e-5)


@EACH
def test_configuration_rebuilds_it(name: str) -> None:
    """`config` holds every argument, and a network made from it takes the weights."""
    network = CASES[name].build()
    assert isinstance(network, Configured)
    again = type(network)(**network.config)
    again.load_state_dict(network.state_dict())
    assert again.config == network.config


def test_files_say_every_network() -> None:
    """A table of a file and a network are one another's description, the level's embedding by its own kind."""
    networks = {
        kind.lower(): f"carrara.nn.{module}:{kind}"
        for kind, module in {
            "UNet": "unet",
            "DiT": "dit",
            "Flux": "flux",
            "MMDiT": "mmdit",
            "PixArt": "pixart",
            "KLAutoencoder": "autoencoder",
            "TextTransformer": "transformer",
            "ImageAutoencoder": "image_autoencoder",
            "ImageEncoder": "image_encoder",
            "UNetAdapter": "unet_adapter",
        }.items()
    }
    embeddings = {kind.lower(): f"carrara.nn.embed:{kind}" for kind in ("Sinusoidal", "Fourier")}
    kinds = Kinds({"network": networks, "embedding": embeddings}, {"carrara.nn.embed:Embedding": "embedding"})
    for case in CASES.values():
        network = case.build()
        table = describe(network, kinds)
        again = build(Annotated[torch.nn.Module, Role("network")], table, kinds)
        assert type(again) is type(network)
        assert again.config == network.config
