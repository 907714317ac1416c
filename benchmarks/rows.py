"""Row files: every published number with what it was measured by, on and at."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch
import transformers

import namm
from namm import kernels

RESULTS = Path(__file__).with_name("results")


def hardware() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads"


def commit() -> str:
    """The commit that is measured; rows that were written since do not make it dirty."""
    changed = ("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)benchmarks/results")
    return _git("describe", "--always") + ("-dirty" if _git(*changed) else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, cwd=RESULTS.parent)
    return done.stdout.strip()


def write(name: str, rows: list[dict[str, Any]]) -> Path:
    """Write `results/NAME.jsonl`; each row carries script, commit, hardware and versions, its own if it has them."""
    return _write(name, rows, "w")


def add(name: str, rows: list[dict[str, Any]]) -> Path:
    """The same, after the rows that are there."""
    return _write(name, rows, "a")


def _write(name: str, rows: list[dict[str, Any]], mode: str) -> Path:
    RESULTS.mkdir(exist_ok=True)
    common = {
        "script": f"benchmarks/{name}.py", "commit": commit(), "hardware": hardware(), "kernels": kernels.backend(),
        "namm": namm.__version__, "torch": torch.__version__, "transformers": transformers.__version__,
    }  # fmt: skip
    file = RESULTS / f"{name}.jsonl"
    with file.open(mode) as out:
        out.writelines(json.dumps(row | common | row) + "\n" for row in rows)
    return file
