"""What is not part of transformers' public interface and may differ between versions; 5.17 and 5.23 were tried."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cli.serving.utils import get_response_template


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
    return get_response_template(tokenizer, model)
