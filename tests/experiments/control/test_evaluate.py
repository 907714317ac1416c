"""Rows of an evaluation, and their summary."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.control.evaluate import evaluate, methods, summarise, to_markdown
from namm.errors import ConfigurationError, NotFoundError
from namm.evaluation.rows import read_rows
from namm.policies import DEFAULT_MEMORY
from tests.rl.toy import toy_decision

SEEDS = (1, 2, 3)


def chosen(names=("h2o", "streaming"), budgets=(4,), interval: int = 48):
    return methods(toy_decision(), names, budgets, interval)


def test_rows_go_on_where_they_were(tmp_path: Path) -> None:
    decision = toy_decision()
    evaluate(decision, tmp_path, chosen(()), SEEDS[:2])
    first = (tmp_path / "rows.jsonl").read_text()
    told = []
    rows = evaluate(decision, tmp_path, chosen(), SEEDS, beside=2, on_progress=told.append)
    assert (tmp_path / "rows.jsonl").read_text().startswith(first)
    assert len(rows) == 5 * 3
    assert told[-1].done == told[-1].total == 15
    assert evaluate(decision, tmp_path, chosen(), SEEDS) == rows
    row = rows[-1]
    assert row["normalised"] == pytest.approx(100 * (row["return"] + 10) / 50)
    for name in (
        "env",
        "policy",
        "budget",
        "sample",
        "commit",
        "hardware",
        "torch",
        "mujoco",
        "gymnasium",
        "bytes_held",
    ):
        assert name in row
    lines = {line.policy: line for line in summarise(rows) if line.budget != 5}
    assert [line.against is None for line in summarise(rows)] == [True, False, False, False, False]
    assert lines["full"].n == 3
    assert lines["full"].tokens_held == 3 * 40 - 1
    assert lines["h2o"].tokens_held < lines["full"].tokens_held
    mean, low, high = lines["h2o"].normalised
    assert low <= mean <= high
    assert (
        "| streaming (recency) | 4 | 3 |" in (tmp_path / "summary.md").read_text() == to_markdown(read_rows(tmp_path))
    )


def test_rows_measured_in_another_way_are_not_taken_for_these(tmp_path: Path) -> None:
    decision = toy_decision()
    evaluate(decision, tmp_path, chosen(("h2o",)), SEEDS[:1])
    before = (tmp_path / "rows.jsonl").read_text()
    with pytest.raises(ConfigurationError, match=r"with update_interval = 96; got 48 in"):
        evaluate(decision, tmp_path, chosen(("h2o",), interval=96), SEEDS)
    with pytest.raises(ConfigurationError, match=r"with target = 7\.0; got"):
        evaluate(decision, tmp_path, chosen(("h2o",)), SEEDS, target=7.0)
    assert (tmp_path / "rows.jsonl").read_text() == before


def test_no_episode(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="an episode at least, of each; got 0, 10 side by side"):
        evaluate(toy_decision(), tmp_path, chosen(("h2o",)), ())


def test_own_is_for_memories_with_a_threshold() -> None:
    memory = DEFAULT_MEMORY
    names = [(c.name, c.budget) for c in chosen(("h2o", memory), (5, "own"))]
    assert names == [("window", 5), ("full", None), ("h2o", 5), (memory, 5), (memory, "own")]
    assert [c.budget for c in chosen(("h2o",), (4, 5)) if c.name == "window"] == [5, 4]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"interval": 16}, "an update interval in whole steps of 3 tokens; got 16"),
        ({"budgets": ("half",)}, "a budget in steps"),
        ({"budgets": (0,)}, "a budget in steps"),
    ],
)
def test_options_that_cannot_be(options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        chosen(**options)
    with pytest.raises(NotFoundError):
        chosen(("no-such-memory",))
