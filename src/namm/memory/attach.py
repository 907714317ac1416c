"""`attach`: give a model a memory for the length of a `with` block."""

from __future__ import annotations

import inspect
import logging
import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from namm.compat import cache_argument, cache_given, drops_its_cache, ranks, untested, untraced, warn_if_untested
from namm.errors import ConfigurationError, ModelError
from namm.memory.cache import MemoryCache, make_plan, memory_layers
from namm.memory.identity import fingerprint
from namm.memory.layer import layers_of
from namm.memory.ledger import MemoryReport
from namm.memory.pieces import check_pieces
from namm.memory.plan import Plan
from namm.memory.rehearsal import rehearsing
from namm.memory.rotation import asks_moved, check_rotation
from namm.memory.routing import PACKED, check_mask, route, unroute
from namm.memory.seam import is_overlay, replaced
from namm.network import NAMM
from namm.policies import MemoryPolicy
from namm.selection import Selection

log = logging.getLogger(__name__)
_attached: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()
_lock = threading.Lock()


class Handle:
    """What `attach` yields: the memory of the last call, of this thread if it has made one."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._local = threading.local()
        self._last: MemoryCache | None = None

    @property
    def cache(self) -> MemoryCache:
        """The cache of the last `generate` or forward call of this thread, or of any if this one has made none.

        Raises:
            ModelError: the model was not called yet, or its last call kept no cache.
        """
        cache = self._local.cache if hasattr(self._local, "cache") else self._last
        if cache is None:
            raise ModelError("a call of the model that keeps a cache", "none yet", "Call model.generate(...) first.")
        return cache

    def _note(self, cache: MemoryCache | None) -> None:
        self._local.cache = self._last = cache

    def memory(self) -> MemoryReport:
        """What the last cache holds; see `MemoryCache.memory`."""
        return self.cache.memory()

    def kept_positions(self, layer: int) -> list[list[list[int]]]:
        """See `MemoryCache.kept_positions`."""
        return self.cache.kept_positions(layer)


@contextmanager
def attach(
    model: torch.nn.Module,
    memory: NAMM | MemoryPolicy | str | Path,
    selection: Selection | None = None,
    update_interval: int = 512,
) -> Iterator[Handle]:
    """Inside the block, `model.generate(...)` and `model(...)` remember and forget.

        with namm.attach(model, "builtin:universal", namm.Budget(fraction=0.25)) as memory:
            model.generate(**inputs)
            print(memory.memory())

    Every call that starts without a cache starts with an empty memory; a cache that a call returned can be passed to
    the next one. Threads may call the model side by side. Afterwards the model is as it was, also after an exception.

    Args:
        model: a transformers model, or one wrapped by PEFT.
        memory: a NAMM, a policy, or a name: "h2o", "builtin:universal", a folder, a hub id.
        selection: which scored tokens stay: `Threshold` or `Budget`. A NAMM decides at 0 if left out.
        update_interval: tokens between two updates, a multiple of the policy's hop.

    Raises:
        ConfigurationError: options that do not fit together.
        ModelError: a model, cache, mask or call that a memory cannot serve, or a memory attached twice.
        NotFoundError: no policy or memory has that name.
    """
    warn_if_untested()
    try:
        with attached(model, make_plan(memory, selection, update_interval)) as handle:
            yield handle
    except ModelError as error:
        if sentence := untested():
            raise ModelError(error.expected, error.got, f"{error.way_out} {sentence}") from error
        raise


@contextmanager
def attached(model: torch.nn.Module, plan: Plan) -> Iterator[Handle]:
    """As `attach`, for a plan that was made and checked."""
    decoder = find_decoder(model)
    check_model(decoder, plan)
    handle = Handle(plan)
    with _lock:
        _check_free(decoder)
        _attached.add(decoder)
    hooks = []
    route(decoder.config)
    stack = ExitStack()
    try:
        if plan.in_pieces:
            stack.enter_context(rehearsing(decoder))
        for holder in _holders(model):  # outer models may build masks before the decoder is called
            if hasattr(holder, "init_continuous_batching"):
                stack.enter_context(replaced(holder, "init_continuous_batching", _refuse_paging))
            hooks.append(holder.register_forward_pre_hook(_before(handle, holder, decoder), with_kwargs=True))
        hooks.append(decoder.register_forward_hook(_after(handle), with_kwargs=True))
        yield handle
    finally:
        stack.close()
        for hook in hooks:
            hook.remove()
        unroute(decoder.config)
        with _lock:
            _attached.discard(decoder)


def check_model(decoder: PreTrainedModel, plan: Plan) -> None:
    """
    Raises:
        ConfigurationError: a memory that was calibrated for another model.
        ModelError: a model that a memory with this plan cannot serve, or that has one attached.
    """
    _check_free(decoder)
    _check_calibration(plan, decoder)
    memory_layers(decoder.config, (plan,))  # raises where there is nothing to hold
    if plan.in_pieces:
        check_pieces(decoder, "a memory that rehearses" if plan.policy.reads_again else "layers that decide together")
    rehearsal = plan.policy.asks_in_place if plan.policy.evicts else None
    if rehearsal is not None and asks_moved(rehearsal, decoder.config.get_text_config(decoder=True)):
        check_rotation(decoder)


def _check_calibration(plan: Plan, decoder: PreTrainedModel) -> None:
    policy = plan.policy
    if policy.calibration is not None and policy.calibration.model != (mine := fingerprint(decoder)):
        raise ConfigurationError(
            f"a memory calibrated for this model, {mine[:12]}", f"one for {policy.calibration.model[:12]}",
            "Make it with namm.calibrated(memory, model, tokenizer), of the model in the same dtype.",
        )  # fmt: skip
    if policy.calibrates and policy.calibration is None:
        _say_uncalibrated(policy.name)


@cache
def _say_uncalibrated(memory: str) -> None:
    """Once for each memory, not at every call."""
    log.warning(
        "The memory (%s) is not calibrated for this model; at small budgets it forgets better once it is: "
        "namm.calibrated(memory, model, tokenizer).",
        memory,
    )


def _check_free(decoder: PreTrainedModel) -> None:
    if decoder in _attached:
        raise ModelError("a model without a memory", "one that has a memory attached", "Leave the other block first.")


def find_decoder(model: torch.nn.Module) -> PreTrainedModel:
    """The innermost model that runs the attention layers and takes a cache.

    Raises:
        ModelError: there is none, its attention does not go through transformers' attention interface, or several
            processes share it.
    """
    if (shared := max((ranks(m) for m in model.modules() if isinstance(m, PreTrainedModel)), default=1)) > 1:
        raise ModelError(
            "a model that is whole in this process", f"one that {shared} processes share",
            "Each would see its own heads or layers only and decide apart: put the layers on several devices with "
            'device_map="auto" instead.',
        )  # fmt: skip
    layers = [m for m in model.modules() if isinstance(getattr(m, "layer_idx", None), int)]
    decoders = [m for m in _holders(model) if any(layer in set(m.modules()) for layer in layers)]
    if not decoders:
        raise ModelError(
            "a transformers model with attention layers that take a cache", type(model).__name__,
            "Pass a model of transformers (AutoModelForCausalLM and relatives), or one wrapped by PEFT.",
        )  # fmt: skip
    decoder = min(decoders, key=lambda m: sum(1 for _ in m.modules()))
    if decoder.config.is_encoder_decoder:
        raise ModelError(
            "a decoder-only model", f"{type(decoder).__name__}, an encoder-decoder",
            "Cross-attention cannot be given a memory yet.",
        )  # fmt: skip
    if not any(_asks_interface(layer) for layer in layers):
        raise ModelError(
            "a model whose attention goes through transformers' attention interface", type(decoder).__name__,
            "Llama, Mistral, Qwen, Gemma, Phi, GPT-2, GPT-NeoX, OLMo and most recent models do.",
        )  # fmt: skip
    if any(hasattr(layer, "expand_kv") for layer in layers):
        raise ModelError(
            "a model that caches the keys and values of each head",
            f"{type(decoder).__name__}, whose latent attention caches what it makes them from",
            "DeepSeek V2/V3, MiniCPM3, GLM-4 MoE Lite and LongCat cannot be given a memory yet.",
        )  # fmt: skip
    return decoder


def _asks_interface(layer: torch.nn.Module) -> bool:
    """Whether the modelling file of an attention layer looks its attention function up in transformers' interface.

    The flag `_supports_attention_backend` says the same, but not for every model of 5.17.
    """
    return hasattr(inspect.getmodule(type(layer)), "ALL_ATTENTION_FUNCTIONS")


def _holders(model: torch.nn.Module) -> list[PreTrainedModel]:
    """The models, outermost first, whose forward takes a cache."""
    return [m for m in model.modules() if isinstance(m, PreTrainedModel) and cache_argument(m) is not None]


def _refuse_paging(*args: Any, **kwargs: Any) -> None:
    """`generate_batch` pages its cache and asks for attention of its own."""
    raise ModelError(
        "generate(...) of a batch, which a memory serves", "continuous batching, whose cache is paged",
        "Call model.generate(...), or leave the block first.",
    )  # fmt: skip


# -- one call ----------------------------------------------------------------------------------------------------------


def _before(handle: Handle, holder: PreTrainedModel, decoder: PreTrainedModel) -> Any:
    names = list(inspect.signature(holder.forward).parameters)
    name = cache_argument(holder)
    assert name is not None

    @untraced
    def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        kwargs = dict(zip(names, args, strict=False)) | kwargs
        given = cache_given(holder, kwargs)
        if not _keeps_cache(handle.plan, given, decoder, kwargs):
            handle._note(None)
            return (), kwargs
        if packed := sorted(known for known in PACKED if kwargs.get(known) is not None):
            raise ModelError(
                "one text in each row, without a packing of several", ", ".join(packed),
                "Give each text a row of its own, padded.",
            )  # fmt: skip
        mask = kwargs.get("attention_mask")
        if isinstance(mask, torch.Tensor) and not is_overlay(mask):
            check_mask(mask, whole=given is None)
        kwargs[name] = cache = _memory_for(given, handle, decoder)
        handle._note(cache)
        if holder is decoder:
            tokens = kwargs["inputs_embeds"] if kwargs.get("inputs_embeds") is not None else kwargs["input_ids"]
            before = cache.get_seq_length()
            if before and tokens.shape[1] > 1:
                check_pieces(decoder, "more than one token after those read before")
            handle._local.to_be_seen = before + tokens.shape[1]
        return (), kwargs

    return hook


def _keeps_cache(plan: Plan, given: Cache | None, decoder: PreTrainedModel, kwargs: dict[str, Any]) -> bool:
    """Whether a call keeps what it reads; if not, and nothing was to be forgotten, it is the model's own.

    Raises:
        ModelError: it keeps nothing, and the memory would be left out in silence.
    """
    asked = kwargs.get("use_cache")
    if asked is None:
        asked = getattr(decoder.config, "use_cache", None)
    if drops_its_cache(decoder):
        got = "gradient checkpointing in training mode, which keeps none"
    elif given is None and asked is False:
        got = "use_cache=False"
    else:
        return True
    if plan.policy.evicts or isinstance(given, MemoryCache):
        raise ModelError(
            f"a call that keeps a cache, which is where {plan.policy!r} lives", got,
            "Leave out use_cache=False and call model.eval(), or leave the block for such calls.",
        )  # fmt: skip
    return False


def _memory_for(cache: Cache | None, handle: Handle, decoder: PreTrainedModel) -> MemoryCache:
    """The cache of this call: the one given, if it is a memory, or a new memory in its place."""
    if isinstance(cache, MemoryCache):
        return cache
    if cache is None:
        cache = DynamicCache(config=decoder.config)
    if type(cache) is not DynamicCache or cache.offloading:
        kind = "an offloaded cache" if getattr(cache, "offloading", False) else f"a {type(cache).__name__}"
        raise ModelError(
            "no cache, an empty DynamicCache or a MemoryCache together with a memory", kind,
            "Drop `cache_implementation` and `past_key_values`: the memory is the cache.",
        )  # fmt: skip
    if cache.get_seq_length() > 0:
        raise ModelError(
            "an empty cache to start a memory with", f"one that holds {cache.get_seq_length()} tokens",
            "Read the text again under the memory, or go on outside of it.",
        )  # fmt: skip
    return MemoryCache.adopt(cache, decoder.config, handle.plan)


def _after(handle: Handle) -> Any:
    """No eviction although one was due must not pass in silence: every layer read every token, and forgot on time."""

    @untraced
    def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        cache = kwargs.get(cache_argument(module) or "")
        if not isinstance(cache, MemoryCache):  # a call that asked for none
            return
        seen = handle._local.to_be_seen
        for layer in layers_of(cache):
            layer.check_served(wait=False)
            due = [s.plan.updates(s.seen) for s in layer.sequences]
            if layer.columns != seen or [s.updates for s in layer.sequences] != due:
                raise ModelError(
                    f"{seen} tokens and {due} updates in layer {layer.index}",
                    f"{layer.columns} tokens and {[s.updates for s in layer.sequences]} updates",
                    "This model bypasses its cache; please report it with the model's name.",
                )

    return hook
