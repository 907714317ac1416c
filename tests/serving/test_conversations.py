"""Conversations go on from what is remembered; nobody sees another's; the oldest make room, on disk or for good."""

from __future__ import annotations

from pathlib import Path

import openai

from tests.serving.conftest import Running, Serve
from tests.serving.test_answers import LONG, OTHER


class Chat:
    """A client that keeps a conversation going."""

    def __init__(self, server: Running, key: str = "a", model: str = "tiny") -> None:
        self.client, self.model = server.client(key), model
        self.messages: list[dict[str, str]] = []

    def say(self, text: str, **options) -> openai.types.chat.ChatCompletion:
        self.messages.append({"role": "user", "content": text})
        made = self.client.chat.completions.create(
            model=self.model, messages=self.messages, **{"max_tokens": 12, **options}
        )
        self.messages.append({"role": "assistant", "content": made.choices[0].message.content})
        return made

    def cached(self, text: str, **options) -> int:
        return self.say(text, **options).usage.prompt_tokens_details.cached_tokens


def test_a_conversation_keeps_its_id(serve: Serve):
    server = serve()
    chat = Chat(server)
    names = [chat.say(text).usage.namm["conversation"] for text in (LONG, "And then?", "Why?")]
    assert len(set(names)) == 1
    (known,) = server.http("a").get("/v1/conversations").json()["data"]
    assert known["id"] == names[0]
    assert known["bytes_held"] == server.engine.state()["resting_bytes"]


def test_keys_do_not_share(serve: Serve):
    server = serve(keys=("a", "b"))
    first, second = Chat(server, "a"), Chat(server, "b")
    first.say(LONG)
    second.messages = list(first.messages)
    assert second.cached("And then?") == 0
    assert first.cached("And then?") > 0
    (mine,) = server.http("a").get("/v1/conversations").json()["data"]
    refused = server.http("b").delete(f"/v1/conversations/{mine['id']}")
    assert refused.status_code == 404
    assert "one of your conversations" in refused.json()["error"]["message"]
    assert server.http("a").delete(f"/v1/conversations/{mine['id']}").status_code == 204


def test_another_memory_does_not_go_on(serve: Serve):
    server = serve(("h2o", "full"))
    first = Chat(server)
    first.say(LONG)
    other = Chat(server, model="tiny+full")
    other.messages = list(first.messages)
    assert other.cached("And then?") == 0


def test_a_changed_past_is_read_anew(serve: Serve):
    chat = Chat(serve())
    chat.say(LONG)
    chat.messages[1]["content"] = "Indeed. " + chat.messages[1]["content"]
    assert chat.cached("And then?") == 0
    chat.messages = chat.messages[:1]
    assert chat.cached("And again?") == 0


def limit(server: Running, conversations: float) -> int:
    """Bytes for so many conversations of `LONG` at rest, and what one more may hold while it runs."""
    one = next(iter(server.engine.host.served.values()))
    return int(conversations * one.bytes_for(400))


def test_the_least_recently_used_make_room(serve: Serve):
    small = limit(serve(("full",)), 2.2)
    server = serve(("full",), limits={"memory": small})
    chats = [Chat(server) for _ in range(4)]
    for number, chat in enumerate(chats):
        chat.say(f"{number} {LONG}")
        assert server.engine.state()["resting_bytes"] <= small
    assert chats[3].cached("And then?") > 0
    assert chats[0].cached("And then?") == 0
    assert server.engine.conversations.dropped > 0


def test_spilled_to_disk_and_brought_back(serve: Serve, tmp_path: Path):
    small = limit(serve(("full",)), 1.6)
    roomy, server = serve(("full",)), serve(("full",), limits={"memory": small}, spill=tmp_path)
    chats, same = [Chat(server) for _ in range(4)], [Chat(roomy) for _ in range(4)]
    for number, (chat, twin) in enumerate(zip(chats, same, strict=True)):
        chat.say(f"{number} {LONG}")
        twin.say(f"{number} {LONG}")
    assert list(tmp_path.glob("conv-*.safetensors"))
    assert server.engine.state()["resting_bytes"] <= small
    for chat, twin in zip(chats, same, strict=True):
        made, expected = chat.say("And then?"), twin.say("And then?")
        assert made.usage.prompt_tokens_details.cached_tokens > 0
        assert made.choices[0].message.content == expected.choices[0].message.content
    assert server.engine.conversations.returned > 0
    for known in server.http("a").get("/v1/conversations").json()["data"]:
        assert server.http("a").delete(f"/v1/conversations/{known['id']}").status_code == 204
    assert not list(tmp_path.glob("conv-*"))


def test_a_server_takes_up_what_another_put_to_disk(serve: Serve, tmp_path: Path):
    first = serve(spill=tmp_path, keys=("a", "b"))
    chat = Chat(first)
    chat.say(LONG)
    assert first.engine.close()
    second = serve(spill=tmp_path, keys=("a", "b"))
    assert second.http("b").get("/v1/conversations").json()["data"] == []
    (known,) = second.http("a").get("/v1/conversations").json()["data"]
    assert known["on_disk"]
    chat.client = second.client("a")
    assert chat.cached("And then?") == known["tokens"]


def test_damaged_files_cost_time_and_nothing_else(serve: Serve, tmp_path: Path):
    first = serve(spill=tmp_path)
    chat = Chat(first)
    chat.say(LONG)
    assert first.engine.close()
    (path,) = tmp_path.glob("*.safetensors")
    second = serve(spill=tmp_path)
    data = bytearray(path.read_bytes())
    data[-40] ^= 0xFF
    path.write_bytes(data)
    chat.client = second.client("a")
    made = chat.say("And then?")
    assert made.usage.prompt_tokens_details.cached_tokens == 0
    fresh = Chat(serve())
    fresh.messages = chat.messages[:2]
    assert fresh.say("And then?").choices[0].message.content == made.choices[0].message.content


def test_conversations_neither_leave_nor_enter(serve: Serve):
    server = serve()
    Chat(server).say(OTHER)
    (known,) = server.http().get("/v1/conversations").json()["data"]
    for method, path in (("GET", f"/v1/conversations/{known['id']}"), ("POST", "/v1/conversations")):
        refused = server.http().request(method, path)
        assert (refused.status_code, refused.json()["error"]["code"]) == (405, "invalid_request")
    assert set(server.http().get("/openapi.json").json()["paths"]["/v1/conversations"]) == {"get"}
