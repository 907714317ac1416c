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

import logging
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from namm.errors import ArtefactError, ConfigurationError, NammError
from namm.evolution.config import FORMAT_VERSION, WARM, ZEROS, EvolutionConfig
from namm.files import locked, recover, replacing, sweep, writing
from namm.json_files import add_rows, digest, read_json, read_rows, write_json, write_rows
from namm.network import NAMM

log = logging.getLogger(__name__)

RUN, CHECKPOINT, PREVIOUS, LOG = "run.json", "checkpoint.json", "checkpoint.previous.json", "log.jsonl"
START, MEMORY, MEAN, BEST = "start", "memory", "mean", "best"
_CHECKPOINT_FORMAT = 2
_ROW = ("generation", "stage", "mean", "best", "share", "sigma", "rate", "validation", "best_validation", "time")
_RENAMED = {"bar": "threshold"}  # fields of records as older checkpoints call them
_AFRESH = "Start the run again in a new folder."


@dataclass(frozen=True)
class Record:
    """Where a memory was found that validated best: enough to find it again by replaying the search.

    Attributes:
        stage: index of the stage; validations of different stages do not compare.
        generation: that was being measured, from 0; or, for the mean, the generations told before it.
        candidate: index in its generation; None for the mean.
        fitness: on the validation items; None if it could not be measured.
        threshold: the score at which the budgets cut.
    """

    stage: int
    generation: int
    candidate: int | None
    fitness: float | None
    threshold: float


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run, a value.

    Attributes:
        told: fitness of the candidates of each generation; None for what could not be measured.
        records: best validated "mean" and "best" candidate of the last validated stage.
        evaluations: candidates times samples so far, validation included.
        drawn: hash of the candidates of all these generations and of the means after them.
        versions: of what decided them, see `namm.evolution.strategy.versions`.
    """

    told: tuple[tuple[float | None, ...], ...] = ()
    records: dict[str, Record] = field(default_factory=dict)
    evaluations: int = 0
    drawn: str = ""
    versions: dict[str, str] = field(default_factory=dict)


@contextmanager
def open_folder(path: Path, config: EvolutionConfig, resume: bool) -> Iterator[Folder]:
    """Hold the folder of a run, for a new one or to resume one; see above for what it holds.

    Raises:
        ConfigurationError: there is none to resume, there is one already, it is of another configuration or version, or
            another process is at it.
        ArtefactError: neither the checkpoint nor the previous one can be read, or another file is damaged.
        RunError: the folder cannot be written.
    """
    if resume and not (path / RUN).exists():
        raise ConfigurationError(f"a run to resume in {path}", f"no {RUN} there", "Start it without resume.")
    with locked(path):
        if not resume and (path / RUN).exists():
            raise ConfigurationError(
                f"a folder without a run, for {path}", "one that holds a run", "Pass resume, or another folder."
            )
        sweep(path)
        for name in (START, MEMORY, MEAN, BEST):
            recover(path / name)
        yield Folder(path, config, resume)


class Folder:
    """A run folder that this process holds. To open it changes none of its files."""

    def __init__(self, path: Path, config: EvolutionConfig, resume: bool) -> None:
        self.path, self.config = path, config
        self.state, self._damaged = Checkpoint(), False
        if resume:
            self.state = self._read()
            _check_same_run(_saved_identity(path / RUN), config.identity(), len(self.state.told))
            self.rows()  # raises where they are damaged

    def begin(self, start: NAMM) -> None:
        """Make the folder of a new run, with where its search begins, so that to resume does neither again."""
        with replacing(self.path / START) as folder:
            start.save_pretrained(folder)
        self._write_run()  # last: a folder with it can be resumed

    def go_on(self) -> None:
        """Note the configuration that may have grown, and forget log rows of generations that will be done again."""
        self._write_run()
        newest = self.path / CHECKPOINT
        if self._damaged and newest.exists():  # it must not take the place of the previous one, which is whole
            with writing(newest):
                os.replace(newest, newest.with_suffix(".damaged"))
        rows = self.rows()
        kept = [row for row in rows if row["generation"] <= len(self.state.told)]
        if len(kept) < len(rows):
            write_rows(self.path / LOG, kept)

    def load_start(self) -> NAMM | None:
        """The start of a run that has begun."""
        if not (self.path / RUN).exists():
            return None
        if not (self.path / START).is_dir():  # from_pretrained would ask the hub
            raise ArtefactError(f"the start of the search in {self.path / START}", "none", _AFRESH)
        return NAMM.from_pretrained(self.path / START)

    def _write_run(self) -> None:
        write_json(self.path / RUN, self.config.model_dump(mode="json", by_alias=True), indent=2)

    # -- checkpoints -------------------------------------------------------------------------------------------

    def write(self, state: Checkpoint, row: dict[str, Any]) -> None:
        """Keep the state after a generation, and its row of the log.

        Raises:
            RunError: the disk is full; the checkpoint before it is intact.
        """
        values = vars(state) | {"records": {name: vars(record) for name, record in state.records.items()}}
        whole = {"format": _CHECKPOINT_FORMAT, "sha256": digest(values), "state": values}
        add_rows(self.path / LOG, [row])  # first: a row too many is trimmed, a missing one is lost
        write_json(self.path / CHECKPOINT, whole, indent=None, previous=self.path / PREVIOUS)
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
            except NammError as error:
                problems.append(str(error))
                continue
            if problems:
                self._damaged = True
                log.warning("%s Going on from the previous checkpoint, %d generations.", problems[0], len(state.told))
            return state
        raise ArtefactError(f"a checkpoint in {self.path}", "; ".join(problems), _AFRESH)

    # -- memories ----------------------------------------------------------------------------------------------

    def save_memory(self, memory: NAMM, name: str = MEMORY) -> None:
        """Save an artefact with the configuration that makes it again."""
        values = self.config.model_dump(mode="json", by_alias=True, exclude={"workers"})
        copied = None
        if self.config.start.from_ not in (ZEROS, WARM):
            copied, values["start"]["from"] = self.path / START, START
        with replacing(self.path / name) as folder:
            memory.save_pretrained(folder)
            write_json(folder / RUN, values, indent=2)
            if copied is not None:
                shutil.copytree(copied, folder / START)

    # -- log ---------------------------------------------------------------------------------------------------

    def rows(self) -> list[dict[str, Any]]:
        """The rows of the log."""
        return read_log(self.path)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of the log of the run in `path`; a last one that was cut short is left out.

    Raises:
        ArtefactError: a line is damaged; names file and line.
    """
    return read_rows(path / LOG, needs=_ROW)


