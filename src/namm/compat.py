"""What differs between versions of transformers and torch, and what of it is not public: the one place that knows.

transformers 5.24 renamed `past_key_values` to `cache` in every model's forward, output and mask function. Both names
are served, found by what a model's forward takes.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeVar

import torch
import transformers
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache
from transformers.generation import GenerateDecoderOnlyOutput

TESTED = ((5, 17), (5, 24))  # the oldest and the newest version that the tests were run with; see pyproject.toml
Function = TypeVar("Function", bound=Callable[..., Any])
_NAMES = ("cache", "past_key_values")
_NAME = next(name for name in _NAMES if name in GenerateDecoderOnlyOutput.__dataclass_fields__)


def untested() -> str:
    """A sentence if this version of transformers was never tried, else nothing."""
    here = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    if TESTED[0] <= here <= TESTED[1]:
        return ""
    oldest, newest = (".".join(map(str, version)) for version in TESTED)
    return f"transformers {transformers.__version__} was not tried with this namm, {oldest} to {newest} were."


def warn_if_untested() -> None:
    """Say in one line that this version of transformers was never tried."""
    if sentence := untested():
        warnings.warn(sentence, UserWarning, stacklevel=4)


# -- the cache of a call -----------------------------------------------------------------------------------------------


def cache_argument(model: torch.nn.Module) -> str | None:
    """The name under which the forward of a model takes a cache; None if it takes none."""
    return _cache_argument(type(model).forward)


@cache
def _cache_argument(forward: Callable[..., Any]) -> str | None:
    parameters = inspect.signature(forward).parameters
    return next((name for name in _NAMES if name in parameters), None)


def passing(model: torch.nn.Module, cache: Cache | None) -> dict[str, Any]:
    """The keyword argument that gives `model` this cache: `model(ids, **passing(model, cache))`."""
    return {cache_argument(model) or _NAME: cache}


def cache_given(model: torch.nn.Module, kwargs: dict[str, Any]) -> Cache | None:
    """The cache among the arguments of a call, under whichever name; it is there under the model's own name then."""
    name = cache_argument(model)
    assert name is not None
    for other in _NAMES:
        if other != name and other in kwargs and kwargs.get(name) is None:
            kwargs[name] = kwargs.pop(other)
    return kwargs.get(name)


def cache_in(output: Any) -> Cache:
    """The cache that a call returned."""
    found: Cache = getattr(output, _NAME)
    return found


def untraced(function: Function) -> Function:
    """`torch.compile` leaves the function as it is, and compiles what is around it."""
    disabled: Function = torch.compiler.disable(function)
    return disabled


def drops_its_cache(decoder: torch.nn.Module) -> bool:
    """Whether layers drop the cache they are given: gradient checkpointing does so in training mode."""
    return decoder.training and any(getattr(part, "gradient_checkpointing", False) for part in decoder.modules())


# -- generation --------------------------------------------------------------------------------------------------------


def prepared(model: PreTrainedModel, config: GenerationConfig) -> GenerationConfig:
    """A copy with the defaults and special tokens that `model.generate` fills in."""
    filled, _ = model._prepare_generation_config(config)
    model._prepare_special_tokens(filled, False, device=model.device, batch_size=1)
    return filled


def logits_processors(model: PreTrainedModel, filled: GenerationConfig, prompt: int) -> LogitsProcessorList:
    """What `model.generate` does to logits under a `prepared` configuration.

    Args:
        prompt: tokens before the first one that is generated.
    """
    return model._get_logits_processor(
        generation_config=filled,
        input_ids_seq_length=prompt,
        encoder_input_ids=torch.zeros(1, prompt, dtype=torch.long, device=model.device),
        device=model.device,
        model_kwargs={},
    )


def response_template(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any] | None:
    """How answers of this model are told from its thoughts and calls of tools; None if it writes only text."""
    from transformers.cli.serving.utils import get_response_template

    template: dict[str, Any] | None = get_response_template(tokenizer, model)
    return template


# -- torch -------------------------------------------------------------------------------------------------------------


def cpu_capabilities() -> Mapping[str, Any]:
    """What torch knows of this processor, such as "avx512_bf16"; nothing in versions that do not tell."""
    return torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
