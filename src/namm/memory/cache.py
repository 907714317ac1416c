"""`MemoryCache`: a transformers cache that forgets."""

from __future__ import annotations

import weakref
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from namm.compat import untraced, warn_if_untested
from namm.errors import ConfigurationError, ModelError
from namm.memory.layer import MemoryLayer, layers_of
from namm.memory.ledger import MemoryReport, report
from namm.memory.plan import Plan
from namm.memory.routing import check_routed, route, unroute
from namm.memory.seam import turn_into
from namm.memory.sequence import Meter
from namm.memory.updates import update, update_together
from namm.network import NAMM
from namm.policies import MemoryPolicy, resolve
from namm.selection import Budget, Selection


def make_plan(memory: NAMM | MemoryPolicy | str | Path, selection: Selection | None, update_interval: int) -> Plan:
    """A checked plan: what the policy needs and what is offered fit together.

    Raises:
        ConfigurationError: they do not.
        NotFoundError: no policy or memory has that name.
    """
    policy = resolve(memory)
    if policy.whole:
        raise ConfigurationError(
            "a policy that decides while it reads", f"{policy.name!r}, which waits for the end of a text",
            'Use it in `namm eval`, or "kvzip" with Budget(..., per="model") and a long update_interval.',
        )  # fmt: skip
    hop = policy.hop if policy.channels else 1
    if not isinstance(update_interval, int) or update_interval < 1 or update_interval % hop:
        raise ConfigurationError(
            f"an update interval that is a positive multiple of {hop}, the hop of {policy!r}",
            update_interval,
            "The default is 512.",
        )
    if selection is not None and not (isinstance(selection, Selection) and not isinstance(selection, type)):
        raise ConfigurationError("a Budget or Threshold", repr(selection), "Try selection=namm.Budget(fraction=0.25).")
    selection = selection if selection is not None else policy.default_selection()
    if policy.evicts and selection is None:
        raise ConfigurationError(
            f"a budget for {policy!r}, whose scores only rank tokens", "no selection",
            "Pass selection=namm.Budget(fraction=0.25) or namm.Budget(tokens=1024).",
        )  # fmt: skip
    if policy.evicts and selection is not None and selection.needs_zero and not policy.absolute:
        raise ConfigurationError(
            f"a budget for {policy!r}, whose scores have no zero", repr(selection),
            "Pass selection=namm.Budget(fraction=0.25) or namm.Budget(tokens=1024).",
        )  # fmt: skip
    if isinstance(selection, Budget):
        selection = policy.spending(selection)
    return Plan(policy, selection, update_interval)


