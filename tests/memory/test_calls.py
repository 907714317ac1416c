"""What a call asks for beside its tokens is served as the untouched model would, or refused before anything is read."""

import copy
import threading
import warnings

import pytest
import torch
import transformers as tf

import namm
from namm import Budget, compat
from namm.compat import cache_argument, cache_in, passing
from tests.memory.test_equivalence import INTERVAL, random_namm
from tests.memory.test_rehearsal import Echoes
from tests.memory.test_rehearsal import memory as rehearsing_memory
from tests.zoo import bamba, causal_model, ids, jamba

QUARTER, HALF = Budget(fraction=0.25), Budget(fraction=0.5)
ARCHITECTURES = ["llama", "olmo2", "granite", "mixtral", "qwen3_moe", "gemma2", "gemma3", "gpt2"]
GREEDY = {"do_sample": False, "max_new_tokens": 8}


def trainable(name: str) -> tf.PreTrainedModel:
    torch.manual_seed(0)
    config = copy.deepcopy(causal_model(name).config)
    return tf.AutoModelForCausalLM.from_config(config, attn_implementation="eager").train()


# -- calls that keep no cache ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_generating_without_a_cache_is_the_models_own(name: str) -> None:
    model, prompt = causal_model(name), ids(1, 40)
    options = GREEDY | {"use_cache": False, "return_dict_in_generate": True, "output_scores": True}
    untouched = model.generate(prompt, **options)
    with namm.attach(model, "full") as handle:
        attached = model.generate(prompt, **options)
        with pytest.raises(namm.ModelError, match="that keeps a cache"):
            handle.memory()
    assert torch.equal(attached.sequences, untouched.sequences)
    for mine, own in zip(attached.scores, untouched.scores, strict=True):
        torch.testing.assert_close(mine, own, atol=0, rtol=0)


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_packed_texts_are_the_models_own(name: str) -> None:
    model, packed = causal_model(name), torch.cat([torch.arange(25), torch.arange(15)])[None]
    untouched = model(ids(1, 40), position_ids=packed, use_cache=False).logits
    with namm.attach(model, "full"):
        torch.testing.assert_close(model(ids(1, 40), position_ids=packed, use_cache=False).logits, untouched)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_memory_that_forgets_refuses_calls_without_a_cache(name: str) -> None:
    model, prompt = causal_model(name), ids(1, 40)
    with namm.attach(model, "h2o", QUARTER), pytest.raises(namm.ModelError, match="use_cache=False"):
        model.generate(prompt, use_cache=False, **GREEDY)
    settings = tf.GenerationConfig(use_cache=False, **GREEDY)
    with namm.attach(model, "h2o", QUARTER), pytest.raises(namm.ModelError, match="use_cache=False"):
        model.generate(prompt, generation_config=settings)
    with namm.attach(model, "h2o", QUARTER), pytest.raises(namm.ModelError, match="use_cache=False"):
        model(prompt, use_cache=False)


def test_a_configuration_without_a_cache_is_heard() -> None:
    model = trainable("llama").eval()
    model.config.use_cache = False
    with namm.attach(model, "h2o", QUARTER), pytest.raises(namm.ModelError, match="use_cache=False"):
        model(ids(1, 40))
    with torch.no_grad(), namm.attach(model, "h2o", QUARTER) as handle:
        model(ids(1, 40), use_cache=True)
        assert handle.memory().tokens_seen == 40


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("policy", ["h2o", "rehearsing"])
def test_gradient_checkpointing_is_refused(name: str, policy: str) -> None:
    """It drops the cache of every layer: nothing would be forgotten, and pieces would not know of each other."""
    model, text = trainable(name), ids(1, 60)
    model.gradient_checkpointing_enable()
    memory = rehearsing_memory() if policy == "rehearsing" else policy
    with namm.attach(model, memory, QUARTER, INTERVAL), pytest.raises(namm.ModelError, match="checkpointing"):
        model(text, labels=text)
    model.eval()
    with torch.no_grad(), namm.attach(model, memory, QUARTER, INTERVAL) as handle:
        model(text)
        assert handle.memory().tokens_seen == 60


def test_gradients_flow_where_nothing_is_to_be_forgotten_and_no_cache_is_kept() -> None:
    model, text = trainable("llama"), ids(1, 40)
    model.gradient_checkpointing_enable()
    untouched = model(text, labels=text).loss
    with namm.attach(model, "full"):
        loss = model(text, labels=text).loss
        loss.backward()
    torch.testing.assert_close(loss, untouched)
    assert model.lm_head.weight.grad is not None


