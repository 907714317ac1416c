"""The contract of a memory policy: it observes, it scores, and a selection keeps the best.

A policy is a frozen value that serves any batch and any thread. What belongs to one sequence is the `state` of its
slots, which lives in the cache layer and is handed in and out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from copy import copy
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from namm.calibration import Calibration
from namm.errors import ConfigurationError
from namm.kernels import Reduction
from namm.selection import Budget, Per, Safeguard, Selection

Rotated = bool | Literal["auto"]
Asked = Literal["held", "window"]
Method = TypeVar("Method", bound=Callable[..., Tensor])


def reduces(*reductions: Reduction | None) -> Callable[[Method], Method]:
    """Says of `observe` or `rehearse` what it takes from attention, for each channel; None: it leaves that as it is.

    Where a kernel computes just that, in place and without rows of attention, the method is not called. A subclass that
    overrides it says so anew, or is shown rows.
    """

    def said(method: Method) -> Method:
        method.reductions = reductions  # type: ignore[attr-defined]
        return method

    return said


@dataclass(frozen=True)
class Rehearsal:
    """Before each update the tokens since the last one ask once more, as queries that nobody will remember.

    What a text asks of its own past is a witness of what a later question may ask: "I am this token; where was it said
    before, and what came next?" Either the model reads the tokens again, at the price of a second reading; or each
    layer's own queries of the first reading ask again *in place*, of all that is held, what came after them included.

    Attributes:
        share: part of the block that the model reads again, its newest tokens.
        every: of these each `every`-th token.
        how: "model": the model reads again; "queries": in place.
        window: queries that are held until they ask in place, a number of tokens.
        rotated: whether these are moved on by `window` positions first, to where those of a second reading would stand.
            True asks for a model with rotary positions; "auto" moves them where a model has such.
        competes: whether what a query attended to when it was read takes part of its attention when it asks in place,
            as the text's second copy does in a second reading: one more term of its softmax.
        asked: of what queries ask in place: of all that is "held", or of the tokens of their "window" only, which costs
            less the more is held. What else they would find there is then what they found when they were read, so
            they must compete.

    Raises:
        ConfigurationError: another way, a window without a query, or one that is asked alone and does not compete.
    """

    share: float = 1.0
    every: int = 1
    how: Literal["model", "queries"] = "model"
    window: int = 512
    rotated: Rotated = "auto"
    competes: bool = False
    asked: Asked = "held"

    def __post_init__(self) -> None:
        if self.how not in ("model", "queries"):
            raise ConfigurationError('a rehearsal by the "model" or by its "queries"', repr(self.how), "Choose one.")
        if not isinstance(self.window, int) or self.window < 1:
            raise ConfigurationError("a window of at least one query", repr(self.window), "Try window=512.")
        if self.rotated not in (True, False, "auto"):
            raise ConfigurationError('rotated=True, False or "auto"', repr(self.rotated), 'Try rotated="auto".')
        if self.asked not in ("held", "window"):
            raise ConfigurationError('asked="held" or "window"', repr(self.asked), "Choose one.")
        if self.asked == "window" and not self.competes:
            raise ConfigurationError(
                'competes=True for queries that ask their "window" only', "competes=False",
                'Let them compete, or ask all that is "held".',
            )  # fmt: skip


@dataclass(frozen=True)
class View:
    """What a policy may look at when an update is due: the slots of one layer.

    Slots are ordered oldest first; heads that hold fewer tokens have empty slots (position -1) at the old end.

    Attributes:
        state: what the policy observed of each slot; float32.
        positions: the token each slot holds, counted in real tokens of its sequence.
        keys: cached keys, after rotation.
        seen: tokens read so far.
        target: slots a head will hold after this update; None if the scores decide.
        rows: place of each sequence in the batch.
        layer: index of the layer.
        heads: index of each kv head in its layer.
        padded: whether there may be empty slots.
    """

    state: Float[Tensor, "batch kv_head channel slot"]
    positions: Int[Tensor, "batch kv_head slot"]
    keys: Float[Tensor, "batch kv_head slot dim"]
    seen: int
    target: int | None
    rows: Int[Tensor, " batch"]
    layer: int
    heads: Int[Tensor, " kv_head"]
    padded: bool = False

    @property
    def age(self) -> Int[Tensor, "batch kv_head slot"]:
        """Tokens between each slot and the newest."""
        return self.seen - 1 - self.positions

    @property
    def held(self) -> Bool[Tensor, "batch kv_head slot"]:
        """False for empty slots."""
        return self.positions >= 0


class MemoryPolicy(ABC):
    """Base of all policies.

    Attributes:
        name: what `namm.attach(model, name)` calls it.
        evicts: False if no token is ever forgotten.
        absolute: whether the sign of a score means keep or forget; otherwise scores only rank, and a budget is needed.
        channels: numbers of observed state per slot; 0 if it looks at no attention.
        hop: queries are observed in multiples of this.
        overlap: queries before them whose attention is given once more.
        half_scale: if set, state is held as float16 times this when the model runs in half precision.
        rehearsal: how tokens ask once more before each update; None for policies that only watch.
        per, safeguard: how a budget is spent that does not say so itself, see `Budget`.
        calibrates: whether it wants to know what attention in place is worth in each head, see `namm.calibration`.
        calibration: of the model; None to take attention in place as it is.
        whole: whether it decides once, when a whole text has been read; only an evaluation knows where that ends.
    """

    name: ClassVar[str]
    evicts: bool = True
    absolute: bool = False
    channels: int = 0
    hop: int = 16
    overlap: int = 0
    half_scale: float | None = None
    rehearsal: Rehearsal | None = None
    per: Per = "head"
    safeguard: Safeguard = 0.0
    calibrates: bool = False
    calibration: Calibration | None = None
    whole: ClassVar[bool] = False

    @property
    def watches(self) -> bool:
        """Whether it looks at the attention of the reading itself, and not of rehearsals only."""
        return self.channels > 0 and type(self).observe is not MemoryPolicy.observe

    @property
    def reads_again(self) -> bool:
        """Whether the model reads every block a second time."""
        return self.rehearsal is not None and self.rehearsal.how == "model"

    @property
    def asks_in_place(self) -> Rehearsal | None:
        """The rehearsal, if the layers' own queries do it."""
        return self.rehearsal if self.rehearsal is not None and not self.reads_again else None

    @property
    def observer(self) -> Hashable:
        """The same for policies that observe alike: what one has seen, the other may go on with."""
        return self

    def calibrated(self, calibration: Calibration | None) -> MemoryPolicy:
        """The same policy with the calibration of a model, if it wants one."""
        if not self.calibrates:
            return self
        other = copy(self)
        other.calibration = calibration
        return other

    def spending(self, budget: Budget) -> Budget:
        """The same budget, spent as this policy was made for where it does not say so itself."""
        safeguard = self.safeguard if budget.safeguard is None else budget.safeguard
        return replace(budget, per=budget.per or self.per, safeguard=safeguard)

    def default_selection(self) -> Selection | None:
        """The selection used if the caller gives none; None if one must be given."""
        return None

    def observe(
        self, state: Float[Tensor, "*lead channel slot"], attention: Float[Tensor, "*lead query slot"]
    ) -> Float[Tensor, "*lead channel slot"]:
        """State after the queries of `attention` (mean over the query heads of a group, causal).

        The first `overlap` rows were given before; then comes a multiple of `hop` new ones. New slots enter with
        zeros. Only policies with `channels` observe.
        """
        return state

    def rehearse(
        self, state: Float[Tensor, "*lead channel slot"], attention: Float[Tensor, "*lead query slot"]
    ) -> Float[Tensor, "*lead channel slot"]:
        """State after a rehearsal's queries, of which `attention` is the part that falls on held slots.

        Called with a few queries at a time. Only policies with `channels` and a `rehearsal` are asked.
        """
        return state

    def reductions(self, rehearsal: bool) -> tuple[Reduction | None, ...]:
        """What `observe`, or `rehearse`, takes from attention for each channel; () if it must be shown rows."""
        return getattr(type(self).rehearse if rehearsal else type(self).observe, "reductions", ())

    @abstractmethod
    def score(self, view: View) -> Float[Tensor, "batch kv_head slot"]:
        """One score per slot, higher is kept first. Scores of empty slots are ignored."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def newest(view: View, count: int) -> Tensor:
    """True for the last `count` tokens read."""
    return view.age < count


PROTECTED = torch.finfo(torch.float32).max