def _check_same_run(saved: dict[str, Any], now: dict[str, Any], done: int) -> None:
    """A run may be resumed with a longer last stage, further stages and other workers; all else must be the same.

    Raises:
        ConfigurationError: names what differs.
    """
    saved, now = dict(saved), dict(now)
    before, after = saved.pop("stages"), now.pop("stages")
    if sum(stage["generations"] for stage in after) < done:
        raise ConfigurationError(
            f"at least {done} generations, those of the run to resume",
            sum(s["generations"] for s in after),
            "Use another folder, or start another run at its memory.",
        )
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
    values = read_json(file, "Mend it, or use another folder.")
    version = values.get("format")
    if version != FORMAT_VERSION:
        raise ConfigurationError(
            f"a run folder of format {FORMAT_VERSION}",
            f"{file} of {'none' if version is None else version}",
            "Resume it with the version of namm that started it, or use another folder.",
        )
    try:
        return EvolutionConfig(**values).identity()
    except ConfigurationError as error:
        raise ArtefactError(f"a configuration in {file}", error, "Mend it, or use another folder.") from error


def _parse(file: Path) -> Checkpoint:
    way_out = "It was cut short or altered."
    whole = read_json(file, way_out)
    if whole.get("format") != _CHECKPOINT_FORMAT:
        raise ArtefactError(
            f"a checkpoint of format {_CHECKPOINT_FORMAT} in {file}", whole.get("format"), "Use its version of namm."
        )
    values = whole.get("state")
    if not isinstance(values, dict) or digest(values) != whole.get("sha256"):
        raise ArtefactError(f"a checkpoint in {file}", "another checksum", way_out)
    records = {
        name: Record(**{_RENAMED.get(key, key): value for key, value in record.items()})
        for name, record in values["records"].items()
    }
    return Checkpoint(**values | {"told": tuple(map(tuple, values["told"])), "records": records})


def as_told(fitness: Any) -> tuple[float | None, ...]:
    """Numbers as JSON has them: it knows no NaN."""
    return tuple(None if math.isnan(x) else float(x) for x in fitness)
