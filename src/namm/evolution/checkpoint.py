"""What a run folder holds, written so that being killed at any moment, or a full disk, loses nothing.

run.json                   the configuration
checkpoint.json            what the strategy was told, after the last generation
checkpoint.previous.json   the same one generation earlier
log.jsonl                  a row for each generation
start/                     the memory that the search began at, with its normalisation
memory/                    the best validated memory, with the run.json that makes it again
mean/, best/               the best validated mean of the search, the best validated candidate
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from namm.errors import ArtefactError, ConfigurationError, RunError
from namm.evolution.config import FORMAT_VERSION, WARM, ZEROS, EvolutionConfig
from namm.network import NAMM

log = logging.getLogger(__name__)

RUN, CHECKPOINT, PREVIOUS, LOG = "run.json", "checkpoint.json", "checkpoint.previous.json", "log.jsonl"
START, MEMORY = "start", "memory"


@dataclass(frozen=True)
class Record:
    """Where a memory was found that validated best: enough to find it again by replaying the search.

    Attributes:
        stage: index of the stage; validations of different stages do not compare.
        generation: that was being measured, from 0; or, for the mean, the generations told before it.
        candidate: index in its generation; None for the mean.
        fitness: on the validation items; None if it could not be measured.
        bar: the score at which the budgets cut, where its own threshold is put.
    """

    stage: int
    generation: int
    candidate: int | None
    fitness: float | None
    bar: float


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run, a value.

    Attributes:
        told: fitness of the candidates of each generation; None for what could not be measured.
        records: best validated "mean" and "best" candidate of the last validated stage.
        evaluations: candidates times samples so far, validation included.
    """

    told: tuple[tuple[float | None, ...], ...] = ()
    records: dict[str, Record] = field(default_factory=dict)
    evaluations: int = 0


class Folder:
    """A run folder: opened for a new run or to resume, see above for what it holds.

    Raises:
        ConfigurationError: there is none to resume, there is one already, or it is of another configuration or version.
        ArtefactError: neither the checkpoint nor the previous one can be read.
    """

    def __init__(self, path: Path, config: EvolutionConfig, resume: bool) -> None:
        self.path = path
        exists = (path / RUN).exists()
        if resume and not exists:
            raise ConfigurationError(f"a run to resume in {path}", f"no {RUN} there", "Start it without resume.")
        if exists and not resume:
            raise ConfigurationError(
                f"a folder without a run, for {path}", "one that holds a run", "Pass resume, or another folder."
            )
        self.config = config
        self.state = Checkpoint()
        if exists:
            self.state = self._read()
            check_same_run(_saved_identity(path / RUN), config.identity(), len(self.state.told))
            self._trim_log()
            self._write_run()

    def begin(self, start: NAMM) -> None:
        """Make the folder of a new run, with where its search begins, so that to resume does neither again."""
        with _disk(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            _swap_in(start, self.path / START)
        self._write_run()  # last: a folder with it can be resumed

    def load_start(self) -> NAMM | None:
        """The start of a run that has begun."""
        return NAMM.from_pretrained(self.path / START) if (self.path / RUN).exists() else None

    def _write_run(self) -> None:
        text = json.dumps(self.config.model_dump(mode="json", by_alias=True), indent=2) + "\n"
        with _disk(self.path):
            write_atomically(self.path / RUN, text)

    # -- checkpoints -------------------------------------------------------------------------------------------

    def write(self, state: Checkpoint, row: dict[str, Any]) -> None:
        """Keep the state after a generation, and its row of the log.

        Raises:
            RunError: the disk is full; the checkpoint before it is still there.
        """
        values = {
            "told": state.told,
            "records": {name: vars(record) for name, record in state.records.items()},
            "evaluations": state.evaluations,
        }
        text = json.dumps(values)
        whole = {"format": FORMAT_VERSION, "sha256": hashlib.sha256(text.encode()).hexdigest(), "state": values}
        with _disk(self.path):
            with (self.path / LOG).open("a") as file:  # first: a row too many is trimmed, a missing one is lost
                file.write(json.dumps(row) + "\n")
                file.flush()
                os.fsync(file.fileno())
            write_atomically(self.path / CHECKPOINT, json.dumps(whole) + "\n", self.path / PREVIOUS)
        self.state = state

    def _read(self) -> Checkpoint:
        """The newest state that can be read; a run that was killed in its first generation has none yet."""
        newest, previous = self.path / CHECKPOINT, self.path / PREVIOUS
        if not newest.exists() and not previous.exists():
            return Checkpoint()
        problems = []
        for file in (newest, previous):
            try:
                state = _parse(file)
            except (OSError, ArtefactError) as error:
                problems.append(str(error))
                continue
            if problems:
                log.warning("%s Going on from the previous checkpoint, %d generations.", problems[0], len(state.told))
            return state
        raise ArtefactError(f"a checkpoint in {self.path}", "; ".join(problems), "Start the run again in a new folder.")

    # -- memories ----------------------------------------------------------------------------------------------

    def save_memory(self, memory: NAMM, name: str = MEMORY) -> None:
        """Save an artefact with the configuration that makes it again."""
        values = self.config.model_dump(mode="json", by_alias=True, exclude={"workers"})
        copied = None
        if self.config.start.from_ not in (ZEROS, WARM):
            copied, values["start"]["from"] = self.path / START, START
        with _disk(self.path):
            _swap_in(memory, self.path / name, json.dumps(values, indent=2) + "\n", copied)

    # -- log ---------------------------------------------------------------------------------------------------

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows of the log."""
        return read_log(self.path)

    def _trim_log(self) -> None:
        """Without rows of generations that will be done again, or were cut short."""
        rows = [row for row in self.rows() if row["generation"] <= len(self.state.told)]
        with _disk(self.path):
            write_atomically(self.path / LOG, "".join(json.dumps(row) + "\n" for row in rows))


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of the log of the run in `path`; a last one that was cut short is left out."""
    file = path / LOG
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


def write_atomically(file: Path, text: str, previous: Path | None = None) -> None:
    """Replace `file` in one step, or not at all; what it held moves to `previous`."""
    scratch = file.with_name(file.name + ".new")
    with scratch.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    if previous is not None and file.exists():
        os.replace(file, previous)
    os.replace(scratch, file)


def check_same_run(saved: dict[str, Any], now: dict[str, Any], done: int) -> None:
    """A run may be resumed with a longer last stage, further stages and other workers; all else must be the same.

    Raises:
        ConfigurationError: names what differs.
    """
    saved, now = dict(saved), dict(now)
    before, after = saved.pop("stages"), now.pop("stages")
    if sum(stage["generations"] for stage in after) < done:
        raise ConfigurationError(
            f"at least {done} generations, those of the run to resume", sum(s["generations"] for s in after),
            "Use another folder, or start another run at its memory.",
        )  # fmt: skip
    shared = [{"generations": stage.pop("generations"), **stage} for stage in map(dict, before)]
    common = [{"generations": stage.pop("generations"), **stage} for stage in map(dict, after[: len(before)])]
    if shared and len(common) == len(shared):
        common[-1]["generations"] = shared[-1]["generations"]
    saved["stages"], now["stages"] = dict(enumerate(shared)), dict(enumerate(common))
    differing = list(_differences(saved, now))
    if differing:
        raise ConfigurationError("the configuration of the run to resume", "; ".join(differing), "Use another folder.")


def _differences(saved: Any, now: Any, name: str = "") -> Iterator[str]:
    if isinstance(saved, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*saved, *now]):
            yield from _differences(saved.get(key), now.get(key), f"{name}.{key}" if name else str(key))
    elif saved != now:
        yield f"{name} {now!r} where the run has {saved!r}"


