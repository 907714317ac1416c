"""A cache layer that forgets: one `Sequence` for each row of the batch, their slots in one `Store`.

transformers calls `update` with the new keys and values and then its attention function with what `update` returned,
which finds the layer by these keys, see `seam`.
"""

from __future__ import annotations

from collections.abc import Hashable
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import CacheLayerMixin

from namm.compat import untested, untraced
from namm.errors import ModelError
from namm.memory import seam
from namm.memory.attending import rehearse
from namm.memory.plan import Plan, Read, Scaling
from namm.memory.rotation import asks_moved, rotation_of
from namm.memory.sequence import Meter, Rows, Sequence, copied
from namm.memory.steps import read
from namm.memory.updates import drop, update, update_together


class MemoryLayer(CacheLayerMixin):
    """The cache of one full-attention layer, ragged over rows and kv heads.

    Attributes:
        columns: tokens seen as the model counts them, padding included; gives mask sizes and positions.
        sequences: one for each row; they count real tokens only.
        before: of the last memory layer of a cache: all others.
        rehearsing: while a rehearsal is read, the rows it is for.
        heard: tokens not rehearsed yet, see `rehearsal`.
    """

    is_sliding = False
    is_croppable = False
    is_compileable = False
    supports_early_init = False

    def __init__(self, plans: tuple[Plan, ...], index: int, meter: Meter, config: PreTrainedConfig) -> None:
        """`plans` holds one plan for all rows, or one for each."""
        super().__init__()
        self.plans, self.index, self.meter, self.config = plans, index, meter, config
        rehearsals = (plan.policy.asks_in_place for plan in plans if plan.policy.evicts)
        rotates = any(rehearsal is not None and asks_moved(rehearsal, config) for rehearsal in rehearsals)
        self.rotation = rotation_of(config, index) if rotates else None
        self.columns = 0
        self.sequences: list[Sequence] = []
        self.before: tuple[MemoryLayer, ...] | None = None
        self.rehearsing: tuple[bool, ...] | None = None
        self.heard: tuple[Tensor, Tensor] | None = None
        self._pending: tuple[Tensor, Tensor] | None = None
        self._reading = False  # in the middle of it, or failed there
        self._announced = 0  # tokens that a mask was made for and that have not come yet
        self._shown: Bool[Tensor, "batch column"] | None = None  # by the last mask; None: every column
        self._read: Bool[Tensor, "batch column"] | None = None  # as tokens of their row, shown later or not

    # -- transformers' side ------------------------------------------------------------------------------------

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        rows = key_states.shape[0]
        plans = self.plans * rows if len(self.plans) == 1 else self.plans
        if len(plans) != rows:
            raise ModelError(
                f"a batch of {len(plans)} rows, one for each plan",
                f"{rows} rows",
                "Give one plan, or one for each row.",
            )
        self.sequences = [Sequence(plan, row, self.index, self.meter) for row, plan in enumerate(plans)]
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Take new keys and values `[batch, kv_head, token, dim]`; attention will come for them."""
        self._check_attended()
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if key_states.shape[0] != len(self.sequences):
            raise ModelError(
                f"a batch of {len(self.sequences)} rows, as this memory was started with",
                f"{key_states.shape[0]} rows",
                "Use a new MemoryCache for a new batch.",
            )
        self._announced = 0
        if self.rehearsing is None:
            self.columns += key_states.shape[2]
        self._pending = (key_states, value_states)
        seam.hand_over(key_states, self)
        return key_states, value_states

    def get_seq_length(self) -> int:
        return self.columns

    @untraced
    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        if isinstance(query_length, Tensor):  # transformers 5.17 may hand over cache positions
            query_length = query_length.shape[0]
        return seam.SeenLength.of(self.columns + query_length, self), 0

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length

    def reset(self) -> None:
        self.columns, self.sequences, self.heard, self._announced, self._reading = 0, [], None, 0, False
        self._pending = self._shown = self._read = None
        self.is_initialized = False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._take(beam_idx.tolist())

    def batch_select_indices(self, indices: Tensor) -> None:
        order = torch.arange(len(self.sequences))[indices.cpu()]
        self._take(order.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._take([row for row in range(len(self.sequences)) for _ in range(repeats)])

    def fork(self, meter: Meter) -> MemoryLayer:
        """A copy that goes its own way from here, its bytes noted in `meter`."""
        self.check_served()
        twin = copy(self)
        twin.meter = meter
        twin.sequences = copied(self.sequences, meter)
        return twin

    def _take(self, order: list[int]) -> None:
        if order == list(range(len(self.sequences))):
            return
        self.meter.drop(self.index)
        self.sequences = copied([self.sequences[old] for old in order], self.meter)
        self._shown, self._read = (None if mask is None else mask[order] for mask in (self._shown, self._read))
        if self.heard is not None:
            self.heard = (self.heard[0][order], self.heard[1][order])

    def crop(self, tokens_to_remove: int | Tensor) -> None:
        if tokens_to_remove:
            raise ModelError(
                "a cache that only grows",
                f"a request to remove {abs(int(tokens_to_remove))} tokens",
                "What a memory forgot cannot be rolled back: use generation without an assistant or prompt look-up.",
            )

    def offload(self) -> None:
        raise ModelError(
            "a memory on the model's device", "offloading", "A memory saves bytes by itself: drop offload."
        )

    # -- attention's side --------------------------------------------------------------------------------------

    @torch.no_grad()
    def attend(
        self,
        query: Float[Tensor, "batch head token dim"],
        scaling: Scaling,
        mask: Tensor | None,
    ) -> Float[Tensor, "batch token head value_dim"]:
        """Attention output for the tokens handed to `update`, which the sequences read and remember.

        Args:
            mask: None if every token is real; `[batch, column]` False for padding; or `[batch, 1, token, column]`
                for a model with more than causality in its mask.
        """
        if self._pending is None:
            raise ModelError(
                "one attention call for each layer that caches",
                f"another one for the keys of layer {self.index}",
                "Models that share keys between layers cannot be given a memory.",
            )
        (keys, values), self._pending = self._pending, None
        seam.taken_back(keys)
        batch, _, tokens, _ = query.shape
        real, overlay = self._real_tokens(mask, tokens)
        scaling = replace(scaling, rotation=self.rotation)
        columns = None if real is None or bool(real.all()) else [row.nonzero().squeeze(1) for row in real]
        for row, sequence in enumerate(self.sequences):
            if columns is not None and not len(columns[row]):
                continue
            if tokens == 1 and sequence.seen == 0 and self.columns > 1:
                raise ModelError(
                    "a real token in each row of the batch", f"row {row} of padding only", "Drop the empty row."
                )
            if sequence.plan.probe is not None:
                here = slice(None) if columns is None else columns[row]
                q, k, v = (t[row : row + 1, :, here] for t in (query, keys, values))
                sequence.plan.probe.on_attend(self.index, Read(q, k, v, scaling))
        self._reading = True
        if self.rehearsing is not None:
            out = self._rehearsed(query, keys, values, scaling, columns)
        else:
            visible = None if overlay is None else [self._visible(overlay, row, columns) for row in range(batch)]
            out = read(self.sequences, query, keys, values, scaling, columns, visible)
        self.decide()
        self._reading = False
        return out

    def _visible(self, overlay: Tensor, row: int, columns: list[Tensor] | None) -> Bool[Tensor, "token column"]:
        """Which of its tokens each new token of a row may attend to."""
        visible = overlay[row % len(overlay), 0]
        visible = visible if columns is None else visible[columns[row]]
        return visible if self._read is None else visible[:, self._read[row]]

    def _rehearsed(
        self, query: Tensor, keys: Tensor, values: Tensor, scaling: Scaling, columns: list[Tensor] | None
    ) -> Float[Tensor, "batch token head value_dim"]:
        """Attention output for tokens that nobody will remember, of the rows that rehearse."""
        assert self.rehearsing is not None
        out = query.new_zeros(query.shape[0], query.shape[2], query.shape[1], values.shape[-1])
        for row in (row for row, asked in enumerate(self.rehearsing) if asked):
            here = slice(None) if columns is None else columns[row]
            q, k, v = query[row][:, here], keys[row][:, here], values[row][:, here]
            mixed = rehearse(Rows([self.sequences[row]]), q.unflatten(0, (len(k), -1)), k, v, scaling)
            out[row, here] = mixed.flatten(0, 1).transpose(0, 1).to(out.dtype)
        decide = [self.sequences[row] for row, asked in enumerate(self.rehearsing) if asked]
        update([one for one in decide if one.plan.policy.evicts and not one.plan.jointly])
        return out

    def decide(self, rehearsed: bool = False) -> None:
        """What all layers decide together, when the last of them has read: it alone knows the others."""
        if self.before is None:
            return
        rows = [
            row for row, one in enumerate(self.sequences) if one.plan.jointly and one.due
            and (rehearsed or self.rehearsing is not None or not one.plan.policy.reads_again)
        ]  # fmt: skip
        if rows:
            update_together([[layer.sequences[row] for row in rows] for layer in (*self.before, self)])

    def follow(self, bases: dict[Hashable, Sequence]) -> None:
        """Every row goes on from the sequence that observed as its policy does; updates that are due are made."""
        followed = [bases[plan.policy.observer] for plan in self.plans]
        keys = followed[0].store.keys
        self.columns, self.dtype, self.device, self.is_initialized = followed[0].seen, keys.dtype, keys.device, True
        self.sequences = copied(followed, self.meter, self.plans)
        update([one for one in self.sequences if one.due and not one.plan.jointly])
        self.decide(rehearsed=True)

    @property
    def all_shown(self) -> bool:
        """Whether no mask has hidden anything so far."""
        return self._shown is None

    def hides(self, mask: Tensor) -> bool:
        """Whether this mask, or one before it, hides anything."""
        return self._shown is not None or not bool(mask.all())

    def announce(self, length: int, mask: Tensor | None) -> None:
        """Tokens up to column `length` will come. Raise unless `mask` goes on from what earlier ones showed.

        It may hide more, which is let go of; what was hidden was never read, or is gone.
        """
        before = self.columns
        self._check_mask(before, mask)
        self._announced = length - before

    def _check_mask(self, before: int, mask: Tensor | None) -> None:
        if not before or (mask is None and self._shown is None):
            return
        if mask is None:
            raise ModelError(
                "a mask that goes on from the one before, which hides tokens", "no mask",
                "Give the mask of all tokens seen: append ones for the new ones to that of the earlier ones.",
            )  # fmt: skip
        earlier = mask[:, :before].bool()
        if len(mask) != len(self.sequences):
            raise ModelError(
                f"a mask of {len(self.sequences)} rows", f"{len(mask)} rows", "Give one row for each text."
            )
        if self._shown is not None and bool((earlier & ~self._shown).any()):
            row, column = (earlier & ~self._shown).nonzero()[0].tolist()
            raise ModelError(
                "a mask that hides what the one before has hidden", f"one that shows column {column} of row {row}",
                "What was hidden was not read: start a new memory to read it.",
            )  # fmt: skip
        hidden = ~earlier if self._shown is None else self._shown & ~earlier
        if bool(hidden.any()) and any(plan.policy.reads_again for plan in self.plans):
            raise ModelError(
                "a mask that shows what was read, for a memory that rehearses", "one that hides some of it",
                "Use a memory that reads once, or read the text anew without these tokens.",
            )  # fmt: skip

    def _real_tokens(self, mask: Tensor | None, tokens: int) -> tuple[Tensor | None, Tensor | None]:
        """Which of the new columns are real tokens (None: all), and the overlay mask if there is one."""
        over, shown = (None, mask) if mask is None or mask.ndim == 2 else (mask, seam.shown_by(mask))
        if shown is not None and self.rehearsing is None:
            before = self.columns - tokens
            all_of_it = shown.new_ones(len(shown), before)
            read = all_of_it if self._read is None else self._read
            hidden = (all_of_it if self._shown is None else self._shown) & ~shown[:, :before]
            if bool(hidden.any()):
                for row, sequence in enumerate(self.sequences):
                    drop(sequence, (read[row].cumsum(0) - 1)[hidden[row]])
            same = self._read is self._shown and not bool(hidden.any())  # one mask, shared by all layers
            self._read = shown if same else torch.cat([read, shown[:, before:]], dim=1)
            self._shown = shown
        return None if shown is None else shown[:, shown.shape[1] - tokens :], over

    def check_served(self, wait: bool = True) -> None:
        """Raise if tokens were announced or keys handed over and no attention came for them, or scores were no numbers.

        Without `wait`, the device may still have something to tell of these.
        """
        if self._announced:
            raise ModelError(
                f"{self._announced} tokens for layer {self.index}, which a mask was made for", "none",
                "The model dropped its cache or failed on the way. Gradient checkpointing does so in training mode: "
                "call model.eval(), and read the text again with a new memory.",
            )  # fmt: skip
        self._check_attended()
        for store in {id(one.store): one.store for one in self.sequences if one.begun}.values():
            store.settle(wait)

    def _check_attended(self) -> None:
        if self._reading:
            raise ModelError(
                "a memory that has read all it was given", f"layer {self.index}, which failed in the middle",
                "What it holds is not what was read. Read the text again with a new memory, and if the device ran out "
                "of memory, in shorter pieces (prefill_chunk_size).",
            )  # fmt: skip
        if self._pending is not None:
            raise ModelError(
                "a model whose attention goes through transformers' attention interface",
                f"layer {self.index} cached keys, but its attention never asked the memory",
                "Build the MemoryCache from the model's own config; if it was, this model cannot be served. "
                + untested(),
            )

    # -- accounting --------------------------------------------------------------------------------------------

    def tensors(self) -> list[Tensor]:
        held = [tensor for sequence in self.sequences for tensor in sequence.tensors()]
        return held + [t for t in (self._shown, self._read, *(self.heard or ())) if t is not None]

    def full_bytes(self) -> int:
        """Bytes of keys and values if every column had been kept."""
        begun = next((one.store for one in self.sequences if one.begun), None)
        if begun is None:
            return 0
        slot = sum(t.shape[-1] * t.element_size() for t in (begun.keys, begun.values))
        return slot * begun.heads * self.columns * len(self.sequences)


def layers_of(cache: Any) -> list[MemoryLayer]:
    """The memory layers of a cache; none of what is no memory."""
    return [layer for layer in getattr(cache, "layers", ()) if isinstance(layer, MemoryLayer)]
