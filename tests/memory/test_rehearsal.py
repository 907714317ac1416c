"""Rehearsal changes what a policy sees and nothing else: no token of it stays, nor does it matter how a text came."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

import namm
from namm import NAMM, NAMMConfig
from namm.errors import ConfigurationError, ModelError
from namm.memory.cache import MemoryCache
from namm.memory.plan import Plan
from namm.memory.prefix import Prefix
from namm.memory.rehearsal import rehearsing
from namm.policies import H2O, NAMMPolicy, View
from namm.policies.base import MemoryPolicy, Rehearsal
from tests.zoo import causal_model, ids

HALF = namm.Budget(fraction=0.5)
INTERVAL = 32
WHOLE = Rehearsal()


def memory(**options: object) -> NAMM:
    """A memory that ranks tokens by what it read, what a rehearsal asked, and what stands around."""
    config = NAMMConfig(features="compact-rehearsed", per="layer", **options)
    theta = torch.zeros(config.size)
    theta[-8:-1] = torch.tensor([0.1, 1.0, 2.0, 0.5, 0.2, 0.3, 0.1])
    return NAMM.from_vector(theta, config=config)


@torch.no_grad()
def read(model, text: Tensor, *pieces: int, selection=HALF, policy=None, **options):
    """Logits and what is held, for a text in one call or in pieces."""
    with namm.attach(model, policy or memory(), selection, INTERVAL) as handle:
        logits, cache, start = [], None, 0
        for size in pieces or (text.shape[1],):
            here = {name: value[:, : start + size] for name, value in options.items()}
            out = model(text[:, start : start + size], past_key_values=cache, **here)
            logits.append(out.logits)
            cache, start = out.past_key_values, start + size
        kept = [[head for row in layer for head in row] for layer in map(handle.kept_positions, layers(handle.cache))]
        return torch.cat(logits, 1), kept, handle.memory()


def layers(cache: MemoryCache) -> list[int]:
    return [i for i, held in enumerate(cache.memory().kept) if held]


@dataclass(frozen=True, eq=False)
class Echoes(MemoryPolicy):
    """Notes the largest attention of rehearsals, and keeps everything or the newest half."""

    name = "echoes"
    channels = 1
    absolute = True
    rehearsal: Rehearsal | None = WHOLE
    noted: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def rehearse(self, state: Tensor, attention: Tensor) -> Tensor:
        return torch.maximum(state, attention.amax(-2, keepdim=True))

    def score(self, view: View) -> Tensor:
        self.noted[view.layer, view.seen] = view.state[0, :, 0]
        return torch.zeros_like(view.positions, dtype=torch.float32)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
@torch.no_grad()
def test_what_is_observed_is_the_attention_of_a_text_said_twice(name: str) -> None:
    model, text = causal_model(name, "eager"), ids(1, INTERVAL)
    policy = Echoes()
    logits, _, report = read(model, text, selection=namm.Threshold(0.0), policy=policy)
    twice = model(torch.cat([text, text], 1), output_attentions=True)
    torch.testing.assert_close(logits, twice.logits[:, :INTERVAL], atol=1e-4, rtol=1e-4)
    assert report.updates[-1] == 1
    for (layer, _), seen in policy.noted.items():
        dense = twice.attentions[layer][0, :, INTERVAL:, :INTERVAL]
        by_group = dense.unflatten(0, (len(seen), -1)).mean(1).amax(1)
        torch.testing.assert_close(seen, by_group, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "mixtral"])
@torch.no_grad()
def test_who_forgets_nothing_is_the_untouched_model(name: str) -> None:
    model, text = causal_model(name), ids(1, 100)
    logits, kept, _ = read(model, text, selection=namm.Threshold(0.0), policy=Echoes())
    torch.testing.assert_close(logits, model(text).logits, atol=1e-4, rtol=1e-4)
    assert all(head == list(range(100)) for layer in kept for head in layer)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize("pieces", [(40, 60), (32, 1, 1, 66), (5,) * 20])
def test_pieces_are_the_whole(name: str, pieces: tuple[int, ...]) -> None:
    model, text = causal_model(name), ids(1, 100)
    whole, kept, report = read(model, text)
    parts, kept_of_parts, report_of_parts = read(model, text, *pieces)
    torch.testing.assert_close(parts, whole, atol=1e-4, rtol=1e-4)
    assert kept_of_parts == kept
    assert report_of_parts.kept == report.kept
    assert len({len(head) for layer in kept for head in layer}) > 1  # heads do hold unequal numbers


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_padded_row_is_the_row_alone(name: str) -> None:
    model, rows = causal_model(name), [ids(1, 100), ids(1, 71) + 3, ids(1, 20)]
    text, mask = torch.zeros(3, 100, dtype=torch.long), torch.zeros(3, 100, dtype=torch.long)
    for row, alone in enumerate(rows):
        text[row, 100 - alone.shape[1] :], mask[row, 100 - alone.shape[1] :] = alone, 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad(), namm.attach(model, memory(), HALF, INTERVAL) as handle:
        logits = model(text, attention_mask=mask, position_ids=positions).logits
        kept = [handle.kept_positions(layer) for layer in layers(handle.cache)]
    for row, alone in enumerate(rows):
        expected, kept_alone, _ = read(model, alone)
        torch.testing.assert_close(logits[row, 100 - alone.shape[1] :], expected[0], atol=1e-4, rtol=1e-4)
        assert [layer[row] for layer in kept] == kept_alone


@torch.no_grad()
def test_embeddings_are_rehearsed_as_ids_are() -> None:
    model, text = causal_model("llama"), ids(1, 100)
    whole, kept, _ = read(model, text)
    with namm.attach(model, memory(), HALF, INTERVAL) as handle:
        logits = model(inputs_embeds=model.get_input_embeddings()(text)).logits
        assert [handle.kept_positions(layer)[0] for layer in layers(handle.cache)] == kept
    torch.testing.assert_close(logits, whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_rehearses_what_it_says(beams: int) -> None:
    model, text = causal_model("llama"), ids(2, 50)
    options = {"max_new_tokens": 30, "num_beams": beams, "do_sample": False, "return_dict_in_generate": True}
    with torch.no_grad(), namm.attach(model, memory(), HALF, INTERVAL) as handle:
        out = model.generate(text, output_logits=True, **options)
        assert handle.memory().updates == [2 * 2 * beams] * 2  # each row at 32 and 64 of 79 tokens
    if beams == 1:  # teacher-forced, the same text gives the same logits
        whole = torch.cat([read(model, row[None, :-1])[0] for row in out.sequences])
        torch.testing.assert_close(torch.stack(out.logits, 1), whole[:, 49:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@torch.no_grad()
def test_started_from_a_prefix_it_is_the_memory_that_read_all(name: str) -> None:
    model, text = causal_model(name), ids(1, 100)
    policy = NAMMPolicy(memory())
    plan = Plan(policy, namm.Budget(fraction=0.5, per="layer"), INTERVAL, last=90)
    prefix = Prefix.of(model, text[:, :INTERVAL], [policy.rehearsal])
    rows = (plan, Plan(H2O(), HALF, INTERVAL), Plan(NAMMPolicy(memory()), HALF, INTERVAL, last=90))
    started = prefix.start(rows)
    decoder = model.base_model
    with rehearsing(decoder):
        logits = model(text[:, INTERVAL:].expand(3, -1), past_key_values=started).logits
        for row, alone in enumerate(rows):
            cache = MemoryCache.planned(model.config, (alone,))
            expected = model(text, past_key_values=cache).logits
            torch.testing.assert_close(logits[row], expected[0, INTERVAL:], atol=1e-4, rtol=1e-4)
            assert [k[row] for k in started.memory().kept if k] == [k[0] for k in cache.memory().kept if k]


def test_less_may_be_read_again() -> None:
    model, text = causal_model("llama"), ids(1, INTERVAL)
    for rehearsal, again in ((Rehearsal(0.25), text[:, 24:]), (Rehearsal(1.0, 2), text[:, ::2])):
        policy = Echoes(rehearsal)
        read(model, text, selection=namm.Threshold(0.0), policy=policy)
        with torch.no_grad():
            dense = causal_model("llama", "eager")(torch.cat([text, again], 1), output_attentions=True).attentions[1]
        by_group = dense[0, :, INTERVAL:, :INTERVAL].unflatten(0, (2, -1)).mean(1).amax(1)
        torch.testing.assert_close(policy.noted[1, INTERVAL], by_group, atol=1e-5, rtol=1e-4)


def test_the_model_is_as_it_was_afterwards() -> None:
    model, text = causal_model("llama"), ids(1, 60)
    decoder = model.base_model

    def interrupted() -> None:
        with namm.attach(model, memory(), HALF, INTERVAL):
            assert "forward" in decoder.__dict__
            with pytest.raises(ModelError, match="one that has a memory attached"):
                read(model, text)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        interrupted()
    assert "forward" not in decoder.__dict__
    with namm.attach(model, H2O(), HALF, INTERVAL):
        assert "forward" not in decoder.__dict__  # who only watches needs no piecewise reading
    assert read(model, text)[1] == read(model, text)[1]


def test_bytes_held_count_what_waits_to_be_read_again() -> None:
    model = causal_model("llama")
    _, _, before = read(model, ids(1, 64))
    _, _, after = read(model, ids(1, 84))
    slot = 2 * 2 * (2 * 8 * 4 + 3 * 4 + 4)  # layers, heads, key and value, state, position
    waiting = 20 * (8 + 1)  # ids and whether they are real
    tail = 2 * 4 * 4 * (8 * 4 + 4)  # the queries between two hops
    assert after.bytes_held - before.bytes_held == 20 * slot + waiting + tail


def test_what_cannot_be_rehearsed_is_refused() -> None:
    model, text = causal_model("llama"), ids(1, 60)
    with pytest.raises(ConfigurationError, match=r"one that rehearses. Use namm.attach"):
        MemoryCache(model.config, memory(), HALF, INTERVAL)
    with namm.attach(model, memory(), HALF, INTERVAL), pytest.raises(ModelError, match="output_hidden_states"):
        model(text, output_hidden_states=True)
    model = causal_model("gpt2")  # 512 learned positions
    with namm.attach(model, memory(), HALF, INTERVAL), pytest.raises(ModelError, match="within 512 learned positions"):
        model(ids(1, 512))
    model = causal_model("llama")
    rows = tuple(Plan(Echoes(Rehearsal(share)), namm.Threshold(0.0), INTERVAL) for share in (0.5, 1.0))
    with pytest.raises(ModelError, match="rehearse in one way"), rehearsing(model.base_model):
        model(text.expand(2, -1), past_key_values=MemoryCache.planned(model.config, rows))
