"""The rows of an evaluation: what stands in one, and the files they stand in."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock, Timeout
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from namm.errors import ArtefactError, ConfigurationError
from namm.evaluation.config import EvaluationConfig
from namm.evaluation.reader import Answer, Contender, Group
from namm.version import __version__

log = logging.getLogger(__name__)
Row = dict[str, Any]
Key = tuple[Any, ...]
IDENTITY = ("task", "tokens", "sample", "policy", "budget")


def read_rows(out: str | Path) -> list[Row]:
    """All rows in a folder, of every part; a line that is still being written is left out.

    Raises:
        ArtefactError: a line is no JSON; the message names file and line.
    """
    rows: list[Row] = []
    for file in sorted(Path(out).glob("rows*.jsonl")):
        for number, line in enumerate(file.read_bytes().split(b"\n")[:-1], 1):  # a torn end may be no UTF-8
            try:
                row = json.loads(line)
                _key(row)
            except (ValueError, KeyError, TypeError) as error:
                raise ArtefactError(
                    "a row in JSON", f"line {number} of {file} ({error!r})", "Remove that line; it is measured again."
                ) from error
            rows.append(row)
    return rows


class RowFile:
    """What is measured already, and the file that this process, and no other, adds to.

    Raises:
        ConfigurationError: another process is adding to it, or its samples are not those of `groups`.
    """

    def __init__(self, out: Path, part: tuple[int, int], groups: Iterable[Group] = ()) -> None:
        self.file = out / ("rows.jsonl" if part[1] == 1 else f"rows-{part[0]}-of-{part[1]}.jsonl")
        self._lock = FileLock(self.file.with_suffix(".lock"))
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise ConfigurationError(
                f"no other process that writes {self.file}", "one", "Wait for it, or divide the work with --part."
            ) from error
        rows = read_rows(out)
        self.known = {_key(row) for row in rows}
        _check_samples(rows, groups)
        text = self.file.read_bytes() if self.file.exists() else b""
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:
            log.warning("The last row of %s was cut off; it is measured again.", self.file)
            os.truncate(self.file, len(whole))

    def __enter__(self) -> RowFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def add(self, rows: list[Row]) -> None:
        new = [row for row in rows if _key(row) not in self.known]
        with self.file.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in new))
            file.flush()
            os.fsync(file.fileno())
        self.known |= {_key(row) for row in new}


def _check_samples(rows: list[Row], groups: Iterable[Group]) -> None:
    measured = {
        (row["task"], row["tokens"], row["sample"]): (row.get("prompt_sha256"), row.get("gold")) for row in rows
    }
    for group in groups:
        for encoded in group.samples:
            place = (encoded.sample.task, group.tokens, encoded.sample.id)
            now = (_hash(list(encoded.prompt)), encoded.sample.gold)
            if measured.get(place, now) != now:
                raise ConfigurationError(
                    f"the samples that were measured in this folder, such as {place[2]!r} of {place[0]}",
                    "another prompt or answer under that name: the data, or the Python of code samples, has changed",
                    "Use another folder.",
                )


def _key(row: Row) -> Key:
    return tuple(row[name] for name in IDENTITY)


def keys(group: Group, batch: Iterable[Contender]) -> set[Key]:
    return {
        (encoded.sample.task, group.tokens, encoded.sample.id, contender.name, contender.budget)
        for encoded in group.samples for contender in batch
    }  # fmt: skip


def row_of(group: Group, answer: Answer) -> Row:
    sample, held = answer.sample.sample, answer.held
    return {
        "task": sample.task, "tokens": group.tokens, "sample": sample.id, "policy": answer.contender.name,
        "budget": answer.contender.budget, "nll": answer.nll, "exact": int(answer.exact), "metric": sample.metric,
        "score": answer.score, "prediction": answer.prediction, "gold": sample.gold,
        **dataclasses.asdict(held),
        "context_tokens": len(group.text), "prompt_tokens": len(answer.sample.prompt),
        "removed_tokens": answer.sample.removed, "rendered": answer.sample.template,
        "context_hash": _hash(sample.context), "prompt_sha256": _hash(list(answer.sample.prompt)),
        "seconds": round(answer.seconds, 4),
    }  # fmt: skip


def _hash(value: str | list[int]) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def common_fields(config: EvaluationConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Row:
    """What is the same in all rows. `template` is of the run; how a sample was put, `rendered`, stands in its row."""
    return {
        "template": "chat" if config.template != "raw" and tokenizer.chat_template else "raw",
        "split": config.split, "seed": config.seed, "protocol": config.protocol, "model": config.model,
        "update_interval": config.update_interval, **provenance(model),
    }  # fmt: skip


def provenance(model: PreTrainedModel) -> Row:
    """What a number was measured by and on."""
    return {
        "dtype": str(model.dtype).removeprefix("torch."), "namm": __version__, "torch": torch.__version__,
        "transformers": transformers.__version__, "python": platform.python_version(), "hardware": _hardware(),
        "commit": _commit(),
    }  # fmt: skip


def _hardware() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
    return f"{name}, {torch.get_num_threads()} threads"


def _commit() -> str | None:
    """The commit of this package, if it runs from a checkout of its own."""
    try:
        if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:  # somebody else's repository, or none
            return None
        return _git("describe", "--always", "--dirty")
    except FileNotFoundError:
        return None


def _git(*words: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
