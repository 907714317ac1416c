"""Bad input gets the right status in OpenAI's format, and the server goes on."""

from __future__ import annotations

import json
import re

import httpx
import pytest

from namm.serving import Limits
from namm.serving.access import Access
from namm.serving.settings import Settings
from tests.serving.conftest import Running, Serve, running
from tests.serving.test_answers import LONG

SAID = [{"role": "user", "content": "Hello."}]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def server(folder):
    limits = Limits(body=20_000, answer=1500)
    with running(Settings(str(folder), ("h2o",), 0.25, 32, access=Access(("a", "b")), limits=limits)) as made:
        yield made


@pytest.fixture(autouse=True)
def _unharmed(server: Running):
    yield
    made = server.http("a").post(CHAT, json={"model": "tiny", "messages": SAID, "max_tokens": 2})
    assert made.status_code == 200


def refused(made: httpx.Response, status: int) -> str:
    assert made.status_code == status, made.text
    error = made.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return f"{error['param']}: {error['message']}"


@pytest.mark.parametrize(
    ("given", "status", "words"),
    [
        ({"model": "large"}, 404, "served here; got 'large'"),
        ({"model": None}, 400, "model"),
        ({"max_tokens": -1}, 400, "greater than or equal to 1"),
        ({"max_tokens": 0}, 400, "greater than or equal to 1"),
        ({"max_tokens": 10**12}, 400, "at most 1,500 tokens for an answer"),
        ({"max_tokens": "many"}, 400, "max_tokens"),
        ({"max_tokens": 1.5}, 400, "max_tokens"),
        ({"max_completion_tokens": 10**12}, 400, "Lower max_completion_tokens"),
        ({"temperature": 3}, 400, "temperature"),
        ({"temperature": -0.1}, 400, "temperature"),
        ({"temperature": 1e-300}, 400, "at least 0.01"),
        ({"top_p": 0}, 400, "top_p"),
        ({"n": 0}, 400, "n: Input should be greater than or equal to 1"),
        ({"n": 17}, 400, "expected at most 16 answers at once; got 17"),
        ({"n": 129}, 400, "n: Input should be less than or equal to 128"),
        ({"n": 2, "stream": True, "namm": {"watch": True}}, 400, "expected one answer to watch"),
        ({"logprobs": 1}, 400, "logprobs"),
        ({"top_logprobs": 2}, 400, "expected top_logprobs with logprobs: true"),
        ({"logprobs": True, "top_logprobs": 21}, 400, "less than or equal to 20"),
        ({"tool_choice": "required"}, 400, "tool_choice"),
        ({"reasoning_effort": "low"}, 400, "got 'reasoning_effort'"),
        ({"stop": ["a"] * 17}, 400, "stop"),
        ({"stop": ""}, 400, "at least one character"),
        ({"logit_bias": {"x": 1}}, 400, "token ids as keys"),
        ({"logit_bias": {"999999": 1}}, 400, "token ids below"),
        ({"seed": 2**70}, 400, "seed"),
        ({"response_format": {"type": "json"}}, 400, "response_format"),
        ({"response_format": {"type": "json_schema"}}, 400, "expected a json_schema with the type"),
        ({"response_format": {"type": "json_object"}, "tools": [{}]}, 400, "either tools or an answer in JSON"),
        ({"unheard_of": 1}, 400, "unheard_of"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "shows it none"),
        ({"chat_template_kwargs": {"tokenize": False}}, 400, "got 'tokenize'"),
        ({"messages": []}, 400, "messages"),
        ({"messages": "hello"}, 400, "messages"),
        ({"messages": [{"role": "boss", "content": "x"}]}, 400, "role"),
        ({"messages": [{"role": "user"}]}, 400, "got neither"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, 400,
         "messages.0.content.0: expected fields that are served here; got 'image_url'"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "surrogate"),
        ({"messages": [{"role": "user", "content": "x" * 3000}]}, 400, "at most 2,048 tokens, prompt and answer"),
        ({"messages": SAID, "max_tokens": 1500, "stream": True, "namm": {"watch": "yes"}}, 400, "watch"),
    ],
)  # fmt: skip
def test_bad_chats(server: Running, given, status, words):
    body = json.dumps({"model": "tiny", "messages": SAID, **given})
    made = server.http("a").post(CHAT, content=body, headers=JSON)
    assert words in refused(made, status)


HALF = "\ud800"  # of a surrogate pair: no text, though JSON can say it
DEEP = json.loads("[" * 600 + "]" * 600)


def calling(arguments: str) -> dict[str, object]:
    function = {"name": "f", "arguments": arguments}
    return {"messages": [*SAID, {"role": "assistant", "tool_calls": [{"id": "a", "function": function}]}]}


@pytest.mark.parametrize(
    ("path", "given"),
    [
        *((CHAT, {name: value}) for value in (HALF, DEEP) for name in ("model", "user", "stop", "prompt_cache_key")),
        *(
            (CHAT, {"tools": [{"type": "function", "function": {"name": "f", "x": x}}]})
            for x in (HALF, DEEP, {HALF: 1})
        ),
        *((CHAT, {"chat_template_kwargs": x}) for x in ({"x": HALF}, {"x": DEEP}, {HALF: 1})),
        *((CHAT, calling(x)) for x in (HALF, json.dumps(HALF), json.dumps(DEEP), "{", "NaN")),
        (CHAT, {"metadata": {"x": HALF}}),
        (CHAT, {"metadata": {HALF: "x"}}),
        (CHAT, {"logit_bias": {HALF: 1}}),
        (CHAT, {"messages": [{"role": "tool", "content": "x", "tool_call_id": HALF}]}),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": HALF}]}]}),
        *((TEXT, {"prompt": x}) for x in (HALF, [HALF], DEEP)),
    ],
)
def test_odd_values_are_refused_with_a_reason_and_counted(server: Running, path, given):
    client = server.http("a")
    before = counted(client, path)
    needed = {"messages": SAID} if path == CHAT else {"prompt": "Hello."}
    made = client.post(path, content=json.dumps({"model": "tiny", **needed, **given}), headers=JSON)
    assert re.search("JSON|Unicode|expected", refused(made, 400))
    after = counted(client, path)
    assert after == before | {"400": before.get("400", 0) + 1}
    assert "0" not in after


