"""A control: a component that was trained for one frozen generator, and makes it obey a picture.

It is stored apart from the generator, names that one's fingerprint, and is refused by every other. With it, a generator
is a generator as before that has one input more; without that input it is what it was, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from torch import nn

from carrara.conditions.base import Input
from carrara.config import Configured, Role
from carrara.diffusion.denoiser import Denoiser
from carrara.diffusion.generator import DiffusionGenerator
from carrara.errors import RecipeError
from carrara.fingerprint import fingerprint
from carrara.nn.control import Controlled
from carrara.types import Space

__all__ = ["Control", "controlled"]


class Control(Configured, nn.Module):
    """A control network and what it is told: `condition`, an input that is a picture.

    `generator` is the fingerprint of the generator that it is for, and `space` that one's.
    """

    def __init__(
        self,
        network: Annotated[nn.Module, Role("control_network")],
        condition: Annotated[nn.Module, Role("input")],
        space: Space,
        *,
        generator: str,
    ) -> None:
        super().__init__()
        if not isinstance(condition, Input) or condition.part != "controls":
            raise ValueError("a control is told a picture; an embedding is an input of a generator of its own")
        self.network, self.condition, self.space, self.generator = network, condition, space, generator
        condition.optional = True  # without its picture it adds nothing


def controlled(generator: object, controls: Sequence[Control]) -> DiffusionGenerator:
    """The generator with controls, whose inputs join its own; it shares their weights and the generator's.

    Raises RecipeError for a control that is for another generator, for a generator that cannot be controlled, and for
    two inputs of one name.
    """
    if not isinstance(generator, DiffusionGenerator):
        raise RecipeError(f"a control is for a diffusion generator, and this one is a {type(generator).__name__}")
    mine = fingerprint(generator.state_dict())
    for control in controls:
        if control.generator != mine:
            raise RecipeError(
                f'the control "{control.condition.name}" was trained for the generator with fingerprint '
                f"{control.generator}, and this one has {mine}; give the generator that it was trained for, or train a "
                "control for this one"
            )
    inputs = (*generator.conditions, *(control.condition for control in controls))
    names = [given.name for given in inputs]
    if twice := sorted({str(name) for name in names if names.count(name) > 1}):
        raise RecipeError(
            f"two inputs are named {twice[0]}; leave one of the controls out, or train it under another name"
        )
    before = generator.denoiser
    denoiser = Denoiser(
        Controlled(before.network, {str(control.condition.name): control.network for control in controls}),
        before.process,
        before.parameterization,
        before.level,
        learned_variance=before.learned_variance,
    )
    made = DiffusionGenerator(
        denoiser, generator.space, reads=generator.reads, settings=generator.settings, conditions=inputs
    )
    return made.train(generator.training)
