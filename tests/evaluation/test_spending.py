"""How a budget is spent in an evaluation, and policies that decide once for a whole text."""

from __future__ import annotations

from pathlib import Path

import pytest

import namm
from namm import NAMM, Budget, NAMMConfig
from namm.evaluation.reader import Reader
from namm.memory.cache import MemoryCache
from tests.evaluation.test_evaluation import SMALL, rows, run
from tests.zoo import causal_model


def test_a_policy_that_decides_once_is_read_whole(tmp_path: Path) -> None:
    """KVzip as published is KVzip with one update at the end of the text and one bar across the model."""
    config = SMALL.replace(policies=("kvzip-whole", "kvzip@model", "kvzip"), tasks=("passkey",))
    run(tmp_path / "short", config)
    run(tmp_path / "long", config.replace(update_interval=1024))
    found = {
        (name, row["policy"], row["sample"], row["budget"]): row
        for name in ("short", "long")
        for row in rows(tmp_path / name)
    }
    for (name, policy, sample, budget), row in found.items():
        if policy == "kvzip-whole":
            assert row["nll"] == pytest.approx(found["long", "kvzip@model", sample, budget]["nll"], abs=1e-5)
            assert row["peak_bytes"] >= row["bytes_full"]
            if name == "short":
                assert row["nll"] != pytest.approx(found["short", "kvzip@model", sample, budget]["nll"], abs=1e-5)
        if policy == "kvzip@model" and name == "long":
            assert row["nll"] != pytest.approx(found["long", "kvzip", sample, budget]["nll"], abs=1e-5)


def test_a_policy_that_decides_once_is_for_evaluations(tmp_path: Path) -> None:
    with pytest.raises(namm.ConfigurationError, match="waits for the end of a text"):
        MemoryCache(causal_model("llama").config, "kvzip-whole", Budget(fraction=0.5))
    with pytest.raises(namm.ConfigurationError, match="h2o@head, @layer or @model; got 'h2o@token'"):
        run(tmp_path, SMALL.replace(policies=("h2o@token",)))


def test_a_whole_text_is_read_once_for_all_budgets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, own = list[int | None](), Reader.prefix

    def counting(self, group, policies=(), first=None):
        read.append(first)
        return own(self, group, policies, first)

    monkeypatch.setattr(Reader, "prefix", counting)
    run(tmp_path, SMALL.replace(policies=("kvzip-whole", "h2o"), tasks=("passkey",), samples=1))
    ordinary, whole = read
    assert ordinary is None
    assert whole is not None
    assert whole > SMALL.update_interval


def test_an_at_sign_in_the_path_of_a_memory(tmp_path: Path) -> None:
    config = NAMMConfig(features="compact", update_interval=128)
    saved = NAMM.zeros(config).save_pretrained(tmp_path / "me@host" / "mine")
    name = str(saved)
    run(tmp_path / "out", SMALL.replace(policies=(name, f"{name}@model"), tasks=("passkey",), samples=1))
    assert {name, f"{name}@model"} <= {row["policy"] for row in rows(tmp_path / "out")}
    with pytest.raises(namm.NotFoundError, match="me@elsewhere"):
        run(tmp_path / "none", SMALL.replace(policies=(str(tmp_path / "me@elsewhere"),)))
