"""A memory inside transformers: generate in all its modes, other dtypes, threads, wrappers, and leaving no trace."""

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import transformers as tf
from torch._subclasses import FakeTensor

import namm
from namm import Budget
from namm.memory.ledger import storage_bytes
from namm.memory.sequence import Rows
from tests.memory.test_equivalence import INTERVAL, random_namm
from tests.zoo import causal_model, hybrid, ids, video_model

HALF = Budget(fraction=0.5)


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3, "do_sample": False},
        {"num_beams": 2, "num_return_sequences": 2, "do_sample": False},
        {"do_sample": True, "num_return_sequences": 3},
        {"do_sample": False, "repetition_penalty": 1.3},
    ],
    ids=["beams", "several beams", "sampling", "greedy"],
)
def test_generation_modes_equal_the_untouched_model_when_all_is_kept(options: dict[str, object]) -> None:
    model, prompt = causal_model("llama"), ids(2, 40)
    torch.manual_seed(5)
    untouched = model.generate(prompt, max_new_tokens=30, **options)
    torch.manual_seed(5)
    with namm.attach(model, namm.NAMM.zeros(), update_interval=INTERVAL):
        remembered = model.generate(prompt, max_new_tokens=30, **options)
    torch.testing.assert_close(remembered, untouched)


def test_beams_forget_each_on_their_own() -> None:
    model = causal_model("llama")
    with namm.attach(model, random_namm(), update_interval=INTERVAL) as handle:
        best = model.generate(ids(1, 50), max_new_tokens=60, num_beams=3, do_sample=False)
        report = handle.memory()
        assert len(report.kept[0]) == 3
        assert report.updates[0] == 9
    assert best.shape == (1, 110)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    config = causal_model("llama").config
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config).to(dtype).eval()
    with torch.no_grad():
        untouched = model(ids(1, 100)).logits
        with namm.attach(model, namm.NAMM.zeros(), update_interval=INTERVAL):
            kept_all = model(ids(1, 100)).logits
    assert kept_all.dtype == dtype
    torch.testing.assert_close(kept_all, untouched, atol=0.05, rtol=0.05)
    with namm.attach(model, random_namm(), HALF, update_interval=INTERVAL) as handle:
        model.generate(ids(1, 100), max_new_tokens=40, do_sample=False)
        assert handle.cache.layers[0].sequences[0].store.state.dtype == torch.float16
        assert handle.memory().kept[0] == [[64 + 11, 64 + 11]]


def test_half_precision_state_is_close_to_float32() -> None:
    def averages(dtype: torch.dtype) -> torch.Tensor:
        torch.manual_seed(0)
        model = tf.AutoModelForCausalLM.from_config(causal_model("llama").config).to(dtype).eval()
        with torch.no_grad(), namm.attach(model, namm.NAMM.zeros(), update_interval=INTERVAL) as handle:
            model(ids(1, 96))
            rows = Rows([handle.cache.layers[0].sequences[0]])
            return rows.decode(rows.parts()[0].state)

    exact, rounded = averages(torch.float32), averages(torch.float16)
    torch.testing.assert_close(rounded, exact, atol=2e-3, rtol=2e-2)


def test_a_cache_passed_by_hand_needs_no_attach() -> None:
    model, prompt = causal_model("qwen3"), ids(2, 100)
    with namm.attach(model, "h2o", HALF, update_interval=INTERVAL) as handle:
        attached = model.generate(prompt, max_new_tokens=20, do_sample=False)
        kept = handle.kept_positions(0)
    cache = namm.MemoryCache(model.config, "h2o", HALF, update_interval=INTERVAL)
    by_hand = model.generate(prompt, past_key_values=cache, max_new_tokens=20, do_sample=False)
    torch.testing.assert_close(by_hand, attached)
    assert cache.kept_positions(0) == kept
    plain = model.generate(prompt, max_new_tokens=20, do_sample=False)  # another call on the same model, no memory
    del cache
    gc.collect()
    assert model.config._attn_implementation == "sdpa"
    torch.testing.assert_close(model.generate(prompt, max_new_tokens=20, do_sample=False), plain)


