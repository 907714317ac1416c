"""What a model says, thinks and calls is told apart, streamed or not; a script speaks for the model here."""

from __future__ import annotations

import json
from weakref import WeakKeyDictionary

import pytest

from namm.compat import ResponseParser
from namm.serving.messages import AnswerMessage
from namm.serving.sampling import Sampler
from namm.serving.settings import Settings
from tests.serving.conftest import Running, running
from tests.serving.made import RESPONSES, WITH_TOOLS

SAID = [{"role": "user", "content": "What is the weather in Bath?"}]
TOOLS = [{"type": "function", "function": {
    "name": "weather", "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
}}]  # fmt: skip
CALL = '<tool_call>{"name": "weather", "arguments": {"place": "Bath"}}</tool_call>'
ARGUMENTS = {"place": "Bath"}


@pytest.fixture(scope="module")
def server(folder):
    with running(Settings(str(folder), ("h2o",), 0.25, 32)) as made:
        words = made.engine.host.tokenizer
        words.chat_template, words.response_template = WITH_TOOLS, RESPONSES
        yield made


@pytest.fixture
def speak(server: Running, monkeypatch: pytest.MonkeyPatch):
    """Have the model say this."""

    def script(text: str) -> None:
        tokens = server.engine.host.tokenizer(text + "<|im_end|>")["input_ids"]
        starts: WeakKeyDictionary[Sampler, int] = WeakKeyDictionary()  # an address may be given twice

        def following(sampler: Sampler, ids: list[int], logits: object) -> int:
            return tokens[len(ids) - starts.setdefault(sampler, len(ids))]

        monkeypatch.setattr(Sampler, "next", following)

    return script


def asked(server: Running, stream: bool, **options):
    """Content, thoughts, calls and reason of an answer."""
    options = {"model": "tiny", "messages": SAID, "max_tokens": 300, "tools": TOOLS, **options}
    made = server.client().chat.completions.create(stream=stream, **options)
    if not stream:
        (choice,) = made.choices
        message = choice.message
        calls = [
            (call.id, call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or ()
        ]
        return message.content, getattr(message, "reasoning_content", None), calls, choice.finish_reason
    content, thoughts, calls, reason = "", "", {}, None
    for chunk in made:
        (choice,) = chunk.choices
        content += choice.delta.content or ""
        thoughts += getattr(choice.delta, "reasoning_content", None) or ""
        for call in choice.delta.tool_calls or ():
            assert call.index not in calls
            calls[call.index] = (call.id, call.function.name, json.loads(call.function.arguments))
        reason = choice.finish_reason or reason
    return content, thoughts, [calls[index] for index in sorted(calls)], reason


@pytest.mark.parametrize("stream", [False, True])
class TestAnswers:
    def test_of_all_three(self, server: Running, speak, stream):
        speak(f"<think>Let me see.</think>I ask.{CALL}{CALL.replace('Bath', 'Lyme')}")
        content, thoughts, calls, reason = asked(server, stream)
        assert (content, thoughts, reason) == ("I ask.", "Let me see.", "tool_calls")
        assert [call[1:] for call in calls] == [("weather", ARGUMENTS), ("weather", {"place": "Lyme"})]
        assert len({call[0] for call in calls}) == 2

    def test_of_a_call_alone(self, server: Running, speak, stream):
        speak(CALL)
        content, _, calls, reason = asked(server, stream)
        assert (content or None, len(calls), reason) == (None, 1, "tool_calls")

    def test_of_text_alone(self, server: Running, speak, stream):
        speak("Rain.")
        assert asked(server, stream)[::2] == ("Rain.", [])

    def test_of_one_call_where_one_is_wanted(self, server: Running, speak, stream):
        speak(f"{CALL}{CALL} And more.")
        content, _, calls, reason = asked(server, stream, parallel_tool_calls=False)
        assert (content or None, len(calls), reason) == (None, 1, "tool_calls")

    @pytest.mark.parametrize("broken", ['{"name": ', "no JSON", '["weather"]', "{}"])
    def test_of_what_is_no_call(self, server: Running, speak, stream, broken):
        speak(f"I ask.<tool_call>{broken}</tool_call>")
        content, _, calls, reason = asked(server, stream)
        assert content.startswith("I ask.")
        assert broken in content
        assert (calls, reason) == ([], "stop")

    def test_that_end_within_a_call(self, server: Running, speak, stream):
        speak(f"I ask.{CALL}")
        content, _, calls, reason = asked(server, stream, max_tokens=40)
        assert (calls, reason) == ([], "length")
        assert content.startswith('I ask.{"name"')


def test_calls_go_back_as_they_came(server: Running, speak):
    speak(f"<think>Hm.</think>{CALL}")
    client = server.client()
    first = client.chat.completions.create(model="tiny", messages=SAID, tools=TOOLS, max_tokens=300)
    message = first.choices[0].message
    result = {"role": "tool", "content": "Rain.", "tool_call_id": message.tool_calls[0].id}
    speak("It rains.")
    for back in (message, message.model_dump(), {**message.model_dump(), "content": ""}):
        answer = client.chat.completions.create(
            model="tiny", messages=[*SAID, back, result], tools=TOOLS, max_tokens=300
        )
        assert answer.choices[0].message.content == "It rains."
    streamed = message.model_dump()
    streamed["tool_calls"][0]["index"] = 0
    client.chat.completions.create(model="tiny", messages=[*SAID, streamed, result], max_tokens=300)


def test_tools_are_shown_unless_none_may_be_called(server: Running, speak):
    speak("Rain.")
    client, options = server.client(), {"model": "tiny", "messages": SAID, "max_tokens": 30}

    def read(**more) -> int:
        return client.chat.completions.create(**options, **more).usage.prompt_tokens

    assert read(tools=TOOLS) == read(tools=TOOLS, tool_choice="auto") > read()
    assert read(tools=TOOLS, tool_choice="none") == read()


def test_in_whatever_pieces_it_comes():
    """Token by token or at once, the message is the same."""
    text, prompt = f"<think>Let me see.</think>I ask.{CALL}<|im_end|>", "<|im_start|>assistant\n"
    wholes = []
    for size in (1, 2, 7, 1000):
        message = AnswerMessage("x", ResponseParser(RESPONSES, prefix=prompt))
        message.begin()
        for start in range(0, len(text), size):
            message.add(text[start : start + size])
        message.close()
        wholes.append(message.whole())
    assert all(whole == wholes[0] for whole in wholes)
    assert wholes[0]["tool_calls"][0]["function"] == {"name": "weather", "arguments": json.dumps(ARGUMENTS)}


def test_what_the_prompt_has_begun_is_told():
    message = AnswerMessage("x", ResponseParser(RESPONSES, prefix="<|im_start|>assistant\n<think>Well, "))
    assert message.begin() == [{"reasoning_content": "Well, "}]
    message.add("so.</think>Yes.")
    message.close()
    assert message.whole()["reasoning_content"] == "Well, so."
    assert message.whole()["content"] == "Yes."
