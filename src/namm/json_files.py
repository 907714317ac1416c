"""JSON on disk: one object a file, or one a line.

A line that is damaged is named, and nothing is rewritten. Only the end of a last line is missing after a kill: such a
line is left out, which the log says, and cut off before the next one is written.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from namm.errors import ArtefactError
from namm.files import encoded, read, sync_folder, write, writing

log = logging.getLogger(__name__)
Object = dict[str, Any]


def write_json(file: Path, value: object, indent: int | None = 1, previous: Path | None = None) -> None:
    """Replace `file` by `value`, whole or not at all; see `namm.files.write`."""
    write(file, json.dumps(value, ensure_ascii=False, indent=indent) + "\n", previous=previous)


def digest(value: object) -> str:
    """A sha256, in hex, of a value as JSON."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def read_json(file: Path, way_out: str) -> Object:
    """The object in `file`.

    Raises:
        NotFoundError: there is no such file.
        ArtefactError: it cannot be read, or is no JSON object.
    """
    return parsed(read(file, way_out), str(file), way_out)


def parsed(data: bytes, place: str, way_out: str) -> Object:
    """The object that `data` is in UTF-8.

    Raises:
        ArtefactError: it is none, or holds lone surrogates; names `place`.
    """
    value = parsed_value(data, place, way_out)
    if not isinstance(value, dict):
        raise ArtefactError(f"a JSON object in {place}", repr(data[:60]), way_out)
    return value


def parsed_value(data: bytes, place: str, way_out: str) -> Any:
    """The same, for any value."""
    try:
        value = json.loads(data.decode("utf-8-sig"))
        if b"\\u" in data:  # an escape may be half a letter, which no tokenizer takes and no file
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"JSON in {place}", f"{data[:60]!r} ({error})", way_out) from error
    return value


def json_lines(lines: Iterable[bytes], name: str, way_out: str) -> Iterator[tuple[Object, str]]:
    """The object on each line, and its place; empty lines are passed over.

    Raises:
        ArtefactError: a line is no JSON object; names line and file.
    """
    for number, line in enumerate(lines, 1):
        if line.strip():
            place = f"line {number} of {name}"
            yield parsed(line, place, way_out), place


def write_rows(file: Path, rows: Iterable[Object]) -> None:
    """Replace `file` by a line for each row, whole or not at all."""
    write(file, _lines(rows))


def read_rows(file: Path, needs: Iterable[str] = ()) -> list[Object]:
    """The rows in `file`, see `placed_rows`."""
    return [row for row, _ in placed_rows(file, needs)]


def placed_rows(
    file: Path, needs: Iterable[str] = (), way_out: str = "Mend or remove that line."
) -> list[tuple[Object, str]]:
    """The rows that `add_rows` wrote, each with its place; none if there is no file.

    Args:
        needs: names that stand in each row.

    Raises:
        ArtefactError: a line is damaged; names file and line.
    """
    if not file.exists():
        return []
    whole, torn = _divided(read(file, way_out), file)
    if torn:
        log.warning("The last line of %s has no end; it is left out.", file)
    rows = list(json_lines(whole.split(b"\n"), str(file), way_out))
    needed = set(needs)
    for row, place in rows:
        if missing := needed - row.keys():
            raise ArtefactError(f"{', '.join(sorted(missing))} in {place}", f"only {', '.join(row)}", way_out)
    return rows


def add_rows(file: Path, rows: Iterable[Object]) -> None:
    """Append rows; they are on the disk when this returns.

    Raises:
        RunError: they cannot be written; the rows before them are intact.
    """
    data = encoded(_lines(rows), file)
    with writing(file):
        new = not file.exists()
        with file.open("a+b") as stream:
            if stream.tell() and not _ends(stream.fileno(), stream.tell()):
                whole, _ = _divided(read(file, ""), file)
                stream.truncate(len(whole))
                data = data if whole.endswith(b"\n") or not whole else b"\n" + data
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        if new:
            sync_folder(file.parent)


def _lines(rows: Iterable[Object]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _ends(descriptor: int, size: int) -> bool:
    return os.pread(descriptor, 1, size - 1) == b"\n"


def _divided(data: bytes, file: Path) -> tuple[bytes, bytes]:
    """Whole lines, and the beginning of one that was cut off: what has no line break and is no object."""
    end = data.rfind(b"\n") + 1
    whole, rest = data[:end], data[end:]
    try:
        parsed(rest, str(file), "")
    except ArtefactError:
        return whole, rest
    return data, b""