def test_an_empty_dynamic_cache_given_by_the_caller_becomes_the_memory() -> None:
    model, prompt = causal_model("llama"), ids(1, 90)
    with torch.no_grad(), namm.attach(model, random_namm(), update_interval=INTERVAL) as handle:
        given = tf.DynamicCache(config=model.config)
        model(prompt[:, :50], past_key_values=given)
        model(prompt[:, 50:], past_key_values=given)
        pieces = handle.kept_positions(0)
        assert given.memory().tokens_seen == 90
        model(prompt)
        assert handle.kept_positions(0) == pieces


@contextmanager
def _unchanged(model: torch.nn.Module) -> Iterator[None]:
    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

    def names() -> list[str]:
        return [m.config._attn_implementation for m in model.modules() if hasattr(m, "config")]

    before = hooks(), names(), set(vars(model))
    yield
    assert (hooks(), names(), set(vars(model))) == before


def test_the_model_is_left_as_it_was() -> None:
    for model in (causal_model("gemma3"), video_model()):
        with _unchanged(model), namm.attach(model, "knorm", HALF):
            out = model.generate(ids(1, 40), max_new_tokens=4, return_dict_in_generate=True)
        assert out.past_key_values is not None
        with _unchanged(model), pytest.raises(ZeroDivisionError), namm.attach(model, "knorm", HALF):
            raise ZeroDivisionError
        with _unchanged(model), pytest.raises(namm.NammError), namm.attach(model, "knorm"):
            pass


def test_importing_changes_nothing_in_transformers() -> None:
    import subprocess
    import sys

    script = (
        "from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as f\n"
        "from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as m\n"
        "before = dict(f), dict(m)\nimport namm\nassert before == (dict(f), dict(m))\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_threads_share_a_model_but_no_memory() -> None:
    model = causal_model("llama")
    prompts = [ids(1, 60 + 10 * i, seed=i) for i in range(4)]
    with namm.attach(model, random_namm(), update_interval=INTERVAL) as handle:
        alone = []
        for prompt in prompts:
            text = model.generate(prompt, max_new_tokens=40, do_sample=False)
            alone.append((text.tolist(), handle.kept_positions(1)))
        together: dict[int, tuple[list[list[int]], list[list[list[int]]]]] = {}

        def work(i: int) -> None:
            text = model.generate(prompts[i], max_new_tokens=40, do_sample=False)
            together[i] = (text.tolist(), handle.kept_positions(1))

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [together[i] for i in range(4)] == alone


def test_threads_with_a_policy_each() -> None:
    model, prompt = causal_model("llama"), ids(1, 100)
    kept: dict[str, object] = {}

    def work(policy: str) -> None:
        cache = namm.MemoryCache(model.config, policy, HALF, update_interval=INTERVAL)
        model.generate(prompt, past_key_values=cache, max_new_tokens=30, do_sample=False)
        kept[policy] = cache.kept_positions(1)

    names = ["h2o", "knorm", "streaming", "random"]
    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    together = dict(kept)
    for name in names:
        work(name)
    assert together == kept
    assert len({str(positions) for positions in kept.values()}) == 4


def test_peft_wrapped_models() -> None:
    peft = pytest.importorskip("peft")
    base = tf.AutoModelForCausalLM.from_config(causal_model("llama").config).eval()
    wrapped = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])).eval()
    with _unchanged(wrapped), namm.attach(wrapped, random_namm(), update_interval=INTERVAL) as handle:
        wrapped.generate(input_ids=ids(1, 100), max_new_tokens=20, do_sample=False)
        kept = handle.kept_positions(0)
        with torch.no_grad():
            wrapped(ids(1, 100))
        assert [p[:10] for p in handle.kept_positions(0)[0]] == [p[:10] for p in kept[0]]
    with namm.attach(base, random_namm(), update_interval=INTERVAL) as handle:
        base.generate(ids(1, 100), max_new_tokens=20, do_sample=False)
        assert handle.kept_positions(0) == kept


