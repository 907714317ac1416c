"""RULER as kvpress's leaderboard asks it: thirteen tasks of 500 samples each, in a data set of three lengths.

A record has the fields context, question, answer_prefix, answer, task and max_new_tokens, which become a sample as they
stand. Scores are those of `evaluation/benchmarks/ruler/calculate_metrics.py` of github.com/NVIDIA/kvpress (Apache-2.0)
at 8bb29b9. How to put a row beside kvpress's, and what is different: docs/kvpress.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from namm.errors import NotFoundError
from namm.tasks.base import Request, Sample, Task
from namm.tasks.hub import Published, Row, rows
from namm.tasks.ruler import TASKS as RULER

PUBLISHED = Published("simonjegou/ruler", "24adceac8a0e6532936e8d721cd9e9084d2e4686", ("{0}/test-*.parquet",))
"""kvpress reads whatever is newest; this commit is what several public repositories of 2026 read."""

LENGTHS = (4096, 8192, 16384)
"""Tokens of Llama 3.1, the answer included."""


def sample(task: str, row: Row) -> Sample:
    """The sample of a record; its id is the number of the record."""
    name, answers = task.rpartition("/")[2], row.texts("answer")
    return Sample(
        task=task,
        id=str(row.number),
        context=row.text("context"),
        question=row.text("question"),
        reply=row.text("answer_prefix"),
        answers=answers,
        target=_target(name, answers),
        metric="string_match_part_joined" if name.startswith("qa_") else "string_match_all_joined",
        max_new_tokens=row.whole("max_new_tokens"),
        whole=True,
    )


def _target(name: str, answers: tuple[str, ...]) -> str:
    """The answers as one text, written as the prompt shows it, for the likelihood."""
    if name.startswith("qa_"):
        return answers[0]
    if name == "cwe":
        return " ".join(f"{number}. {word}" for number, word in enumerate(answers, 1))
    return (" " if name == "vt" else ", ").join(answers)


def _task(length: int, name: str) -> Task:
    def samples(request: Request) -> Iterator[Sample]:
        found = rows(PUBLISHED, str(length), replace(request, count=None))
        return islice(_of_task(f"kvpress-{length}/{name}", name, found), request.count)

    description = RULER[f"ruler/{name}"].description
    return Task(f"kvpress-{length}/{name}", samples, generated=False, description=description)


def _of_task(task: str, name: str, records: Iterator[Row]) -> Iterator[Sample]:
    """One length's records of a task, which stand in one file with those of the others.

    Raises:
        NotFoundError: there are none.
    """
    others: dict[str, None] = {}
    for row in records:
        if (of_row := row.text("task")) == name:
            yield sample(task, row)
        others[of_row] = None
    if name not in others:
        got = ", ".join(others) or "none"
        raise NotFoundError(f"records of the task {name!r} for {task}", got, "Download the data set again, whole.")


SUITES = {
    f"kvpress-{length}": {task.name: task for task in (_task(length, name.partition("/")[2]) for name in RULER)}
    for length in LENGTHS
}
