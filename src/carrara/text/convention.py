"""What a prompt means to the networks that were trained with a pretrained encoder elsewhere.

                      masked   vector   padding
Stable Diffusion 1    no       no       the end mark
Stable Diffusion 2    no       no       "!"
SDXL, SD3, FLUX       no       yes      what each tokenizer says
PixArt                yes      no       T5's, in lower case
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Convention"]


@dataclass(frozen=True, kw_only=True)
class Convention:
    """How a pretrained encoder reads prompts and what it gives of them; the defaults are those of our own trainings.

    masked: padding is hidden from the encoder and from the generator; without, both attend to all tokens, and the
    Condition has no mask. pad: the id of padding, None for what the encoder's folder says. vector: the Condition has
    the vector for the whole. zero_empty: the empty prompt is all zeros; one of a blank is still read.
    chunks: how many times `length` tokens are read of a long prompt, each chunk between marks of its own and the
    vector from the first. emphasis: brackets in prompts are weights (text/emphasis.py); restore: which keep the mean.
    lower: prompts are read in lower case, without blanks around them.
    """

    masked: bool = True
    pad: int | None = None
    vector: bool = True
    zero_empty: bool = False
    chunks: int = 1
    emphasis: bool = False
    restore: bool = True
    lower: bool = False

    def __post_init__(self) -> None:
        if self.chunks < 1:
            raise ValueError(f"chunks = {self.chunks}; give 1, or how many times the length is read of a long prompt")
        if self.pad is not None and self.pad < 0:
            raise ValueError(f"pad = {self.pad}; give the id of a token, 0 or more")
