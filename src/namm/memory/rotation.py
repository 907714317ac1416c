"""Rotary positions: how a model's queries and keys are turned on from one position to a later one.

A rotation by `d` positions depends on `d` alone (Su et al., 2021, arXiv 2104.09864), so a query that was asked at one
place can ask from another without the model. Frequencies and the pairing of dimensions are the model's own, found by
what its modelling file offers, and tried on the model itself before they are used.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import MODEL_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

from namm.compat import passing
from namm.errors import ModelError
from namm.memory.pieces import trial_ids, tried
from namm.policies.base import Rehearsal

_WAY_OUT = "Use a memory whose queries ask where they stand (rotated=False)."
_TOKENS, _MOVED = 8, 24  # of the trial, and by how many positions
_CHANGING = ("dynamic", "longrope")  # frequencies that depend on the length of the text

_ROTARY = ("rope_parameters", "rope_theta", "rotary_dim")  # what configurations call it


@dataclass(frozen=True, eq=False)
class Rotation:
    """The rotation of one layer.

    Attributes:
        frequencies: radians a position, of each pair of dimensions; none where a layer has no positions.
        interleaved: whether neighbours make a pair, else dimension `i` and `i + n / 2` of the `n` that are turned.
    """

    frequencies: Float[Tensor, " pair"]
    interleaved: bool
    _on_device: dict[torch.device, Tensor] = field(default_factory=dict, repr=False, init=False)

    def on(self, device: torch.device) -> Float[Tensor, " pair"]:
        """The frequencies there, brought once."""
        if device not in self._on_device:
            self._on_device[device] = self.frequencies.to(device)
        return self._on_device[device]

    def move(self, vectors: Float[Tensor, "*lead dim"], positions: int) -> Float[Tensor, "*lead dim"]:
        """Queries or keys, as they would be so many positions later."""
        turned = 2 * len(self.frequencies)
        if not turned:
            return vectors
        angle = self.on(vectors.device) * positions
        cos, sin = angle.cos(), angle.sin()
        head, rest = vectors[..., :turned].float(), vectors[..., turned:]
        a, b = (head[..., ::2], head[..., 1::2]) if self.interleaved else head.chunk(2, dim=-1)
        pair = (a * cos - b * sin, b * cos + a * sin)
        moved = torch.stack(pair, dim=-1).flatten(-2) if self.interleaved else torch.cat(pair, dim=-1)
        return torch.cat([moved.to(vectors.dtype), rest], dim=-1)


def asks_moved(rehearsal: Rehearsal, config: PreTrainedConfig) -> bool:
    """Whether queries are moved on before they ask in place: those of "auto" where the model has rotary positions."""
    if rehearsal.rotated == "auto":
        return any(getattr(config, name, None) is not None for name in _ROTARY)
    return rehearsal.rotated


def rotation_of(config: PreTrainedConfig, layer: int) -> Rotation:
    """The rotation of layer `layer` of a model with this configuration, of its text part.

    Raises:
        ModelError: it has no rotary positions, or some that change with the length of the text.
    """
    kind = MODEL_MAPPING.get(type(config), None)
    kind = kind[0] if isinstance(kind, tuple) else kind
    module = inspect.getmodule(kind) if kind is not None else None
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    if changing := [one for one in _CHANGING if one in {part.get("rope_type") for part in kinds}]:
        raise ModelError("rotary positions that are the same for every length", changing[0], _WAY_OUT)
    frequencies = _frequencies(module, config, layer) if module is not None else None
    if module is None or frequencies is None:
        raise ModelError("a model with rotary positions", f"{config.model_type}, where none were found", _WAY_OUT)
    turns = getattr(config, "no_rope_layers", None)
    if turns and not turns[layer]:
        frequencies = frequencies[:0]
    return Rotation(frequencies, _interleaves(module))


def _frequencies(module: ModuleType, config: PreTrainedConfig, layer: int) -> Tensor | None:
    """What the rotary embedding of the modelling file makes of the configuration."""
    kinds: list[tuple[str, Any]] = inspect.getmembers(module, inspect.isclass)
    for name, kind in kinds:
        if not name.endswith("RotaryEmbedding") or "config" not in inspect.signature(kind).parameters:
            continue
        try:
            made = dict(kind(config=config).named_buffers())
        except (AttributeError, KeyError, TypeError):  # of another part of the model, such as its vision tower
            continue
        of_layer = [*(getattr(config, "layer_types", None) or [])][layer : layer + 1]
        for wanted in (*(f"{one}_inv_freq" for one in of_layer), "inv_freq"):
            if wanted in made:
                return made[wanted].float()
    return None


def _interleaves(module: ModuleType) -> bool:
    """Asked of the modelling file's own function on (0, 1, 2, 3)."""
    rotate = getattr(module, "rotate_half", None)
    return rotate is not None and rotate(torch.arange(4.0)).tolist() == [-1.0, 0.0, -3.0, 2.0]


def check_rotation(decoder: PreTrainedModel) -> None:
    """Raise unless a key that is moved is the model's own key at that position, in every layer that keeps all tokens.

    Raises:
        ModelError: it is not, or the model has no rotary positions.
    """
    tolerance = 1e-4 if decoder.dtype in (torch.float32, torch.float64) else 1e-2
    if (off := tried(decoder, _try)) > tolerance:
        raise ModelError(
            "keys that turn with their position as the configuration says", f"{type(decoder).__name__}, whose keys are "
            f"off by {off:.1g} of their norm", _WAY_OUT,
        )  # fmt: skip


def _try(decoder: PreTrainedModel) -> float:
    """How far moved keys are from the model's own, as a part of their norm; the largest over layers.

    Both times each layer gets what it got the first time: rounding differs with the position and grows from layer to
    layer, and would hide the rotation in half precision.
    """
    inputs: dict[nn.Module, Tensor] = {}

    def given_before(layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
        if "hidden_states" in named:
            return args, named | {"hidden_states": inputs.setdefault(layer, named["hidden_states"])}
        return (inputs.setdefault(layer, args[0]), *args[1:]), named

    layers = [m for m in decoder.modules() if isinstance(getattr(m, "layer_idx", None), int)]
    hooks = [layer.register_forward_pre_hook(given_before, with_kwargs=True) for layer in layers]
    try:
        here, there = (_keys(decoder, start) for start in (0, _MOVED))
    finally:
        for hook in hooks:
            hook.remove()
    config = decoder.config.get_text_config(decoder=True)
    off = [
        float((rotation_of(config, layer).move(key, _MOVED) - there[layer]).norm() / there[layer].norm())
        for layer, key in here.items()
    ]
    return max(off)


def _keys(decoder: PreTrainedModel, start: int) -> dict[int, Tensor]:
    """Keys of one short text from position `start` on, by layer; hooks that hand over a memory are passed by."""
    ids, cache = trial_ids(decoder, _TOKENS), DynamicCache(config=decoder.config)
    places = torch.arange(start, start + _TOKENS, device=ids.device)[None]
    decoder.forward(input_ids=ids, position_ids=places, use_cache=True, **passing(decoder, cache))
    return {i: layer.keys.float() for i, layer in enumerate(cache.layers) if type(layer) is DynamicLayer}