def _saved_identity(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtefactError(f"a configuration in {file}", error, "Mend it, or use another folder.") from error
    version = values.get("format") if isinstance(values, dict) else None
    if version != FORMAT_VERSION:
        raise ConfigurationError(
            f"a run folder of format {FORMAT_VERSION}", f"{file} of {'none' if version is None else version}",
            "Resume it with the version of namm that started it, or use another folder.",
        )  # fmt: skip
    return EvolutionConfig(**values).identity()


def _parse(file: Path) -> Checkpoint:
    way_out = "It was cut short or altered."
    try:
        whole = json.loads(file.read_text())
        values = whole["state"]
        if whole["format"] != FORMAT_VERSION:
            raise ArtefactError(f"a checkpoint of format {FORMAT_VERSION}", whole["format"], "Use its version of namm.")
        if hashlib.sha256(json.dumps(values).encode()).hexdigest() != whole["sha256"]:
            raise ArtefactError(f"a checkpoint in {file}", "another checksum", way_out)
    except (ValueError, KeyError, TypeError) as error:
        raise ArtefactError(f"a checkpoint in {file}", f"{type(error).__name__}: {error}", way_out) from error
    records = {name: Record(**record) for name, record in values["records"].items()}
    return Checkpoint(tuple(tuple(t) for t in values["told"]), records, values["evaluations"])


def as_told(fitness: Any) -> tuple[float | None, ...]:
    """Numbers as JSON has them: it knows no NaN."""
    return tuple(None if math.isnan(x) else float(x) for x in fitness)


def _swap_in(memory: NAMM, folder: Path, run: str | None = None, start: Path | None = None) -> None:
    """Replace an artefact; if killed in between, the old or none is there, and to resume writes it again."""
    scratch, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    for left in (scratch, old):
        shutil.rmtree(left, ignore_errors=True)
    memory.save_pretrained(scratch)
    if run is not None:
        (scratch / RUN).write_text(run)
    if start is not None:
        shutil.copytree(start, scratch / START)
    if folder.exists():
        os.replace(folder, old)
    os.replace(scratch, folder)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """Errors of the file system, in this package's words."""
    try:
        yield
    except OSError as error:
        way_out = "Make room and resume the run: the checkpoint before this one is intact."
        raise RunError(f"a folder that can be written, for {path}", error, way_out) from error
