"""The next token, as transformers' `generate` would choose it with the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel

from namm.compat import generation
from namm.errors import NotFoundError
from namm.serving.grammar import Grammar
from namm.serving.host import Host
from namm.serving.refusals import invalid
from namm.serving.requests import GenerationRequest
from namm.serving.text import TokenLogprob

_DRAWN = ("temperature", "top_p", "top_k", "min_p")  # any of these asks for an answer that is drawn
_NO_LIMIT = (-1, 0)  # of top_k


@dataclass(frozen=True)
class Sampling:
    """How the tokens of an answer are chosen.

    Attributes:
        config: temperature, top_p and so on; `do_sample` decides between drawing and the best.
        seed: of this answer alone; a random one if None.
        presence: off the logit of a token that the answer has.
        frequency: off the logit of a token for each time that the answer has it.
        bias: added to the logits of these tokens.
        grammar: what the answer has to follow.
    """

    config: GenerationConfig
    seed: int | None = None
    presence: float = 0.0
    frequency: float = 0.0
    bias: dict[int, float] = field(default_factory=dict)
    grammar: Grammar | None = None

    @classmethod
    def of(cls, request: GenerationRequest, host: Host, most: int) -> Sampling:
        """Drawn if the request asks for a temperature above 0 or the like, else as the model's own default says.

        Args:
            most: tokens of the answer.

        Raises:
            Refusal: a bias for a token that does not exist, or a schema that cannot be followed.
        """
        config = GenerationConfig(**host.model.generation_config.to_dict())
        config.max_new_tokens, config.max_length = max(1, most), None
        for name in (*_DRAWN, "repetition_penalty"):
            if (value := getattr(request, name)) is not None:
                setattr(config, name, value)
        if request.top_k in _NO_LIMIT:
            config.top_k = 0
        if request.temperature == 0:
            config.do_sample, config.temperature = False, None
        elif any(getattr(request, name) not in (None, *_NO_LIMIT) for name in _DRAWN):
            config.do_sample = True
        bias = {int(token): value for token, value in (request.logit_bias or {}).items()}
        if bias and max(bias) >= host.token_count:
            raise invalid(f"expected token ids below {host.token_count:,}; got {max(bias):,}.", "logit_bias")
        grammar = None
        if (schema := request.schema_of_answer) is not None:
            try:
                grammar = host.grammars.of(schema)
            except NotFoundError as error:
                raise invalid(str(error), "response_format") from error
        presence, frequency = request.presence_penalty or 0.0, request.frequency_penalty or 0.0
        return cls(config, request.seed, presence, frequency, bias, grammar)

    def branch(self, number: int) -> Sampling:
        """The same for another answer to the same prompt."""
        return replace(self, seed=None if self.seed is None else self.seed + number)


class Biases(LogitsProcessor):
    """OpenAI's biases, as one sum however many they are."""

    def __init__(self, bias: dict[int, float]) -> None:
        self._tokens, self._values = torch.tensor([*bias]), torch.tensor([*bias.values()])

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.index_add(1, self._tokens.to(scores.device), self._values.to(scores)[None])


class _Penalties(LogitsProcessor):
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
        prompt: tokens before the answer.
    """

    def __init__(self, model: PreTrainedModel, sampling: Sampling, prompt: int) -> None:
        config, self._processors = generation(model, sampling.config, prompt)
        if sampling.presence or sampling.frequency:
            self._processors.insert(0, _Penalties(prompt, sampling.presence, sampling.frequency))
        if sampling.bias:
            self._processors.insert(0, Biases(sampling.bias))
        self._grammar = None if sampling.grammar is None else sampling.grammar.copy()
        ends = config.eos_token_id
        self._ends = set(ends if isinstance(ends, list) else [] if ends is None else [ends])
        self._generator: torch.Generator | None = None
        if config.do_sample:
            self._generator = torch.Generator(model.device)
            if sampling.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(sampling.seed)

    def next(self, ids: list[int], logits: Float[Tensor, "1 token"]) -> int:
        """The token after `ids`."""
        scores = logits.to(torch.float32, copy=True)
        if self._grammar is not None:
            scores[:, ~self._grammar.allowed()[: scores.shape[1]].to(scores.device)] = -torch.inf
        if self._processors:
            scores = self._processors(torch.tensor([ids], device=scores.device), scores)
        if self._generator is None:
            token = int(scores.argmax(-1))
        else:
            chances = torch.softmax(scores, dim=-1)
            drawn: Int[Tensor, "1 1"] = torch.multinomial(chances, 1, generator=self._generator)
            token = int(drawn)
        if self._grammar is not None:
            self._grammar.take(token)
        return token

    def ends(self, token: int) -> bool:
        """Whether the answer ends with this token, which came last."""
        return token in self._ends or (self._grammar is not None and self._grammar.complete)


def scored(logits: Float[Tensor, "place token"], tokens: Sequence[int], most: int) -> list[TokenLogprob]:
    """How likely the model finds these tokens, each in its place.

    Args:
        most: likeliest tokens to name at each place.
    """
    if not tokens:
        return []
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    chosen = logprobs.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].tolist()
    best = logprobs.topk(min(most, logits.shape[1]), dim=-1)
    named = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [
        TokenLogprob(token, logprob, tuple(zip(*likeliest, strict=True)))
        for token, logprob, likeliest in zip(tokens, chosen, named, strict=True)
    ]
