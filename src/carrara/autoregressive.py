r"""Autoregressive generation, DALL-E's way (Ramesh et al. 2021): a decoder's tokens, one after another.

    p(z | c) = product over n of p(z_n | z_1 ... z_{n-1}, c)

The tokens z of a decoder (h, w) are read in raster order. A network gives the logits of each next one, so that the
likelihood of tokens is exact: one call for all places, where all of them are known. Sampling asks once a token.

    guidance s     logits = null + s (told - null), that is p(. | told)^s p(. | null)^(1-s) but for its sum; 1 is off
    temperature T  logits / T
    top-k, top-p   only the k likeliest tokens; of them only the fewest whose probabilities reach p

each applied to what the one before left (Fan et al. 2018, Holtzman et al. 2020). A token is the place of a uniform draw
in the distribution's cumulative sum, and each row has uniform draws of its own: a picture depends on its seed alone.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carrara.config import Configured, Role
from carrara.errors import NonFiniteError
from carrara.rng import Rng
from carrara.types import Ask, Condition, Estimate, Round, Rounds, Space, Step

__all__ = ["AutoregressiveGenerator", "AutoregressiveSettings", "TokenNetwork", "probabilities"]


@dataclass(frozen=True)
class AutoregressiveSettings:
    """How tokens are drawn; with all of these at their defaults from the model's own distribution."""

    guidance: float = 1.0  # scale of classifier-free guidance; 1 is off
    temperature: float = 1.0  # below 1 likelier, above 1 more varied; 0 always takes the likeliest token
    top_k: int = 0  # how many of the likeliest tokens may be drawn; 0 is all
    top_p: float = 1.0  # the likeliest tokens that together have this probability may be drawn; 1 is all

    def __post_init__(self) -> None:
        if not math.isfinite(self.guidance):
            raise ValueError(f"guidance = {self.guidance}; give a finite number, such as 2.5, or 1 for none")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature = {self.temperature}; give a finite number of 0 or more, such as 0.9")
        if self.top_k < 0:
            raise ValueError(f"top_k = {self.top_k}; give how many tokens may be drawn, or 0 for all")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p = {self.top_p}; give a probability in (0, 1], where 1 is all tokens")


class TokenNetwork(Protocol):
    """What gives the logits: tokens (B, n) that are known, or with a cache new, to those of the next at each place."""

    def __call__(self, tokens: Tensor, condition: Condition = ..., cache: Any = None) -> Tensor:
        """Logits (B, n + 1, vocabulary), or (B, n, vocabulary) with a cache that has read before."""
        ...

    def cache(self) -> Any:
        """What one request's calls hand on from one to the next."""
        ...


