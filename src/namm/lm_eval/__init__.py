"""lm-evaluation-harness: its Hugging Face models, run with a memory.

    python -m namm.lm_eval --model namm --model_args memory=h2o,budget=0.25 --tasks lambada_openai

Importing this module registers the model "namm" with lm_eval, which the extra `namm[lm-eval]` installs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from namm.calibrating import calibrated
from namm.defaults import DEFAULT_MODEL
from namm.errors import ConfigurationError, NotFoundError
from namm.memory import attach
from namm.memory.cache import make_plan
from namm.models import load_model
from namm.network import NAMM
from namm.policies import MemoryPolicy, own_interval, resolve
from namm.selection import Budget, Selection

try:
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
except ImportError as error:
    raise NotFoundError(
        "lm-evaluation-harness with its Hugging Face models", error, "Run: pip install 'namm[lm-eval]'"
    ) from error

__all__ = ["MemoryLM"]

_log = logging.getLogger(__name__)
_TRY = "Add budget=0.25 (a share of the tokens read) or budget=1024 (tokens in each head)."


@register_model("namm")
class MemoryLM(HFLM):
    """lm_eval's model "hf", each of whose calls starts with an empty memory and forgets on its way.

        lm = MemoryLM("HuggingFaceTB/SmolLM2-135M-Instruct", memory="h2o", budget=0.25)
        lm_eval.simple_evaluate(lm, tasks=["lambada_openai"])

    Args:
        pretrained: hub id, folder, a model, or "smollm2-135m-instruct", the embedded one.
        memory: a NAMM, a policy, or a name: "h2o", "builtin:universal", a folder, a hub id.
        budget: a share of the tokens read (a number with a point), tokens in each head (a whole number), "own" for the
            threshold of a NAMM, or from Python any selection.
        update_interval: tokens between two updates; what a NAMM was evolved with, or 512, if left out.
        options: what lm_eval's `HFLM` takes. `device` is a GPU, if there is one, unless given.

    Raises:
        ConfigurationError: options that do not fit together; before any weight is loaded.
        NotFoundError: no policy or memory has that name; likewise.
        ModelError: a model that a memory cannot serve.
    """

    def __init__(
        self,
        pretrained: str | PreTrainedModel = DEFAULT_MODEL,
        memory: NAMM | MemoryPolicy | str | Path | None = None,
        budget: object = "own",
        update_interval: int | None = None,
        **options: Any,
    ) -> None:
        if memory is None:
            raise ConfigurationError("a memory", "none", "Add memory=h2o; memory=full forgets nothing.")
        self.policy = resolve(memory)
        self.selection = _selection(budget, self.policy)
        self.update_interval = own_interval(self.policy) if update_interval is None else update_interval
        make_plan(self.policy, self.selection, self.update_interval)  # raises where they do not fit
        self.calls = self.calls_that_forgot = 0
        options.setdefault("device", "cuda" if torch.cuda.is_available() else "cpu")
        super().__init__(pretrained=_source(pretrained), **options)
        self.policy = calibrated(self.policy, self.model, self.tokenizer)
        with attach(self.model, self.policy, self.selection, self.update_interval):
            pass  # raises where the model cannot be served

    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Logits of a batch that lm_eval padded on the right, without a mask.

        The padding passes for text, which changes nothing: it comes after every token whose logits are read, and an
        update that it brings about comes later still.
        """
        with self._remembering():
            return super()._model_call(inps, attn_mask, labels)

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **generation_kwargs: Any) -> Tensor:
        with self._remembering():
            return super()._model_generate(context, max_length, stop, **generation_kwargs)

    @contextmanager
    def _remembering(self) -> Iterator[None]:
        with attach(self.model, self.policy, self.selection, self.update_interval) as handle:
            yield
            self.calls += 1
            self.calls_that_forgot += any(handle.memory().updates)

    def _detect_batch_size(self, requests: Any = None, pos: int = 0) -> int:
        counted = self.calls, self.calls_that_forgot
        size = super()._detect_batch_size(requests, pos)
        self.calls, self.calls_that_forgot = counted  # trials are no part of the measurement
        return size

    def get_model_info(self) -> dict[str, Any]:
        """What lm_eval writes into its results: also the memory, and in how many calls it forgot anything."""
        if self.policy.evicts and self.calls and not self.calls_that_forgot:
            _log.warning(
                "Nothing was forgotten: no text reached %d tokens, the update interval. These are the numbers of the "
                "full cache; try longer texts or a smaller update_interval.",
                self.update_interval,
            )
        selection = self.selection or self.policy.default_selection()
        return super().get_model_info() | {
            "memory": repr(self.policy),
            "memory_selection": repr(selection),
            "memory_update_interval": self.update_interval,
            "memory_calls": self.calls,
            "memory_calls_that_forgot": self.calls_that_forgot,
        }


def _selection(budget: object, policy: MemoryPolicy) -> Selection | None:
    """The selection that `budget` means; None for the policy's own.

    Raises:
        ConfigurationError: it means none, or the policy has none of its own.
    """
    if isinstance(budget, Selection) and not isinstance(budget, type):
        return budget
    if budget == "own":
        if policy.evicts and policy.default_selection() is None:
            raise ConfigurationError(f"a budget for {policy!r}, whose scores only rank tokens", "budget=own", _TRY)
        return None
    if isinstance(budget, bool) or not isinstance(budget, (int, float)):
        raise ConfigurationError('a budget: a number above 0, or "own"', repr(budget), _TRY)
    return Budget(tokens=budget) if isinstance(budget, int) else Budget(fraction=budget)


def _source(pretrained: str | PreTrainedModel) -> str | PreTrainedModel:
    """What `HFLM` can load: the folder of the embedded model in place of its name."""
    if isinstance(pretrained, str) and pretrained == DEFAULT_MODEL:
        return str(load_model(DEFAULT_MODEL, device="cpu")[0].name_or_path)
    return pretrained
