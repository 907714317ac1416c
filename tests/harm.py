"""What disks, editors and kills do to a file."""

from __future__ import annotations

import random
from pathlib import Path

HARM = {
    "cut": lambda data, rng: data[: rng.randrange(len(data))],
    "flipped": lambda data, rng: flipped(data, rng.randrange(8 * len(data))),
    "zeros": lambda data, rng: b"\0" * len(data),
    "half a letter": lambda data, rng: data.replace(b"a", rb"\udcff", 1),
    "folder": None,
}


def flipped(data: bytes, bit: int) -> bytes:
    return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


def harmed(file: Path, harm: str, rng: random.Random) -> None:
    """Do it to `file`."""
    data = file.read_bytes()
    file.unlink()
    if harm == "folder":
        file.mkdir()
    else:
        file.write_bytes(HARM[harm](data, rng))


def contents(out: Path) -> dict[str, bytes]:
    """Every file below `out` but locks."""
    return {str(f.relative_to(out)): f.read_bytes() for f in out.rglob("*") if f.is_file() and f.suffix != ".lock"}
