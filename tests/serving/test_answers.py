"""Answers are those of `model.generate` with the same memory and seed, through the official client."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import torch

import namm
from namm.memory.cache import MemoryCache
from tests.serving.conftest import Serve

LONG = "Anne hoped she had outlived the age of blushing; but the age of emotion she certainly had not. " * 3
OTHER = "Let us never underestimate the power of a well-written letter, said the captain to the other man. " * 3
MEMORIES = ("h2o", "builtin:universal", "full")
BUDGET = namm.Budget(fraction=0.25)


def selection(memory: str):
    return None if memory == "full" else BUDGET


class Hand:
    """A conversation read by hand: `model.generate` on one cache, turn after turn."""

    def __init__(self, pair, memory: str) -> None:
        self.model, self.words = pair
        self.calibrated = namm.calibrated(memory, *pair)
        self.memory, self.ids, self.prompt = memory, torch.zeros(1, 0, dtype=torch.long), ""
        self.cache = None
        self.messages: list[dict[str, str]] = []

    def ask(self, message: str, seed: int | None = None, **options) -> str:
        self.messages.append({"role": "user", "content": message})
        prompt = self.words.apply_chat_template(self.messages, tokenize=False, add_generation_prompt=True)
        known = self.words.decode(self.ids[0])
        assert prompt.startswith(known)
        new = self.words(prompt[len(known) :], return_tensors="pt", add_special_tokens=False)["input_ids"]
        whole = torch.cat([self.ids, new], dim=1)
        if seed is not None:
            torch.manual_seed(seed)
        with namm.attach(self.model, self.calibrated, selection(self.memory), 32) as handle:
            given = {} if self.cache is None else {"past_key_values": self.cache}
            out = self.model.generate(whole, attention_mask=torch.ones_like(whole), **given, **options)
            self.cache = handle.cache
        self.ids = out[:, :-1]  # the last token was not read
        answer = self.words.decode(out[0, whole.shape[1] :], skip_special_tokens=True)
        self.messages.append({"role": "assistant", "content": answer})
        return answer


@pytest.mark.parametrize("memory", MEMORIES)
def test_two_conversations_interleaved_streamed_and_not(serve: Serve, pair, memory):
    server = serve((memory,))
    client, hands = server.client(), [Hand(pair, memory), Hand(pair, memory)]
    texts = [[LONG, "And then?", "Why?"], [OTHER, "Who said so?", "When?"]]
    for turn in range(3):
        for hand, text in zip(hands, texts, strict=True):
            asked = [*hand.messages, {"role": "user", "content": text[turn]}]
            read = 0 if hand.cache is None else hand.cache.get_seq_length()
            expected = hand.ask(text[turn], max_new_tokens=40, do_sample=False)
            if turn == 1:
                made = client.chat.completions.create(
                    model="tiny", messages=asked, max_tokens=40, stream=True, stream_options={"include_usage": True}
                )
                chunks = list(made)
                answer = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
                usage = chunks[-1].usage
            else:
                whole = client.chat.completions.create(model="tiny", messages=asked, max_tokens=40)
                answer, usage = whole.choices[0].message.content, whole.usage
            assert answer == expected
            assert usage.prompt_tokens_details.cached_tokens == read
            report = hand.cache.memory()
            assert usage.namm["kept_tokens"] == pytest.approx(report.slots / 4, abs=0.06)
            assert usage.namm["bytes_full"] == report.bytes_full


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize(
    "options", [{"temperature": 0.7}, {"temperature": 1.3, "top_p": 0.8}, {"top_p": 0.6, "extra": {"top_k": 7}}]
)
def test_drawn_with_a_seed(serve: Serve, pair, memory, options):
    server = serve((memory,))
    extra = options.pop("extra", {})
    said = {"role": "user", "content": LONG}
    for seed in (3, 4):
        answer = server.client().chat.completions.create(
            model="tiny", messages=[said], max_tokens=40, seed=seed, extra_body=extra, **options
        )
        expected = Hand(pair, memory).ask(LONG, seed, max_new_tokens=40, do_sample=True, **options, **extra)
        assert answer.choices[0].message.content == expected


@pytest.mark.parametrize("memory", MEMORIES)
def test_many_at_once_are_each_alone(serve: Serve, pair, memory):
    server = serve((memory,))
    texts = [LONG[: 40 + 25 * n] for n in range(8)]

    def ask(text: str) -> str:
        said = [{"role": "user", "content": text}]
        answer = server.client().chat.completions.create(model="tiny", messages=said, max_tokens=50, seed=1)
        return answer.choices[0].message.content

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, texts))
    assert answers == [Hand(pair, memory).ask(text, max_new_tokens=50, do_sample=False) for text in texts]


def test_completions(serve: Serve, pair):
    model, words = pair
    client = serve().client()
    ids = words(LONG, return_tensors="pt")["input_ids"]
    out = model.generate(ids, past_key_values=MemoryCache(model.config, "h2o", BUDGET, 32), max_new_tokens=30)
    expected = words.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    whole = client.completions.create(model="tiny", prompt=LONG, max_tokens=30)
    assert whole.choices[0].text == expected
    assert whole.choices[0].finish_reason == "length"
    chunks = list(client.completions.create(model="tiny", prompt=LONG, max_tokens=30, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == expected


def test_a_completion_goes_on(serve: Serve):
    client = serve().client()
    first = client.completions.create(model="tiny", prompt=LONG, max_tokens=8, temperature=0)
    again = client.completions.create(model="tiny", prompt=LONG + first.choices[0].text + " Yes.", max_tokens=8)
    assert again.usage.prompt_tokens_details.cached_tokens in (0, first.usage.total_tokens - 1)


@pytest.mark.parametrize("stream", [False, True])
def test_stop_sequences_are_no_part_of_the_answer(serve: Serve, pair, stream):
    server = serve()
    whole = Hand(pair, "h2o").ask(LONG, max_new_tokens=60, do_sample=False)
    for stop in (whole[9:12], whole[20:25]):
        said = [{"role": "user", "content": LONG}]
        made = server.client().chat.completions.create(
            model="tiny", messages=said, max_tokens=60, stop=[stop, "never said"], stream=stream
        )
        if stream:
            chunks = [chunk for chunk in made if chunk.choices]
            answer, reason = (
                "".join(c.choices[0].delta.content or "" for c in chunks),
                chunks[-1].choices[0].finish_reason,
            )
        else:
            answer, reason = made.choices[0].message.content, made.choices[0].finish_reason
        assert answer == whole[: whole.index(stop)]
        assert reason == "stop"


def test_after_a_stop_sequence_the_answer_is_still_right(serve: Serve, pair):
    """What was read beyond the stop is no part of the conversation: it is read anew where it cannot go on."""
    server, client = serve(("full",)), None
    client = server.client()
    first = Hand(pair, "full").ask(LONG, max_new_tokens=60, do_sample=False)
    said = [{"role": "user", "content": LONG}]
    stopped = client.chat.completions.create(model="tiny", messages=said, max_tokens=60, stop=first[20:25])
    said += [
        {"role": "assistant", "content": stopped.choices[0].message.content}, {"role": "user", "content": "And then?"}
    ]  # fmt: skip
    answer = client.chat.completions.create(model="tiny", messages=said, max_tokens=30).choices[0].message.content
    fresh = serve(("full",)).client().chat.completions.create(model="tiny", messages=said, max_tokens=30)
    assert answer == fresh.choices[0].message.content


def test_penalties_and_biases(serve: Serve, pair):
    client = serve().client()
    said = [{"role": "user", "content": LONG}]
    plain = client.chat.completions.create(model="tiny", messages=said, max_tokens=60).choices[0].message.content
    unlike = client.chat.completions.create(
        model="tiny", messages=said, max_tokens=60, frequency_penalty=2, presence_penalty=2
    )
    assert unlike.choices[0].message.content != plain
    letter = pair[1]("Q")["input_ids"][0]
    biased = client.chat.completions.create(model="tiny", messages=said, max_tokens=5, logit_bias={str(letter): 100})
    assert biased.choices[0].message.content == "QQQQQ"


def test_a_memory_of_another_name(serve: Serve, pair):
    client = serve(("h2o", "full")).client()
    assert [model.id for model in client.models.list()] == ["tiny", "tiny+full"]
    said = [{"role": "user", "content": LONG}]
    for name, memory in (("tiny", "h2o"), ("tiny+full", "full")):
        answer = client.chat.completions.create(model=name, messages=said, max_tokens=40)
        assert answer.choices[0].message.content == Hand(pair, memory).ask(LONG, max_new_tokens=40, do_sample=False)
    assert client.models.retrieve("tiny+full").namm["rule"] == "keeps every token"
    with pytest.raises(openai.NotFoundError, match="Known: tiny, tiny"):
        client.models.retrieve("large")


def test_events_of_the_memory_are_streamed_when_asked_for(serve: Serve):
    client = serve().client()
    said = [{"role": "user", "content": LONG}]
    made = client.chat.completions.create(
        model="tiny", messages=said, max_tokens=40, stream=True, stream_options={"include_usage": True},
        extra_body={"namm": {"watch": True}},
    )  # fmt: skip
    chunks = list(made)
    events = [chunk.namm["event"] for chunk in chunks if getattr(chunk, "namm", None)]
    kinds = [event["type"] for event in events]
    assert (kinds[0], kinds[-1]) == ("start", "end")
    assert kinds.count("token") == 40
    assert kinds.count("update") == (chunks[-1].usage.total_tokens - 1) // 32
    assert events[-1]["bytes_held"] <= events[-2 if kinds[-2] != "token" else 0].get("bytes_held", 1 << 40)
