"""What clients really send: nulls, messages as they came, notes for other servers."""

from __future__ import annotations

import httpx
import pytest

from namm.serving.requests import ChatRequest, CompletionRequest
from namm.serving.settings import Settings
from tests.serving.conftest import Running, running
from tests.serving.test_answers import LONG
from tests.serving.test_refusals import CHAT, SAID, TEXT


@pytest.fixture(scope="module")
def server(folder):
    with running(Settings(str(folder), ("h2o",), 0.25, 32)) as made:
        yield made


def asked(server: Running, path: str = CHAT, **fields: object) -> dict[str, object]:
    needed = {"messages": SAID} if path == CHAT else {"prompt": "Hello."}
    made = server.http().post(path, json={"model": "tiny", "max_tokens": 5, "temperature": 0, **needed, **fields})
    assert made.status_code == 200, made.text
    return made.json()


def text_of(answer: dict) -> str:
    choice = answer["choices"][0]
    return choice["text"] if "text" in choice else choice["message"]["content"]


@pytest.mark.parametrize(("path", "kind"), [(CHAT, ChatRequest), (TEXT, CompletionRequest)])
def test_null_is_as_good_as_left_out(server: Running, path, kind):
    plain = text_of(asked(server, path))
    needed = {"model", "messages", "prompt", "max_tokens", "temperature"}
    optional = [*(set(kind.model_fields) - needed), "functions", "audio", "reasoning_effort", "unheard_of"]
    assert text_of(asked(server, path, **dict.fromkeys(optional))) == plain
    for name in ("stream", "stop", "n", "logprobs", "top_k"):
        assert text_of(asked(server, path, **{name: None})) == plain


@pytest.mark.parametrize(
    "fields",
    [{"top_k": -1}, {"top_k": 0}, {"top_logprobs": None, "logprobs": False}, {"tool_choice": "none"},
     {"tool_choice": "none", "tools": [{"type": "function", "function": {"name": "f"}}]}, {"tools": []}],
)  # fmt: skip
def test_fields_that_change_nothing(server: Running, fields):
    assert text_of(asked(server, **fields)) == text_of(asked(server))


def test_no_limit_is_not_a_wish_to_draw(server: Running):
    said = [{"role": "user", "content": LONG}]
    answers = {text_of(asked(server, messages=said, temperature=None, top_k=-1, max_tokens=30)) for _ in range(3)}
    assert len(answers) == 1


def test_a_message_goes_back_as_it_came(server: Running):
    client = server.client()
    said = [{"role": "user", "content": LONG}]
    first = client.chat.completions.create(model="tiny", messages=said, max_tokens=12)
    message = first.choices[0].message.model_dump()
    assert {"annotations", "audio", "function_call", "refusal"} <= set(message)
    said = [*said, message, {"role": "user", "content": "And then?"}]
    second = client.chat.completions.create(model="tiny", messages=said, max_tokens=12)
    assert second.usage.prompt_tokens_details.cached_tokens == first.usage.total_tokens - 1


@pytest.mark.parametrize("empty", [{"annotations": []}, {"audio": {}, "function_call": {}, "refusal": ""}])
def test_empty_is_nothing(server: Running, empty):
    said = [*SAID, {"role": "assistant", "content": "Hello!"}, {"role": "user", "content": "And?"}]
    plain = text_of(asked(server, messages=said))
    said[1] = said[1] | empty
    assert text_of(asked(server, messages=said)) == plain


def test_notes_for_a_cache_are_left_alone(server: Running):
    plain = text_of(asked(server))
    note = {"cache_control": {"type": "ephemeral"}}
    for message in (SAID[0] | note, {"role": "user", "content": [{"type": "text", "text": "Hello."} | note]}):
        assert text_of(asked(server, messages=[message])) == plain


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("wanted", [True, False])
def test_usage_of_a_stream_comes_if_it_is_asked_for(server: Running, path, wanted):
    needed = {"messages": SAID} if path == CHAT else {"prompt": "Hello."}
    body = {"model": "tiny", "max_tokens": 5, "stream": True, **needed}
    if wanted:
        body["stream_options"] = {"include_usage": True}
    with server.http().stream("POST", path, json=body) as made:
        lines = [line.removeprefix("data: ") for line in made.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    chunks = [httpx.Response(200, content=line).json() for line in lines[:-1]]
    assert chunks[-1 - wanted]["choices"][0]["finish_reason"] in ("stop", "length")
    assert all(chunk["choices"] for chunk in chunks[: -1 if wanted else None])
    if wanted:
        assert chunks[-1]["choices"] == []
        assert chunks[-1]["usage"]["completion_tokens"] == 5
        assert all(chunk["usage"] is None for chunk in chunks[:-1])
    else:
        assert not any("usage" in chunk for chunk in chunks)
