"""Conversations whose answers are known: a tiny model of letters, scripts, and what a memory alone answers to them."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

import namm
from namm.tasks import paragraphs

CONTEXT = 4096
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LETTERS = [c for c in string.printable if c not in "\r\t\x0b\x0c"]
_SPECIAL = ["<unk>", "<|im_start|>", "<|im_end|>"]
_PIECES = (CONTEXT, 97)  # a prompt is read whole, and so many tokens at a time: the answer must not depend on it
Message = dict[str, str]


@dataclass(frozen=True)
class Turn:
    """A question and its one right answer.

    Attributes:
        prompt: the whole conversation as the chat template writes it.
        tokens: of that.
    """

    question: str
    prompt: str
    answer: str
    finish: str
    tokens: int


@dataclass(frozen=True)
class Script:
    """A conversation.

    Attributes:
        key: number of the key that it is of; its text holds that key's secret, if it has one.
        shared: whether other keys say the same as well.
    """

    name: str
    key: int
    shared: bool
    system: str
    turns: tuple[Turn, ...]

    def messages(self, turn: int) -> list[Message]:
        """What a client sends for its question number `turn`, all that was said before it included."""
        said = [{"role": "system", "content": self.system}]
        for one in self.turns[:turn]:
            said += [{"role": "user", "content": one.question}, {"role": "assistant", "content": one.answer}]
        return [*said, {"role": "user", "content": self.turns[turn].question}]


def write_model(folder: Path) -> Path:
    """A random model of two layers that reads and writes letters, each a token."""
    vocabulary = {token: number for number, token in enumerate([*_SPECIAL, *_LETTERS])}
    letters = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    letters.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=letters, unk_token="<unk>", eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"]
    )
    tokenizer.chat_template = CHAT
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=CONTEXT, pad_token_id=0, bos_token_id=None, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "embed" not in name:  # attention that is sharp makes answers depend on the text
                weight.mul_(16 if name.endswith(("q_proj.weight", "k_proj.weight")) else 4)
        model.lm_head.weight[:2] = 0  # answers are letters
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Maker:
    """Makes scripts and finds their answers, with the memory alone and no server.

    Attributes:
        memory, budget, interval: as the server is started with.
        most: tokens of an answer at most.
        margin: least distance between the best and the second-best logit; closer calls are no reference.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    memory: str
    budget: float
    interval: int
    most: int
    margin: float

    def scripts(
        self, key: int, secret: str, count: int, lengths: tuple[int, int], shared: bool, seed: int
    ) -> list[Script]:
        """So many scripts whose system text has between so many letters."""
        rng = random.Random(f"{seed} {key} {shared}")
        found: list[Script] = []
        for attempt in range(20 * count):
            text = _text(rng, rng.randint(*lengths))
            system = text if shared else f"The secret of this key is {secret}. {text}"
            name = f"{'shared' if shared else 'own'}-{key}-{attempt}"
            turns = self._turns(system, [_text(rng, rng.randint(20, 90)) for _ in range(3)])
            if turns is not None:
                found.append(Script(name, key, shared, system, turns))
            if len(found) == count:
                return found
        raise RuntimeError(f"expected {count} conversations whose answers are clear; got {len(found)}")

    def _turns(self, system: str, questions: list[str]) -> tuple[Turn, ...] | None:
        """The turns with their answers; None if one of them is a close call."""
        said, turns = [{"role": "system", "content": system}], list[Turn]()
        before: list[int] = []
        for question in questions:
            said.append({"role": "user", "content": question})
            prompt = self._ids(said)
            if len(prompt) + self.most > CONTEXT // 2 or prompt[: len(before)] != before:
                return None  # too long, or cut into other tokens than it was read as
            answers = [self._answer(prompt, piece) for piece in _PIECES]
            if answers[0] is None or answers[0] != answers[1]:
                return None
            ids, finish = answers[0]
            shown = self.tokenizer.decode(ids, skip_special_tokens=True)
            if (
                not shown.strip()
                or self.tokenizer.encode(shown, add_special_tokens=False) != ids[: len(ids) - (finish == "stop")]
            ):
                return None
            turns.append(Turn(question, self._written(said), shown, finish, len(prompt)))
            said.append({"role": "assistant", "content": shown})
            before = prompt + ids[:-1]
        return tuple(turns)

    def _ids(self, messages: list[Message]) -> list[int]:
        made: Any = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        return list(made["input_ids"])

    def _written(self, messages: list[Message]) -> str:
        return str(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))

    @torch.inference_mode()
    def _answer(self, prompt: list[int], piece: int) -> tuple[list[int], str] | None:
        """The tokens of the answer, best first, and why it ends; None if one was a close call."""
        ids: list[int] = []
        selection = namm.Budget(fraction=self.budget)
        with namm.attach(self.model, self.memory, selection, self.interval):
            for logits in self._logits(prompt, piece, ids):
                best = logits.topk(2)
                if float(best.values[0] - best.values[1]) < self.margin:
                    return None
                ids.append(int(best.indices[0]))
                if ids[-1] == self.tokenizer.eos_token_id:
                    return ids, "stop"
        return ids, "length"

    def _logits(self, prompt: list[int], piece: int, written: list[int]) -> Iterator[torch.Tensor]:
        """After the prompt, and after each token that was written since."""
        cache, waiting = None, [prompt[at : at + piece] for at in range(0, len(prompt), piece)]
        for count in range(self.most):
            for part in waiting:
                out = self.model(torch.tensor([part]), past_key_values=cache, logits_to_keep=1)
                cache = out.past_key_values
            yield out.logits[0, -1]
            waiting = [written[count:]]


def _text(rng: random.Random, letters: int) -> str:
    """Whole words of a novel, from a random place on, in letters that the tiny model knows."""
    book = paragraphs("emma")
    at = rng.randrange(len(book))
    text = " ".join(book[(at + n) % len(book)] for n in range(1 + letters // 40))
    return "".join(c for c in text if c in _LETTERS)[:letters].rpartition(" ")[0]
