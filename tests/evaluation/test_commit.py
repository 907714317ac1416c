"""Which commit a row says it was measured on."""

from __future__ import annotations

import subprocess
from functools import partial
from pathlib import Path

import pytest

from namm.evaluation import rows


def test_rows_that_are_kept_do_not_make_a_commit_dirty_and_anything_else_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / name for name in ("src/rows.py", "benchmarks/results/rows.jsonl", "benchmarks/evidence.sh")]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("before")
    run = partial(subprocess.run, cwd=tmp_path, check=True, capture_output=True)
    run(["git", "init"])
    run(["git", "add", "."])
    run(["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-m", "all"])
    monkeypatch.setattr(rows, "__file__", str(files[0]))
    clean = rows.commit()
    files[1].write_text("after")
    assert clean
    assert not clean.endswith("-dirty")
    assert rows.commit() == clean
    files[2].write_text("after")
    assert rows.commit() == f"{clean}-dirty"
    monkeypatch.setattr(rows, "__file__", str(tmp_path / "src" / "untracked.py"))
    assert rows.commit() is None
