"""A memory that was put to disk goes on as if it had not been, and nothing but such a memory comes back."""

from __future__ import annotations

import pickle
import random
from contextlib import nullcontext, suppress
from copy import deepcopy

import pytest
import torch
import transformers as tf
from safetensors import safe_open
from safetensors.torch import save

import namm
from namm.errors import ArtefactError, ConfigurationError, ModelError, NotFoundError, RunError
from namm.memory.attach import find_decoder
from namm.memory.cache import MemoryCache, make_plan, memory_layers
from namm.memory.plan import Plan
from namm.memory.prefix import Prefix
from namm.memory.rehearsal import rehearsing
from namm.memory.saved import describe, fingerprint, pack, read_notes, unpack
from namm.policies import H2O, KeepAll, Random, SnapKV, StreamingLLM
from tests.memory.test_equivalence import random_namm
from tests.memory.test_rehearsal import memory
from tests.zoo import CAUSAL, READS_TWICE, causal_model, decision_model, hybrid, ids, video_model

HALF = namm.Budget(fraction=0.5)
LAYERS = namm.Budget(fraction=0.4, per="layer")
INTERVAL = 32


def half_precision() -> tf.PreTrainedModel:
    torch.manual_seed(0)
    return tf.AutoModelForCausalLM.from_config(causal_model("llama").config).to(torch.bfloat16).eval()


MODELS = {"hybrid": hybrid, "bfloat16": half_precision, "video": video_model}


def model_of(name: str) -> tf.PreTrainedModel:
    return MODELS[name]() if name in MODELS else causal_model(name)


def reading(model, plan):
    return nullcontext() if plan.policy.rehearsal is None else rehearsing(find_decoder(model))


@torch.no_grad()
def started(model, plan, text, **more):
    cache = MemoryCache.planned(model.config, (plan,))
    with reading(model, plan):
        model(text, past_key_values=cache, **more)
    return cache


@torch.no_grad()
def after(model, plan, cache, text, tokens=40, **more):
    """Logits of what the model says next, and what is held then."""
    options = {"max_new_tokens": tokens, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    with reading(model, plan):
        out = model.generate(text, past_key_values=cache, **options, **more)
    layers = [i for i, kept in enumerate(cache.memory().kept) if kept]
    return torch.stack(out.logits), [cache.kept_positions(i) for i in layers], cache.memory().updates


def there_and_back(model, plan, cache):
    data = pack(cache, fingerprint(model), {"from": "a test"})
    again, notes = unpack(data, model, plan, fingerprint(model))
    assert notes == {"from": "a test"}
    return again


def assert_same(one, other):
    assert torch.equal(one[0], other[0])
    assert one[1:] == other[1:]


@pytest.mark.parametrize("name", [*CAUSAL, *MODELS])
@pytest.mark.parametrize("policy", ["h2o", "rehearses"])
def test_loaded_it_goes_on_to_the_bit(name, policy):
    model, text = model_of(name), ids(1, 150)
    plan = make_plan(memory() if policy == "rehearses" else policy, HALF, INTERVAL)
    cache = started(model, plan, text[:, :100])
    again = there_and_back(model, plan, cache)
    assert_same(after(model, plan, again, text), after(model, plan, cache, text))


@pytest.mark.parametrize("name", ["llama", "bfloat16"])
@pytest.mark.parametrize("read", [20, 64, 75], ids=["before an update", "at an update", "amid a block"])
@pytest.mark.parametrize(
    ("policy", "selection"),
    [
        (KeepAll(), None),
        (Random(seed=5), HALF),
        (StreamingLLM(), namm.Budget(tokens=20, sinks=2, recent=8)),
        (SnapKV(), LAYERS),
        (random_namm(), None),
        (random_namm(), LAYERS),
        (READS_TWICE, LAYERS),
        (READS_TWICE, namm.Threshold(-3.0)),
        ("builtin:universal", None),
        ("kvzip", HALF),
    ],
    ids=lambda x: type(x).__name__ if not isinstance(x, str) else x.rpartition("/")[2],
)
def test_whatever_decides_and_whenever_it_is_saved(name, read, policy, selection):
    model, text = model_of(name), ids(1, 150)
    plan = make_plan(policy, selection, INTERVAL)
    cache = started(model, plan, text[:, :read])
    again = there_and_back(model, plan, cache)
    assert again.memory().kept == cache.memory().kept
    assert_same(after(model, plan, again, text), after(model, plan, cache, text))


def test_heads_that_hold_unequal_numbers_stay_apart():
    model, plan = causal_model("gpt2"), make_plan("snapkv", LAYERS, INTERVAL)
    cache = started(model, plan, ids(1, 100))
    again = there_and_back(model, plan, cache)
    for one, other in zip(cache.layers, again.layers, strict=True):
        stores = [layer.sequences[0].store for layer in (one, other)]
        stores[0].trim()
        assert stores[0].count == stores[1].count
        assert len(set(stores[0].count)) > 1
        assert all(map(torch.equal, stores[0].tensors(), stores[1].tensors()))


@pytest.mark.parametrize("name", ["llama", "gemma3", "hybrid"])
@pytest.mark.parametrize("policy", ["snapkv", "rehearses"])
def test_padded_rows(name, policy):
    model, text = model_of(name), ids(2, 150)
    plan = make_plan(memory() if policy == "rehearses" else policy, LAYERS, INTERVAL)
    mask = torch.ones(2, 150, dtype=torch.long)
    mask[1, :27] = 0
    cache = started(model, plan, text[:, :100], attention_mask=mask[:, :100])
    again = there_and_back(model, plan, cache)
    assert [s.seen for s in again.layers[1].sequences] == [100, 73]
    more = {"attention_mask": mask}
    assert_same(after(model, plan, again, text, **more), after(model, plan, cache, text, **more))


def test_a_memory_that_read_nothing():
    for name in ("llama", "gemma3", "hybrid"):
        model, plan = model_of(name), make_plan("h2o", HALF, INTERVAL)
        again = there_and_back(model, plan, MemoryCache.planned(model.config, (plan,)))
        assert again.get_seq_length() == 0
        expected = after(model, plan, MemoryCache.planned(model.config, (plan,)), ids(1, 60))
        assert_same(after(model, plan, again, ids(1, 60)), expected)


def test_images_whose_tokens_see_each_other():
    torch.manual_seed(1)
    text = tf.Gemma3TextConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, sliding_window=24, layer_types=["sliding_attention", "full_attention"],
        pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    vision = tf.SiglipVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, image_size=28, patch_size=14
    )
    config = tf.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_id=95)
    model = tf.Gemma3ForConditionalGeneration(config).eval()
    prompt = torch.cat([ids(1, 18), torch.full((1, 4), 95), ids(1, 40, seed=1)], dim=1)
    image = {"pixel_values": torch.randn(1, 3, 28, 28), "token_type_ids": (prompt == 95).long()}
    plan = make_plan("h2o", HALF, INTERVAL)
    cache = started(model, plan, prompt, attention_mask=torch.ones_like(prompt), **image)
    again = there_and_back(model, plan, cache)
    token = ids(1, 1)
    with torch.no_grad():
        expected = model(token, past_key_values=cache).logits
        assert torch.equal(model(token, past_key_values=again).logits, expected)


