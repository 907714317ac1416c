"""The seam with transformers: what is handed through it on the side, where its interfaces have no place for that.

* Keys carry the layer that cached them: an attention function is given keys and no cache, and a global would mix
  threads, caches and models.
* A mask's length carries the layer that the mask is for: a mask function is given lengths and no cache.
* A mask of more than causality carries the one it was made from: it no longer says what was padding.
* An empty cache turns into a memory: whoever made it, a caller or `generate`, goes on with that object.
* A method takes the place of a model's for a while: a hook can neither call a forward in pieces nor refuse a batch.

What goes through public interfaces is in `routing` (attention and mask functions) and `attach` (hooks), what differs
between versions in `namm.compat`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor
from transformers.cache_utils import Cache

_LAYER, _SHOWN = "_namm_layer", "_namm_shown"


def hand_over(keys: Tensor, layer: Any) -> None:
    """Attention will come for these keys, and is to find this layer."""
    setattr(keys, _LAYER, layer)


def layer_of(keys: Tensor) -> Any:
    """The memory layer that handed these keys to the model; None if none did."""
    return getattr(keys, _LAYER, None)


def taken_back(keys: Tensor) -> None:
    """Or whoever keeps the keys would keep the layer alive, and it them."""
    delattr(keys, _LAYER)


class SeenLength(int):
    """A mask length given by a memory layer: the mask is for a memory and need hold no causality."""

    layer: Any

    @classmethod
    def of(cls, length: int, layer: Any) -> SeenLength:
        found = cls(length)
        found.layer = layer
        return found


def overlay(mask: Tensor, shown: Bool[Tensor, "batch column"] | None) -> Tensor:
    """A mask `[batch, 1, token, column]` of more than causality, which remembers the 2-D mask it was made from."""
    setattr(mask, _SHOWN, (shown,))
    return mask


def is_overlay(mask: Tensor) -> bool:
    return hasattr(mask, _SHOWN)


def shown_by(mask: Tensor) -> Bool[Tensor, "batch column"] | None:
    """The 2-D mask that an overlay was made from."""
    shown: Tensor | None = getattr(mask, _SHOWN)[0]
    return shown


def turn_into(kind: type[Cache], cache: Cache, layers: list[Any]) -> None:
    """An empty cache is another kind of cache, with these layers, from here on."""
    cache.__class__ = kind
    cache.layer_class_to_replicate = None
    cache.layers = layers


@contextmanager
def replaced(module: torch.nn.Module, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Inside the block a method of `module` is `function`; others, such as accelerate, may have put one there too."""
    placed = vars(module).get(name)
    setattr(module, name, function)
    try:
        yield
    finally:
        delattr(module, name)
        if placed is not None:
            setattr(module, name, placed)
