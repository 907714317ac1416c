"""The steps one after the other: data, a model, its returns."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from typer.testing import CliRunner

from experiments.control import data, evaluate, train
from namm.evaluation.rows import read_rows
from tests.rl import toy  # noqa: F401  (registers the environment)


def test_what_one_step_writes_the_next_one_reads(tmp_path: Path) -> None:
    def run(script: ModuleType, *words: object) -> str:
        result = CliRunner().invoke(script.app, [*map(str, words), "--threads", "0"], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    assert "toy/expert-v0" in run(data, "--env", "Toy-v0", "--out", tmp_path / "data", "--steps", 2048, "--size", 100)
    model = tmp_path / "model"
    of = ("--data", tmp_path / "data" / "toy" / "medium-v0", "--env", "Toy-v0")
    small = ("--context", 5, "--width", 16, "--layers", 1, "--updates", 5, "--batch", 4)
    assert "5 updates on" in run(train, *of, "--out", model, *small)
    evaluated = (evaluate, "--model", model, "--out", tmp_path / "rows", "--memory", "h2o", "--budget", 4, "--seeds", 2)
    table = run(*evaluated)
    assert "| h2o | 4 | 2 |" in table
    assert "| window | 5 | 2 |" in table
    assert len(read_rows(tmp_path / "rows")) == 8
    assert run(*evaluated)
    assert len(read_rows(tmp_path / "rows")) == 8
