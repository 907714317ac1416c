"""Answers in JSON follow their schema, whatever the model would rather say."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import jsonschema
import openai
import pydantic
import pytest

from namm.serving.settings import Settings
from tests.serving.conftest import Running, Serve, running
from tests.serving.test_answers import LONG

SAID = [{"role": "user", "content": LONG}]
SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green", "blue"]}, "count": {"type": "integer", "minimum": 0, "maximum": 999},
        "sure": {"type": "boolean"}, "parts": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["colour", "count", "sure", "parts"],
    "additionalProperties": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def server(folder):
    with running(Settings(str(folder), ("h2o",), 0.25, 32)) as made:
        yield made


def form(schema: dict) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def ask(server: Running, **options):
    options = {"max_tokens": 600, "response_format": form(SCHEMA), **options}
    return server.client().chat.completions.create(model="tiny", messages=SAID, **options)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("options", [{"temperature": 0}, *({"temperature": 1.2, "seed": seed} for seed in range(4))])
def test_an_answer_follows_its_schema(server: Running, stream, options):
    made = ask(server, stream=stream, **options)
    if stream:
        chunks = list(made)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        reason = chunks[-1].choices[0].finish_reason
    else:
        text, reason = made.choices[0].message.content, made.choices[0].finish_reason
    jsonschema.validate(json.loads(text), SCHEMA)
    assert reason == "stop"


def test_side_by_side_with_others_and_each_of_n(server: Running):
    with ThreadPoolExecutor(6) as pool:
        forms = [pool.submit(ask, server, n=2, temperature=1, seed=n) for n in range(3)]
        plain = [pool.submit(ask, server, response_format=None, max_tokens=60, seed=1) for _ in range(3)]
        answers = [choice.message.content for one in forms for choice in one.result().choices]
        texts = {one.result().choices[0].message.content for one in plain}
    for answer in answers:
        jsonschema.validate(json.loads(answer), SCHEMA)
    assert len(set(answers)) > 1
    assert texts == {ask(server, response_format={"type": "text"}, max_tokens=60).choices[0].message.content}


def test_any_object(server: Running, pair):
    closing = {str(pair[1](one)["input_ids"][0]): 100 for one in '}"'}  # the tiny model finds no end by itself
    made = ask(server, response_format={"type": "json_object"}, logit_bias=closing)
    assert isinstance(json.loads(made.choices[0].message.content), dict)


def test_a_type_of_pydantic(server: Running):
    class Answer(pydantic.BaseModel):
        colour: Literal["red", "green", "blue"]
        sure: bool

    made = server.client().chat.completions.parse(
        model="tiny", messages=SAID, max_tokens=600, response_format=Answer, temperature=1, seed=1
    )
    assert isinstance(made.choices[0].message.parsed, Answer)


def test_an_answer_that_is_too_long_is_cut(server: Running):
    made = ask(server, max_tokens=3)
    assert made.choices[0].finish_reason == "length"


def test_the_conversation_goes_on(serve: Serve):
    server = serve()
    first = ask(server, temperature=0)
    said = [*SAID, first.choices[0].message.model_dump(), {"role": "user", "content": "And then?"}]
    second = server.client().chat.completions.create(model="tiny", messages=said, max_tokens=5)
    assert second.usage.prompt_tokens_details.cached_tokens == first.usage.total_tokens - 1


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "nonsense"}, "Invalid type"),
        ({"$ref": "http://127.0.0.1/schema"}, "Resource"),
        ({"$ref": "#/definitions/none"}, "does not exist"),
        ({"type": "string", "pattern": "("}, "regex"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "Unsatisfiable"),
        ({"type": "object", "properties": {"x": {"not": {"type": "string"}}}}, "Unimplemented"),
        (
            {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(3000)}},
            "at most 32,768 bytes",
        ),
        ({"allOf": [{"type": "string", "pattern": f"^.*a{n}.*$"} for n in range(65)]}, "at most 64 schemas in allOf"),
        ({"oneOf": [{"type": "object"}, {"type": "object"}]}, "oneOf"),
    ],
)
def test_schemas_that_cannot_be_followed(server: Running, schema, words):
    with pytest.raises(openai.BadRequestError, match=words) as refused:
        ask(server, response_format=form(schema))
    assert refused.value.param == "response_format"


def test_a_schema_that_turns_out_too_hard(server: Running):
    """Found out while the answer is written: the reason is told, and nobody else is harmed."""
    hard = {"anyOf": [{"type": "object", "properties": {f"p{n}": {"type": "string"}}} for n in range(500)]}
    opening = {str(server.engine.host.tokenizer(one)["input_ids"][0]): 100 for one in '{"p'}
    with pytest.raises(openai.BadRequestError, match="a JSON schema, one that answers can follow"):
        ask(server, response_format=form(hard), logit_bias=opening)
    jsonschema.validate(json.loads(ask(server).choices[0].message.content), SCHEMA)


def test_without_the_library(serve: Serve, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "llguidance.hf", None)
    with pytest.raises(openai.BadRequestError, match=r"the package llguidance.*namm\[serve\]"):
        ask(serve())
