"""How a model's attention reaches the memory: through transformers' attention interface, and only while needed.

A routed config names "namm:<its own implementation>" as its attention implementation. That function serves layers that
hold a memory and hands every other call to the implementation the model had, so a routed model computes as before
wherever no memory is passed. Routing is counted: it starts with the first memory of a config and ends with the last.
"""

from __future__ import annotations

import inspect
import threading
from collections import deque
from copy import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from namm.compat import untraced
from namm.errors import ModelError
from namm.memory.layer import layers_of
from namm.memory.plan import Scaling
from namm.memory.seam import SeenLength, is_overlay, layer_of, overlay

_PREFIX = "namm:"  # of the attention implementation of a routed config
_HARMLESS = {  # keyword arguments of attention functions that a memory needs not look at
    "dropout", "position_ids", "cache_position", "use_cache", "output_hidden_states",
    "return_dict", "deterministic", "cache",
    "num_items_in_batch", "logits_to_keep", "layer_head_mask", "head_mask", "output_router_logits",
}  # fmt: skip

PACKED = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}  # several texts in one row

_lock = threading.Lock()
_routes: dict[int, tuple[PreTrainedConfig, str | None, int]] = {}  # id(config) -> config, its own name, users
_left: deque[PreTrainedConfig] = (
    deque()
)  # routes to take away: a cache may be collected while this thread holds the lock


def route(config: PreTrainedConfig) -> None:
    """Send the attention of models with this config through the memory; undone by as many `unroute`."""
    with _lock:
        known = _routes.get(id(config))
        own = known[1] if known else config._attn_implementation
        if own is not None and own.startswith(_PREFIX):  # a copy of a routed config
            own = own.removeprefix(_PREFIX)
        name = own or "eager"
        _register(name)
        _routes[id(config)] = (config, own, known[2] + 1 if known else 1)
        config._attn_implementation_internal = _PREFIX + name
    _take_away()


def _is_routed(config: PreTrainedConfig) -> bool:
    """Whether attention of models with this config asks the memory."""
    return (config._attn_implementation or "").startswith(_PREFIX)


def check_routed(config: PreTrainedConfig) -> None:
    """Raise unless attention of models with this config asks the memory."""
    if _is_routed(config):
        return
    if id(config) in _routes:
        raise ModelError(
            "the attention implementation that the model had when its memory was given to it",
            f"{config._attn_implementation!r}, set since",
            "Call set_attn_implementation before namm.attach, not inside its block.",
        )  # fmt: skip
    raise ModelError(
        "a memory in use inside its attach block", "one that is used after the block was left",
        "Attach again around this call, or build a namm.MemoryCache, which works without attach.",
    )  # fmt: skip


def unroute(config: PreTrainedConfig) -> None:
    """Take one user of the route away; the last one leaves the config as it was."""
    _left.append(config)
    _take_away()


def _take_away() -> None:
    while _left and _lock.acquire(blocking=False):  # whoever holds the lock comes here after releasing it
        try:
            config = _left.popleft()
            _, own, users = _routes.pop(id(config))
            if users > 1:
                _routes[id(config)] = (config, own, users - 1)
            elif _is_routed(config):
                config._attn_implementation_internal = own
        except IndexError:  # another thread was faster
            pass
        finally:
            _lock.release()


def _register(own: str) -> None:
    if _PREFIX + own not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(_PREFIX + own, partial(_attention, own))
        AttentionMaskInterface.register(_PREFIX + own, partial(_mask, own))


