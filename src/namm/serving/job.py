"""A request in the engine."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from namm.memory.cache import MemoryCache
from namm.report.trace import Pieces, Recorder
from namm.serving.answer import Streamer, Text
from namm.serving.host import Served
from namm.serving.refusals import Refusal
from namm.serving.sampling import Sampler, Sampling

if TYPE_CHECKING:
    from namm.serving.admission import Match


@dataclass(eq=False)
class Job:
    """One request.

    Attributes:
        prompt: the whole prompt as text, by which a chat is found again.
        prompt_ids: the whole prompt as tokens; of a continued chat, as they were read.
        most: tokens of the answer at most.
        text: the answer's text so far.
        watch: whether events of the memory are streamed as well.
        echo: whether the prompt is part of what is told.
        likeliest: tokens to name in each place; None where no probabilities were asked for.
        branches: further answers to the same prompt, which begin where it was read.
        branch: whether this is one.
        ids: prompt and answer.
        unread: tokens of `ids`, the last ones, that the model has not read.
        reused: tokens that a continued conversation had read.
        reserved: bytes this request may hold.
        forgotten_before: tokens that the continued conversation had forgotten, as a mean over heads.
        conversation: id of what it continues, then of what it became.
        match: what it goes on with, while it waits.
        finish: why the answer ended: "stop", "length" or "cancelled"; None until then.
        failed: why there is no whole answer.
    """

    id: str
    owner: str
    served: Served
    chat: bool
    prompt: str
    prompt_ids: list[int]
    sampling: Sampling
    most: int
    text: Text
    streamer: Streamer
    watch: bool = False
    echo: bool = False
    likeliest: int | None = None
    branches: tuple[Job, ...] = ()
    branch: bool = False
    ids: list[int] = field(default_factory=list)
    unread: int = 0
    reused: int = 0
    reserved: int = 0
    forgotten_before: float = 0.0
    finish: str | None = None
    failed: Refusal | None = None
    match: Match | None = None
    cache: MemoryCache | None = None
    sampler: Sampler | None = None
    recorder: Recorder | None = None
    written: Pieces | None = None
    came: float = field(default_factory=time.monotonic)
    began: float | None = None  # when it was admitted
    first: float | None = None  # when its first token came
    ended: float | None = None
    kept: float = 0.0
    bytes_held: int = 0
    bytes_full: int = 0
    conversation: str | None = None

    @property
    def answer_ids(self) -> list[int]:
        return self.ids[len(self.prompt_ids) :]

    @property
    def read_ids(self) -> list[int]:
        """All that the model has read."""
        return self.ids[: len(self.ids) - self.unread]

    @property
    def width(self) -> int:
        """Answers."""
        return 1 + len(self.branches)

    @property
    def scored(self) -> bool:
        """Whether the prompt's own probabilities were asked for, so that all of it has to be read."""
        return self.echo and self.likeliest is not None