def test_embeddings_that_wait_for_their_rehearsal():
    model, plan = decision_model(), make_plan(memory(), HALF, INTERVAL)
    decoder, given = find_decoder(model), torch.randn(2, 90, 32)
    places = torch.zeros(2, 90, dtype=torch.long)

    def read(cache, part):
        with torch.no_grad(), reading(model, plan):
            more = {"position_ids": places[:, part], "past_key_values": cache}
            return decoder(inputs_embeds=given[:, part], **more).last_hidden_state

    cache = MemoryCache.planned(model.config, (plan,))
    read(cache, slice(0, 50))
    again = there_and_back(model, plan, cache)
    assert again.layers[0].heard[0].shape == (2, 18, 32)
    assert torch.equal(read(again, slice(50, 90)), read(cache, slice(50, 90)))


def test_a_schedule_that_ends():
    model, text = causal_model("llama"), ids(1, 150)
    plan = Plan(H2O(), HALF, INTERVAL, last=80)
    for read in (50, 80, 100):
        cache = started(model, plan, text[:, :read])
        again = there_and_back(model, plan, cache)
        assert_same(after(model, plan, again, text), after(model, plan, cache, text))
    prefix = Prefix.of(model, text[:, :INTERVAL]).start((plan,))
    again = there_and_back(model, plan, prefix)
    assert_same(after(model, plan, again, text), after(model, plan, prefix, text))


def test_it_can_be_saved_twice_and_forked():
    model, text = causal_model("gemma3"), ids(1, 150)
    plan = make_plan("h2o", HALF, INTERVAL)
    cache = started(model, plan, text[:, :100])
    again = there_and_back(model, plan, there_and_back(model, plan, cache))
    assert_same(after(model, plan, again.fork(), text), after(model, plan, cache, text))