def test_layers_of_another_kind_keep_their_cache() -> None:
    model = causal_model("gemma3")
    with torch.no_grad(), namm.attach(model, "random", HALF, update_interval=INTERVAL) as handle:
        model(ids(1, 100))
        assert type(handle.cache.layers[0]) is tf.cache_utils.DynamicSlidingWindowLayer
        assert handle.memory().kept[0] == []
        assert handle.memory().kept[1] == [[48 + 4, 48 + 4]]
        with pytest.raises(namm.ConfigurationError, match="full-attention layer"):
            handle.kept_positions(0)


def _live_bytes() -> dict[int, int]:
    gc.collect()
    real = [obj for obj in gc.get_objects() if issubclass(type(obj), torch.Tensor)]
    tensors = [tensor for tensor in real if not isinstance(tensor, FakeTensor)]  # which torch.compile leaves behind
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.numel()}


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize(("memory", "selection"), [("namm", None), ("h2o", HALF), ("full", None)])
def test_bytes_reported_are_bytes_that_exist(name: str, memory: str, selection: Budget | None) -> None:
    model = causal_model(name)
    policy = random_namm() if memory == "namm" else memory
    with torch.no_grad(), namm.attach(model, policy, selection, update_interval=INTERVAL) as handle:
        model(ids(2, 20))  # tables and lazily made constants
        prompt, mask = ids(2, 150), torch.ones(2, 150, dtype=torch.long)
        mask[1, :30] = 0
        handle._note(None)
        before = _live_bytes()
        cache = model(prompt, attention_mask=mask).past_key_values
        new = {p: n for p, n in _live_bytes().items() if p not in before}
        report = cache.memory()
        assert sum(new.values()) == report.bytes_held
        assert report.peak_bytes >= report.bytes_held
        cache.layers = []
        gc.collect()
        assert not set(_live_bytes()) & set(new)


def test_trimming_gives_back_free_slots_and_changes_nothing_else() -> None:
    model, prompt = causal_model("llama"), ids(2, 98)
    with torch.no_grad(), namm.attach(model, "streaming", HALF, update_interval=INTERVAL):
        cache = model(prompt[:, :97]).past_key_values
        plain, before = cache.fork(), cache.memory()
        cache.trim()
        held = cache.memory()
        assert held.kept == before.kept
        token = 2 * 8 * 4 + 4  # a key and a value of 8 float32, and a position
        assert held.bytes_held == held.slots * token < before.bytes_held
        after = model(prompt[:, 97:], past_key_values=cache).logits
        assert torch.equal(after, model(prompt[:, 97:], past_key_values=plain).logits)


def test_full_bytes_are_those_of_a_full_cache() -> None:
    model, prompt = causal_model("gemma3"), ids(2, 100)
    with torch.no_grad():
        full = model(prompt).past_key_values
        with namm.attach(model, "random", HALF, update_interval=INTERVAL):
            report = model(prompt).past_key_values.memory()
    stored = storage_bytes([t for layer in full.layers for t in vars(layer).values() if isinstance(t, torch.Tensor)])
    assert report.bytes_full == stored
    assert "slots" in str(report)
    assert 0 < report.share < 1


def test_a_pipeline_remembers(tmp_path: object) -> None:
    model = causal_model("llama")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"w{i}": i for i in range(97)}
    raw = Tokenizer(models.WordLevel(words, unk_token="w0"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = tf.PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="w0", eos_token="w1")
    pipe = tf.pipeline("text-generation", model=model, tokenizer=tokenizer)
    with namm.attach(model, random_namm(), update_interval=INTERVAL) as handle:
        pipe(" ".join(f"w{i}" for i in range(3, 90)), max_new_tokens=10, do_sample=False)
        assert handle.memory().updates == [3, 3] or handle.memory().updates == [2, 2]


def test_left_padding_longer_than_a_chunk() -> None:
    model, prompt = causal_model("llama"), ids(2, 100)
    mask = torch.ones_like(prompt)
    mask[1, :70] = 0
    options = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False}
    with namm.attach(model, random_namm(), update_interval=INTERVAL) as handle:
        whole, kept = model.generate(prompt, **options), handle.kept_positions(1)
        chunked = model.generate(prompt, prefill_chunk_size=32, **options)
        assert handle.kept_positions(1) == kept
    torch.testing.assert_close(chunked, whole)


