"""What is evaluated, as one value."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from namm.configuration import Budgets, Lengths, Names, Section
from namm.defaults import DEFAULT_MEMORY, DEFAULT_MODEL
from namm.errors import ConfigurationError

_SANITY = ("full", "floor", "truncated", "random", "streaming", "oracle")  # in every table
GRID = ("policies", "budgets", "tasks", "tokens", "samples")  # may grow in a folder that holds results


def _folder(data: str | None) -> str | None:
    if data is not None and not Path(data).is_dir():
        raise ConfigurationError("a folder of benchmark data", data, "Check the path, or leave it out.")
    return data


class ReadingConfig(Section):
    """What every evaluation needs to know."""

    update_interval: int = 512
    """Tokens between two updates while reading; the last falls at the end of the text."""
    data: Annotated[str | None, AfterValidator(_folder)] = None
    """Folder of downloaded benchmarks, in their own layout; the hub is asked without it, where it has them."""
    dtype: str = "auto"
    """auto, float32, bfloat16 or float16; auto is bfloat16 on a GPU and float32 on a CPU."""
    threads: int = Field(default=0, ge=0)
    """Torch threads; 0 for torch's own choice."""


class EvaluationConfig(ReadingConfig):
    """One evaluation, complete: the same values give the same rows on the same machine."""

    model: str = DEFAULT_MODEL
    """Known name, folder, GGUF file or hub id."""
    policies: tuple[str, ...] = (
        "h2o",
        "observed-max",
        "tova",
        "snapkv",
        "knorm",
        "requery",
        "kvzip",
        "kvzip-whole",
        DEFAULT_MEMORY,
    )
    """Policy or memory to compare, by name; the full cache and what else checks the table is there besides."""
    budgets: Budgets = (0.5, 0.25)
    """Share of the full cache's bytes, the policy's own state included; own: a NAMM's own threshold."""
    tasks: Names = ("embedded",)
    """Task, suite or JSONL file."""
    tokens: Lengths = (1024,)
    """Length of generated contexts; loaded texts come as long as they are."""
    samples: int = Field(default=24, ge=0)
    """Samples of each task and length, from the first; 0 for all."""
    split: Literal["train", "validation", "test"] = "test"
    """train, validation or test."""
    seed: int = 0
    """The same seed gives the same samples."""
    protocol: Literal["context-first", "whole"] = "context-first"
    """context-first: the memory decides before the question is known, which it then keeps, as it keeps the answer;
    whole: context and question are read as one text."""
    template: Literal["auto", "chat", "raw"] = "auto"
    """auto, chat or raw: whether prompts are put into the chat template; auto: if there is one."""
    longest: int = Field(default=0, ge=0)
    """Most tokens of a loaded prompt with its answer, the middle is removed from longer ones; 0 for what the model can
    take."""
    batch: int = Field(default=1, ge=1)
    """Memories that read a text side by side, each in a row of its own; for GPUs."""

    @property
    def all_policies(self) -> tuple[str, ...]:
        """The sanity rows and what is compared, each once."""
        return tuple(dict.fromkeys(_SANITY + self.policies))
