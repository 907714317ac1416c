"""From scores to the tokens that stay (spec 8).

Scores are `[batch, kv_head, slot]`, slots oldest first; `positions` is the token each slot holds, -1 for an empty
slot (heads that hold fewer tokens are filled at the old end). The newest token always stays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from namm.errors import ConfigurationError

Scores = Float[Tensor, "batch kv_head slot"]
Positions = Int[Tensor, "batch kv_head slot"]
Kept = Bool[Tensor, "batch kv_head slot"]
Per = Literal["head", "layer", "model"]
WAYS: tuple[Per, ...] = get_args(Per)
Safeguard = float | Literal["auto"]
_LEAST_SAFEGUARD = 0.2  # of "auto"; of AdaKV's values the one that costs models of many heads least


@runtime_checkable
class Selection(Protocol):
    """Decides from scores which slots stay."""

    needs_zero: bool  # whether it reads the sign of a score and not only the order

    def target(self, seen: int) -> int | None:
        """Slots a head will hold after an update at `seen` tokens; None if the scores decide."""
        ...

    def select(self, scores: Scores, positions: Positions, seen: int) -> Kept:
        """True for the slots that stay."""
        ...


@dataclass(frozen=True)
class Threshold:
    """Keep what scores at least `value`.

    Args:
        value: the bar; a NAMM decides at 0 (spec 8.2).
        fill_heads: raise every head to the largest count of its layer with its best tokens below the bar, as the
            reference does (spec 8.3). Needed to replay a checkpoint that was evolved so.
    """

    value: float = 0.0
    fill_heads: bool = False
    needs_zero = True

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ConfigurationError("a finite threshold", self.value, "The NAMM's own threshold is 0.0.")

    def target(self, seen: int) -> int | None:
        return None

    def select(self, scores: Scores, positions: Positions, seen: int) -> Kept:
        empty = positions < 0
        scores = _ready(scores, empty)
        kept = scores >= self.value
        if self.fill_heads:
            most = kept.sum(-1).amax(-1)  # per row
            kept = (_rank(scores) < most[:, None, None]) & ~empty
        return kept


@dataclass(frozen=True)
class Budget:
    """Keep the best scores up to a number of tokens, or a fraction of the tokens seen so far.

    Args:
        tokens: slots per kv head after each update.
        fraction: the same as a share of the tokens seen, in (0, 1].
        per: "head": every head keeps the same number; "layer": the layer's budget goes to whichever heads score
            highest, one slot each at least; "model": the same over the heads of all layers, which then decide together;
            None: as the policy was made for, which is "head" for most.
        safeguard: part of an even split that every head keeps of its own best, before heads compete for the rest
            (AdaKV's, Feng et al., 2024, arXiv 2407.11550): a head whose scores are low throughout is not emptied. In
            [0, 1]; "auto": one over the root of the number of heads, 0.2 at least, since few heads have little to gain
            from each other and all to lose; None: as the policy was made for, which is 0 for most.
        sinks: first tokens of the text that stay before all others, inside the budget.
        recent: last tokens that stay next, inside the budget; where it is too small for all, the most recent.
    """

    tokens: int | None = None
    fraction: float | None = None
    per: Per | None = None
    sinks: int = 0
    recent: int = 0
    safeguard: Safeguard | None = None
    needs_zero = False

    def __post_init__(self) -> None:
        if (self.tokens is None) == (self.fraction is None):
            raise ConfigurationError(
                "a budget in tokens or as a fraction", f"tokens={self.tokens}, fraction={self.fraction}",
                "Give exactly one: Budget(tokens=1024) or Budget(fraction=0.25).",
            )  # fmt: skip
        if self.tokens is not None and (not isinstance(self.tokens, int) or self.tokens < 1):
            raise ConfigurationError("a budget of at least 1 token", self.tokens, "Try Budget(tokens=1024).")
        number = isinstance(self.fraction, (int, float)) and not isinstance(self.fraction, bool)
        if self.fraction is not None and not (number and 0 < self.fraction <= 1):  # NaN fails too
            raise ConfigurationError("a fraction in (0, 1]", self.fraction, "Try Budget(fraction=0.25).")
        if self.per not in (*WAYS, None):
            raise ConfigurationError('per="head", "layer" or "model"', repr(self.per), 'Try per="head".')
        if not (self.safeguard in (None, "auto") or is_share(self.safeguard)):
            raise ConfigurationError('a safeguard in [0, 1], or "auto"', repr(self.safeguard), "Try safeguard=0.2.")
        if self.sinks < 0 or self.recent < 0:
            raise ConfigurationError(
                "sinks and recent >= 0", f"sinks={self.sinks}, recent={self.recent}", "Use 0 to protect none."
            )
        if self.tokens is not None and self.sinks + self.recent > self.tokens:
            raise ConfigurationError(
                f"at most {self.tokens} protected tokens, the budget",
                f"{self.sinks} sinks + {self.recent} recent",
                "Raise the budget or protect fewer.",
            )

    def target(self, seen: int) -> int:
        if self.tokens is not None:
            return self.tokens
        assert self.fraction is not None
        return max(1, math.floor(self.fraction * seen + 1e-6))

    def stays(self, held: list[int], seen: int) -> tuple[list[int] | None, int]:
        """How many slots stay of heads that hold so many: of each, None where scores decide it, and of all."""
        if self.per in ("layer", "model"):
            return None, min(sum(held), self.target(seen) * len(held))
        each = [min(count, self.target(seen)) for count in held]
        return each, sum(each)

    def select(self, scores: Scores, positions: Positions, seen: int) -> Kept:
        empty = positions < 0
        if self.recent:
            scores = scores.masked_fill(positions >= seen - self.recent, torch.finfo(scores.dtype).max)
        if self.sinks:
            scores = scores.masked_fill(~empty & (positions < self.sinks), math.inf)
        scores, count = _ready(scores, empty), self.target(seen)
        if self.per in ("layer", "model"):  # of a model, `scores` are those of all heads
            share = _share_of(scores.shape[1]) if self.safeguard == "auto" else self.safeguard or 0.0
            if safe := math.floor(share * count):
                _, best = _split(scores, safe)
                scores = scores.scatter(-1, best, math.inf).masked_fill_(empty, -math.inf)
            scores, count = scores.flatten(1), count * scores.shape[1]
        worst, _ = _split(scores, count)
        gone = empty.reshape(scores.shape).scatter_(-1, worst, True)
        return gone.logical_not_().view(empty.shape)

    def __repr__(self) -> str:  # saved caches name their selection by it, those of before there was a safeguard too
        shown = {name: value for name, value in vars(self).items() if name != "safeguard" or value}
        return f"Budget({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


def is_share(value: object) -> bool:
    """Whether it is a number in [0, 1]."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _share_of(heads: int) -> float:
    """The "auto" safeguard."""
    return max(_LEAST_SAFEGUARD, 1 / math.sqrt(heads))


def _ready(scores: Scores, empty: Bool[Tensor, "batch kv_head slot"]) -> Scores:
    """A copy in which empty slots come last, and the newest token first whatever its score (spec 8.1)."""
    scores = scores.masked_fill(empty, -math.inf)
    scores[..., -1] = math.inf
    return scores


def _split(
    scores: Float[Tensor, "*lead slot"], count: int
) -> tuple[Int[Tensor, "*lead worst"], Int[Tensor, "*lead best"]]:
    """The slots that score lower than `count` others, and these; of equals the newest are the better ones."""
    order, rest = scores.argsort(dim=-1, stable=True), max(0, scores.shape[-1] - count)
    return order[..., :rest], order[..., rest:]


def _rank(scores: Float[Tensor, "*lead slot"]) -> Int[Tensor, "*lead slot"]:
    """Place of each slot in the order of falling scores, 0 for the best; of equals the newest comes first."""
    order = scores.flip(-1).argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(scores.shape[-1], device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places).flip(-1)