def test_a_memory_begun_in_inference_mode_goes_on_outside() -> None:
    model = causal_model("llama")
    with namm.attach(model, random_namm(), update_interval=INTERVAL):
        with torch.inference_mode():
            cache = model(ids(1, 50)).past_key_values
            model(ids(1, 1), past_key_values=cache)
        with torch.no_grad():
            for _ in range(20):
                model(ids(1, 1), past_key_values=cache)
    assert cache.memory().tokens_seen == 71


def test_linear_attention_layers_are_counted() -> None:
    model = hybrid()
    with torch.no_grad():
        untouched = model(ids(1, 60)).logits
        with namm.attach(model, namm.NAMM.zeros(), update_interval=16) as handle:
            torch.testing.assert_close(model(ids(1, 60)).logits, untouched, atol=1e-4, rtol=0)
    attention_only = storage_bytes(handle.cache.layers[1].tensors())
    assert handle.memory().bytes_held > attention_only


def test_caches_collected_at_any_moment_free_their_route(monkeypatch: pytest.MonkeyPatch) -> None:
    from namm.memory import routing

    model = causal_model("qwen2")

    class Cycle:
        pass

    def hold() -> None:
        cycle = Cycle()
        cycle.me, cycle.cache = cycle, namm.MemoryCache(model.config, "full")

    register = routing._register

    def collecting(name: str) -> None:
        gc.collect()  # with the lock held by this very thread
        register(name)

    gc.disable()
    hold()
    monkeypatch.setattr(routing, "_register", collecting)
    try:
        other = namm.MemoryCache(model.config, "full")
    finally:
        gc.enable()
    del other
    gc.collect()
    assert model.config._attn_implementation == "sdpa"
    assert not routing._left


def test_images_whose_tokens_see_each_other() -> None:
    torch.manual_seed(1)
    text = tf.Gemma3TextConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, sliding_window=64, layer_types=["sliding_attention", "full_attention"],
        pad_token_id=0,
    )  # fmt: skip
    vision = tf.SiglipVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, image_size=28, patch_size=14
    )
    config = tf.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_id=95, boi_token_index=93,
        eoi_token_index=94,
    )  # fmt: skip
    model = tf.Gemma3ForConditionalGeneration(config).eval()
    prompt = torch.cat([ids(1, 18), torch.full((1, 4), 95), ids(1, 40, seed=1)], dim=1)
    inputs = {
        "input_ids": prompt, "pixel_values": torch.randn(1, 3, 28, 28), "token_type_ids": (prompt == 95).long(),
        "attention_mask": torch.ones_like(prompt),
    }  # fmt: skip
    with torch.no_grad():
        untouched = model(**inputs).logits
        for memory, interval in (("full", 32), (namm.NAMM.zeros(), 32)):
            with namm.attach(model, memory, update_interval=interval):
                torch.testing.assert_close(model(**inputs).logits, untouched, atol=1e-4, rtol=0)
        with namm.attach(model, namm.NAMM.zeros(), update_interval=16):
            model(input_ids=ids(1, 40))  # text alone is never cut
        cut = inputs | {"input_ids": prompt.roll(-3, 1), "token_type_ids": (prompt.roll(-3, 1) == 95).long()}
        with (
            namm.attach(model, namm.NAMM.zeros(), update_interval=16),
            pytest.raises(namm.ModelError, match="looks past"),
        ):
            model(**cut)
