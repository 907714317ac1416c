"""Several answers at once: to one prompt, whose memory is read once and forked, and to several prompts."""

from __future__ import annotations

import openai
import pytest

from tests.serving.conftest import Running, Serve
from tests.serving.test_answers import LONG, MEMORIES, OTHER

SAID = [{"role": "user", "content": LONG}]


def text_of(answer: openai.types.chat.ChatCompletion) -> list[str]:
    assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
    return [choice.message.content for choice in answer.choices]


@pytest.mark.parametrize("memory", MEMORIES)
def test_each_of_n_is_the_answer_of_its_own_seed(serve: Serve, memory):
    server = serve((memory,))

    def ask(seed: int, **options):
        return server.client().chat.completions.create(
            model="tiny", messages=SAID, max_tokens=40, seed=seed, temperature=0.9, **options
        )

    alone = [text_of(ask(seed))[0] for seed in (5, 6, 7)]
    assert len(set(alone)) == 3
    server.engine.call(lambda: [server.engine.conversations.remove(one) for one in list(server.engine.conversations)])
    together = ask(5, n=3)
    assert text_of(together) == alone
    assert together.usage.prompt_tokens == ask(5).usage.prompt_tokens
    assert together.usage.completion_tokens == 120
    assert together.usage.prompt_tokens_details.cached_tokens == 0
    chunks = list(ask(5, n=3, stream=True))
    texts = ["", "", ""]
    for chunk in chunks:
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
    assert texts == alone
    assert sorted(chunk.choices[0].index for chunk in chunks if chunk.choices[0].finish_reason) == [0, 1, 2]


def test_the_prompt_is_read_once(serve: Serve):
    server = serve()
    before = tokens_read(server)
    answer = server.client().chat.completions.create(model="tiny", messages=SAID, max_tokens=1, n=8)
    assert tokens_read(server) - before == answer.usage.prompt_tokens


def tokens_read(server: Running) -> int:
    lines = server.http().get("/metrics").text.splitlines()
    return int(float(next(line.split()[1] for line in lines if line.startswith("namm_tokens_read_total"))))


@pytest.mark.parametrize("memory", ["h2o", "builtin:universal"])
def test_the_conversation_goes_on_with_whichever_was_chosen(serve: Serve, pair, memory):
    letters = {str(token): 100 for token in pair[1]("abcdefghijklmnopqrstuvwxyz")["input_ids"]}

    def ask(server: Running, said: list[dict], **options):
        return server.client().chat.completions.create(
            model="tiny", messages=said, max_tokens=20, logit_bias=letters, temperature=1, **options
        )

    server, follow = serve((memory,)), {"role": "user", "content": "And then?"}
    first = ask(server, SAID, n=3, seed=1)
    assert len(set(text_of(first))) == 3
    assert first.usage.namm["conversation"] is None
    for chosen in (2, 0, 1):
        said = [*SAID, first.choices[chosen].message.model_dump(), follow]
        second = ask(server, said, seed=9)
        assert second.usage.prompt_tokens_details.cached_tokens == first.usage.prompt_tokens + 19
        alone = serve((memory,))
        assert text_of(ask(alone, SAID, seed=1 + chosen)) == [text_of(first)[chosen]]
        assert text_of(ask(alone, said, seed=9)) == text_of(second)


def test_bytes_are_reserved_for_each(serve: Serve):
    server = serve(("full",))
    one = server.engine.host.served["tiny"].bytes_for(len(LONG) + 400)
    limited = serve(("full",), limits={"memory": 2 * one})
    client = limited.client()
    assert len(client.completions.create(model="tiny", prompt=LONG, max_tokens=100, n=2).choices) == 2
    with pytest.raises(openai.BadRequestError, match="may hold") as refused:
        client.completions.create(model="tiny", prompt=LONG, max_tokens=400, n=4)
    assert refused.value.code == "memory_limit_exceeded"


def test_answers_take_places(serve: Serve):
    """No more are written at once than there are places, whoever asked for them."""
    server = serve(limits={"parallel": 4})
    with server.http() as client:
        made = [
            client.post("/v1/completions", json={"model": "tiny", "prompt": LONG, "n": 3, "max_tokens": 5})
            for _ in range(3)
        ]
    assert [len(one.json()["choices"]) for one in made] == [3, 3, 3]
    refused = server.http().post("/v1/completions", json={"model": "tiny", "prompt": "x", "n": 5})
    assert refused.json()["error"]["message"] == "expected at most 4 answers at once; got 5."


@pytest.mark.parametrize("stream", [False, True])
def test_several_prompts(serve: Serve, stream):
    client = serve().client()
    prompts, options = [LONG, OTHER, "Hello."], {"model": "tiny", "max_tokens": 12, "seed": 3, "temperature": 1}
    alone = [client.completions.create(prompt=prompt, **options | {"seed": seed}).choices[0].text
             for prompt in prompts for seed in (3, 4)]  # fmt: skip
    made = client.completions.create(prompt=prompts, n=2, stream=stream, **options)
    texts = [""] * 6
    for chunk in made if stream else [made]:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == alone


def test_tokens_are_a_prompt_as_well(serve: Serve, pair):
    client, words = serve().client(), pair[1]
    options = {"model": "tiny", "max_tokens": 12, "temperature": 0}
    by_text = client.completions.create(prompt=[LONG, OTHER], **options)
    by_tokens = client.completions.create(prompt=[words(LONG)["input_ids"], words(OTHER)["input_ids"]], **options)
    one = client.completions.create(prompt=words(LONG)["input_ids"], **options)
    assert [choice.text for choice in by_tokens.choices] == [choice.text for choice in by_text.choices]
    assert one.choices[0].text == by_text.choices[0].text
    assert by_tokens.usage.prompt_tokens == by_text.usage.prompt_tokens


def test_more_prompts_than_places(serve: Serve):
    server = serve(limits={"parallel": 2, "waiting": 1})
    made = server.client().completions.create(model="tiny", prompt=[f"Hello {n}." for n in range(20)], max_tokens=3)
    assert len(made.choices) == 20


def test_a_client_that_leaves_stops_all_its_answers(serve: Serve):
    server = serve()
    made = server.client().chat.completions.create(model="tiny", messages=SAID, max_tokens=1500, n=4, stream=True)
    next(made)
    server.busy()
    made.close()
    server.idle()
    assert len(server.engine.conversations) == 0
    assert server.engine.state()["running_bytes"] == 0
