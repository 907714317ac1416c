"""What is evaluated, as one value."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from namm.errors import ConfigurationError, nearest
from namm.models import DEFAULT
from namm.policies import DEFAULT_MEMORY
from namm.tasks.base import TEMPLATES
from namm.tasks.text import check_split

PROTOCOLS = ("context-first", "whole")
OWN = "own"
SANITY = ("full", "floor", "truncated", "random", "streaming", "oracle")  # in every table
DEFAULT_POLICIES = (
    "h2o", "observed-max", "tova", "snapkv", "knorm", "requery", "kvzip", "kvzip-whole", DEFAULT_MEMORY,
)  # fmt: skip
GRID = ("policies", "budgets", "tasks", "tokens", "samples")  # may grow in a folder that holds results


@dataclass(frozen=True)
class EvaluationConfig:
    """One evaluation, complete: the same values give the same rows on the same machine.

    Attributes:
        model: name for `load_model`.
        policies: what is compared, by name; the sanity rows are always there besides.
        budgets: shares of the full cache's bytes in (0, 1), the policy's own state included; "own" stands for the
            bytes a NAMM takes at its own threshold.
        tasks: names of tasks, suites or JSONL files.
        tokens: lengths of context that generated tasks aim at; loaded texts come as long as they are.
        samples: of each task and length, from the first; 0 for all there are.
        protocol: "context-first": the memory decides before it has seen the question, which it then keeps, as it keeps
            the answer. "whole": context and question are read as one text, and the memory decides with both.
        template: "auto", "chat" or "raw", see `tasks.encode`.
        update_interval: tokens between two updates while reading; the last falls at the end of the text.
        longest: most tokens of a loaded prompt with its answer, the middle is removed from longer ones; 0 for what
            the model can take.
        data: folder of downloaded benchmarks; the hub is asked without it.
        dtype: of the model; "auto" is bfloat16 on a GPU and float32 on a CPU.
        batch: memories that read a text side by side, each in a row of its own; for GPUs.
        threads: torch threads; 0 leaves them as they are.
    """

    model: str = DEFAULT
    policies: tuple[str, ...] = DEFAULT_POLICIES
    budgets: tuple[float | str, ...] = (0.5, 0.25)
    tasks: tuple[str, ...] = ("embedded",)
    tokens: tuple[int, ...] = (1024,)
    samples: int = 24
    split: str = "test"
    seed: int = 0
    protocol: str = "context-first"
    template: str = "auto"
    update_interval: int = 512
    longest: int = 0
    data: str | None = None
    dtype: str = "auto"
    batch: int = 1
    threads: int = 0

    def __post_init__(self) -> None:
        check_split(self.split)
        if self.protocol not in PROTOCOLS:
            raise ConfigurationError("a protocol", repr(self.protocol), nearest(self.protocol, PROTOCOLS))
        if self.template not in TEMPLATES:
            raise ConfigurationError("a template", repr(self.template), nearest(self.template, TEMPLATES))
        if not self.budgets or not self.tasks or not self.tokens:
            raise ConfigurationError(
                "a budget, a task and a length at least", f"{self.budgets}, {self.tasks}, {self.tokens}", "Give some."
            )
        for name in ("budgets", "tokens"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ConfigurationError(f"{name} that differ", getattr(self, name), "Give each once.")
        check_budgets(self.budgets)
        for name, least in (("tokens", 1), ("samples", 0), ("longest", 0), ("batch", 1), ("threads", 0)):
            value = getattr(self, name)
            if min(value if isinstance(value, tuple) else (value,)) < least:
                raise ConfigurationError(f"{name} >= {least}", value, "See the help for what it means.")
        if self.data is not None and not Path(self.data).is_dir():
            raise ConfigurationError("a folder of benchmark data", self.data, "Check the path, or leave it out.")

    @property
    def all_policies(self) -> tuple[str, ...]:
        """The sanity rows and what is compared, each once."""
        return tuple(dict.fromkeys(SANITY + self.policies))


def check_budgets(budgets: Iterable[float | str]) -> None:
    """Raise unless each is a share of the full cache's bytes or "own"."""
    for budget in budgets:
        if budget != OWN and not (isinstance(budget, float) and 0 < budget < 1):
            raise ConfigurationError(
                f'a budget above 0 and below 1, or "{OWN}"', repr(budget), "0.25 is a quarter of the full cache."
            )


def alignment(hops: list[int], interval: int) -> int:
    """Texts are decided upon at multiples of this, so that no policy has attention left to observe.

    Raises:
        ConfigurationError: the interval between updates is no multiple of it.
    """
    step = math.lcm(*hops)
    if interval < 1 or interval % step:
        raise ConfigurationError(f"an update interval that is a multiple of {step}", interval, "The default is 512.")
    return step
