"""Rows of a video evaluation, and their table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import namm
from namm import calibrating
from namm.errors import ConfigurationError
from namm.policies import MemoryPolicy
from namm.vision import VideoConfig, evaluation
from namm.vision.evaluation import evaluate_video
from namm.vision.summary import tables
from tests.letters import letters
from tests.vision.families import family
from tests.vision.shown import listing


def test_an_evaluation_goes_on_and_refuses_another(tmp_path: Path) -> None:
    model, _ = family("llava-next-video")
    config = VideoConfig(
        model="tiny", policies=("streaming", "h2o"), budgets=(0.5,), tokens=(141,), samples=2, update_interval=64
    )
    listings = [listing(141, 3, number) for number in range(2)]
    seen: list[str] = []
    evaluate_video(config, listings[:1], model, tmp_path, lambda p: seen.append(p.reading))
    text = evaluate_video(config, listings, model, tmp_path, lambda p: seen.append(p.reading))
    assert [name for name in seen if name.startswith("video 0")] == [
        f"video 0: {name}" for name in ("full", "floor", "fewer-frames", "streaming", "h2o")
    ]
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * 3 * 5
    assert {row["clip"] for row in rows} == {"video 0", "video 1"}
    assert {(row["model"], row["update_interval"]) for row in rows} == {("tiny", 64)}
    assert "### 2 clips of 141 frames (145 tokens), 50 % of the bytes" in text
    assert (tmp_path / "summary.md").read_text() == text
    assert "Accuracy above each" not in text  # no learned memory is among them
    with pytest.raises(ConfigurationError, match="update_interval"):
        evaluate_video(config.replace(update_interval=128), listings, model, tmp_path)


def test_memories_are_calibrated_for_a_model_that_knows_language(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then they are what a user gets who calibrates by hand; otherwise they take attention in place as it is."""
    model, _ = family("llava-next-video")
    made: list[MemoryPolicy] = []
    monkeypatch.setattr(calibrating, "user_cache_path", lambda name: tmp_path / name)
    monkeypatch.setattr(evaluation, "methods", lambda policies, budgets: made.extend(policies.values()) or [])
    config = VideoConfig(model="tiny", policies=("requery-calibrated", "h2o"), tokens=(70,), samples=1)
    for name, tokenizer in (("plain", None), ("calibrated", letters())):
        evaluate_video(config, [listing(70)], model, tmp_path / name, tokenizer=tokenizer)
    plain, _, calibrated, other = made
    assert plain.calibration is other.calibration is None
    assert calibrated.calibration.digest == namm.calibrate(model, letters()).digest


def test_memories_are_compared_question_by_question() -> None:
    def row(policy: str, clip: int, exact: int, budget: float | None = 0.5) -> dict[str, object]:
        return {
            "task": "last",
            "sample": f"{clip}",
            "clip": f"clip {clip}",
            "tokens": 24,
            "policy": policy,
            "exact": exact,
            "budget": budget,
            "bytes_held": 1,
            "bytes_full": 2,
            "slots": 1,
            "slots_full": 2,
            "clip_tokens": 145,
        }

    right = {"full": (1, 1, 1, 1), "h2o": (1, 0, 0, 1), "builtin:mine": (1, 1, 0, 1)}
    rows = [
        row(policy, clip, exact, None if policy == "full" else 0.5)
        for policy, exacts in right.items()
        for clip, exact in enumerate(exacts)
    ]
    (found,) = tables(rows)
    assert [line[3][:5] for line in found.lines] == ["-", "-0.50", "-0.25"]
    assert found.learned == ["NAMM mine"]
    assert [line[0] for line in found.above] == ["h2o"]  # the full cache held other bytes
    assert found.above[0][1].startswith("+0.25 [+0.00, +0.75]")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"samples": -1}, "samples: greater than or equal to 0; got -1"),
        ({"budgets": (1.5,)}, r"above 0 and below 1.*got 1\.5"),
    ],
)
def test_nothing_to_measure(change: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        VideoConfig(model="tiny", **change)
