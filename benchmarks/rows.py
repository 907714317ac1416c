"""Row files: every published number with what it was measured by, on and at."""

from __future__ import annotations

import lzma
from pathlib import Path
from typing import Any

import torch
import transformers

import namm
from namm import kernels
from namm.evaluation import commit, hardware
from namm.json_files import add_rows, json_lines, read_rows, write_rows

RESULTS = Path(__file__).with_name("results")


def write(name: str, rows: list[dict[str, Any]]) -> Path:
    """Write `results/NAME.jsonl`; each row carries script, commit, hardware and versions, its own if it has them."""
    write_rows(file := RESULTS / f"{name}.jsonl", _with_origin(name, rows))
    return file


def add(name: str, rows: list[dict[str, Any]]) -> Path:
    """The same, after the rows that are there."""
    add_rows(file := RESULTS / f"{name}.jsonl", _with_origin(name, rows))
    return file


def read(name: str) -> list[dict[str, Any]]:
    """The rows of `results/NAME.jsonl` or, packed, `results/NAME.jsonl.xz`; none if there is neither."""
    packed = RESULTS / f"{name}.jsonl.xz"
    if not packed.exists():
        return read_rows(RESULTS / f"{name}.jsonl")
    with lzma.open(packed) as lines:
        return [row for row, _ in json_lines(lines, str(packed), "Check the file out again.")]


def made_by(rows: list[dict[str, Any]]) -> str:
    """By what the rows of one script were measured, on what and at which commit."""
    r = rows[0]
    return (
        f"`python {r['script']}` at commit {r['commit']}; {r['hardware']}; torch {r['torch']}, transformers "
        f"{r['transformers']}, {r['kernels']} kernels.\n"
    )


def _with_origin(name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    common = {
        "script": f"benchmarks/{name}.py", "commit": commit(), "hardware": hardware(), "kernels": kernels.backend(),
        "namm": namm.__version__, "torch": torch.__version__, "transformers": transformers.__version__,
    }  # fmt: skip
    return [row | common | row for row in rows]
