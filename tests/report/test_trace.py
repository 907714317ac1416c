"""Recording what a memory holds: events against the cache, the packing of bits, and the text of tokens."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import namm
from namm.detokeniser import Detokeniser, pieces
from namm.memory.cache import make_plan
from namm.report.recording import record
from namm.trace import (
    Recorder,
    end_event,
    held_by,
    packed,
    rule_of,
    shape_of,
    start_event,
    token_event,
    unpacked,
)
from tests.zoo import CAUSAL, causal_model, ids

BUDGET = namm.Budget(fraction=0.25)
TEXT = "It was the best of times, it was the worst of times; it was 1775. " * 2


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each ASCII character; 97 in all, as the random models have."""
    vocabulary = {chr(c): c - 31 for c in range(32, 127)} | {"\n": 96, "?\n": 0}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?\n"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte, and a special one."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


def recorded(memory: str = "h2o", text: str = TEXT, interval: int = 32) -> list[dict[str, object]]:
    return record(causal_model("llama"), character_tokenizer(), text, memory, BUDGET, interval)


# -- a recorder beside a cache -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_updates_tell_what_the_cache_holds(name: str) -> None:
    model = causal_model(name)
    cache = namm.MemoryCache(model.config, "h2o", BUDGET, 32)
    shape, recorder, seen = shape_of(model.config, model.dtype), Recorder(), 0
    for block in ids(1, 112).split(16, dim=1):
        model(block, past_key_values=cache)
        event = recorder.after(cache)
        seen += 16
        report = cache.memory()
        assert (event["seen"], event["bytes_held"]) == (seen, report.bytes_held)
        assert event["bytes_full"] == report.bytes_full
        assert event["type"] == ("update" if seen % 32 == 0 else "read")
        if event["type"] == "update":
            held = unpacked(event["held"], len(shape.layers), shape.heads, seen)
            for layer, index in enumerate(shape.layers):
                assert [row.nonzero()[0].tolist() for row in held[layer]] == cache.kept_positions(index)[0]
    json.dumps(event)


@pytest.mark.parametrize("name", sorted(CAUSAL.keys() - {"gpt_neox"}))  # whose test config has an option it ignores
def test_the_shape_is_that_of_the_cache(name: str) -> None:
    model = causal_model(name)
    cache = namm.MemoryCache(model.config, "full")
    model(ids(1, 20), past_key_values=cache)
    shape = shape_of(model.config, model.dtype)
    assert held_by(cache).shape == (len(shape.layers), shape.heads, 20)
    full = sum(cache.layers[layer].full_bytes() for layer in shape.layers)
    assert shape.bytes_per_token * 20 == full


def test_a_text_that_goes_on() -> None:
    model = causal_model("llama")
    cache = namm.MemoryCache(model.config, "h2o", BUDGET, 32)
    model(ids(1, 40), past_key_values=cache)
    recorder = Recorder(cache)
    start = started(cache, tokens=["a"] * 50)
    assert start["continues"] == 40
    assert np.array_equal(unpacked(start["held"], 2, 2, 40), held_by(cache))
    model(ids(1, 10), past_key_values=cache)
    assert recorder.after(cache)["type"] == "read"
    assert end_event(cache) == {
        "type": "end",
        "bytes_held": cache.memory().bytes_held,
        "bytes_full": cache.memory().bytes_full,
    }


def test_a_new_text_continues_nothing() -> None:
    for cache in (None, namm.MemoryCache(causal_model("llama").config, "h2o", BUDGET)):
        start = started(cache, tokens=["It", " was"])
        assert (start["continues"], start["held"], start["tokens"]) == (0, None, ["It", " was"])
        assert (start["layers"], start["heads"]) == ([0, 1], 2)
    assert token_event(["a"]) == {"type": "token", "tokens": ["a"]}


def test_several_rows_are_refused() -> None:
    model = causal_model("llama")
    cache = namm.MemoryCache(model.config, "h2o", BUDGET, 32)
    model(ids(2, 32), past_key_values=cache)
    with pytest.raises(namm.ConfigurationError, match="a cache of one row; got 2 rows"):
        Recorder().after(cache)


def started(cache: namm.MemoryCache | None, tokens: list[str]) -> dict[str, object]:
    shape = shape_of(causal_model("llama").config, torch.float32)
    return start_event(cache, shape, model="m", memory="h2o", rule="", interval=32, tokens=tokens)


