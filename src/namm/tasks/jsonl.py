"""A task of one's own: a file with one JSON object a line.

    {"context": "Ann lives in Rome. ...", "question": "\\n\\nWhere does Ann live?", "answers": ["Rome"]}

`answers` may be one text. Optional: `id` (else the number of the line), `reply` (how the answer begins), `target`,
`metric` ("exact" else), `max_new_tokens`, `classes`, `completion`; see `namm.tasks.base.Sample`. Other fields are
ignored. The file serves every split: what belongs into it is its owner's affair.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

from namm.errors import ConfigurationError, NotFoundError, nearest
from namm.tasks.base import Request, Sample, Task
from namm.tasks.hub import Row, jsonl_records
from namm.tasks.metrics import METRICS

_Value = TypeVar("_Value", int, bool)


def user_task(path: Path) -> Task:
    """The task of a JSONL file; its name is that of the file without its ending.

    Raises:
        NotFoundError: there is no such file (at once), or no such metric (on the way).
        ConfigurationError: a line is damaged or lacks a field (on the way); names file and line.
    """
    path = path.expanduser()
    if not path.is_file():
        raise NotFoundError(
            "a JSONL file with context, question and answers on each line", str(path), "Check the path."
        )

    def samples(request: Request) -> Iterator[Sample]:
        return islice(_samples(path), request.count)

    return Task(path.stem, samples, generated=False, description=str(path))


def _samples(path: Path) -> Iterator[Sample]:
    for number, (fields, place) in enumerate(jsonl_records(path), 1):
        yield _sample(path.stem, Row(fields, place, number))


def _sample(task: str, row: Row) -> Sample:
    known = {name: row.text(name) for name in ("reply", "target", "metric") if name in row.fields}
    if (metric := known.get("metric", "exact")) not in METRICS:
        raise NotFoundError("a known metric", f"{metric!r} in {row.place}", nearest(metric, METRICS))
    return Sample(
        task=task,
        id=str(row.fields.get("id", row.number)),
        context=row.text("context"),
        question=row.text("question"),
        answers=row.texts("answers"),
        max_new_tokens=_value(row, "max_new_tokens", 32),
        completion=_value(row, "completion", False),
        classes=row.texts("classes") if row.fields.get("classes") else (),
        **known,
    )


def _value(row: Row, name: str, default: _Value) -> _Value:
    value = row.fields.get(name, default)
    if type(value) is not type(default) or (value < 1 and name == "max_new_tokens"):
        expected = "true or false" if isinstance(default, bool) else "a whole number above 0"
        raise ConfigurationError(f"{expected} in the field {name!r}", f"{value!r} in {row.place}", "Repair this line.")
    return value
