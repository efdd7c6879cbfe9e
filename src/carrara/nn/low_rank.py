"""Low-rank updates of a frozen network (LoRA, Hu et al. 2021): each chosen layer f becomes

    f(x) + alpha / r * up(down(x))          down: as f, to r channels;   up: r channels to f's; zero at the start

The network's own modules stay as they are, names included: what is added is added to what they give back.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from carrara.nn.attention import Attention

__all__ = ["Factors", "Layers", "LowRank", "layers_of"]

Layers = Literal["attention", "convolution", "linear"]
_ATTENTION: tuple[Layers, ...] = ("attention",)


class Factors(NamedTuple):
    """What is added to a layer's weight: alpha / r * up @ down."""

    down: Tensor  # (r, in) or (r, in, k, k)
    up: Tensor  # (out, r) or (out, r, 1, 1)
    alpha: float


def layers_of(network: nn.Module, which: Collection[Layers]) -> dict[str, nn.Linear | nn.Conv2d]:
    """The network's layers by name: the linear maps of its attentions, its convolutions, its other linear maps."""
    inside = {f"{name}." for name, module in network.named_modules() if isinstance(module, Attention)}
    found: dict[str, nn.Linear | nn.Conv2d] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            kind = "convolution" if module.groups == 1 else ""
        elif isinstance(module, nn.Linear):
            kind = "attention" if any(name.startswith(prefix) for prefix in inside) else "linear"
        else:
            continue
        if kind in which:
            found[name] = module
    return found


class _Pair(nn.Module):
    """up(down(x)) for one layer, zero at the start."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int) -> None:
        super().__init__()
        if isinstance(layer, nn.Conv2d):
            how: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
            self.down: nn.Conv2d | nn.Linear = nn.Conv2d(layer.in_channels, rank, layer.kernel_size, bias=False, **how)  # type: ignore[arg-type]
            self.up: nn.Conv2d | nn.Linear = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        else:
            self.down = nn.Linear(layer.in_features, rank, bias=False)
            self.up = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.up(self.down(x))
        return added


class LowRank(nn.Module):
    """Updates of rank `rank` for the `which` layers of a network, times alpha / rank (alpha is the rank by default).

    They act from now on until `detach`; the network itself has neither these parameters nor a gradient from here on.
    Raises ValueError for a network without such layers.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        rank: int = 4,
        alpha: float | None = None,
        which: Collection[Layers] = _ATTENTION,
    ) -> None:
        super().__init__()
        layers = layers_of(network, which)
        if rank < 1:
            raise ValueError(f"rank = {rank}; expected at least 1")
        if not layers:
            raise ValueError(f"the network has no layers of kind {' or '.join(which)}; name others to be updated")
        self.rank, self.alpha = rank, float(rank if alpha is None else alpha)
        self.names = tuple(layers)
        network.requires_grad_(False)
        device = next(network.parameters()).device
        self.pairs = nn.ModuleList(_Pair(layer, rank) for layer in layers.values()).to(device)
        self._handles: list[RemovableHandle] = []
        for layer, pair in zip(layers.values(), self.pairs, strict=True):
            self._handles.append(layer.register_forward_hook(self._adding(pair)))

    def _adding(self, pair: nn.Module) -> Any:
        def hook(module: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> Tensor:
            x = given[0]
            return made + (self.alpha / self.rank * pair(x.to(self.dtype))).to(made.dtype)

        return hook

    @property
    def dtype(self) -> torch.dtype:
        """Of the updates: float32, whatever the network's is."""
        return next(self.pairs.parameters()).dtype

    def detach(self) -> None:
        """The network is what it was."""
        while self._handles:
            self._handles.pop().remove()

    @property
    def factors(self) -> Mapping[str, Factors]:
        """By the layers' names."""
        return {
            name: Factors(pair.down.weight.detach(), pair.up.weight.detach(), self.alpha)  # type: ignore[union-attr, operator]
            for name, pair in zip(self.names, self.pairs, strict=True)
        }
