"""What differs between versions of transformers and torch, and what of it is not public: the one place that knows.

transformers 5.24 renamed `past_key_values` to `cache` in every model's forward, output and mask function. Both names
are served, found by what a model's forward takes.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from functools import cache
from typing import Any, TypeVar

import torch
import transformers
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
)
from transformers.cache_utils import Cache
from transformers.generation import GenerateDecoderOnlyOutput
from transformers.utils.chat_parsing import ResponseParser as ResponseParser  # noqa: PLC0414  # for others

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


def generation(
    model: PreTrainedModel, config: GenerationConfig, prompt: int
) -> tuple[GenerationConfig, LogitsProcessorList]:
    """The configuration that `model.generate` works with, defaults filled in, and what it does to logits then.

    `generate` prepares both for a decoding loop of ours, which looks at them and decodes nothing.

    Args:
        prompt: tokens before the first one that is generated.
    """
    found: list[tuple[GenerationConfig, LogitsProcessorList]] = []

    def look(
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **_: Any,
    ) -> torch.Tensor:
        found.append((generation_config, logits_processor))
        return input_ids

    config = deepcopy(config)
    config.use_cache = False  # nothing is decoded, so nothing is to be allocated
    ids = torch.zeros(1, prompt, dtype=torch.long, device=model.device)
    model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config, custom_generate=look)
    return found[0]


def response_parser(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prefix: str, tools: list[dict[str, Any]] | None
) -> ResponseParser | None:
    """Tells text, thoughts and calls apart in an answer to this prompt; None for a model that writes only text.

    Raises:
        ValueError, LookupError, TypeError: the model's response template does not go with the prompt or the tools.
    """
    from transformers.cli.serving.utils import get_response_template

    template = get_response_template(tokenizer, model)
    return None if template is None else ResponseParser(template, prefix=prefix, tools=tools)


# -- weights -----------------------------------------------------------------------------------------------------------


def plain_tensors(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """A tensor by its name, or those that one of torchao's, which has no numbers of its own, is made of."""
    if not is_traceable_wrapper_subclass(tensor):
        yield name, tensor
        return
    for part in tensor.__tensor_flatten__()[0]:
        yield from plain_tensors(f"{name}.{part}", getattr(tensor, part))


def device_of(module: torch.nn.Module) -> torch.device | None:
    """Where a module computes, also if accelerate keeps its weights elsewhere; None for one without weights."""
    for part in module.modules():
        if (device := getattr(getattr(part, "_hf_hook", None), "execution_device", None)) is not None:
            return torch.device(device)
    return next((weight.device for weight in module.parameters()), None)


def ranks(model: torch.nn.Module) -> int:
    """Processes that share each layer's heads, or the layers: of tensor and of pipeline parallelism."""
    shared = getattr(getattr(model, "config", None), "distributed_config", None)
    return max(getattr(shared, "tp_size", None) or 1, getattr(shared, "pp_size", None) or 1)


# -- torch -------------------------------------------------------------------------------------------------------------


def cpu_capabilities() -> Mapping[str, Any]:
    """What torch knows of this processor, such as "avx512_bf16"; nothing in versions that do not tell."""
    return torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
