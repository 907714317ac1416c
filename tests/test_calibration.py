"""What attention in place is worth in each head: a curve for each, kept, checked, and read by memories that want it."""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import namm
from namm import NAMM, Budget, Calibration, NAMMConfig, calibrating
from namm.calibration import EDGES, FAINTEST
from namm.errors import ArtefactError, ConfigurationError
from namm.evaluation import EvaluationConfig, evaluate
from namm.memory.attach import _say_uncalibrated, find_decoder
from namm.memory.cache import MemoryCache, make_plan
from namm.memory.identity import describe, fingerprint
from namm.policies import CalibratedRequery, NAMMPolicy, Requery, View
from tests.letters import letters
from tests.zoo import causal_model, ids

HALF = Budget(fraction=0.5)
TEXTS = ids(2, 640).tolist()


def made(seed: int = 0, layers: tuple[int, ...] = (0, 1), heads: int = 2, model: str = "print") -> Calibration:
    """Of heads whose second readings follow what was asked more or less."""
    random = torch.Generator().manual_seed(seed)
    asked = {i: torch.rand(heads, 400, generator=random) ** 3 for i in layers}
    read = {i: asked[i] * torch.rand(heads, 400, generator=random) for i in layers}
    return Calibration.fitted(asked, read, model)


def test_a_curve_goes_through_means_of_neighbouring_ranks() -> None:
    asked, read = torch.rand(1, 200), torch.rand(1, 200)
    x, y = Calibration.fitted({3: asked}, {3: read}, "print").curves[3][:, 0].numpy()
    order = np.argsort(asked[0].numpy())
    cuts = [round(edge * 200) for edge in EDGES]
    places = [np.log(asked[0].numpy()[order[a:b]]).mean() for a, b in pairwise(cuts)]
    means = [math.log(read[0].numpy()[order[a:b]].mean()) for a, b in pairwise(cuts)]
    np.testing.assert_allclose(x, places, rtol=1e-5, atol=1e-6)
    rises = np.clip(np.diff(np.maximum.accumulate(means)), 0.05 * np.diff(places), 10 * np.diff(places))
    np.testing.assert_allclose(y, means[0] + np.cumsum([0, *rises]), rtol=1e-4, atol=1e-5)


def test_where_all_tokens_are_alike_rounding_decides_nothing() -> None:
    asked = torch.full((1, 400), 0.01)
    asked[0, 300:] += 1e-6 * torch.rand(100)
    calibration = Calibration.fitted({0: asked}, {0: torch.rand(1, 400)}, "print")
    apart = torch.tensor([[[0.01, 0.01 * (1 + 1e-6)]]])
    first, second = calibration.expected(apart, 0, torch.tensor([0]))[0, 0].tolist()
    assert first <= second <= first * (1 + 2e-5)


def test_between_knots_it_is_straight_in_logarithms_and_beyond_them_it_goes_on_in_proportion() -> None:
    calibration = made()
    x, y = calibration.curves[1][:, 0]
    lowest, highest = x[0].exp().item(), x[-1].exp().item()
    given = torch.tensor([lowest / 2, lowest, 0.01, 0.1, 0.3, highest, highest * 2]).clamp(min=FAINTEST)
    expected = np.interp(given.log().numpy(), x.numpy(), y.numpy())
    expected[0] -= math.log(lowest) - math.log(given[0].item())
    expected[-1] += math.log(2)
    got = calibration.expected(given[None, None], 1, torch.tensor([0])).log()
    np.testing.assert_allclose(got[0, 0].numpy(), expected, rtol=1e-4, atol=1e-5)


def test_tokens_of_a_head_keep_their_order_and_rows_and_heads_do_not_matter_to_each_other() -> None:
    calibration, given = made(), (torch.rand(3, 2, 50) ** 4).clamp(min=2 * FAINTEST)
    got = calibration.expected(given, 0, torch.arange(2))
    assert torch.equal(got.argsort(-1), given.argsort(-1))
    for row in range(3):
        for head in range(2):
            alone = calibration.expected(given[row : row + 1, head : head + 1], 0, torch.tensor([head]))
            assert torch.equal(alone[0, 0], got[row, head])