class MemoryCache(Cache):
    """A cache whose full-attention layers remember and forget; pass it as `past_key_values`.

        cache = namm.MemoryCache(model.config, "h2o", namm.Budget(fraction=0.25))
        model.generate(**inputs, past_key_values=cache)
        print(cache.memory())

    Layers of another kind (sliding window, linear attention) get the cache transformers gives them. While a
    MemoryCache of a config lives, attention of models with that config passes through the memory's attention
    function, which changes nothing for calls without a memory.

    Args:
        config: the model's own config object (`model.config`).
        memory: a NAMM, a policy, or a name, as for `namm.attach`.
        selection: which scored tokens stay; a NAMM decides at its threshold if left out.
        update_interval: tokens between two updates, a multiple of the policy's hop.

    Raises:
        ConfigurationError: options that do not fit together.
        ModelError: the model has no full-attention layer.
        NotFoundError: no policy or memory has that name.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        memory: NAMM | MemoryPolicy | str | Path,
        selection: Selection | None = None,
        update_interval: int = 512,
    ) -> None:
        warn_if_untested()
        plan = make_plan(memory, selection, update_interval)
        if plan.policy.reads_again:
            raise ConfigurationError(
                f"a memory that only watches, for a cache passed by hand, not {plan.policy!r}", "one that rehearses",
                "Use namm.attach(model, ...), which lets the model read each block again.",
            )  # fmt: skip
        self._start(memory_layers(config, (plan,)))

    @classmethod
    def planned(cls, config: PreTrainedConfig, plans: tuple[Plan, ...]) -> MemoryCache:
        """A cache whose rows follow a plan each; one plan serves all rows."""
        cache = cls.__new__(cls)
        cache._start(memory_layers(config, plans))
        return cache

    @classmethod
    def lent(cls, layers: list[Any]) -> MemoryCache:
        """A cache around layers whose sequences belong to others, which keep the model routed meanwhile."""
        cache = cls.__new__(cls)
        Cache.__init__(cache, layers=_introduced(layers))
        return cache

    def _start(self, layers: list[Any]) -> None:
        super().__init__(layers=_introduced(layers))
        config = layers_of(self)[0].config
        route(config)
        weakref.finalize(self, unroute, config)

    @staticmethod
    def adopt(cache: Cache, config: PreTrainedConfig, plan: Plan) -> MemoryCache:
        """Turn an empty cache into a memory in place, so that whoever made it (a caller, `generate`) goes on with it.

        For `attach`, which routes the config itself.
        """
        turn_into(MemoryCache, cache, _introduced(memory_layers(config, (plan,))))
        assert isinstance(cache, MemoryCache)
        return cache

    @untraced
    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        layer = self.layers[layer_idx]
        if isinstance(layer, MemoryLayer):
            check_routed(layer.config)
        updated: tuple[Tensor, Tensor] = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        return updated

    def memory(self) -> MemoryReport:
        """What is held now: slots, bytes, and what a full cache would hold."""
        return report(self)

    def kept_positions(self, layer: int) -> list[list[list[int]]]:
        """Tokens held by layer `layer`, ascending: `[row][kv_head]`, counted in real tokens of each row."""
        chosen = self.layers[layer]
        if not isinstance(chosen, MemoryLayer):
            raise ConfigurationError(
                "the index of a full-attention layer", f"layer {layer}, a {type(chosen).__name__}",
                f"Memory layers: {[i for i, known in enumerate(self.layers) if isinstance(known, MemoryLayer)]}.",
            )  # fmt: skip
        return [sequence.kept_positions() for sequence in chosen.sequences]

    @torch.inference_mode()
    def forget(self) -> None:
        """Decide here and now: a text that ends between two updates is held at its budget, too.

        The next update falls due where it would have.

        Raises:
            ModelError: a memory for which the model reads again, or a cache in the middle of a call.
        """
        layers = layers_of(self)
        for layer in layers:
            layer.check_served()
            for sequence in layer.sequences:
                if sequence.plan.policy.evicts and sequence.plan.policy.reads_again:
                    raise ModelError(
                        "a memory that reads once, to decide between two updates", repr(sequence.plan.policy),
                        "Choose an update_interval that divides the text's length.",
                    )  # fmt: skip
        rows = [row for row, one in enumerate(layers[0].sequences) if one.seen and one.plan.policy.evicts]
        jointly = [row for row in rows if layers[0].sequences[row].plan.jointly]
        if jointly:
            update_together([[layer.sequences[row] for row in jointly] for layer in layers])
        for layer in layers:
            update([layer.sequences[row] for row in rows if row not in jointly])

    def trim(self) -> None:
        """Give back the free slots that appended tokens leave; they come again with the next token."""
        for layer in layers_of(self):
            for sequence in layer.sequences:
                if sequence.begun:
                    sequence.store.trim()
                    sequence.note()

    def fork(self) -> MemoryCache:
        """A copy that goes its own way from here: one text that was read, and several questions about it."""
        meter = Meter()
        twin = MemoryCache.__new__(MemoryCache)
        twin._start([layer.fork(meter) if isinstance(layer, MemoryLayer) else deepcopy(layer) for layer in self.layers])
        return twin

    def save(self, path: str | Path, model: PreTrainedModel, notes: dict[str, str] | None = None) -> Path:
        """Write this memory to one safetensors file, whole or not at all; returns its path.

        Args:
            model: the model that read the text, which the file will belong to.
            notes: any text by name, which `namm.memory.saved.read_notes` finds again.

        Raises:
            ModelError: the cache cannot be saved: it is in the middle of a call, or its rows follow a plan each.
            RunError: the file cannot be written; what was there before is intact.
        """
        from namm.memory.saved import write

        return write(self, Path(path), model, notes)

    @classmethod
    def load(
        cls,
        path: str | Path,
        model: PreTrainedModel,
        memory: NAMM | MemoryPolicy | str | Path | Plan,
        selection: Selection | None = None,
        update_interval: int = 512,
    ) -> MemoryCache:
        """Go on with a memory that was saved, with the same model and the same memory.

        One that rehearses goes on inside `namm.attach`, as it began.

        Args:
            memory: as when it was made, or a plan, which holds the other two as well.

        Raises:
            ArtefactError: the file is damaged, or belongs to another model or memory.
            NotFoundError: there is no such file.
        """
        from namm.memory.saved import read

        return read(
            Path(path), model, memory if isinstance(memory, Plan) else make_plan(memory, selection, update_interval)
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> MemoryCache:
        return self.fork()


def _introduced(layers: list[Any]) -> list[Any]:
    """The same, the last memory layer knowing the others, with whom it may have to decide."""
    ours = [layer for layer in layers if isinstance(layer, MemoryLayer)]
    if ours:
        ours[-1].before = tuple(ours[:-1])
    return layers


def memory_layers(config: PreTrainedConfig, plans: tuple[Plan, ...]) -> list[Any]:
    """The layers of a cache for `config`: a memory layer wherever transformers would keep every token."""
    config, meter = config.get_text_config(decoder=True), Meter()
    layers = DynamicCache(config=config).layers
    chosen = [
        MemoryLayer(plans, i, meter, config) if type(layer) is DynamicLayer else layer for i, layer in enumerate(layers)
    ]
    if not any(isinstance(layer, MemoryLayer) for layer in chosen):
        kinds = ", ".join(sorted({type(layer).__name__ for layer in layers}))
        raise ModelError("a model with full-attention layers", f"only {kinds}", "There is nothing to forget here.")
    return chosen
