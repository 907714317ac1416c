"""What candidates are measured on: the contract between a search and its objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from namm.network import NAMM, NAMMConfig
from namm.spectrogram import Statistics


@dataclass(frozen=True)
class Item:
    """One sample under one budget. The same item is the same sample in every process.

    Attributes:
        split: "train" or "validation".
        task: name of a task.
        tokens: length of the text.
        index: of the sample within its task.
        budget: share of the full cache's bytes that a memory may hold, its own state included; None leaves it to the
            memory's own threshold.
        model: index in the run's models.
    """

    split: str
    task: str
    tokens: int
    index: int
    budget: float | None
    model: int = 0


@dataclass(frozen=True)
class Outcome:
    """What one candidate did on one item.

    Attributes:
        score: higher is better, 1 is as good as forgetting nothing; NaN for an evaluation that failed.
        nll: of the gold answer, nats per token.
        share: bytes held over the bytes of a full cache.
    """

    score: float
    nll: float
    share: float


class Problem(Protocol):
    """Measures memories. Every worker builds its own, and all of them measure alike."""

    def statistics(self, item: Item, layout: NAMMConfig) -> Statistics:
        """Normalisation statistics of a memory that forgets nothing (spec 5)."""
        ...

    def measure(self, item: Item, networks: NAMM) -> list[Outcome]:
        """One outcome for each candidate of `networks`, whose `theta` is `[candidate, parameter]`."""
        ...

    def threshold(self, item: Item, network: NAMM) -> float:
        """The score that as many tokens reach as the item's budget holds, when its text has been read.

        A memory that was evolved under budgets ranks tokens only; its own threshold is put there.
        """
        ...