@untraced
def _attention(
    own: str,
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The attention function of a routed config."""
    layer = layer_of(key)
    if layer is None:
        if layers_of(kwargs.get("cache")):
            raise ModelError(
                "a memory as `past_key_values`, as this model calls its cache", "one as `cache`",
                "transformers 5.24 brought the other name: pass it as past_key_values.",
            )  # fmt: skip
        optional = {"softcap": softcap, "sliding_window": sliding_window}
        kwargs |= {name: value for name, value in optional.items() if value is not None}
        attention, module = _own_attention(own, module)
        return attention(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)
    if kwargs.pop("output_attentions", None):
        raise ModelError(
            "a call without output_attentions", "output_attentions=True",
            "A memory keeps no attention matrix: ask outside of the memory.",
        )  # fmt: skip
    if kwargs.pop("is_causal", getattr(module, "is_causal", True)) is False:
        raise ModelError(
            "causal self-attention", f"{type(module).__name__}, which looks ahead or elsewhere",
            "Encoders and encoder-decoder models cannot be given a memory.",
        )  # fmt: skip
    unknown = {name for name, given in kwargs.items() if given is not None} - _HARMLESS
    if unknown or dropout:
        what = f"attention with {', '.join(sorted(unknown))}" if unknown else f"attention dropout {dropout}"
        raise ModelError(
            "plain, grouped or soft-capped attention without dropout", what,
            "Call model.eval() for dropout; other kinds of attention cannot be given a memory yet.",
        )  # fmt: skip
    if module.training and torch.is_grad_enabled() and query.requires_grad:
        raise ModelError(
            "inference", "a model in training mode with gradients", "Call model.eval(), or use torch.no_grad()."
        )
    if attention_mask is not None and attention_mask.ndim == 4 and not is_overlay(attention_mask):
        raise ModelError(
            "an attention mask of shape [batch, tokens seen] with 0 for padding",
            f"one of shape {list(attention_mask.shape)}",
            "Give the 2-D mask of the tokenizer; a memory derives the rest.",
        )
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    out = layer.attend(query, Scaling(scale, softcap), attention_mask)
    return _ForwardOnly.apply(out, query) if torch.is_grad_enabled() and query.requires_grad else out, None


class _ForwardOnly(torch.autograd.Function):
    """Attention output that refuses to be differentiated, instead of giving gradients that lack a part."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, query: Tensor) -> Tensor:
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        raise ModelError("inference", "a backward pass through a memory", "Take gradients outside of the memory.")


def _own_attention(own: str, module: torch.nn.Module) -> tuple[Any, torch.nn.Module]:
    """The attention function that the model had, and the module as that function knows it."""
    if own == "eager":
        return inspect.getmodule(type(module)).eager_attention_forward, module  # type: ignore[union-attr]
    if "flash" in own:  # these ask the module's configuration which of them they are
        module, config = copy(module), copy(module.config)
        vars(config)["_attn_implementation_internal"] = own
        module.config = config
    return ALL_ATTENTION_FUNCTIONS[own], module


@untraced
def _mask(own: str, *args: Any, **kwargs: Any) -> Tensor | None:
    """The mask function of a routed config: for a memory the 2-D mask itself, since causality is its own."""
    length = kwargs.get("kv_length")
    if not isinstance(length, SeenLength):
        return ALL_MASK_ATTENTION_FUNCTIONS[own](*args, **kwargs)
    padding = kwargs.get("attention_mask")
    if padding is not None:
        check_mask(padding, int(length))
    length.layer.announce(int(length), padding)
    shown = None if padding is None or not length.layer.hides(padding) else padding.bool()
    if kwargs.get("mask_function", causal_mask_function) is causal_mask_function:
        return shown
    return overlay(sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False}), shown)


def check_mask(mask: Tensor, length: int | None = None, whole: bool = False) -> None:
    """Raise unless `mask` is 2-D, 0/1 and as long as the tokens seen; if it is the `whole` text, no row may be empty.

    In the first chunk of a left-padded batch a row may still be all padding; `MemoryLayer.attend` notices if it
    stays so.
    """
    if mask.ndim != 2 or not bool(((mask == 0) | (mask == 1)).all()):
        got = f"shape {list(mask.shape)}" if mask.ndim != 2 else "values other than 0 and 1"
        raise ModelError(
            "an attention mask of shape [batch, tokens seen] with values 0 and 1", got,
            "Give the 2-D mask of the tokenizer; a memory derives the rest.",
        )  # fmt: skip
    if length is not None and mask.shape[1] != length:
        raise ModelError(
            f"an attention mask over all {length} tokens seen, the new ones last", f"one over {mask.shape[1]}",
            "Append ones for the new tokens to the mask of the earlier ones.",
        )  # fmt: skip
    if whole and not bool((mask != 0).any(dim=1).all()):
        row = int((mask != 0).any(dim=1).logical_not().nonzero()[0])
        raise ModelError("a real token in each row of the batch", f"row {row} of padding only", "Drop the empty row.")
