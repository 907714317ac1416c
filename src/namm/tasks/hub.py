"""Files of a published data set: from the hub at a fixed revision, or from a folder in the same layout.

Nothing but data is read: JSON lines, Parquet, and JSON lines in a zip archive. The hub serves plain files; loading
scripts are never run.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from namm.errors import ArtefactError, ConfigurationError, NotFoundError, reason
from namm.json_files import json_lines
from namm.packages import package
from namm.tasks.base import Request, Sample, Task

_LAYOUTS = ("{0}.jsonl", "{0}.parquet", "{0}-*.parquet", "{0}/test*.jsonl", "{0}/test*.parquet")
_SHARD = re.compile(r"-(\d+)-of-(\d+)\.")


@dataclass(frozen=True)
class Published:
    """A data set on the hub.

    Attributes:
        repository: such as "zai-org/LongBench".
        revision: the commit, in full; results are comparable only where it is the same.
        files: patterns of the files to download, with `{0}` for the task.
    """

    repository: str
    revision: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """A record of a data set and where it stands."""

    fields: dict[str, Any]
    place: str
    number: int

    def text(self, name: str) -> str:
        """The field `name`, which must be a text."""
        found: str = self._checked("a text", name, lambda value: isinstance(value, str))
        return found

    def texts(self, name: str) -> tuple[str, ...]:
        """The field `name` as texts: a list of texts or numbers, or one of them. Blank ones are dropped.

        Raises:
            ConfigurationError: nothing is left.
        """
        value = self.fields.get(name)
        listed = value if isinstance(value, list) else [value]
        if listed and isinstance(listed[0], list):  # InfiniteBench nests the answers of math_calc
            listed = listed[0]
        if name not in self.fields or not all(isinstance(item, str | int | float) for item in listed):
            raise self._refusal(f"a text or a list of texts in the field {name!r}", value, name)
        texts = tuple(text for text in map(str, listed) if text.strip())
        if not texts:
            raise self._refusal(f"at least one answer that is not empty in the field {name!r}", value, name)
        return texts

    def whole(self, name: str) -> int:
        """The field `name`, which must be a whole number above 0."""
        found: int = self._checked("a whole number above 0", name, lambda value: type(value) is int and value > 0)
        return found

    def flag(self, name: str) -> bool:
        """The field `name`, which must be true or false."""
        found: bool = self._checked("true or false", name, lambda value: isinstance(value, bool))
        return found

    def prompt(self, template: str, **fields: str) -> tuple[str, str]:
        """The template with its fields filled in, cut in two after `{context}`."""
        before, after = template.split("{context}")
        return before.format(**fields) + self.text("context"), after.format(**fields)

    def sample(self, task: str, template: str, metric: str, max_new_tokens: int, **more: Any) -> Sample:
        """The sample of a record in LongBench's layout: context, input, answers and _id."""
        context, question = self.prompt(template, input=self.text("input") if "{input}" in template else "")
        return Sample(
            task=task, id=str(self.fields.get("_id") or self.number), context=context, question=question,
            answers=self.texts("answers"), metric=metric, max_new_tokens=max_new_tokens, **more,
        )  # fmt: skip

    def _checked(self, expected: str, name: str, right: Callable[[Any], bool]) -> Any:
        value = self.fields.get(name)
        if not right(value):
            raise self._refusal(f"{expected} in the field {name!r}", value, name)
        return value

    def _refusal(self, expected: str, value: object, name: str) -> ConfigurationError:
        got = repr(value)[:80] if name in self.fields else f"only {', '.join(self.fields) or 'no field'}"
        return ConfigurationError(expected, f"{got} in {self.place}", "Repair or drop this record.")


class Kind(NamedTuple):
    """How a task of a data set is scored; and asked, where its prompt stands in no file of its own."""

    metric: str
    max_new_tokens: int
    description: str
    prompt: str = ""


def tasks(
    suite: str, published: Published, kinds: dict[str, Kind], sample: Callable[[str, Row], Sample]
) -> dict[str, Task]:
    """The tasks of a data set by their full names; `sample` makes one of a task's name and a record."""

    def task(name: str) -> Task:
        def samples(request: Request) -> Iterator[Sample]:
            return (sample(name, row) for row in rows(published, name, request))

        return Task(f"{suite}/{name}", samples, generated=False, description=kinds[name].description)

    return {f"{suite}/{name}": task(name) for name in kinds}


def rows(published: Published, task: str, request: Request) -> Iterator[Row]:
    """The records of a task in the order of its file, as many as are requested.

    Raises:
        NotFoundError: no such folder or file, a part of it is missing, or the hub cannot be reached.
        ConfigurationError: the split is not "test", the folder was downloaded at another revision, or (on the way) a
            file or record is damaged.
    """
    if request.split != "test":
        way_out = "Ask for the split test, or train on a generated task."
        raise ConfigurationError(f'the split "test", the only one of {published.repository}', request.split, way_out)
    folder = request.data.expanduser() if request.data else download(published, task)
    found = find(folder, task)
    for path in found:
        _check_revision(published, folder, path)
    return islice(_records(found), request.count)


