"""The rows of an evaluation: what stands in one, and the files they stand in."""

from __future__ import annotations

import dataclasses
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from namm.errors import ArtefactError, ConfigurationError
from namm.evaluation.config import EvaluationConfig
from namm.evaluation.reader import Answer, Method, TextGroup
from namm.json_files import add_rows, digest, placed_rows
from namm.report import Row
from namm.version import __version__

_Key = tuple[Any, ...]
_ROWS = "benchmarks/results"  # of this project's checkout, where what was measured is kept
_AGAIN = "Remove that line; it is measured again."
_IDENTITY = ("task", "tokens", "sample", "policy", "budget")


def read_rows(out: str | Path) -> list[Row]:
    """All rows in a folder, of every part; a line that is still being written is left out.

    Raises:
        ArtefactError: a line is no row, or two are of the same measurement; the message names file and line.
    """
    rows: list[Row] = []
    places: dict[_Key, str] = {}
    for file in sorted(Path(out).glob("rows*.jsonl")):
        for row, place in placed_rows(file, _IDENTITY, _AGAIN):
            key = _key(row)
            if not all(isinstance(value, str | int | float | None) for value in key):
                raise ArtefactError(f"a name or number for each of {', '.join(_IDENTITY)} in {place}", key, _AGAIN)
            if (other := places.setdefault(key, place)) != place:
                raise ArtefactError("one row for each measurement", f"{other} and {place} of {key}", "Remove one.")
            rows.append(row)
    return rows


class RowFile:
    """What is measured already, and the file that this process adds to; see `folder.open_folder`, which holds it.

    Raises:
        ArtefactError: see `read_rows`.
        ConfigurationError: the samples that were measured are not those of `groups`.
    """

    def __init__(self, out: Path, part: tuple[int, int] = (1, 1), groups: Iterable[TextGroup] = ()) -> None:
        self.file = out / ("rows.jsonl" if part[1] == 1 else f"rows-{part[0]}-of-{part[1]}.jsonl")
        rows = read_rows(out)
        self.known = {_key(row) for row in rows}
        _check_samples(rows, groups)

    def add(self, rows: list[Row]) -> None:
        new = [row for row in rows if _key(row) not in self.known]
        add_rows(self.file, new)
        self.known |= {_key(row) for row in new}


def _check_samples(rows: list[Row], groups: Iterable[TextGroup]) -> None:
    measured = {
        (row["task"], row["tokens"], row["sample"]): (row.get("prompt_sha256"), row.get("gold")) for row in rows
    }
    for group in groups:
        for encoded in group.samples:
            place = (encoded.sample.task, group.tokens, encoded.sample.id)
            now = (digest(list(encoded.prompt)), encoded.sample.gold)
            if measured.get(place, now) != now:
                raise ConfigurationError(
                    f"the samples that were measured in this folder, such as {place[2]!r} of {place[0]}",
                    "another prompt or answer under that name: the data, or the Python of code samples, has changed",
                    "Use another folder.",
                )


def _key(row: Row) -> _Key:
    return tuple(row[name] for name in _IDENTITY)


def keys(group: TextGroup, batch: Iterable[Method]) -> set[_Key]:
    return {
        (encoded.sample.task, group.tokens, encoded.sample.id, method.name, method.budget)
        for encoded in group.samples
        for method in batch
    }


def row_of(group: TextGroup, answer: Answer) -> Row:
    sample, held = answer.sample.sample, answer.held
    return {
        "task": sample.task,
        "tokens": group.tokens,
        "sample": sample.id,
        "policy": answer.method.name,
        "budget": answer.method.budget,
        "nll": answer.nll,
        "exact": int(answer.exact),
        "metric": sample.metric,
        "score": answer.score,
        "prediction": answer.prediction,
        "gold": sample.gold,
        **dataclasses.asdict(held),
        "context_tokens": len(group.text),
        "prompt_tokens": len(answer.sample.prompt),
        "removed_tokens": answer.sample.removed,
        "rendered": answer.sample.template,
        "context_hash": digest(sample.context),
        "prompt_sha256": digest(list(answer.sample.prompt)),
        "seconds": round(answer.seconds, 4),
    }


def common_fields(config: EvaluationConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Row:
    """What is the same in all rows. `template` is of the run; how a sample was put, `rendered`, stands in its row."""
    return {
        "template": "chat" if config.template != "raw" and tokenizer.chat_template else "raw",
        **config.model_dump(include={"model", "update_interval", "split", "seed", "protocol"}),
        **provenance(model),
    }


def provenance(model: PreTrainedModel) -> Row:
    """What a number was measured by and on."""
    return {
        "dtype": str(model.dtype).removeprefix("torch."),
        "namm": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "hardware": hardware(),
        "commit": commit(),
    }


def hardware() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
    return f"{name}, {torch.get_num_threads()} threads"


def commit() -> str | None:
    """The commit of this package, if it runs from a checkout of its own; "-dirty" if other files than rows differ."""
    try:
        if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:  # somebody else's repository, or none
            return None
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", f":(top,exclude){_ROWS}")
        return f"{_git('rev-parse', '--short', 'HEAD')}{'-dirty' if changed else ''}"
    except FileNotFoundError:
        return None


def _git(*words: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
