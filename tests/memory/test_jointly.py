"""A budget of the whole model: all layers decide together, at the end of a piece, on whichever heads score highest."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

import namm
from namm import Budget
from namm.compat import cache_in, passing
from namm.memory.batch import together
from namm.memory.cache import MemoryCache, make_plan
from namm.memory.prefix import Prefix
from namm.memory.rehearsal import rehearsing
from namm.policies import KNorm, View
from namm.policies.requery import Requery
from tests.memory.test_requery import learned
from tests.zoo import causal_model, hybrid, ids

HALF = Budget(fraction=0.5, per="model")
INTERVAL = 48


@dataclass(frozen=True, eq=False)
class Scored(KNorm):
    """Keys of the smallest norm; notes scores and positions of each layer."""

    noted: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def score(self, view: View) -> Tensor:
        scores = super().score(view)
        for head, place in enumerate(view.heads.tolist()):
            self.noted[view.seen, 10 * view.layer + place] = scores[0, head].clone(), view.positions[0, head].clone()
        return scores


def state_of(cache: MemoryCache) -> list[object]:
    return [cache.kept_positions(i) for i, held in enumerate(cache.memory().kept) if held]


@torch.no_grad()
def read(model, policy, text: Tensor, *pieces: int, selection=HALF, **options):
    with namm.attach(model, policy, selection, INTERVAL) as handle:
        logits, cache, start = [], None, 0
        for size in pieces or (text.shape[1],):
            here = {name: value[:, : start + size] for name, value in options.items()}
            out = model(text[:, start : start + size], **passing(model, cache), **here)
            logits.append(out.logits)
            cache, start = cache_in(out), start + size
        return torch.cat(logits, 1), state_of(handle.cache), handle.memory()


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "mixtral"])
def test_the_best_of_all_layers_stay(name: str) -> None:
    model, policy = causal_model(name), Scored()
    _, kept, report = read(model, policy, ids(1, INTERVAL))
    pairs = [
        (float(score), place, int(position))
        for (_, place), (scores, positions) in policy.noted.items()
        for score, position in zip(scores, positions, strict=True)
        if position != INTERVAL - 1  # the newest token of each head stays
    ]
    heads = len(policy.noted)
    most = INTERVAL // 2 * heads
    best = sorted(pairs, reverse=True)[: most - heads]
    expected = {(place, position) for _, place, position in best}
    expected |= {(place, INTERVAL - 1) for _, place in policy.noted}
    found = {
        (10 * layer + head, position)
        for layer, rows in enumerate(kept) for head, positions in enumerate(rows[0]) for position in positions
    }  # fmt: skip
    assert found == expected
    assert report.slots == most
    assert len({len(positions) for rows in kept for positions in rows[0]}) > 1  # heads hold unequal numbers


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_who_keeps_everything_is_the_untouched_model(name: str) -> None:
    model, text = causal_model(name), ids(2, 130)
    logits, _, report = read(model, "knorm", text, selection=Budget(fraction=1.0, per="model"))
    with torch.no_grad():
        torch.testing.assert_close(logits, model(text).logits, atol=1e-4, rtol=1e-4)
    assert report.updates[-1] == 2 * (130 // INTERVAL)


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen3_moe"])
@pytest.mark.parametrize("policy", ["requery", "learned", "h2o", "kvzip"])
@pytest.mark.parametrize("pieces", [(40, 90), (48, 1, 1, 80), (5,) * 26])
def test_pieces_are_the_whole(name: str, policy: str, pieces: tuple[int, ...]) -> None:
    model, text = causal_model(name), ids(1, 130)
    memory = {"learned": learned(), "requery": Requery(window=16)}.get(policy, policy)
    whole, kept, report = read(model, memory, text)
    parts, kept_of_parts, _ = read(model, memory, text, *pieces)
    torch.testing.assert_close(parts, whole, atol=1e-4, rtol=1e-4)
    assert kept_of_parts == kept
    assert report.updates[-1] == 2


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_padded_row_is_the_row_alone(name: str) -> None:
    model, rows = causal_model(name), [ids(1, 110), ids(1, 77) + 3]
    text, mask = torch.zeros(2, 110, dtype=torch.long), torch.zeros(2, 110, dtype=torch.long)
    for i, row in enumerate(rows):
        text[i, 110 - row.shape[1] :], mask[i, 110 - row.shape[1] :] = row, 1
    places = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad(), namm.attach(model, learned(), HALF, INTERVAL) as handle:
        model(text, attention_mask=mask, position_ids=places)
        side_by_side = state_of(handle.cache)
    for i, row in enumerate(rows):
        _, alone, _ = read(model, learned(), row)
        assert [layer[i] for layer in side_by_side] == [layer[0] for layer in alone]


@torch.no_grad()
def test_a_cache_by_hand_decides_at_the_end_of_each_call() -> None:
    model, text = causal_model("llama"), ids(1, 130)
    _, expected, _ = read(model, "requery", text)
    cache = MemoryCache(model.config, "requery", HALF, INTERVAL)
    for piece in text.split(INTERVAL, dim=1):  # as attach would call the model
        model(piece, **passing(model, cache))
    assert state_of(cache) == expected
    cache = MemoryCache(model.config, "requery", HALF, INTERVAL)
    model(text, **passing(model, cache))
    assert cache.memory().slots == 65 * 4
    assert cache.memory().updates == [2, 2]
    assert cache.memory().peak_bytes >= cache.memory().bytes_full


@torch.no_grad()
def test_copies_files_beams_and_prefixes_decide_together_too(tmp_path) -> None:
    model, text = causal_model("llama"), ids(1, 130)
    _, expected, _ = read(model, learned(), text)
    plan = make_plan(learned(), HALF, INTERVAL)
    with namm.attach(model, learned(), HALF, INTERVAL):
        cache = cache_in(model(text[:, :70]))
        twin = copy.deepcopy(cache)
        cache.save(tmp_path / "held.safetensors", model)
        again = MemoryCache.load(tmp_path / "held.safetensors", model, plan)
        beams = cache.fork()
        beams.batch_repeat_interleave(3)
        beams.reorder_cache(torch.tensor([2, 0, 1]))
        prefix = Prefix.of(model, text[:, :INTERVAL]).start((plan,))
        model(text[:, INTERVAL:70], **passing(model, prefix))
        for one in (cache, twin, again, prefix):
            model(text[:, 70:], **passing(model, one))
            assert state_of(one) == expected
        model(text[:, 70:].expand(3, -1), **passing(model, beams))
        assert [[rows[0], rows[0], rows[0]] for rows in expected] == state_of(beams)


@torch.no_grad()
def test_conversations_read_on_together() -> None:
    model, plan = causal_model("llama"), make_plan("requery", HALF, INTERVAL)
    texts = [ids(1, 60, seed=1), ids(1, 60, seed=2)]
    caches, alone = [], []
    with namm.attach(model, "requery", HALF, INTERVAL):
        for text in texts:
            cache = MemoryCache.planned(model.config, (plan,))
            model(text[:, :46], **passing(model, cache))
            caches.append(cache)
            alone.append(cache.fork())
        for place in range(46, 60):
            with together(caches) as batch:
                step = torch.cat([text[:, place : place + 1] for text in texts])
                model(step, position_ids=torch.full((2, 1), place), **passing(model, batch))
        for text, cache in zip(texts, alone, strict=True):
            model(text[:, 46:], **passing(model, cache))
    assert [state_of(one) for one in caches] == [state_of(one) for one in alone]
    assert caches[0].memory().updates == [1, 1]


@torch.no_grad()
def test_generating_and_models_with_layers_of_another_kind() -> None:
    for model in (causal_model("gemma3"), hybrid()):
        with namm.attach(model, "knorm", HALF, INTERVAL) as handle:
            model.generate(ids(2, 60), max_new_tokens=50, do_sample=False)
            report = handle.memory()
        held = [rows for rows in report.kept if rows]
        updated = 2 * INTERVAL
        assert sum(sum(rows[0]) for rows in held) == (updated // 2 + 109 - updated) * len(held) * len(held[0][0])


def test_attach_calls_the_model_in_pieces_and_leaves_it_alone() -> None:
    model = causal_model("llama")
    own = model.model.forward
    with torch.no_grad(), namm.attach(model, "knorm", HALF, INTERVAL) as handle:
        model(ids(1, 500))
        report = handle.memory()
        assert report.peak_bytes < 0.9 * report.bytes_full
        hidden = model(ids(1, 40), output_hidden_states=True).hidden_states  # one piece: whatever a call may ask for
        assert len(hidden) == 3
        with pytest.raises(namm.ModelError, match="output_hidden_states"):
            model(ids(1, 100), output_hidden_states=True)
    assert model.model.forward == own
    with rehearsing(model.model), torch.no_grad():
        model(ids(1, 100))
