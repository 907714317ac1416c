"""The backbone: a memory computes what the untouched model computes, but for what it forgot."""

import pytest
import torch

import namm
from namm import Budget, Threshold
from namm.policies import H2O, MemoryPolicy, NAMMPolicy, Random, SnapKV
from tests.memory.dense import Diary, dense_logits
from tests.zoo import CAUSAL, causal_model, decision_model, ids, video_model

INTERVAL = 32


def random_namm() -> namm.NAMM:
    """A NAMM that keeps about half of the tokens, different ones in each head."""
    generator = torch.Generator().manual_seed(3)
    theta = torch.randn(4172, generator=generator) * 0.3
    return namm.NAMM.from_vector(theta, torch.full((17,), 0.05), torch.full((17,), 0.01))


POLICIES: list[tuple[MemoryPolicy, object]] = [
    (Random(), Budget(fraction=0.5)),
    (H2O(), Budget(tokens=20)),
    (SnapKV(), Budget(tokens=48, per="layer")),
    (NAMMPolicy(random_namm()), Threshold(0.0)),
    (NAMMPolicy(random_namm()), Budget(fraction=0.3, per="layer", sinks=2, recent=5)),
]


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("memory", ["full", "namm-zero"])
def test_keeping_all_is_the_untouched_model(name: str, memory: str) -> None:
    model = causal_model(name)
    prompt = ids(2, 80)
    options = {"max_new_tokens": 12, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    untouched = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
    memory = "full" if memory == "full" else namm.NAMM.zeros()
    with namm.attach(model, memory, update_interval=INTERVAL) as handle:
        remembered = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
        report = handle.memory()
    torch.testing.assert_close(remembered.sequences, untouched.sequences)
    for ours, theirs in zip(remembered.logits, untouched.logits, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert {n for layer in report.kept for row in layer for n in row} == {91}


@pytest.mark.parametrize("name", CAUSAL)
def test_eager_models_are_served_too(name: str) -> None:
    model = causal_model(name, "eager")
    prompt = ids(1, 50)
    with torch.no_grad():
        untouched = model(prompt).logits
        with namm.attach(model, "full"):
            torch.testing.assert_close(model(prompt).logits, untouched, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize(("policy", "selection"), POLICIES, ids=lambda x: type(x).__name__)
def test_evicting_is_dense_attention_with_a_mask(name: str, policy: MemoryPolicy, selection: object) -> None:
    model = causal_model(name)
    prompt = ids(2, 150)
    diary = Diary()
    watched, watching = diary.watch(policy, selection)
    with torch.no_grad(), namm.attach(model, watched, watching, update_interval=INTERVAL) as handle:
        first = model(prompt[:, :100])
        second = model(prompt[:, 100:], past_key_values=first.past_key_values)
        held = {n for layer in handle.memory().kept for row in layer for n in row}
    ours = torch.cat([first.logits, second.logits], 1)
    assert held
    assert min(held) < 150
    assert diary.entries
    theirs = dense_logits(model, diary, input_ids=prompt)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    full = dense_logits(model, Diary(), input_ids=prompt)
    assert not torch.allclose(ours, full, atol=1e-3), "forgetting must matter, or this test proves nothing"


@pytest.mark.parametrize("policy", ["full", "evicting"])
def test_decision_transformer(policy: str) -> None:
    model = decision_model()
    steps = 40
    g = torch.Generator().manual_seed(0)
    inputs = {
        "states": torch.randn(2, steps, 5, generator=g), "actions": torch.randn(2, steps, 3, generator=g),
        "returns_to_go": torch.randn(2, steps, 1, generator=g), "timesteps": torch.arange(steps).repeat(2, 1),
        "attention_mask": torch.ones(2, steps, dtype=torch.long),
    }  # fmt: skip
    diary = Diary()
    memory, selection = ("full", None) if policy == "full" else diary.watch(*POLICIES[3])
    with torch.no_grad():
        untouched = model(**inputs).action_preds
        with namm.attach(model, memory, selection, update_interval=INTERVAL):
            ours = model(**inputs).action_preds
    torch.testing.assert_close(ours, dense_logits(model, diary, **inputs), atol=1e-4, rtol=0)
    assert torch.allclose(ours, untouched, atol=1e-4) == (policy == "full")


@pytest.mark.parametrize("policy", ["full", "evicting"])
def test_video_language_model(policy: str) -> None:
    model = video_model()
    g = torch.Generator().manual_seed(0)
    frames = torch.randn(1, 3, 3, 28, 28, generator=g)
    per_frame = 1  # 2x2 patches, pooled by 2
    prompt = torch.cat([ids(1, 20), torch.full((1, 3 * per_frame), 96), ids(1, 80, seed=1)], dim=1)
    inputs = {"input_ids": prompt, "pixel_values_videos": frames}
    diary = Diary()
    memory, selection = ("full", None) if policy == "full" else diary.watch(*POLICIES[3])
    with torch.no_grad():
        untouched = model(**inputs).logits
        with namm.attach(model, memory, selection, update_interval=INTERVAL):
            ours = model(**inputs).logits
            generated = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert generated.shape[1] == prompt.shape[1] + 5
    torch.testing.assert_close(ours, dense_logits(model, diary, **inputs), atol=1e-4, rtol=0)
    assert torch.allclose(ours, untouched, atol=1e-4) == (policy == "full")


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("policy", "selection"), POLICIES, ids=lambda x: type(x).__name__)
def test_padded_rows_are_what_they_are_alone(name: str, side: str, policy: MemoryPolicy, selection: object) -> None:
    model = causal_model(name)
    lengths = (130, 97, 31)
    texts = [ids(1, n, seed=n) for n in lengths]
    alone, kept = [], []
    for text in texts:
        with torch.no_grad(), namm.attach(model, policy, selection, update_interval=INTERVAL) as handle:
            alone.append(model(text).logits[0])
            kept.append([handle.kept_positions(layer)[0] for layer in memory_layers(handle)])
    width = max(lengths)
    padded, mask = torch.zeros(3, width, dtype=torch.long), torch.zeros(3, width, dtype=torch.long)
    for row, text in enumerate(texts):
        place = slice(width - text.shape[1], None) if side == "left" else slice(0, text.shape[1])
        padded[row, place], mask[row, place] = text[0], 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad(), namm.attach(model, policy, selection, update_interval=INTERVAL) as handle:
        logits = model(padded, attention_mask=mask, position_ids=positions).logits
        for row in range(3):
            torch.testing.assert_close(logits[row][mask[row].bool()], alone[row], atol=1e-4, rtol=0)
            assert [handle.kept_positions(layer)[row] for layer in memory_layers(handle)] == kept[row]


def memory_layers(handle: namm.memory.Handle) -> list[int]:
    return [i for i, layer in enumerate(handle.memory().kept) if layer]


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize(("policy", "selection"), POLICIES, ids=lambda x: type(x).__name__)
def test_one_prompt_is_the_same_prompt_in_pieces(name: str, policy: MemoryPolicy, selection: object) -> None:
    model = causal_model(name)
    prompt = ids(2, 140)

    def read(pieces: list[int]) -> tuple[torch.Tensor, list[list[list[list[int]]]]]:
        cache, logits, start = None, [], 0
        for size in pieces:
            out = model(prompt[:, start : start + size], past_key_values=cache)
            cache, start = out.past_key_values, start + size
            logits.append(out.logits)
        layers = [i for i, layer in enumerate(cache.memory().kept) if layer]
        return torch.cat(logits, 1), [cache.kept_positions(i) for i in layers]

    with torch.no_grad(), namm.attach(model, policy, selection, update_interval=INTERVAL):
        whole, kept = read([140])
        for pieces in ([64, 76], [1] * 140, [7, 30, 50, 3, 1, 1, 48], [33, 107]):
            logits, kept_in_pieces = read(pieces)
            torch.testing.assert_close(logits, whole, atol=1e-4, rtol=0)
            assert kept_in_pieces == kept


def test_chunked_prefill_and_embeddings_change_nothing() -> None:
    model = causal_model("llama")
    prompt = ids(2, 120)
    policy, selection = POLICIES[3]
    options = {"max_new_tokens": 40, "do_sample": False}
    with namm.attach(model, policy, selection, update_interval=INTERVAL) as handle:
        whole = model.generate(prompt, **options)
        kept = handle.kept_positions(1)
        chunked = model.generate(prompt, prefill_chunk_size=50, **options)
        assert handle.kept_positions(1) == kept
        embedded = model.generate(inputs_embeds=model.get_input_embeddings()(prompt), **options)
        assert handle.kept_positions(1) == kept
    torch.testing.assert_close(chunked, whole)
    torch.testing.assert_close(embedded, whole[:, 120:])


def test_generating_goes_on_with_the_same_schedule_as_reading() -> None:
    model = causal_model("llama")
    policy, selection = POLICIES[3]
    with namm.attach(model, policy, selection, update_interval=INTERVAL) as handle:
        text = model.generate(ids(1, 50), max_new_tokens=61, do_sample=False)
        generated = handle.kept_positions(0)
        with torch.no_grad():
            model(text[:, :-1])
        assert handle.kept_positions(0) == generated
        assert handle.memory().updates == [3, 3]


def test_several_turns_are_one_text() -> None:
    model = causal_model("llama")
    policy, selection = POLICIES[4]
    with namm.attach(model, policy, selection, update_interval=INTERVAL) as handle:
        first = model.generate(ids(2, 60), max_new_tokens=9, do_sample=False, return_dict_in_generate=True)
        turn = torch.cat([first.sequences, ids(2, 45, seed=7)], dim=1)
        second = model.generate(
            turn, past_key_values=first.past_key_values, max_new_tokens=8, do_sample=False, return_dict_in_generate=True
        )
        kept = handle.kept_positions(1)
        with torch.no_grad():
            again = model(second.sequences[:, :-1])
        assert handle.kept_positions(1) == kept
    torch.testing.assert_close(again.logits[:, -1].argmax(-1), second.sequences[:, -1])


def test_a_saved_memory_decides_the_same(tmp_path: object) -> None:
    model = causal_model("qwen2")
    network = random_namm()
    network.save_pretrained(tmp_path)
    prompt = ids(1, 150)
    kept = []
    for memory in (network, namm.NAMM.from_pretrained(tmp_path), str(tmp_path)):
        with torch.no_grad(), namm.attach(model, memory, update_interval=INTERVAL) as handle:
            model(prompt)
            kept.append([handle.kept_positions(layer) for layer in (0, 1)])
    assert kept[0] == kept[1] == kept[2]


def test_candidates_of_a_population_decide_for_their_own_row() -> None:
    model = causal_model("llama")
    one, other = random_namm(), namm.NAMM.from_vector(-random_namm().theta, random_namm().mean, random_namm().var)
    both = namm.NAMM.from_vector(torch.stack([one.theta, other.theta]), one.mean, one.var)
    prompt = ids(1, 130)
    kept = []
    for memory, rows in ((one, 1), (other, 1), (both, 2)):
        with torch.no_grad(), namm.attach(model, memory, update_interval=INTERVAL) as handle:
            model(prompt.expand(rows, -1))
            kept.append(handle.kept_positions(1))
    assert kept[0] != kept[1]
    assert kept[2] == kept[0] + kept[1]
    with (
        torch.no_grad(),
        namm.attach(model, both, update_interval=INTERVAL),
        pytest.raises(namm.NammError, match="rows"),
    ):
        model(prompt.expand(3, -1))