def test_save_and_load_by_name(tmp_path):
    model, text = causal_model("qwen3"), ids(1, 150)
    with torch.no_grad(), namm.attach(model, memory(), HALF, INTERVAL) as handle:
        model(text[:, :75])
        path = handle.cache.save(tmp_path / "new" / "text.safetensors", model, notes={"title": "Emma"})
        expected = model(text[:, 75:], past_key_values=handle.cache).logits
    assert read_notes(path) == {"title": "Emma"}
    assert [found.name for found in path.parent.iterdir()] == [path.name]
    loaded = MemoryCache.load(str(path), model, memory(), HALF, INTERVAL)
    assert loaded.memory().tokens_seen == 75
    with torch.no_grad(), namm.attach(model, memory(), HALF, INTERVAL):
        assert torch.equal(model(text[:, 75:], past_key_values=loaded).logits, expected)
    assert MemoryCache.load(path, model, make_plan(memory(), HALF, INTERVAL)).memory().tokens_seen == 75
    with pytest.raises(ArtefactError, match=r"expected a cache of plan .*update_interval=64"):
        MemoryCache.load(path, model, memory(), HALF, 64)
    with pytest.raises(NotFoundError, match="a saved cache"):
        MemoryCache.load(tmp_path / "none", model, memory(), HALF)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    model = causal_model("llama")
    cache = started(model, make_plan("h2o", HALF, INTERVAL), ids(1, 40))
    path = cache.save(tmp_path / "text", model)
    before = path.read_bytes()

    def full(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(RunError, match=r"disk full.*what was there before is intact"):
        cache.save(path, model, {"more": "notes"})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["llama", "bfloat16"])
def test_a_file_is_as_large_as_what_is_held(name):
    model, plan = model_of(name), make_plan(random_namm(), LAYERS, INTERVAL)
    cache = started(model, plan, ids(1, 500))
    again = there_and_back(model, plan, cache)
    cache.trim()
    held = cache.memory().bytes_held
    assert again.memory().bytes_held == held
    assert held <= len(pack(cache, "")) < held + 4000  # names, shapes and numbers


def test_a_route_ends_with_its_last_cache():
    model, plan = causal_model("mistral"), make_plan("h2o", HALF, INTERVAL)
    cache = started(model, plan, ids(1, 40))
    data = pack(cache, "print")
    del cache
    assert model.config._attn_implementation == "sdpa"
    again, _ = unpack(data, model, plan, "print")
    assert model.config._attn_implementation == "namm:sdpa"
    del again
    assert model.config._attn_implementation == "sdpa"


# -- what a file belongs to --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CAUSAL)
def test_a_fingerprint_is_of_weights_and_configuration(name, tmp_path):
    model = causal_model(name)
    print_ = fingerprint(model)
    model.save_pretrained(tmp_path)
    cache = MemoryCache(model.config, "full")  # the route does not matter
    assert fingerprint(model) == print_
    del cache
    again = tf.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert fingerprint(again) == print_
    assert fingerprint(deepcopy(model).to(torch.bfloat16)) != print_
    with torch.no_grad():
        list(again.parameters())[-1].add_(0.01)
    assert fingerprint(again) != print_
    other = deepcopy(model)
    other.config.rope_parameters = {"rope_theta": 5.0}
    assert fingerprint(other) != print_


def test_plans_are_told_apart():
    network = random_namm()
    louder = namm.NAMM.from_vector(network.theta * 1.01, network.mean, network.var)
    plans = [
        make_plan("h2o", HALF, 32), make_plan("h2o", HALF, 64), make_plan("h2o", LAYERS, 32),
        make_plan("tova", HALF, 32), make_plan(Random(), HALF, 32), make_plan(Random(seed=1), HALF, 32),
        make_plan(network, HALF, 32), make_plan(louder, HALF, 32), make_plan(network, None, 32),
        Plan(H2O(), HALF, 32, last=64), make_plan("full", None, 32),
    ]  # fmt: skip
    assert len({describe(plan) for plan in plans}) == len(plans)
    same = namm.NAMM.from_vector(network.theta, network.mean, network.var)
    assert describe(make_plan(same, HALF, 32)) == describe(plans[6])
    assert describe(plans[0]).startswith("H2O(), Budget(tokens=None, fraction=0.5, per='head'")


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_what_cannot_be_saved():
    model = causal_model("llama")
    plans = (make_plan("h2o", HALF, 32), make_plan("tova", HALF, 32))
    with pytest.raises(ModelError, match="one plan for all rows; got 2 plans"):
        pack(MemoryCache.planned(model.config, plans), "")
    cache = started(model, plans[0], ids(1, 40))
    for notes in ({"namm": "x"}, {"number": 1}, {"half": "\ud800"}):
        with pytest.raises(ConfigurationError, match="notes of text by name"):
            pack(cache, "", notes)
    other = cache.fork()
    other.layers[1].columns += 1
    with pytest.raises(ModelError, match="layers that have read the same; got others"):
        pack(other, "")
    strange = started(causal_model("gemma3"), plans[0], ids(1, 40))
    strange.layers[0].more = "text"
    with pytest.raises(ModelError, match="a DynamicSlidingWindowLayer with more, a str"):
        pack(strange, "")