def test_a_cache_by_hand_that_was_dropped_is_noticed() -> None:
    model, text = trainable("llama"), ids(1, 40)
    model.gradient_checkpointing_enable()
    cache = namm.MemoryCache(model.config, "h2o", QUARTER)
    model(text, **passing(model, cache))
    with pytest.raises(namm.ModelError, match="The model dropped its cache"):
        cache.memory()


def test_packed_texts_are_refused_by_a_memory() -> None:
    model = causal_model("llama")
    ends = torch.tensor([0, 25, 40], dtype=torch.int32)
    packed = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": 25, "max_length_k": 25}
    with torch.no_grad(), namm.attach(model, "h2o", QUARTER) as handle:
        with pytest.raises(namm.ModelError, match="a packing of several"):
            model(ids(1, 40), **packed)
        with pytest.raises(namm.ModelError, match="that keeps a cache"):
            handle.memory()
    cache = namm.MemoryCache(model.config, "h2o", QUARTER)
    with torch.no_grad(), pytest.raises(namm.ModelError, match="cu_seq_lens_k"):
        model(ids(1, 40), **packed, **passing(model, cache))


# -- masks of later calls ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_a_later_mask_hides_what_was_read(name: str) -> None:
    """As a batch whose first row had ended early: its padding was read, and must not be seen in the next turn."""
    model, first, then, last = causal_model(name), ids(2, 40), ids(2, 12, seed=1), ids(2, 5, seed=2)
    mask = torch.ones(2, 57, dtype=torch.long)
    mask[0, 5:15] = 0

    def turns() -> tuple[list[torch.Tensor], object]:
        logits, cache = [], None
        for piece, length in ((first, 40), (then, 52), (last, 57)):
            given = {} if length == 40 else {"attention_mask": mask[:, :length]}
            out = model(piece, **given, **passing(model, cache))
            logits.append(out.logits)
            cache = cache_in(out)
        return logits, cache

    untouched, _ = turns()
    for memory in ("full", namm.NAMM.zeros()):
        with namm.attach(model, memory, update_interval=INTERVAL):
            attached, cache = turns()
        for mine, own in zip(attached, untouched, strict=True):
            torch.testing.assert_close(mine, own, atol=1e-4, rtol=1e-4)
        layer = len(cache.layers) - 1
        rows = cache.kept_positions(layer)
        assert rows[0] == [[*range(5), *range(15, 57)]] * len(rows[0])
        assert rows[1] == [list(range(57))] * len(rows[1])


@torch.no_grad()
def test_hidden_tokens_are_gone_from_a_budget_too() -> None:
    model, mask = causal_model("llama"), torch.ones(1, 60, dtype=torch.long)
    mask[0, 30:40] = 0
    with namm.attach(model, "streaming", HALF, update_interval=INTERVAL) as handle:
        cache = cache_in(model(ids(1, 40)))
        model(ids(1, 20, seed=1), attention_mask=mask, **passing(model, cache))
        kept = handle.kept_positions(0)[0]
        assert all(len(head) > 20 and not set(range(30, 40)) & set(head) for head in kept)
        twin = copy.deepcopy(cache)
        one = model(ids(1, 1), attention_mask=torch.cat([mask, mask[:, :1]], 1), **passing(model, cache)).logits
        other = model(ids(1, 1), attention_mask=torch.cat([mask, mask[:, :1]], 1), **passing(model, twin)).logits
    assert torch.equal(one, other)


@torch.no_grad()
def test_masks_that_show_again_what_was_hidden_are_refused_and_nothing_is_lost() -> None:
    model, text, mask = causal_model("llama"), ids(2, 20), torch.ones(2, 25, dtype=torch.long)
    mask[1, :6] = 0
    with namm.attach(model, "full") as handle:
        cache = cache_in(model(text, attention_mask=mask[:, :20]))
        before = handle.memory()
        with pytest.raises(namm.ModelError, match="shows column 0 of row 1"):
            model(ids(2, 5), attention_mask=torch.ones_like(mask), **passing(model, cache))
        with pytest.raises(namm.ModelError, match="no mask"):
            model(ids(2, 5), **passing(model, cache))
        with pytest.raises(namm.ModelError, match="over all 25 tokens seen"):
            model(ids(2, 5), attention_mask=mask[:, -5:], **passing(model, cache))
        with pytest.raises(namm.ModelError, match="3 rows"):
            model(ids(2, 5), attention_mask=torch.ones(3, 25, dtype=torch.long), **passing(model, cache))
        assert handle.memory() == before
        model(ids(2, 5), attention_mask=mask, **passing(model, cache))
        assert handle.memory().tokens_seen == 25


