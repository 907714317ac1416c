"""A video is read under a memory, and every question is asked of what it kept."""

from __future__ import annotations

import pytest
import torch

from namm.errors import ConfigurationError, ModelError
from namm.evaluation.reader import Method
from namm.memory.plan import Plan
from namm.policies import DEFAULT_MEMORY, resolve
from namm.vision.reading import Watcher
from namm.vision.showing import evenly
from tests.vision.families import VIDEO, family
from tests.vision.shown import WORDS, listing


@pytest.fixture(scope="module")
def model():
    return family("llava-next-video")[0]


def test_full_cache_answers_as_the_model_does(model) -> None:
    showing = listing(141, 6).load()
    watcher = Watcher(model, 64, 16)
    cache, held = watcher.watch(showing, watcher.whole(showing), Method("full", None))
    replies = watcher.ask(cache, showing.queries)
    assert held.bytes_held == held.bytes_full
    for reply in replies:
        ids = torch.cat([showing.inputs["input_ids"], torch.tensor([reply.query.ids])], dim=1)
        with torch.no_grad():
            logits = model(**{**showing.inputs, "input_ids": ids}).logits[0, -1]
        assert reply.nll == pytest.approx(-float(torch.log_softmax(logits, 0)[reply.query.answer]), abs=1e-4)
        assert reply.right == (int(logits.argmax()) == reply.query.answer)


@pytest.mark.parametrize("name", ["streaming", "h2o", "kvzip", "kvzip-whole", DEFAULT_MEMORY])
@pytest.mark.parametrize("frames", [141, 171])  # 145 and 175 tokens: one and fifteen follow the last update
def test_every_policy_holds_the_bytes_it_is_allowed(model, name: str, frames: int) -> None:
    showing = listing(frames).load()
    watcher = Watcher(model, 64, 16)
    whole = watcher.whole(showing)
    _, held = watcher.watch(showing, whole, Method(name, 0.5, resolve(name)))
    assert held.bytes_full == whole.footprint(Plan(resolve("full"), None, 64)).full * showing.tokens
    assert 0.5 * held.bytes_full - held.bytes_per_slot <= held.bytes_held <= 0.5 * held.bytes_full


def test_fewer_frames_are_evenly_chosen(model) -> None:
    assert evenly(96, 3) == [0, 48, 95]
    assert evenly(5, 5) == [0, 1, 2, 3, 4]
    showing = listing(141).load()
    few = showing.thinned(0.25)
    assert few["pixel_values_videos"].shape[1] == int((few["input_ids"] == VIDEO).sum()) == 35
    watcher = Watcher(model, 64, 16)
    _, held = watcher.watch_thinned(showing, watcher.whole(showing), 0.25)
    assert held.bytes_held / held.bytes_full == pytest.approx((WORDS + 35) / 145, abs=1e-3)


def test_what_cannot_be_watched(model) -> None:
    watcher = Watcher(model, 64, 64)
    with pytest.raises(ConfigurationError, match="at least 128 tokens; got 73 in video 0"):
        watcher.boundary(listing(69).load())
    with pytest.raises(ModelError, match="attention layers"):
        Watcher(torch.nn.Linear(2, 2), 64, 16)  # type: ignore[arg-type]
