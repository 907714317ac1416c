"""Files of ours: replaced whole or not at all, on the disk before anything builds on them, in folders held by one run.

    with locked(out):
        write(out / "run.json", text)

A process that is killed, or a full disk, leaves what was there before, and at most a file that ends in `.partial`.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from namm.errors import ArtefactError, ConfigurationError, NotFoundError, RunError

_LOCK = "run.lock"
PARTIAL = ".partial"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP)  # of file systems that cannot sync a folder


def write(file: Path, content: str | bytes, mode: int = 0o666, previous: Path | None = None) -> None:
    """Replace `file` in one step, or not at all; the content is on the disk when this returns.

    A link stays one: what it points to is replaced.

    Args:
        mode: permissions of the file, less the umask.
        previous: where what it held moves to.

    Raises:
        RunError: it cannot be written; what it held before is still there.
        ConfigurationError: a text with lone surrogates, which no encoding has.
    """
    data = content if isinstance(content, bytes) else encoded(content, file)
    file = Path(os.path.realpath(file))
    scratch = file.with_name(f".{file.name}.{uuid4().hex[:12]}{PARTIAL}")
    with writing(file):
        if file.exists() and not file.is_file():
            raise OSError(errno.EEXIST, "not a plain file", str(file))
        try:
            with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            if previous is not None and file.exists():
                os.replace(file, previous)
            os.replace(scratch, file)
        finally:
            scratch.unlink(missing_ok=True)
        sync_folder(file.parent)


def encoded(text: str, file: Path) -> bytes:
    """`text` as UTF-8."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ConfigurationError(
            f"text for {file}", f"{text[max(0, error.start - 20) : error.end]!r}, which has a lone surrogate",
            "It stands for a byte that is no text: look for it in paths, names and data.",
        ) from error  # fmt: skip


def read(file: Path, way_out: str) -> bytes:
    """All that `file` holds.

    Raises:
        NotFoundError: there is none.
        ArtefactError: it cannot be read, such as a folder.
    """
    try:
        return file.read_bytes()
    except FileNotFoundError as error:
        raise NotFoundError(f"the file {file}", "none", way_out) from error
    except OSError as error:
        raise ArtefactError(f"a file that can be read, {file}", error.strerror, way_out) from error


def sweep(folder: Path) -> int:
    """Remove what killed processes left half written in `folder`; only for who has it locked. Returns how many."""
    left = list(folder.glob(f".*{PARTIAL}"))
    for file in left:
        file.unlink()
    return len(left)


@contextmanager
def locked(folder: Path, name: str = _LOCK, timeout: float = 0.0) -> Iterator[None]:
    """Hold `folder` against every other process; a dead one holds nothing.

    It is made if it is not there, and goes again if nothing was put into it.

    Args:
        name: of the file that is locked.
        timeout: seconds to wait for who holds it.

    Raises:
        ConfigurationError: another run holds it.
        RunError: the folder cannot be written.
    """
    lock, made = FileLock(folder / name, thread_local=False), not folder.exists()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=timeout)
        except Timeout as error:
            raise ConfigurationError(
                f"no other run in the folder {folder}", f"one that holds its {name}",
                "Wait until it ends, or use another folder.",
            ) from error  # fmt: skip
    try:
        yield
    finally:
        if made and [file.name for file in folder.iterdir()] == [name]:  # whatever it was for did not come to be
            (folder / name).unlink()
            folder.rmdir()
        lock.release()


def is_locked(file: Path) -> bool:
    """Whether a process holds the lock `file`."""
    try:
        with locked(file.parent, file.name):
            return False
    except ConfigurationError:
        return True


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """An empty folder to be filled, which then takes the place of `folder`.

    Killed between two renames, it leaves the old one beside it, which `recover` puts back.
    """
    scratch, old = folder.with_name(f"{folder.name}.new"), _old(folder)
    with writing(folder):
        recover(folder)
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        yield scratch
        sync_tree(scratch)
        if folder.exists():
            os.replace(folder, old)
        os.replace(scratch, folder)
        sync_folder(folder.parent)
        shutil.rmtree(old, ignore_errors=True)


def recover(folder: Path) -> None:
    """Put back what `folder` held before, if a process was killed while it was being replaced."""
    old = _old(folder)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
    elif old.exists():
        os.replace(old, folder)


def _old(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.old")


def sync_tree(folder: Path) -> None:
    """Put all that is in `folder` to disk."""
    for path in [*folder.rglob("*"), folder]:
        sync_folder(path) if path.is_dir() else _sync(path)


def sync_folder(folder: Path) -> None:
    """Put names in `folder` to disk: a rename is not there until then."""
    try:
        _sync(folder)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Errors of the file system, in this package's words."""
    try:
        yield
    except OSError as error:
        way_out = "Make room" if error.errno in _FULL else "See to the folder and its permissions"
        raise RunError(
            f"to be able to write {path}", error, f"{way_out}, and go on: what was there before is intact."
        ) from error