@torch.no_grad()
def test_a_memory_that_rehearses_refuses_to_hide() -> None:
    model, mask = causal_model("llama"), torch.ones(1, 30, dtype=torch.long)
    mask[0, 3:6] = 0
    with namm.attach(model, rehearsing_memory(), HALF, INTERVAL):
        cache = cache_in(model(ids(1, 20)))
        with pytest.raises(namm.ModelError, match="for a memory that rehearses"):
            model(ids(1, 10), attention_mask=mask, **passing(model, cache))


# -- reading in pieces -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [jamba, bamba])
@torch.no_grad()
def test_models_that_read_pieces_in_another_way_than_the_whole_are_refused_pieces(make) -> None:
    model, text = make(), ids(1, 40)
    with namm.attach(model, random_namm(), update_interval=INTERVAL) as handle:
        model(text)  # one call is served
        cache = handle.cache
        model(ids(1, 1), **passing(model, cache))  # and a token after it
        with pytest.raises(namm.ModelError, match="reads a text in pieces as it reads it whole"):
            model(ids(1, 5), **passing(model, cache))
        assert cache.memory().tokens_seen == 41
        model(ids(1, 1), **passing(model, cache))
    with (
        pytest.raises(namm.ModelError, match="for a memory that rehearses"),
        namm.attach(model, rehearsing_memory(), HALF, INTERVAL),
    ):
        pass


@pytest.mark.parametrize("make", [jamba, bamba])
def test_the_server_and_the_evaluation_refuse_models_that_they_cannot_read_in_pieces(make) -> None:
    from namm.evaluation.reader import Reader
    from namm.serving.host import Host
    from tests.serving.made import tokenizer

    with pytest.raises(namm.ModelError, match="questions that are asked after a text was read"):
        Reader(make(), tokenizer(), INTERVAL)
    with pytest.raises(namm.ModelError, match="a server, which reads prompts in chunks"):
        Host("made", make(), tokenizer(), ["full"], None)


@pytest.mark.parametrize("name", ["gemma3", "llama", "gpt2"])
def test_models_that_read_pieces_as_the_whole_are_served_them(name: str) -> None:
    from namm.memory.attach import find_decoder
    from namm.memory.pieces import check_pieces

    check_pieces(find_decoder(causal_model(name)), "anything")


# -- embeddings in place of ids ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2", "gemma3", "olmo2", "mixtral", "gpt2"])
@pytest.mark.parametrize("rehearses", [False, True])
def test_generating_from_embeddings(name: str, rehearses: bool) -> None:
    model, prompt = causal_model(name), ids(1, 50)
    memory = rehearsing_memory() if rehearses else random_namm()
    embedded = model.get_input_embeddings()(prompt).detach()
    options = GREEDY | {"max_new_tokens": 40}
    with namm.attach(model, memory, HALF, INTERVAL) as handle:
        by_id = model.generate(prompt, **options)
        kept = [handle.kept_positions(i) for i, held in enumerate(handle.memory().kept) if held]
        by_embedding = model.generate(inputs_embeds=embedded, **options)
        assert [handle.kept_positions(i) for i, held in enumerate(handle.memory().kept) if held] == kept
        assert handle.memory().updates[-1] == 89 // INTERVAL
    assert torch.equal(by_embedding, by_id[:, 50:])


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "qwen3_moe"])
@pytest.mark.parametrize("rehearses", [False, True])
@pytest.mark.parametrize(
    "promised",
    [{"num_beams": 2}, {"prefill_chunk_size": 25}, {"do_sample": True, "num_return_sequences": 2}, {"embedded": True},
     {"embedded": True, "num_beams": 2}],
    ids=["beams", "chunks", "sampling", "embeddings", "beams from embeddings"],
)  # fmt: skip
def test_every_way_to_generate_that_is_promised(name: str, rehearses: bool, promised: dict[str, object]) -> None:
    model, prompt = causal_model(name), ids(2, 60)
    mask = torch.ones_like(prompt)
    mask[1, :20] = 0
    options = GREEDY | {"max_new_tokens": 30, "attention_mask": mask} | promised
    embedded = options.pop("embedded", False)
    given = {"inputs_embeds": model.get_input_embeddings()(prompt).detach()} if embedded else {"input_ids": prompt}
    torch.manual_seed(3)
    untouched = model.generate(**given, **options)
    torch.manual_seed(3)
    memory = Echoes() if rehearses else namm.NAMM.zeros()
    with namm.attach(model, memory, namm.Threshold(0.0), INTERVAL) as handle:
        remembered = model.generate(**given, **options)
        assert handle.memory().tokens_seen == 60 + 29
        assert handle.memory().updates[-1] >= 3
    assert torch.equal(remembered, untouched)