def test_a_head_that_is_loud_in_place_and_says_nothing_later_loses_to_one_that_is_quiet_and_right() -> None:
    random = torch.Generator().manual_seed(0)
    loud, quiet = torch.rand(400, generator=random), torch.rand(400, generator=random) / 10
    asked = torch.stack([loud, quiet])
    read = torch.stack([0.01 * torch.rand(400, generator=random), 8 * quiet])
    expected = Calibration.fitted({0: asked}, {0: read}, "print").expected(asked[None], 0, torch.arange(2))[0]
    assert asked[0].quantile(0.5) > asked[1].max()
    assert expected[0].max() < expected[1].quantile(0.5)


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen2", "gpt2"])
@torch.no_grad()
def test_a_model_is_calibrated_by_what_its_queries_ask_and_what_it_reads_again(name: str) -> None:
    model = causal_model(name)
    texts = [text[:160] for text in TEXTS]
    calibration = namm.calibrate(model, texts=texts)
    noted = {
        policy: calibrating._largest(model, policy(), torch.tensor(texts)) for policy in (Requery, namm.policies.KVzip)
    }
    asked, read = noted.values()
    held = MemoryCache(model.config, "full")
    assert list(calibration.curves) == [i for i, layer in enumerate(held.layers) if hasattr(layer, "sequences")]
    for layer, curve in calibration.curves.items():
        assert asked[layer].shape == read[layer].shape == (curve.shape[1], sum(map(len, texts)))
        assert not torch.equal(asked[layer], read[layer])
        assert bool((curve.diff(dim=-1) >= 0).all())
    again = Calibration.fitted(asked, read, fingerprint(find_decoder(model)))
    assert again.digest == calibration.digest


@torch.no_grad()
def test_heads_that_share_nothing_keep_the_same_tokens_and_heads_that_compete_do_not() -> None:
    model = causal_model("llama")
    memory = CalibratedRequery().calibrated(namm.calibrate(model, texts=TEXTS))
    kept: dict[tuple[str, Any], Any] = {}
    for per in ("head", "model"):
        for policy in (Requery(), memory):
            with namm.attach(model, policy, Budget(fraction=0.25, per=per), 64) as handle:
                model(ids(1, 320, seed=5))
                kept[per, policy.name] = [handle.kept_positions(layer) for layer in range(2)]
    assert kept["head", "requery"] == kept["head", "requery-calibrated"]
    assert kept["model", "requery"] != kept["model", "requery-calibrated"]


@torch.no_grad()
@pytest.mark.parametrize("features", ["compact-rehearsed", "levelled"])
def test_a_network_that_scores_by_its_echo_decides_as_the_rule_does(features: str) -> None:
    model = causal_model("llama")
    config = NAMMConfig(
        features=features, per="model", rehearses="queries", competes=True, asked="window", calibrated=True
    )
    names = config.feature_set.names
    theta = torch.zeros(config.size)
    theta[-1 - len(names) + names.index("echo")] = 1.0
    learned = NAMM.from_vector(theta, config=config)
    calibration = namm.calibrate(model, texts=TEXTS)
    kept = []
    for memory in (NAMMPolicy(learned), CalibratedRequery()):
        budget = Budget(fraction=0.25, safeguard=0.2)
        with namm.attach(model, memory.calibrated(calibration), budget, 64) as handle:
            model(ids(1, 320, seed=5))
            kept.append([handle.kept_positions(layer) for layer in range(2)])
    assert kept[0] == kept[1]


@pytest.mark.parametrize("features", ["compact-rehearsed", "levelled"])
def test_empty_slots_change_nothing(features: str) -> None:
    config = NAMMConfig(features=features, per="model", rehearses="queries", calibrated=True)
    learned = NAMM.from_vector(torch.randn(config.size), config=config)
    memory = NAMMPolicy(learned).calibrated(made(model="print"))
    state, positions = torch.rand(1, 2, config.feature_set.channels, 30), torch.arange(30).expand(1, 2, 30)
    view = View(state, positions, torch.rand(1, 2, 30, 4), 30, None, torch.arange(1), 0, torch.arange(2))
    pad = torch.nn.functional.pad
    padded = replace(
        view, state=pad(state, (7, 0)), positions=pad(positions, (7, 0), value=-1), keys=pad(view.keys, (0, 0, 7, 0)),
        padded=True,
    )  # fmt: skip
    torch.testing.assert_close(memory.score(padded)[..., 7:], memory.score(view), rtol=1e-5, atol=1e-4)


