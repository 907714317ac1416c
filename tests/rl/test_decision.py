"""A Decision Transformer that was saved is the same again, or what is damaged is told."""

from __future__ import annotations

import random
import shutil
from contextlib import suppress
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from namm.errors import ArtefactError, NotFoundError
from namm.rl import Decision, Growing, rollout
from tests.harm import HARM, harmed
from tests.rl.toy import toy_decision


def test_a_saved_model_acts_as_it_did(tmp_path: Path) -> None:
    ours = toy_decision()
    ours.save(tmp_path)
    theirs = Decision.load(tmp_path)
    assert theirs.about == ours.about
    a, b = (rollout(d, lambda: gym.make("Toy-v0"), [3], Growing())[0] for d in (ours, theirs))
    np.testing.assert_array_equal(a.actions, b.actions)


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"Give one that `Decision\.save` wrote"):
        Decision.load(tmp_path)
    toy_decision().save(tmp_path)
    (tmp_path / "decision.json").write_text("{")
    with pytest.raises(ArtefactError, match="a readable Decision Transformer"):
        Decision.load(tmp_path)


@pytest.mark.parametrize("harm", HARM)
def test_a_damaged_model_is_told(tmp_path: Path, harm: str) -> None:
    toy_decision().save(tmp_path / "whole")
    for attempt, name in enumerate(["decision.json", "config.json", "model.safetensors"] * 3):
        folder = tmp_path / str(attempt)
        shutil.copytree(tmp_path / "whole", folder)
        harmed(folder / name, harm, random.Random(attempt))
        with suppress(ArtefactError):  # or it was of no account
            Decision.load(folder)


def test_the_scale_of_returns() -> None:
    scale = toy_decision().about.scale
    assert [scale.normalised(total) for total in (scale.random, scale.expert)] == [0, 100]
