"""Files of ours: whole or not at all, held by one at a time, read whole or refused with nothing lost."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import namm
from namm.errors import RunError
from namm.files import PARTIAL, locked, read, replacing, sweep, write
from namm.json_files import add_rows, read_json, read_rows, write_json


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- writing ---------------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_and_its_mode_is_what_was_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write(file, "old\n")
    write(file, b"new\n", mode=0o600, previous=tmp_path / "before")
    assert (file.read_bytes(), (tmp_path / "before").read_bytes()) == (b"new\n", b"old\n")
    assert file.stat().st_mode & 0o777 == 0o600
    assert names(tmp_path) == ["a.txt", "before"]


def test_a_link_stays_one_and_what_is_no_plain_file_stays(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far" / "a.txt")
    for text in ("old", "new"):
        write(tmp_path / "link", text)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "far" / "a.txt").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "far"):
        with pytest.raises(RunError, match="not a plain file"):
            write(tmp_path / name, "text")
    assert (tmp_path / "pipe").is_fifo()
    assert names(tmp_path) == ["far", "link", "pipe"]


def test_what_is_written_is_synced_before_the_rename_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        done.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).suffix or 'folder'}")
        sync(descriptor)

    def replaced(source: Path, target: Path) -> None:
        done.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    write(tmp_path / "a.txt", "text")
    assert done == [f"sync {PARTIAL}", "rename", "sync folder"]
    done.clear()
    with replacing(tmp_path / "memory") as folder:
        write(folder / "b.txt", "text")
    assert done[-4:] == ["sync .txt", "sync .new", "rename", "sync folder"]
    done.clear()
    add_rows(tmp_path / "rows.jsonl", [{"a": 1}])
    add_rows(tmp_path / "rows.jsonl", [{"a": 2}])
    assert done == ["sync .jsonl", "sync folder", "sync .jsonl"]


@pytest.mark.parametrize(("code", "way_out"), [(errno.ENOSPC, "Make room"), (errno.EACCES, "its permissions")])
def test_what_cannot_be_written_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, way_out: str
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    file, rows = tmp_path / "a.txt", tmp_path / "rows.jsonl"
    write(file, "old")
    add_rows(rows, [{"a": 1}])
    monkeypatch.setattr(os, "fsync", full)
    for attempt in (lambda: write(file, "new"), lambda: add_rows(rows, [{"a": 2}])):
        with pytest.raises(RunError, match=f"{os.strerror(code)}.*{way_out}.*is intact"):
            attempt()
    monkeypatch.undo()
    assert file.read_text() == "old"
    assert read_rows(rows)[0] == {"a": 1}
    assert names(tmp_path) == ["a.txt", "rows.jsonl"]
    with pytest.raises(RunError, match="to be able to write"):
        write(tmp_path / "none" / "a.txt", "text")


KILLED = """
import os, random, signal, sys, time
from itertools import count
from pathlib import Path
from namm.files import recover, replacing, sweep, write

def work(out):
    for number in count():
        write(out / "a.txt", str(number % 10) * 100_000)
        with replacing(out / "memory") as folder:
            for name in "xy":
                write(folder / name, str(number % 10) * 1000)

out, rng, swept = Path(sys.argv[1]), random.Random(int(sys.argv[2])), 0
for _ in range(40):
    child = os.fork()  # only this process pays for imports
    if child == 0:
        work(out)
    time.sleep(0.02 + rng.random() * 0.03)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    recover(out / "memory")
    swept += sweep(out)
    texts = [(out / name).read_text() for name in ("a.txt", "memory/x", "memory/y")]
    assert [len(text) for text in texts] == [100_000, 1000, 1000]
    assert all(len(set(text)) == 1 for text in texts) and texts[1] == texts[2]
    assert {file.name for file in out.iterdir()} <= {"a.txt", "memory", "memory.new"}
print(swept)
"""


def test_killed_at_any_moment_a_file_and_a_folder_are_whole(tmp_path: Path) -> None:
    seed = str(random.SystemRandom().randrange(10**6))
    write(tmp_path / "a.txt", "0" * 100_000)
    with replacing(tmp_path / "memory") as folder:
        for name in "xy":
            write(folder / name, "0" * 1000)
    command = [sys.executable, "-c", KILLED, str(tmp_path), seed]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, (seed, done.stderr)
    assert int(done.stdout) > 0, seed  # some of them were killed in the middle of a file


def test_what_killed_processes_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / f".a.txt.0123456789ab{PARTIAL}").write_text("half")
    write(tmp_path / "a.txt", "whole")
    assert sweep(tmp_path) == 1
    assert names(tmp_path) == ["a.txt"]


# -- holding a folder ------------------------------------------------------------------------------------------------

HOLDS = """
import sys, time
from pathlib import Path
from namm.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds `folder`."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_folder_is_held_by_one_process_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    out = tmp_path / "new" / "run"
    with holder(out) as process:
        began = time.monotonic()
        with pytest.raises(namm.ConfigurationError, match=rf"no other run in the folder {out}.*Wait until it ends"):
            locked(out).__enter__()
        assert time.monotonic() - began < 5
        process.send_signal(signal.SIGKILL)
        process.wait()
        with locked(out):
            assert names(out) == ["run.lock"]
            with pytest.raises(namm.ConfigurationError, match="no other run"), locked(out):  # nor twice in a process
                pass
    with locked(out):
        pass


