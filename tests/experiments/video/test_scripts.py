"""A model that is there is measured and shown."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import torch
from typer.testing import CliRunner

from experiments.video import evaluate, show
from experiments.video.small import small_model
from namm.evaluation.rows import read_rows
from tests.experiments.video.made import write_idx


def test_a_model_is_measured_and_shown(tmp_path: Path) -> None:
    def run(script: ModuleType, *words: object) -> str:
        common = ("--model", tmp_path / "model", "--images", tmp_path / "images", "--seconds", 24)
        result = CliRunner().invoke(script.app, [*map(str, (*common, *words))], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    (tmp_path / "images").mkdir()
    write_idx(tmp_path / "images")
    torch.manual_seed(0)
    small_model(32, 2).save_pretrained(tmp_path / "model")
    asked = ("--out", tmp_path / "rows", "--policy", "h2o", "--budget", 0.5, "--update-interval", 64, "--asked", 3)
    assert "1 clips of 24 seconds (145 tokens), 50 % of the bytes" in run(evaluate, *asked, "--samples", 1)
    run(evaluate, *asked, "--samples", 2)
    rows = read_rows(tmp_path / "rows")
    assert len(rows) == 2 * 3 * 4  # full cache, its first tokens, fewer frames, h2o
    assert {(row["split"], row["seed"]) for row in rows} == {("test", 0)}
    assert "frame:" in run(show, "--out", tmp_path / "film.png", "--policy", "h2o")
    assert (tmp_path / "film.png").stat().st_size > 1000
