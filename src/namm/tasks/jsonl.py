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
from typing import Any

from namm.errors import NotFoundError, nearest
from namm.tasks.base import Request, Sample, Task
from namm.tasks.hub import Row, jsonl_records
from namm.tasks.metrics import METRICS


def user_task(path: Path) -> Task:
    """The task of a JSONL file; its name is that of the file without its ending.

    Raises:
        NotFoundError: there is no such file (at once), or no such metric (on the way).
        ConfigurationError: a line is damaged or lacks a field (on the way); names file and line.
    """
    path = path.expanduser()
    if not path.is_file():
        raise NotFoundError(
            "a JSONL file with context, question and answers on each line",
            f"no file {path}",
            "Check the path; of a run of evolution `data` names the folder.",
        )

    def samples(request: Request) -> Iterator[Sample]:
        return islice(_samples(path), request.count)

    return Task(path.stem, samples, generated=False, description=str(path))


def _samples(path: Path) -> Iterator[Sample]:
    for number, (fields, place) in enumerate(jsonl_records(path), 1):
        yield _sample(path.stem, Row(fields, place, number))


def _sample(task: str, row: Row) -> Sample:
    known: dict[str, Any] = {name: row.text(name) for name in ("reply", "target", "metric") if name in row.fields}
    if (metric := known.get("metric", "exact")) not in METRICS:
        raise NotFoundError("a known metric", f"{metric!r} in {row.place}", nearest(metric, METRICS))
    return Sample(
        task=task,
        id=str(row.fields.get("id", row.number)),
        context=row.text("context"),
        question=row.text("question"),
        answers=row.texts("answers"),
        max_new_tokens=row.whole("max_new_tokens") if "max_new_tokens" in row.fields else 32,
        completion="completion" in row.fields and row.flag("completion"),
        classes=row.texts("classes") if row.fields.get("classes") else (),
        **known,
    )
