"""The next token, as transformers' `generate` would choose it with the same seed."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel

from namm.compat import logits_processors, prepared


class Penalties(LogitsProcessor):
    """OpenAI's penalties on tokens of the answer: once for having come, and for each time."""

    def __init__(self, prompt: int, presence: float, frequency: float) -> None:
        self._prompt, self._presence, self._frequency = prompt, presence, frequency

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        counts = torch.zeros_like(scores)
        written = input_ids[:, self._prompt :]
        counts.scatter_add_(1, written, torch.ones_like(written, dtype=scores.dtype))
        return scores - self._presence * (counts > 0) - self._frequency * counts


class Sampler:
    """Chooses the tokens of one answer.

    Args:
        config: temperature, top_p and so on; `do_sample` decides between drawing and the best.
        prompt: tokens before the answer.
        seed: of this answer alone; a random one if None.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        config: GenerationConfig,
        prompt: int,
        seed: int | None = None,
        presence: float = 0.0,
        frequency: float = 0.0,
    ) -> None:
        config = prepared(model, config)
        self._processors = logits_processors(model, config, prompt)
        if presence or frequency:
            self._processors.insert(0, Penalties(prompt, presence, frequency))
        ends = config.eos_token_id
        self._ends = set(ends if isinstance(ends, list) else [] if ends is None else [ends])
        self._generator: torch.Generator | None = None
        if config.do_sample:
            self._generator = torch.Generator(model.device)
            if seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(seed)

    def next(self, ids: list[int], logits: Float[Tensor, "1 token"]) -> int:
        """The token after `ids`."""
        scores = logits.to(torch.float32, copy=True)
        if self._processors:
            scores = self._processors(torch.tensor([ids], device=scores.device), scores)
        if self._generator is None:
            return int(scores.argmax(-1))
        chances = torch.softmax(scores, dim=-1)
        drawn: Int[Tensor, "1 1"] = torch.multinomial(chances, 1, generator=self._generator)
        return int(drawn)

    def ends(self, token: int) -> bool:
        """Whether the answer ends with this token."""
        return token in self._ends