def test_bits() -> None:
    held = np.zeros((1, 2, 10), dtype=bool)
    held[0, 0, [0, 9]] = held[0, 1, 7] = True
    assert packed(held) == "gEABAA=="  # 0x80 0x40, 0x01 0x00
    assert np.array_equal(unpacked(packed(held), 1, 2, 10), held)


@pytest.mark.parametrize(
    ("memory", "selection", "rule"),
    [
        ("full", None, "keeps every token"),
        ("h2o", namm.Budget(fraction=0.125), "keeps 12.5 % of the tokens read"),
        ("h2o", namm.Budget(tokens=1024), "keeps 1,024 tokens a head"),
        (namm.NAMM.zeros(), None, "keeps what it scores at 0 or above"),
    ],
)
def test_rules(memory: str, selection: namm.Budget | None, rule: str) -> None:
    assert rule_of(make_plan(memory, selection, 512)) == rule


# -- recording a text --------------------------------------------------------------------------------------------------


def test_a_recorded_text() -> None:
    start, *middle, end = recorded()
    assert "".join(start["tokens"]) == TEXT
    assert (start["memory"], start["interval"], start["rule"]) == ("h2o", 32, "keeps 25 % of the tokens read")
    assert [event["seen"] for event in middle] == [32, 64, 96, 128, len(TEXT)]
    assert [event["type"] for event in middle] == ["update"] * 4 + ["read"]
    assert end["type"] == "end"
    assert end["bytes_held"] < 0.6 * end["bytes_full"]


def test_what_went_does_not_come_back() -> None:
    updates = [event for event in recorded() if event["type"] == "update"]
    held = [unpacked(event["held"], 2, 2, event["seen"]) for event in updates]
    for before, after in pairwise(held):
        assert not (after[..., : before.shape[-1]] & ~before).any()
    assert [int(h.sum()) for h in held] == [4 * event["seen"] // 4 for event in updates]


def test_a_memory_that_rehearses() -> None:
    events = recorded("kvzip")
    assert [event["type"] for event in events[1:-2]] == ["update"] * 4


def test_everything_is_kept() -> None:
    events = record(causal_model("llama"), character_tokenizer(), TEXT, "full", update_interval=64)
    assert {event["type"] for event in events} == {"start", "read", "end"}
    assert events[0]["rule"] == "keeps every token"


# -- the text of each token --------------------------------------------------------------------------------------------


def test_pieces_are_the_text() -> None:
    tokenizer = byte_tokenizer()
    text = "a naïve 😀\n"
    shown = pieces(tokenizer, tokenizer(text)["input_ids"])
    assert "".join(shown) == text
    assert shown[4:6] == ["", "ï"]
    assert shown[9:13] == ["", "", "", "😀"]


def test_special_tokens_have_their_name() -> None:
    tokenizer = byte_tokenizer()
    assert pieces(tokenizer, [*tokenizer("ab")["input_ids"], tokenizer.eos_token_id]) == ["a", "b", "<|end|>"]


def test_bytes_that_are_no_text_hold_nothing_up() -> None:
    tokenizer = byte_tokenizer()
    broken = tokenizer("😀")["input_ids"][:1] * 6
    shown = Detokeniser(tokenizer)
    texts = [shown.next(token) for token in [*broken, *tokenizer("ab")["input_ids"]]]
    assert texts[3] == "\ufffd" * 4
    assert "".join(texts).endswith("ab")


def test_a_broken_character_of_a_tokenizer_that_spells_in_bytes_is_not_the_end() -> None:
    spelled = {f"<0x{byte:02X}>": byte + 1 for byte in range(256)}
    backend = Tokenizer(models.BPE({"<unk>": 0, **spelled, "▁a": 257}, [], unk_token="<unk>", byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    broken = [257, *(byte + 1 for byte in "é".encode()), 0xE2 + 1, 257, 257]
    shown = Detokeniser(tokenizer, longest=None)
    texts = [shown.next(token) for token in broken]
    assert texts[:4] == ["a", "", "é", ""]
    assert texts[4].startswith("\ufffd")
    assert "".join(texts).endswith(" a a")


@pytest.mark.model
def test_pieces_of_the_embedded_model() -> None:
    _, tokenizer = namm.models.load_model()
    text = "Anne's “sea” — 1,817 naïve 😀 日本語\n\n  def f(x):\n"
    found = tokenizer(text)["input_ids"]
    assert "".join(pieces(tokenizer, found)) == text
    assert len(pieces(tokenizer, found)) == len(found)