def counted(client: httpx.Client, path: str) -> dict[str, int]:
    """Requests to a path by their status."""
    found = re.findall(rf'namm_requests_total{{path="{path}",status="(\d+)"}} (\d+)', client.get("/metrics").text)
    return {status: int(count) for status, count in found}


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_forms_of_web_pages_are_no_requests(server: Running, kind):
    made = server.http("a").post(CHAT, content=json.dumps({"model": "tiny"}), headers={"Content-Type": kind})
    assert "application/json" in refused(made, 415)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [263]}, "token ids below 263; got 263"),
        ({"prompt": [1] * 2049}, "at most 2,048 tokens"),
        ({"prompt": [[1], [2] * 2049]}, "at most 2,048 tokens"),
        ({"prompt": ["a", ""]}, "at least one token"),
        ({"prompt": ["a"] * 65, "n": 2}, "at most 128 answers, n to each prompt; got 130"),
        ({"prompt": ["a"] * 2, "stream": True, "namm": {"watch": True}}, "expected one answer to watch"),
        ({"max_tokens": -1}, "greater than or equal to 0"),
        ({"logprobs": 21}, "less than or equal to 20"),
        ({"logprobs": True}, "logprobs"),
        ({"suffix": "x"}, "suffix"),
        ({"echo": 1}, "echo"),
        ({"n": 2, "best_of": 3}, "best_of"),
        ({"best_of": 3}, "best_of"),
        ({"prompt": "x" * 3000}, "at most 2,048 tokens"),
    ],
)
def test_bad_completions(server: Running, given, words):
    made = server.http("a").post(TEXT, json={"model": "tiny", "prompt": "Hello.", **given})
    assert words in refused(made, 400)


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{bad", "expected a body in JSON"),
        (b"", "expected a body in JSON"),
        (b"[]", "dictionary"),
        (b"null", "valid dictionary"),
        (b'{"model": "\xff\xfe"}', "JSON: UTF-8"),
        (b"[" * 5000, "JSON"),
        (b'{"model": "tiny", "messages": NaN, "prompt": NaN}', "finite numbers"),
    ],
)
def test_bodies_that_are_no_request(server: Running, path, body, words):
    made = server.http("a").post(path, content=body, headers=JSON)
    assert words in refused(made, 400)


def test_bodies_over_the_limit(server: Running):
    said = {"model": "tiny", "messages": [{"role": "user", "content": "x" * 30_000}]}
    assert "at most 20,000 bytes" in refused(server.http("a").post(CHAT, json=said), 413)

    def pieces():
        for _ in range(40):
            yield b" " * 1000

    made = server.http("a").post(CHAT, content=pieces(), headers=JSON)
    assert "at most 20,000 bytes" in refused(made, 413)


@pytest.mark.parametrize("header", [None, "Bearer c", "Bearer", "Basic a", "a", "Bearer \xff"])
def test_wrong_keys(server: Running, header):
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    for path in (CHAT, TEXT):
        made = httpx.post(server.url + path, headers=headers, json={"model": "tiny", "messages": SAID})
        assert "known API key" in refused(made, 401)
    for path in ("/v1/models", "/v1/conversations"):
        assert "known API key" in refused(httpx.get(server.url + path, headers=headers), 401)


def test_paths_that_are_not_there(server: Running):
    for method, path, status in (
        ("GET", "/v1/nothing", 404), ("GET", CHAT, 405), ("POST", "/reset", 404), ("POST", "/load_model", 404),
        ("GET", "/docs", 404), ("DELETE", "/v1/conversations/conv-1", 404), ("DELETE", "/v1/conversations/..%2f", 404),
    ):  # fmt: skip
        refused(server.http("a").request(method, path), status)


def test_a_context_that_the_answer_would_leave_is_cut_only_if_nobody_asked(serve: Serve):
    server = serve()
    said = [{"role": "user", "content": LONG * 4}]
    asked = server.http().post(CHAT, json={"model": "tiny", "messages": said, "max_tokens": 1000})
    assert "at most 2,048 tokens" in refused(asked, 400)
    unasked = server.http().post(CHAT, json={"model": "tiny", "messages": said}).json()
    assert unasked["usage"]["total_tokens"] == 2048


def test_requests_have_ids_of_their_own(server: Running):
    made = server.http("a").get("/v1/models", headers={"X-Request-ID": "mine"})
    assert made.headers["x-request-id"] == "mine"
    made = server.http("a").get("/v1/models", headers={"X-Request-ID": "x" * 500})
    assert len(made.headers["x-request-id"]) == 32


def test_nothing_of_another_origin_and_no_code(server: Running):
    page = server.http("a").get("/").text
    assert "<title>" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page


def test_pages_from_elsewhere_ask_only_where_allowed(serve: Serve):
    server = serve(origins=("https://chat.example",))
    ask = {"Origin": "https://chat.example", "Access-Control-Request-Method": "POST"}
    allowed = httpx.options(server.url + CHAT, headers=ask)
    assert allowed.headers["access-control-allow-origin"] == "https://chat.example"
    other = httpx.options(server.url + CHAT, headers={**ask, "Origin": "https://elsewhere.example"})
    assert "access-control-allow-origin" not in other.headers