@pytest.fixture(scope="module")
def file():
    model = causal_model("gemma3")
    plan = make_plan(memory(), HALF, INTERVAL)
    return model, plan, pack(started(model, plan, ids(2, 75)), "print", {"a": "note"})


def test_what_belongs_elsewhere_is_refused(file):
    model, plan, data = file
    for message, told in [
        (r"a cache of model other; got 'print'\. Load it with the model that", (model, plan, "other")),
        (r"a cache of plan .*update_interval=64", (model, make_plan(memory(), HALF, 64), "print")),
        (r"a cache of plan .*H2O", (model, make_plan("h2o", HALF, INTERVAL), "print")),
        (r"a cache of layers .*'MemoryLayer': \[0, 1\]", (causal_model("llama"), plan, "print")),
    ]:
        with pytest.raises(ArtefactError, match=message):
            unpack(data, *told)


def test_another_layout_or_version_is_refused(file, monkeypatch):
    model, plan, data = file
    with monkeypatch.context() as patch:
        patch.setattr("namm.memory.saved.LAYOUT", 3)
        with pytest.raises(ArtefactError, match=r"expected a cache of layout 3; got 2\. Load it with the layout"):
            unpack(data, model, plan, "print")

    class DynamicSlidingWindowLayer(tf.cache_utils.DynamicSlidingWindowLayer):
        """As a later version might make it."""

        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options)
            self.page = 0

    kinds = memory_layers(model.config, (plan,))
    kinds[0] = DynamicSlidingWindowLayer(sliding_window=32)
    monkeypatch.setattr("namm.memory.saved.memory_layers", lambda *_: kinds)
    with pytest.raises(ArtefactError, match=r"a cache of layers .*DynamicSlidingWindowLayer\(.*page"):
        unpack(data, model, plan, "print")


class Bomb:
    """Goes off when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return pytest.fail, ("unpickled",)


def test_what_is_no_saved_cache_is_refused(file, tmp_path):
    model, plan, _ = file
    path = tmp_path / "other"
    torch.save({"a": Bomb()}, path)
    others = [
        b"",
        b"garbage",
        bytes(100),
        b"\xff" * 100,
        save({"a": torch.ones(1)}),
        pickle.dumps(Bomb()),
        path.read_bytes(),
    ]
    for other in others:
        path.write_bytes(other)
        with pytest.raises(ArtefactError, match="saved cache"):
            unpack(other, model, plan, "print")
        with pytest.raises(ArtefactError, match="saved cache"):
            MemoryCache.load(path, model, plan)
        with pytest.raises(ArtefactError, match="saved cache"):
            read_notes(path)
        assert path.read_bytes() == other
    with pytest.raises(NotFoundError):
        read_notes(tmp_path / "none")
    with pytest.raises(ArtefactError):
        read_notes(tmp_path)


def test_any_damage_is_found(file, tmp_path):
    model, plan, data = file
    chance, path = random.Random(0), tmp_path / "damaged"
    size = 8 + int.from_bytes(data[:8], "little")
    flips = [(place, 1 << chance.randrange(8)) for place in range(0, size, 3)]
    flips += [(chance.randrange(size, len(data)), 1 << chance.randrange(8)) for _ in range(100)]
    damaged = [data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :] for place, bit in flips]
    damaged += [data[: chance.randrange(len(data))] for _ in range(50)]
    damaged += [data[:-1], data + b"x", data[8:], data[:size] + bytes(len(data) - size)]
    for other in damaged:
        with pytest.raises(ArtefactError):
            unpack(other, model, plan, "print")
    path.write_bytes(damaged[0])
    with pytest.raises(ArtefactError):
        MemoryCache.load(path, model, plan)
    assert path.read_bytes() == damaged[0]
    assert unpack(data, model, plan, "print")[1] == {"a": "note"}


def test_damaged_notes_are_notes_or_refused(file, tmp_path):
    _, _, data = file
    chance, path = random.Random(0), tmp_path / "damaged"
    size = 8 + int.from_bytes(data[:8], "little")
    for _ in range(300):
        other = bytearray(data)
        other[chance.randrange(size)] ^= 1 << chance.randrange(8)
        path.write_bytes(other)
        with suppress(ArtefactError):
            read_notes(path)


def test_notes_are_read_without_tensors(file, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(file[2])
    with safe_open(path, framework="pt") as opened:
        assert "1.0.keys" in opened.keys()  # noqa: SIM118
    assert read_notes(path) == {"a": "note"}