@pytest.mark.parametrize("rehearses", [False, True])
def test_prompt_tuning(rehearses: bool) -> None:
    peft = pytest.importorskip("peft")
    base = trainable("llama").eval()
    tuned = peft.get_peft_model(base, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)).eval()
    memory = rehearsing_memory() if rehearses else random_namm()
    options = GREEDY | {"max_new_tokens": 40, "return_dict_in_generate": True}
    untouched = tuned.generate(input_ids=ids(1, 60), **options)
    seen = cache_in(untouched).get_seq_length()  # peft 0.21 gives transformers 5.24 its prompt anew for each token
    assert seen == 5 + 60 + 39 or compat.cache_argument(base) == "cache"
    with namm.attach(tuned, memory, HALF, INTERVAL) as handle:
        tuned.generate(input_ids=ids(1, 60), **options)
        assert handle.memory().tokens_seen == seen
        assert handle.memory().updates == [seen // INTERVAL] * 2
    with namm.attach(tuned, "full"):
        assert torch.equal(tuned.generate(input_ids=ids(1, 60), **options).sequences, untouched.sequences)


# -- both names of the cache -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("called", ["cache", "past_key_values"])
@torch.no_grad()
def test_a_cache_is_known_by_both_of_its_names(name: str, called: str) -> None:
    model, text = causal_model(name), ids(1, 60)
    untouched = model(text).logits
    with namm.attach(model, "full") as handle:
        cache = tf.DynamicCache(config=model.config)
        parts = [model(part, **{called: cache}).logits for part in (text[:, :40], text[:, 40:])]
        assert handle.memory().tokens_seen == 60
    torch.testing.assert_close(torch.cat(parts, 1), untouched, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("called", ["cache", "past_key_values"])
@torch.no_grad()
def test_a_memory_by_hand_is_served_or_refused_but_never_left_out(called: str) -> None:
    model = causal_model("llama")
    cache = namm.MemoryCache(model.config, "h2o", HALF, update_interval=INTERVAL)
    if called == "cache" and cache_argument(model) != "cache":
        with pytest.raises(namm.ModelError, match="pass it as past_key_values"):
            model(ids(1, 40), cache=cache)
    else:
        model(ids(1, 40), **{called: cache})
        assert cache.memory().tokens_seen == 40


def test_a_version_that_was_never_tried_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = causal_model("llama")
    with warnings.catch_warnings(), namm.attach(model, "full"):
        warnings.simplefilter("error")
    monkeypatch.setattr(compat.transformers, "__version__", "5.99.1")
    assert compat.untested().startswith("transformers 5.99.1 was not tried with this namm, 5.17 to 5.24 were.")
    with pytest.warns(UserWarning, match=r"^transformers 5\.99\.1 was not tried") as told, namm.attach(model, "full"):
        pass
    assert len(told) == 1
    with (
        pytest.warns(UserWarning, match="was not tried"),
        pytest.raises(namm.ModelError, match=r"use_cache=False.*5\.99\.1"),
        namm.attach(model, "h2o", QUARTER),
    ):
        model(ids(1, 20), use_cache=False)
    with pytest.warns(UserWarning, match=r"5\.99\.1"):
        namm.MemoryCache(model.config, "full")


# -- compiled models, copies, threads, and other ways to be called -----------------------------------------------------


@torch.no_grad()
def test_a_compiled_model_remembers_as_the_plain_one() -> None:
    model = trainable("llama").eval()
    compiled = torch.compile(model, backend="eager")
    for length in (20, 33, 47):
        seen = []
        for called in (model, compiled):
            with namm.attach(called, random_namm(), HALF, update_interval=INTERVAL) as handle:
                logits = called(ids(1, length)).logits
                seen.append((logits, handle.kept_positions(1), handle.memory().updates))
        torch.testing.assert_close(seen[1][0], seen[0][0], atol=1e-5, rtol=1e-5)
        assert seen[1][1:] == seen[0][1:]
    torch.compiler.reset()


@torch.no_grad()
def test_a_copied_cache_goes_its_own_way() -> None:
    model, prompt = causal_model("llama"), ids(1, 60)
    with namm.attach(model, random_namm(), HALF, INTERVAL):
        cache = cache_in(model(prompt))
        twin = copy.deepcopy(cache)
        once = model.generate(torch.cat([prompt, ids(1, 9, seed=4)], 1), **passing(model, cache), **GREEDY)
        assert twin.memory().tokens_seen == 60
        again = model.generate(torch.cat([prompt, ids(1, 9, seed=4)], 1), **passing(model, twin), **GREEDY)
    assert torch.equal(once, again)
    assert twin.kept_positions(0) == cache.kept_positions(0)


@torch.no_grad()
def test_the_last_memory_is_found_from_any_thread() -> None:
    model = causal_model("llama")
    with namm.attach(model, "full") as handle:
        with pytest.raises(namm.ModelError, match="none yet"):
            handle.memory()
        thread = threading.Thread(target=lambda: model(ids(1, 30)))
        thread.start()
        thread.join()
        assert handle.memory().tokens_seen == 30
        model(ids(1, 10))
        thread = threading.Thread(target=lambda: model(ids(1, 20)))
        thread.start()
        thread.join()
        assert handle.memory().tokens_seen == 10  # a thread that has called the model sees its own


def _latent(kind: type, **more: object) -> tf.PreTrainedModel:
    config = kind(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=8,
        pad_token_id=0, **more,
    )  # fmt: skip
    return tf.AutoModelForCausalLM.from_config(config).eval()


_EXPERTS = {"moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (tf.DeepseekV2Config, _EXPERTS), (tf.DeepseekV3Config, _EXPERTS), (tf.Glm4MoeLiteConfig, _EXPERTS),
        (tf.MiniCPM3Config, {}),
    ],
)  # fmt: skip
@torch.no_grad()
def test_latent_attention_is_refused_at_once_where_the_latent_is_cached(kind: type, more: dict[str, int]) -> None:
    model = _latent(kind, **more)
    if not any(hasattr(part, "expand_kv") for part in model.modules()):  # older versions cache what it expands to
        untouched = model(ids(1, 40)).logits
        with namm.attach(model, "full"):
            torch.testing.assert_close(model(ids(1, 40)).logits, untouched, atol=1e-4, rtol=1e-4)
        return
    with pytest.raises(namm.ModelError, match="latent attention"), namm.attach(model, "h2o", HALF):
        pass


def test_other_ways_in_are_refused_with_their_reason() -> None:
    model = trainable("llama").eval()
    with namm.attach(model, "h2o", HALF):
        with pytest.raises(namm.ModelError, match="continuous batching"):
            model.generate_batch([[5, 6, 7]])
        model.set_attn_implementation("sdpa")
        with torch.no_grad(), pytest.raises(namm.ModelError, match=r"before namm\.attach, not inside"):
            model(ids(1, 20))
    assert "init_continuous_batching" not in vars(model)


@pytest.mark.parametrize("interval", [1, 3])
@torch.no_grad()
def test_policies_that_observe_nothing_update_at_any_interval(interval: int) -> None:
    model = causal_model("llama")
    for policy in ("streaming", "knorm", "random"):
        with namm.attach(model, policy, Budget(tokens=10), interval) as handle:
            model(ids(1, 30))
            assert handle.memory().kept[0] == [[10, 10]]
            assert handle.memory().updates == [30 // interval] * 2
    with pytest.raises(namm.ConfigurationError, match="multiple of 16"), namm.attach(model, "h2o", HALF, interval):
        pass


@torch.no_grad()
def test_flash_attention_serves_what_has_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for flash attention, which needs a GPU: it too asks the module which implementation it is."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    asked = []

    def stand_in(module, *args, **kwargs):
        asked.append(module.config._attn_implementation)
        return sdpa_attention_forward(module, *args, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", stand_in)
    sdpa = ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]
    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", sdpa)
    model, text = causal_model("gemma3"), ids(1, 60)
    own = model.config._attn_implementation
    try:
        model.config._attn_implementation_internal = "flash_attention_2"
        untouched = model(text).logits
        with namm.attach(model, "full"):
            torch.testing.assert_close(model(text).logits, untouched, atol=1e-4, rtol=1e-4)  # a sliding layer beside it
            torch.testing.assert_close(model(text, use_cache=False).logits, untouched, atol=1e-4, rtol=1e-4)
    finally:
        model.config._attn_implementation_internal = own
    assert set(asked) == {"flash_attention_2"}