def _check_revision(published: Published, folder: Path, path: Path) -> None:
    """Raise if the hub's client noted another commit for a file; of a file that came another way nothing is known.

    The client writes its notes beside what it downloads (`hf download --local-dir`), or names a folder by the commit.
    """
    file = path.parent if path.parent.suffix == ".zip" else path
    notes = folder / ".cache" / "huggingface" / "download" / f"{file.relative_to(folder)}.metadata"
    commit = folder.name if folder.parent.name == "snapshots" else published.revision
    if notes.is_file():
        commit = notes.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    if commit != published.revision:
        again = f"hf download {published.repository} --repo-type dataset --revision {published.revision}"
        raise ConfigurationError(
            f"{published.repository} at {published.revision}",
            f"{file} of revision {commit}",
            f"Samples may differ, so download that one: {again} --local-dir FOLDER.",
        )


def find(folder: Path, task: str) -> list[Path]:
    """The files of a task: JSON lines or Parquet in the folder or in `data`, or a `data.zip` with JSON lines.

    Raises:
        NotFoundError: there are none, or one of several parts is missing.
    """
    if not folder.is_dir():
        raise NotFoundError("a folder with the files of the data set", str(folder), "Check the path.")
    for base in (folder, folder / "data"):
        for layout in _LAYOUTS:
            if found := sorted(base.glob(layout.format(task))):
                return _all_parts(found)
    archive = folder / "data.zip"
    if archive.is_file():
        return [archive / f"{task}.jsonl"]
    present = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    raise NotFoundError(
        f"{task}.jsonl, {task}.parquet, {task}/test*.parquet or data.zip in {folder} or its folder data", present,
        "Put the file there as it is published, or leave the folder out to download it.",
    )  # fmt: skip


def _all_parts(found: list[Path]) -> list[Path]:
    numbers = [match.groups() for path in found if (match := _SHARD.search(path.name))]
    wanted = int(numbers[0][1]) if numbers else len(found)
    if len(found) != wanted:
        names = ", ".join(path.name for path in found)
        raise NotFoundError(f"{wanted} parts of a file in {found[0].parent}", names, "Download the others too.")
    return found


def download(published: Published, task: str) -> Path:
    """The folder with the files of a task in the cache of the hub's client; what is there is not asked for again.

    Raises:
        NotFoundError: no network, or no such data set or revision.
    """
    from huggingface_hub import snapshot_download

    def snapshot(cached: bool) -> Path:
        patterns = [pattern.format(task) for pattern in published.files]
        folder = snapshot_download(
            published.repository,
            repo_type="dataset",
            revision=published.revision,
            allow_patterns=patterns,
            local_files_only=cached,
        )
        return Path(folder)

    with suppress(OSError, NotFoundError):  # not in the cache, or only with the files of other tasks
        folder = snapshot(cached=True)
        find(folder, task)
        return folder
    try:
        return snapshot(cached=False)
    except OSError as error:
        raise NotFoundError(
            f"the data set {published.repository} at {published.revision} from the hub",
            reason(error).removeprefix("Got: "),
            "Check the network, or download the files elsewhere and give their folder.",
        ) from error  # fmt: skip


def origin(published: Published, data: Path | None) -> str:
    """Where the samples come from, as results should state it."""
    return f"folder {data}" if data else f"{published.repository}@{published.revision}"


def _records(paths: Iterable[Path]) -> Iterator[Row]:
    number = 0
    for path in paths:
        for fields, place in _read(path):
            number += 1
            yield Row(fields, place, number)


def _read(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    if path.parent.suffix == ".zip":
        yield from _zipped(path.parent, path.name)
    elif path.suffix == ".parquet":
        yield from _parquet(path)
    else:
        yield from jsonl_records(path)


def jsonl_records(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """The objects of a file of JSON lines, and their places.

    Raises:
        ConfigurationError: it cannot be read, or a line is no JSON object; names file and line.
    """
    try:
        with path.open("rb") as lines:
            yield from _objects(lines, str(path))
    except OSError as error:
        way_out = "See to its permissions."
        raise ConfigurationError(f"a file that can be read, {path}", error.strerror, way_out) from error


def _objects(lines: Iterable[bytes], name: str) -> Iterator[tuple[dict[str, Any], str]]:
    try:
        yield from json_lines(lines, name, "Write one object a line; a file that was cut short is downloaded again.")
    except ArtefactError as error:  # data that one asks for, and no file of ours
        raise ConfigurationError(error.expected, error.got, error.way_out) from error


def _zipped(archive: Path, member: str) -> Iterator[tuple[dict[str, Any], str]]:
    again = "The archive may have been cut short: download it again."
    try:
        with zipfile.ZipFile(archive) as opened:
            name = next((name for name in opened.namelist() if name.rpartition("/")[2] == member), None)
            if name is None:
                present = ", ".join(sorted(opened.namelist())[:8])
                raise NotFoundError(f"{member} in {archive}", present, again)
            with opened.open(name) as lines:
                yield from _objects(lines, f"{name} in {archive}")
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise ConfigurationError(f"a zip archive in {archive}", str(error), again) from error


def _parquet(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    arrow, parquet = package("pyarrow"), package("pyarrow.parquet")
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=16):
                for fields in batch.to_pylist():
                    number += 1
                    yield fields, f"row {number} of {path}"
    except (arrow.ArrowException, OSError, ValueError) as error:
        again = "The file may have been cut short: download it again."
        raise ConfigurationError(f"a Parquet file in {path}", reason(error), again) from error
