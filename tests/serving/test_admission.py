"""A server holds no more than it may, refuses what it cannot hold, and lets nobody wait for another's long prompt."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

import namm
from namm.policies import DEFAULT_MEMORY
from namm.serving.host import Host
from tests.letters import letters
from tests.serving.conftest import Running, Serve
from tests.serving.test_answers import LONG, Hand
from tests.serving.test_conversations import Chat
from tests.zoo import causal_model, ids

SAID = [{"role": "user", "content": LONG}]


def stream(server: Running, text: str = LONG, key: str = "a", **options):
    said = [{"role": "user", "content": text}]
    return server.client(key).chat.completions.create(
        model="tiny", messages=said, stream=True, **{"max_tokens": 1500, **options}
    )


BUDGETED = [
    (memory, b)
    for memory in ("full", "h2o", "observed-max", "kvzip", "requery", "streaming", DEFAULT_MEMORY)
    for b in (0.1, 0.5)
]


@pytest.mark.parametrize(("memory", "budget"), [*BUDGETED, (DEFAULT_MEMORY, None)])
def test_no_more_is_held_than_was_reserved(memory, budget):
    model = causal_model("llama")
    host = Host("llama", model, letters(), [memory], budget, 32)
    (served,) = host.served.values()
    for length in (5, 31, 33, 100, 400):
        text = ids(1, length)
        with namm.attach(model, served.plan.policy, served.plan.selection, 32) as handle:
            model(text[:, :-4])
            cache = handle.cache
            for place in range(length - 4, length):
                model(text[:, place : place + 1], past_key_values=cache)
        assert cache.memory().peak_bytes <= served.bytes_for(length)
        if length == 400 and budget is not None:  # and not absurdly more
            assert served.bytes_for(length) < 2.2 * cache.memory().peak_bytes


def test_what_can_never_be_held_is_refused(serve: Serve):
    client = serve(("full",), limits={"memory": 200_000}).client()
    with pytest.raises(openai.BadRequestError, match="may hold") as refused:
        client.chat.completions.create(model="tiny", messages=SAID, max_tokens=1500)
    assert refused.value.code == "memory_limit_exceeded"
    assert client.chat.completions.create(model="tiny", messages=SAID, max_tokens=5).usage.completion_tokens == 5


def test_waits_until_there_is_room(serve: Serve, pair):
    """Two requests that do not fit together are answered one after the other."""
    server = serve(("full",), limits={"memory": 250_000})
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda n: Chat(server, str(n)).say(LONG, max_tokens=40), range(4)))
    expected = Hand(pair, "full").ask(LONG, max_new_tokens=40, do_sample=False)
    assert [one.choices[0].message.content for one in made] == [expected] * 4


def test_a_full_queue_says_when_to_come_again(serve: Serve):
    server = serve(limits={"parallel": 1, "waiting": 1})
    running = stream(server)
    next(running)
    server.busy()
    waiting = stream(server)  # the role is sent at once, the answer waits
    next(waiting)
    with pytest.raises(openai.RateLimitError, match="place in the queue") as refused:
        stream(server)
    assert int(refused.value.response.headers["retry-after"]) >= 1
    running.close()
    waiting.close()
    server.idle()
    assert Chat(server).say(LONG).usage.completion_tokens == 12


@pytest.mark.parametrize("when", ["reading", "answering", "waiting"])
def test_a_client_that_leaves_frees_its_memory(serve: Serve, when):
    server = serve(limits={"parallel": 1, "chunk": 16})
    first = stream(server, LONG * 3, max_tokens=1000)
    next(first)
    if when == "answering":
        for _ in range(5):
            next(first)
    if when == "waiting":
        second = stream(server)
        next(second)
        second.response.close()
    first.response.close()
    server.idle()
    assert server.engine.state()["running_bytes"] == 0
    assert len(server.engine.conversations) == 0
    assert server.http().get("/metrics").text.count("namm_requests_cancelled_total") > 0


def test_a_client_that_leaves_without_a_stream(serve: Serve):
    server = serve()
    with pytest.raises(openai.APITimeoutError):
        server.client().chat.completions.create(model="tiny", messages=SAID, max_tokens=1500, timeout=0.5)
    server.idle()
    assert len(server.engine.conversations) == 0


def test_a_long_prompt_does_not_keep_a_short_one_waiting(serve: Serve):
    server = serve(("full",), limits={"chunk": 16})
    long, order = "x" * 1500, []

    def ask(name: str, text: str) -> None:
        made = stream(server, text, name, max_tokens=3)
        for chunk in made:
            if chunk.choices and chunk.choices[0].delta.content is not None:
                order.append(name)
                break
        made.close()

    threads = [threading.Thread(target=ask, args=("long", long))]
    threads[0].start()
    server.busy()
    threads.append(threading.Thread(target=ask, args=("short", "Hi.")))
    threads[1].start()
    for thread in threads:
        thread.join()
    assert order[0] == "short"


def test_a_server_that_shuts_down_finishes_what_runs(serve: Serve, pair):
    server = serve()
    made, chunks = stream(server, max_tokens=200), []
    chunks.append(next(made))
    closing = threading.Thread(target=server.engine.close)
    closing.start()
    while server.engine.alive:
        time.sleep(0.001)
    assert server.http().get("/health").status_code == 503
    with pytest.raises(openai.InternalServerError, match="shutting down"):
        server.client().chat.completions.create(model="tiny", messages=SAID, max_tokens=5)
    chunks += made
    closing.join()
    expected = Hand(pair, "h2o").ask(LONG, max_new_tokens=200, do_sample=False)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == expected


def test_health_and_metrics(serve: Serve):
    server = serve()
    chat = Chat(server)
    chat.say(LONG)
    chat.say("And then?")
    assert server.http().get("/health").json()["status"] == "ok"
    lines = server.http().get("/metrics").text.splitlines()
    found = {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}
    (known,) = server.http().get("/v1/conversations").json()["data"]
    assert (
        found["namm_tokens_read_total"] + found["namm_tokens_written_total"] == known["tokens"] + 2
    )  # the last of each answer
    assert found["namm_tokens_forgotten_total"] == pytest.approx(known["tokens"] - known["kept_tokens"], abs=0.2)
    assert found["namm_tokens_reused_total"] > 0
    assert found['namm_bytes_held{where="resting"}'] == known["bytes_held"]
    assert found["namm_time_to_first_token_seconds_count"] == 2