COUNTS = """
import os, sys
from pathlib import Path
from namm.files import locked, write
children = []
for _ in range(4):
    children.append(os.fork())
    if children[-1] == 0:
        for _ in range(25):
            with locked(Path(sys.argv[1]), timeout=60):
                count = Path(sys.argv[1], "count")
                write(count, str(int(count.read_text()) + 1))
        os._exit(0)
print(*(os.waitpid(child, 0)[1] for child in children))
"""


def test_processes_take_turns(tmp_path: Path) -> None:
    write(tmp_path / "count", "0")
    command = [sys.executable, "-c", COUNTS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["0"] * 4
    assert (tmp_path / "count").read_text() == "100"


def test_a_folder_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="to be able to write"), locked(tmp_path / "file"):
        pass
    (tmp_path / "run.lock").mkdir()
    with pytest.raises(RunError, match="to be able to write"), locked(tmp_path):
        pass


# -- reading ---------------------------------------------------------------------------------------------------------

ROWS = [{"number": n, "text": f"line {n} ä"} for n in range(1, 101)]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    for start in range(0, 100, 25):
        add_rows(file, ROWS[start : start + 25])
    return file


def test_rows_are_read_as_they_were_written(rows: Path) -> None:
    assert read_rows(rows) == ROWS
    assert read_rows(rows.with_name("none.jsonl")) == []


DAMAGE = {
    "cut": lambda line: line[: len(line) // 2],
    "no object": lambda line: b"7",
    "no letters": lambda line: line.replace(b"\xc3", b"\xff"),
    "nulls": lambda line: b"\0" * len(line),
    "half a letter": lambda line: line.replace(b"line", rb"\ud800"),
    "half a letter in bytes": lambda line: line.replace(b"line", b"\xed\xa0\x80"),
    "deep": lambda line: b"[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_line_is_named_and_nothing_is_lost(rows: Path, damage: str) -> None:
    lines = rows.read_bytes().split(b"\n")
    lines[9] = DAMAGE[damage](lines[9])
    rows.write_bytes(b"\n".join(lines))
    before = rows.read_bytes()
    with pytest.raises(namm.ArtefactError, match=rf"line 10 of {rows}.*Mend or remove that line"):
        read_rows(rows)
    add_rows(rows, [{"number": 101}])
    assert rows.read_bytes() == before + b'{"number": 101}\n'


def test_only_the_end_of_a_last_line_is_missing_after_a_kill(rows: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = rows.read_bytes()
    start = whole[:-1].rfind(b"\n") + 1
    for end in range(start + 1, len(whole) - 1):
        rows.write_bytes(whole[:end])
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert read_rows(rows) == ROWS[:-1]
        assert f"The last line of {rows} has no end; it is left out." in caplog.text
        add_rows(rows, ROWS[-1:])
        assert rows.read_bytes() == whole
    rows.write_bytes(whole[:-1])  # all there but the line break
    assert read_rows(rows) == ROWS
    add_rows(rows, [{"a": 1}])
    assert read_rows(rows) == [*ROWS, {"a": 1}]


def test_an_object_that_is_none_is_told(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"a": ["ä", 1.5, None]})
    assert read_json(file, "") == {"a": ["ä", 1.5, None]}
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())  # as some editors begin a file
    assert read_json(file, "") == {"a": ["ä", 1.5, None]}
    for data in (b"", b"{", b"[]", b'"a"', rb'{"a": "\udcff"}', b'{"\xff": 1}', b'{"a":' * 100_000):
        file.write_bytes(data)
        with pytest.raises(namm.ArtefactError, match=rf"JSON.* {file}.*Take the other"):
            read_json(file, "Take the other.")
    file.unlink()
    with pytest.raises(namm.NotFoundError, match="Take the other"):
        read_json(file, "Take the other.")
    file.mkdir()
    with pytest.raises(namm.ArtefactError, match="Is a directory"):
        read(file, "")


def test_text_that_no_file_can_hold_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for attempt in (
        lambda: write_json(tmp_path / "a.json", {"data": os.fsdecode(b"folder\xff")}),
        lambda: add_rows(tmp_path / "rows.jsonl", [{"text": "a"}, {"text": "\ud800"}]),
    ):
        with pytest.raises(namm.ConfigurationError, match="a lone surrogate"):
            attempt()
    assert names(tmp_path) == []


def test_an_escaped_pair_is_a_letter(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "\U0001f40d"}) + "\n")
    assert read_rows(tmp_path / "rows.jsonl") == [{"text": "\U0001f40d"}]


def test_a_folder_that_was_made_for_nothing_goes_again(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "deep" / "run"):
        raise ZeroDivisionError
    assert not (tmp_path / "deep" / "run").exists()
    (tmp_path / "mine").mkdir()
    with locked(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine").exists()
    with locked(tmp_path / "run"):
        (tmp_path / "run" / "log").write_text("something")
    assert (tmp_path / "run" / "log").exists()