class AutoregressiveGenerator(Configured, nn.Module):
    """Makes the tokens (h, w) of `space`; `reads` is the space of the text encoder it was trained with."""

    def __init__(
        self,
        network: Annotated[nn.Module, Role("token_network")],
        space: Space,
        *,
        reads: Space | None = None,
        settings: AutoregressiveSettings = AutoregressiveSettings(),
    ) -> None:
        super().__init__()
        if space.kind != "tokens" or len(space.shape) != 2:
            raise ValueError(
                f"the space is {space.kind} {space.shape}; an autoregressive generator makes the tokens (rows, "
                "columns) of a decoder that has a vocabulary"
            )
        self.network = network
        self.space = space
        self.reads = reads
        self.settings = settings

    def strides(self, settings: AutoregressiveSettings | None = None, inputs: Collection[str] = ()) -> int:
        """How many steps a request shows: one a row of tokens."""
        return self.space.shape[0]

    def log_prob(self, z: Tensor, condition: Condition) -> Tensor:
        """log p(z | condition) in nats of tokens z (B, h, w), exact: (B,) float32, of the model's own distribution."""
        if tuple(z.shape[1:]) != self.space.shape:
            raise ValueError(
                f"z has shape {tuple(z.shape)}; expected (B, {self.space.shape[0]}, {self.space.shape[1]})"
            )
        tokens = z.flatten(1)
        logits = self.network(tokens[:, :-1], condition)
        return -F.cross_entropy(logits.float().mT, tokens, reduction="none").sum(1)

    def start(
        self,
        shape: Sequence[int],
        condition: Condition,
        null: Condition,
        rng: Rng,
        settings: AutoregressiveSettings | None = None,
    ) -> Rounds:
        """The tokens (B, h, w) of as many pictures as the rng has streams; one ask a token, a step a row of tokens.

        A step's x holds the tokens so far; its estimate repeats the last one in the places that are yet to come.
        Raises NonFiniteError for logits that are not finite.
        """
        if tuple(shape) != self.space.shape:
            raise ValueError(
                f"tokens of shape {tuple(shape)} were asked for, and this generator knows the places of "
                f"{self.space.shape} alone; leave the size out"
            )
        chosen = settings or self.settings
        guided = chosen.guidance != 1
        told = Condition.stack([condition, null]) if guided else condition
        rows, columns = self.space.shape
        device = next(self.network.parameters()).device
        draws = rng.fork("tokens").uniform((rows * columns,)).to(device)
        z = torch.zeros(len(rng), rows * columns, dtype=torch.int64, device=device)
        finite = torch.ones((), dtype=torch.bool, device=device)
        cache = self.network.cache()  # type: ignore[operator]
        step: Step | None = None
        for n in range(rows * columns):
            new = z[:, max(n - 1, 0) : n]
            ask = Ask(self.network, (torch.cat((new, new)) if guided else new, told), cache)
            ((logits,),) = yield Round((ask,), step)
            followed = _guide(logits[:, -1].double(), chosen.guidance)
            finite &= followed.isfinite().all()
            z[:, n] = _drawn(probabilities(followed, chosen), draws[:, n])
            step = self._step(z, n + 1) if (n + 1) % columns == 0 else None
        if not finite:  # asked once, since an accelerator has to be waited for
            raise NonFiniteError(
                "the logits of the tokens are not finite; give guidance nearer to 1, or where it is 1 already, the "
                "weights that were trained"
            )
        yield Round((), step)
        return z.view(-1, rows, columns)

    def _step(self, z: Tensor, done: int) -> Step:
        believed = z.clone()
        believed[:, done:] = z[:, done - 1 : done]
        seen, whole = (x.view(-1, *self.space.shape) for x in (z.clone(), believed))
        return Step(seen, 1 - done / z.shape[1], Estimate(whole))


def _guide(logits: Tensor, scale: float) -> Tensor:
    """The logits (B, K) of a guided distribution, from those of B rows or, guided, of B told rows above B untold."""
    if scale == 1:
        return logits
    told, null = logits.chunk(2)
    return null + scale * (told - null)


def probabilities(logits: Tensor, settings: AutoregressiveSettings) -> Tensor:
    """The distribution (B, K) that a token is drawn from, given its logits (B, K), guided already."""
    if settings.temperature == 0:
        return F.one_hot(logits.argmax(1), logits.shape[1]).to(logits.dtype)
    p = ((logits - logits.amax(1, keepdim=True)) / settings.temperature).softmax(1)  # no quotient above 0 overflows
    if settings.top_k == 0 and settings.top_p == 1:
        return p
    ordered, order = p.sort(dim=1, descending=True, stable=True)
    kept = torch.ones_like(ordered, dtype=torch.bool)
    if settings.top_k:
        kept[:, settings.top_k :] = False
    if settings.top_p < 1:
        ordered = torch.where(kept, ordered, 0.0)
        ordered = ordered / ordered.sum(1, keepdim=True)
        kept &= ordered.cumsum(1) - ordered < settings.top_p  # what the likelier ones have together
    ordered = torch.where(kept, ordered, 0.0)
    return torch.zeros_like(p).scatter(1, order, ordered / ordered.sum(1, keepdim=True))


def _drawn(p: Tensor, uniform: Tensor) -> Tensor:
    """The token (B,) at which the cumulative sum of p (B, K) passes the share `uniform` (B,), in [0, 1), of its end."""
    total = p.cumsum(1)
    # a little below 1, so that no rounding reaches the end, where tokens of probability 0 may be
    share = uniform.clamp(max=1 - 2**-50)[:, None] * total[:, -1:]
    found = torch.searchsorted(total, share, right=True)[:, 0]
    return found.clamp(max=p.shape[1] - 1)  # not a number is beyond the end