def test_only_who_wants_it_is_calibrated(tmp_path: Path) -> None:
    calibration = made()
    for memory in (namm.policies.resolve("h2o"), Requery(), NAMMPolicy(NAMM.zeros())):
        assert memory.calibrated(calibration) is memory
    memory = CalibratedRequery()
    assert memory.calibrated(calibration).calibration is calibration
    assert memory.calibration is None
    config = NAMMConfig(features="levelled", rehearses="queries", calibrated=True)
    NAMM.zeros(config).save_pretrained(tmp_path)
    assert namm.policies.resolve(tmp_path).calibrates


def test_a_model_of_few_positions_reads_shorter_texts(tmp_path: Path) -> None:
    model = causal_model("gpt2")
    context = model.config.n_positions
    assert [len(text) for text in calibrating._texts(model, letters())] == [2 * context // 3] * 2
    assert list(namm.calibrate(model, letters(), folder=tmp_path).curves) == [0, 1]


def test_it_is_kept_under_the_model_and_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrating, "TOKENS", 600)
    model, tokenizer = causal_model("llama"), letters()
    first = namm.calibrate(model, tokenizer, folder=tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    with monkeypatch.context() as context:
        context.setattr(calibrating, "_measured", None)
        assert namm.calibrate(model, tokenizer, folder=tmp_path).digest == first.digest
    assert Calibration.load(file).digest == first.digest
    other = copy.deepcopy(model)
    next(other.parameters()).data.mul_(1.5)
    assert namm.calibrate(other, tokenizer, folder=tmp_path).digest != first.digest
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_a_file_that_is_damaged_or_something_else_is_refused(tmp_path: Path) -> None:
    file = made().save(tmp_path / "c.safetensors")
    assert Calibration.load(file).digest == made().digest
    whole = file.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"text" * 100):
        file.write_bytes(content)
        with pytest.raises(ArtefactError, match=r"Delete it, and make it again: namm\.calibrate\(model, tokenizer\)"):
            Calibration.load(file)
    for curves in ({}, {"0": torch.zeros(2, 3)}, {"0": torch.full((2, 2, 4), torch.nan)}, {"0": torch.zeros(3, 2, 4)}):
        save_file(curves, file, {"model": "print"})
        with pytest.raises(ArtefactError):
            Calibration.load(file)
    with pytest.raises(namm.NotFoundError):
        Calibration.load(tmp_path / "none")


def test_another_model_is_refused_and_none_at_all_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    model = causal_model("llama")
    with (
        pytest.raises(ConfigurationError, match="a memory calibrated for this model"),
        namm.attach(model, CalibratedRequery().calibrated(made()), HALF),
    ):
        pass
    with pytest.raises(ConfigurationError, match="with 3 heads in layer 0"):
        made().expected(torch.rand(1, 3, 4), 0, torch.arange(3))
    with pytest.raises(ConfigurationError, match="in layer 7"):
        made().expected(torch.rand(1, 2, 4), 7, torch.arange(2))
    _say_uncalibrated.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            with namm.attach(model, "requery-calibrated", HALF):
                pass
    assert caplog.text.count("not calibrated for this model") == 1


def test_texts_that_cannot_serve_are_refused() -> None:
    model = causal_model("llama")
    for texts in ([[1] * 127], [[1] * 600, [1] * 601], []):
        with pytest.raises(ConfigurationError, match="texts of one length, of 128 tokens at least"):
            namm.calibrate(model, texts=texts)
    with pytest.raises(ConfigurationError, match="tokens of this model, which knows 97; got token 97"):
        namm.calibrate(model, texts=[[97] * 200])
    with pytest.raises(ConfigurationError, match="a tokenizer, or texts"):
        namm.calibrate(model)


def test_a_saved_cache_belongs_to_its_calibration() -> None:
    plans = [make_plan(CalibratedRequery().calibrated(c), HALF, 32) for c in (None, made(), made(1))]
    assert len({describe(plan) for plan in plans}) == 3
    assert describe(make_plan(CalibratedRequery().calibrated(made()), HALF, 32)) == describe(plans[1])


def test_an_evaluation_calibrates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrating, "user_cache_path", lambda name: tmp_path / name)
    config = EvaluationConfig(
        policies=("requery-calibrated",),
        budgets=(0.25,),
        tasks=("passkey",),
        tokens=(400,),
        samples=1,
        update_interval=128,
    )
    model = causal_model("llama")
    evaluate(config, tmp_path / "run", model=(model, letters()))
    assert len(list((tmp_path / "namm" / "calibrations").glob("*.safetensors"))) == 1
