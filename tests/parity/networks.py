"""Networks of another implementation, made at test time with random weights, and ours read from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import ModuleType
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn

from carrara.config import Role, build
from carrara.store.diffusers.tensors import imported
from carrara.store.kinds import kinds
from carrara.types import Condition


class Family(NamedTuple):
    """One class there: its module here, its name, configurations from tiny to full-size, and how it is asked."""

    module: ModuleType
    name: str
    tiny: dict[str, dict[str, Any]]
    full: dict[str, dict[str, Any]]
    condition: Callable[[dict[str, Any], int], Condition]
    ask: Callable[[nn.Module, Tensor, Tensor, Condition], Tensor]


class Held:
    """The tensors of a module, as a file would hold them."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.title, self.tensors = "the model", tensors

    @property
    def names(self) -> list[str]:
        return list(self.tensors)

    def read(self, name: str) -> Tensor:
        return self.tensors[name]


def there(name: str, config: dict[str, Any], seed: int = 0) -> Any:
    """The class of that name, with weights that hide nothing: gains are not one, and no bias is zero."""
    import diffusers

    torch.manual_seed(seed)
    model = getattr(diffusers, name)(**config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def stated(model: Any) -> dict[str, Any]:
    """Its config.json, as it would be read."""
    return dict(json.loads(model.to_json_string()))


def here(table: dict[str, Any]) -> nn.Module:
    """Our network of a table."""
    return build(Annotated[nn.Module, Role("network")], json.loads(json.dumps(table)), kinds()).eval()


def read(family: Family, model: Any) -> nn.Module:
    """Our network with the other's weights."""
    table = family.module.network(stated(model))
    network = here(table)
    tensors = imported(family.module.table(table), Held(model.state_dict()), network.state_dict())
    network.load_state_dict(tensors)
    return network
