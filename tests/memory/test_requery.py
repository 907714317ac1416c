"""A rehearsal in place: the layers' own queries ask again what they attend to, and nothing is read twice."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field

import pytest
import torch
import transformers as tf
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

import namm
from namm import NAMM, Budget, NAMMConfig, kernels
from namm.compat import cache_in, passing
from namm.errors import ConfigurationError, ModelError
from namm.memory.attach import find_decoder
from namm.memory.cache import MemoryCache, make_plan
from namm.memory.prefix import Prefix
from namm.memory.rotation import check_rotation, rotation_of
from namm.policies import View
from namm.policies.base import Asked, MemoryPolicy, Rehearsal
from namm.policies.requery import Requery
from tests.zoo import CAUSAL, READS_TWICE, causal_model, decision_model, ids

HALF = Budget(fraction=0.5)
INTERVAL, WINDOW = 48, 16
ROTARY = sorted(set(CAUSAL) - {"gpt2"})


def learned(**options: object) -> NAMM:
    """A memory that reads once and weighs what its tokens ask again."""
    config = NAMMConfig(features="compact-rehearsed", per="layer", rehearses="queries", window=WINDOW, **options)
    theta = torch.zeros(config.size)
    theta[-8:-1] = torch.tensor([0.1, 1.0, 2.0, 0.5, 0.2, 0.3, 0.1])
    return NAMM.from_vector(theta, config=config)


@dataclass(frozen=True, eq=False)
class Noted(MemoryPolicy):
    """Notes the largest attention of queries that ask again, and keeps everything."""

    name = "noted"
    channels = 1
    absolute = True
    rehearsal: Rehearsal | None = None
    noted: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def rehearse(self, state: Tensor, attention: Tensor) -> Tensor:
        return torch.maximum(state, attention.amax(-2, keepdim=True))

    def score(self, view: View) -> Tensor:
        self.noted[view.layer, view.seen] = view.state[0, :, 0].clone()
        return torch.zeros_like(view.positions, dtype=torch.float32)


@torch.no_grad()
def asked(model: tf.PreTrainedModel, text: Tensor, start: int) -> dict[int, tuple[Tensor, Tensor, float, float | None]]:
    """Queries, keys, scale and soft cap of every layer, as the model itself makes them from position `start` on."""
    made = {}

    def attention(module, query, key, value, attention_mask, scaling=None, softcap=None, sliding_window=None, **kwargs):
        scale = scaling if scaling is not None else query.shape[-1] ** -0.5
        made[module.layer_idx] = query[0], key[0], scale, softcap
        group, tokens = query.shape[1] // key.shape[1], query.shape[2]
        logits = query @ key.repeat_interleave(group, 1).transpose(2, 3) * scale
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        seen = torch.ones(tokens, tokens, dtype=torch.bool).tril()
        if sliding_window:
            seen &= torch.ones(tokens, tokens, dtype=torch.bool).triu(1 - sliding_window)
        weights = logits.masked_fill(~seen, -torch.inf).softmax(-1)
        return (weights @ value.repeat_interleave(group, 1)).transpose(1, 2), None

    AttentionInterface.register("asked-test", attention)
    AttentionMaskInterface.register("asked-test", lambda *args, **kwargs: None)
    own = model.config._attn_implementation
    try:
        model.config._attn_implementation_internal = "asked-test"
        places = torch.arange(start, start + text.shape[1])[None]
        model(text, position_ids=places, use_cache=False)
    finally:
        model.config._attn_implementation_internal = own
    return made


@pytest.mark.parametrize("name", sorted(CAUSAL))
@pytest.mark.parametrize(
    ("rotated", "competes", "of"),
    [
        (True, False, "held"),
        (False, False, "held"),
        (True, True, "held"),
        (True, True, "window"),
        (False, True, "window"),
    ],
)
def test_what_is_observed_is_the_formula(name: str, rotated: bool, competes: bool, of: Asked) -> None:
    """Queries that the model itself makes at the later positions ask the keys of their window, and those before it."""
    if rotated and name not in ROTARY:
        pytest.skip("no rotary positions")
    model, text = causal_model(name), ids(1, INTERVAL + 7)
    how = Rehearsal(how="queries", window=WINDOW + 2, rotated=rotated, competes=competes, asked=of)
    policy = Noted(rehearsal=how)  # the last window is not full
    with torch.no_grad(), namm.attach(model, policy, namm.Threshold(0.0), INTERVAL):
        model(text)
    keys, queries = asked(model, text, 0), asked(model, text, (WINDOW + 2) * rotated)
    assert policy.noted
    for (layer, seen), noted in policy.noted.items():
        (first_look, key, scale, cap), (query, *_) = keys[layer], queries[layer]
        expected = torch.zeros(len(key), seen)
        for first in range(0, seen, WINDOW + 2):
            end = min(first + WINDOW + 2, seen)
            grouped, here = query[:, first:end].unflatten(0, (len(key), -1)), slice(first * (of == "window"), end)
            logits = grouped @ key[:, None, here].transpose(2, 3) * scale
            logits = logits if cap is None else cap * torch.tanh(logits / cap)
            if competes:  # what each saw when it was read, as one more logit
                own = first_look[:, first:end].unflatten(0, (len(key), -1)) @ key[:, None, :end].transpose(2, 3) * scale
                own = own if cap is None else cap * torch.tanh(own / cap)
                own = own.masked_fill(torch.ones(own.shape[-2:], dtype=torch.bool).triu(first + 1), -torch.inf)
                logits = torch.cat([logits, own.logsumexp(-1, keepdim=True)], -1)
            most = logits.softmax(-1)[..., : here.stop - here.start].mean(1).amax(1)
            expected[:, here] = torch.maximum(expected[:, here], most)
        torch.testing.assert_close(noted, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_the_kernel_is_the_formula_on_every_back_end(softcap: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    from namm.kernels import native

    query, key = torch.randn(2, 3, 150, 8), torch.randn(2, 70, 8)
    logits = query @ key[:, None].transpose(2, 3) * 0.3
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    for serves in (native.serves, lambda tensor: False):
        monkeypatch.setattr(native, "serves", serves)
        seen: list[Tensor] = []
        kernels.ask(query, key, 0.3, softcap, seen.append)
        torch.testing.assert_close(torch.cat(seen, 1), logits.softmax(-1).mean(1), atol=1e-6, rtol=1e-5)


def state_of(cache: MemoryCache) -> list[object]:
    layers = [i for i, held in enumerate(cache.memory().kept) if held]
    return [cache.kept_positions(i) for i in layers]


@torch.no_grad()
def read(model, policy, text: Tensor, *pieces: int, **options):
    with namm.attach(model, policy, HALF, INTERVAL) as handle:
        logits, cache, start = [], None, 0
        for size in pieces or (text.shape[1],):
            here = {name: value[:, : start + size] for name, value in options.items()}
            out = model(text[:, start : start + size], **passing(model, cache), **here)
            logits.append(out.logits)
            cache, start = cache_in(out), start + size
        return torch.cat(logits, 1), state_of(handle.cache), handle.memory()


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3", "qwen3", "smollm3"])
@pytest.mark.parametrize(
    "policy", ["requery", "learned", "competing", "learned, competing", "window", "learned, window"]
)
@pytest.mark.parametrize("pieces", [(40, 80), (48, 1, 1, 70), (5,) * 24, (50, 1, 1, 1, 9, 1, 57)])
def test_pieces_are_the_whole(name: str, policy: str, pieces: tuple[int, ...]) -> None:
    model, text = causal_model(name), ids(1, 120)
    own = "window" in policy
    how = {"competes": own or "competing" in policy, "asked": "window" if own else "held"}
    memory = learned(**how) if "learned" in policy else Requery(window=WINDOW, **how)
    whole, kept, report = read(model, memory, text)
    parts, kept_of_parts, report_of_parts = read(model, memory, text, *pieces)
    torch.testing.assert_close(parts, whole, atol=1e-4, rtol=1e-4)
    assert kept_of_parts == kept
    assert report_of_parts.kept == report.kept
    assert report.updates[-1] == 2


@pytest.mark.parametrize("memory", [learned(competes=True, asked="window"), Requery(window=WINDOW)])
@torch.no_grad()
def test_tokens_that_are_hidden_before_they_asked_do_not_ask(memory: NAMM | Requery) -> None:
    """What is left of a window is asked by what is left of its queries, slot by slot."""
    model, text, mask = causal_model("llama"), ids(1, INTERVAL + 20), torch.ones(1, INTERVAL + 20, dtype=torch.long)
    hidden = [3, WINDOW * 2 + 2, WINDOW * 2 + 5]
    with namm.attach(model, memory, HALF, INTERVAL) as handle:
        cache = cache_in(model(text[:, : WINDOW * 2 + 8]))
        mask[:, hidden] = 0
        model(
            text[:, WINDOW * 2 + 8 : WINDOW * 2 + 9], attention_mask=mask[:, : WINDOW * 2 + 9], **passing(model, cache)
        )
        assert {layer.sequences[0].asking.count for layer in handle.cache.layers} == {9 - 2}
        model(text[:, WINDOW * 2 + 9 :], attention_mask=mask, **passing(model, cache))
        for layer in range(2):
            for head in handle.kept_positions(layer)[0]:
                assert not set(head) & set(hidden)
                assert head[-20:] == list(range(INTERVAL, INTERVAL + 20))


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_padded_row_is_the_row_alone(name: str) -> None:
    model, rows = causal_model(name), [ids(1, 110), ids(1, 77) + 3]
    text, mask = torch.zeros(2, 110, dtype=torch.long), torch.zeros(2, 110, dtype=torch.long)
    for i, row in enumerate(rows):
        text[i, 110 - row.shape[1] :], mask[i, 110 - row.shape[1] :] = row, 1
    places = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad(), namm.attach(model, learned(), HALF, INTERVAL) as handle:
        model(text, attention_mask=mask, position_ids=places)
        together = state_of(handle.cache)
    for i, row in enumerate(rows):
        _, alone, _ = read(model, learned(), row)
        assert [layer[i] for layer in together] == [layer[0] for layer in alone]


@pytest.mark.parametrize("competes", [False, True])
@torch.no_grad()
def test_a_cache_by_hand_a_copy_and_a_file_go_on_alike(tmp_path, competes: bool) -> None:
    """No second reading is needed, so a cache passed by hand can do it; copies and files hold queries that wait."""
    model, text, memory = causal_model("llama"), ids(1, 130), learned(competes=competes)
    _, expected, _ = read(model, memory, text)
    cache = MemoryCache(model.config, memory, HALF, INTERVAL)
    model(text[:, :70], **passing(model, cache))
    assert cache.layers[0].sequences[0].asking.count == (70 - INTERVAL) % WINDOW
    twin = copy.deepcopy(cache)
    cache.save(tmp_path / "held.safetensors", model)
    again = MemoryCache.load(tmp_path / "held.safetensors", model, make_plan(memory, HALF, INTERVAL))
    for one in (cache, twin, again):
        model(text[:, 70:], **passing(model, one))
        assert state_of(one) == expected


@torch.no_grad()
def test_a_prefix_starts_as_the_text_itself() -> None:
    model, text = causal_model("llama"), ids(1, 2 * INTERVAL)
    plans = (make_plan(learned(), HALF, INTERVAL), make_plan(learned(), Budget(fraction=0.25), INTERVAL))
    cache = Prefix.of(model, text[:, :INTERVAL]).start(plans)
    for row, plan in enumerate(plans):
        with namm.attach(model, plan.policy, plan.selection, INTERVAL) as handle:
            model(text[:, :INTERVAL])
            assert handle.kept_positions(0)[0] == cache.kept_positions(0)[row]


@torch.no_grad()
def test_generating_reads_nothing_twice_and_bytes_are_counted() -> None:
    model, calls = causal_model("llama"), []
    hook = (
        find_decoder(model)
        .layers[0]
        .register_forward_pre_hook(
            lambda module, args, kwargs: calls.append((args[0] if args else kwargs["hidden_states"]).shape[1]),
            with_kwargs=True,
        )
    )
    try:
        with namm.attach(model, "requery", HALF, update_interval=INTERVAL) as handle:
            model.generate(ids(1, 100), max_new_tokens=40, do_sample=False)
            report = handle.memory()
            waiting = handle.cache.layers[0].sequences[0].asking
    finally:
        hook.remove()
    assert sum(calls) == 139
    assert report.updates == [139 // INTERVAL] * 2
    held = sum(t.untyped_storage().nbytes() for layer in handle.cache.layers for t in layer.tensors())
    assert waiting.count == 139 % INTERVAL
    assert report.bytes_held == held


@torch.no_grad()
def test_models_without_rotary_positions() -> None:
    for model in (causal_model("gpt2"), decision_model()):
        wanted = Requery(rotated=True)
        with pytest.raises(ModelError, match="a model with rotary positions"), namm.attach(model, wanted, HALF):
            pass
    model, text = causal_model("gpt2"), ids(1, 120)
    _, kept, report = read(model, Requery(rotated=False, window=WINDOW), text)
    assert report.updates == [2, 2]
    assert all(len(head) < 120 for layer in kept for head in layer[0])
    assert read(model, Requery(window=WINDOW), text)[1] == kept  # "auto", which is also right where there are some:
    moved, still, auto = (
        read(causal_model("llama"), Requery(rotated=rotated, window=WINDOW), text)[1]
        for rotated in (True, False, "auto")
    )
    assert auto == moved != still
    changing = tf.LlamaConfig(
        **(
            causal_model("llama").config.to_dict()
            | {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}}
        )
    )
    with pytest.raises(ModelError, match="the same for every length; got dynamic"):
        MemoryCache(changing, "requery", HALF)


def test_a_model_that_turns_otherwise_is_found_by_its_keys() -> None:
    config = copy.deepcopy(causal_model("llama").config)
    model = tf.AutoModelForCausalLM.from_config(config).eval()
    model.model.rotary_emb.inv_freq.mul_(0.5)
    with pytest.raises(ModelError, match="off by"), namm.attach(model, "requery", HALF):
        pass


@pytest.mark.parametrize("name", ROTARY)
def test_moved_keys_are_the_models_own(name: str) -> None:
    check_rotation(find_decoder(causal_model(name)))
    rotation = rotation_of(causal_model(name).config.get_text_config(decoder=True), 1)
    key = torch.randn(3, 5, 8)
    torch.testing.assert_close(rotation.move(rotation.move(key, 9), -9), key)
    torch.testing.assert_close(rotation.move(key, 0), key)


def test_rounding_does_not_hide_a_rotation() -> None:
    """In half precision the hidden states of two positions drift apart from layer to layer."""
    torch.manual_seed(0)
    deep = tf.LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=30, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.5,
    )  # fmt: skip
    check_rotation(find_decoder(tf.LlamaForCausalLM(deep).to(torch.bfloat16)))


def test_unknown_ways_to_rehearse() -> None:
    for name, value, message in (
        ("how", "twice", r'by the "model" or by its "queries"; got .twice'),
        ("window", 0, "at least one query; got 0"),
        ("rotated", "sometimes", r'rotated=True, False or "auto"; got .sometimes'),
        ("asked", "block", r'asked="held" or "window"; got .block'),
    ):
        wrong = object.__new__(Rehearsal)  # past the tests' own check of types
        object.__setattr__(wrong, name, value)
        with pytest.raises(ConfigurationError, match=message):
            Rehearsal.__post_init__(wrong)
    with pytest.raises(ConfigurationError, match=r'competes=True for queries that ask their "window" only'):
        Requery(competes=False)
    with pytest.raises(ConfigurationError, match=r'competes=True for queries that ask their "window" only'):
        namm.policies.resolve(learned(asked="window"))


def test_an_old_memory_is_used_as_it_was_evolved(tmp_path) -> None:
    old = NAMM.from_pretrained(READS_TWICE)
    assert namm.policies.resolve(old).reads_again
    learned().save_pretrained(tmp_path / "new")
    again = namm.policies.resolve(str(tmp_path / "new"))
    assert again.asks_in_place == Rehearsal(how="queries", window=WINDOW)  # all that is held
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    (tmp_path / "new" / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "asked"}))
    assert namm.policies.resolve(str(tmp_path / "new")).asks_in_place == again.asks_in_place
    learned(competes=True, asked="window").save_pretrained(tmp_path / "window")
    assert namm.policies.resolve(str(tmp_path / "window")).asks_in_place.asked == "window"
    assert "It reads a text once." in (tmp_path / "new" / "README.md").read_text()
