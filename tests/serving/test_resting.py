"""Conversations at rest: totals are sums, none is looked at to find another, a disk that fails costs copies only."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import namm
from namm.errors import ArtefactError
from namm.memory.cache import MemoryCache
from namm.serving import conversations
from namm.serving.conversations import Conversation, Conversations, Said, rested
from namm.serving.host import Host
from tests.serving.conftest import Running, Serve
from tests.serving.test_admission import stream
from tests.serving.test_answers import LONG
from tests.serving.test_conversations import Chat, limit


@pytest.fixture(scope="module")
def host(pair) -> Host:
    return Host("tiny", *pair, ["h2o", "full"], 0.25, 32)


def read(host: Host, owner: str, text: str, served: str = "tiny", chat: bool = True) -> Conversation:
    """A conversation that was just read."""
    ids = host.tokenizer(text)["input_ids"]
    plan = host.served[served].plan
    cache = MemoryCache(host.model.config, plan.policy, plan.selection, plan.update_interval)
    with torch.inference_mode(), namm.attach(host.model, plan.policy, plan.selection, plan.update_interval):
        host.model(torch.tensor([ids]), past_key_values=cache)
    return rested(owner, host.served[served], Said(chat, text, "", tuple(ids)), cache)


def right(kept: Conversations) -> None:
    """Totals are the sums, and every conversation is found by what was said in it."""
    assert kept.bytes_held == sum(one.bytes_held for one in kept if one.cache is not None)
    assert kept.bytes_on_disk == sum(one.path.stat().st_size for one in kept if one.path is not None)
    assert kept.kept == pytest.approx(sum(one.kept for one in kept), abs=1e-6)
    assert len(kept) == len(list(kept))
    for one in kept:
        said = one.said.prompt + one.said.answer
        found = kept.find(one.owner, one.served, f"{said}!", [*one.said.ids, 1], one.said.chat)
        assert found is not None
        assert (found.said.prompt + found.said.answer, found.owner, found.served) == (said, one.owner, one.served)


def test_totals_are_sums_whatever_happens(host: Host, tmp_path: Path):
    rng = random.Random(0)
    kept = Conversations(host, tmp_path, most_on_disk=60_000)
    for step in range(120):
        known = list(kept)
        match rng.choice(["add", "add", "remove", "take", "touch", "room"]) if known else "add":
            case "add":
                text = f"{step % 40} {LONG[: rng.randint(1, 60)]}"
                kept.add(read(host, rng.choice("ab"), text, rng.choice(["tiny", "tiny+full"]), rng.random() < 0.7))
            case "remove":
                assert kept.remove(rng.choice(known))
            case "take":
                one = rng.choice(known)
                assert kept.take(one).get_seq_length() == len(one.said.ids)
            case "touch":
                kept.touch(rng.choice(known))
            case "room":
                before, needed = kept.bytes_held, rng.randint(1, 40_000)
                kept.make_room(needed)
                assert kept.bytes_held <= max(0, before - needed)
        assert kept.bytes_on_disk <= 60_000
        assert {path.stem for path in tmp_path.glob("*.safetensors")} == {
            one.id for one in kept if one.path is not None
        }
        right(kept)
    assert min(kept.spilled, kept.returned, kept.dropped) > 0
    assert kept.failed == 0
    for one in list(kept):
        kept.remove(one)
    assert (len(kept), kept.bytes_held, kept.bytes_on_disk, kept.kept) == (0, 0, 0, 0)


def test_the_longest_is_found_of_its_owner_memory_and_kind_only(host: Host):
    kept = Conversations(host)
    for text in ("Hello", "Hello there", "Hello there, you"):
        for owner in ("a", "b"):
            kept.add(read(host, owner, f"{text}{owner}" if owner == "b" else text))
    ids = host.tokenizer("Hello there, you too")["input_ids"]
    found = kept.find("a", "tiny", "Hello there, you too", ids, True)
    assert found is not None
    assert found.said.prompt == "Hello there, you"
    assert kept.find("a", "tiny", "Hello there, you", ids, True).said.prompt == "Hello there"  # something new to read
    assert kept.find("a", "tiny", "Hello", ids, True) is None
    assert kept.find("a", "tiny+full", "Hello there, you too", ids, True) is None
    assert kept.find("a", "tiny", "Hello there, you too", ids, False) is None
    assert kept.find("c", "tiny", "Hello there, you too", ids, True) is None


def test_none_is_looked_at_to_find_another(host: Host, monkeypatch: pytest.MonkeyPatch):
    kept = Conversations(host)
    one = read(host, "a", "Hello there")
    for number in range(300):
        said = Said(True, f"Hello there, {number:03d}", "", one.said.ids)
        kept.add(Conversation("a", "tiny", said, one.cache, one.bytes_held, one.bytes_full, one.kept))
    monkeypatch.setattr(Conversations, "__iter__", lambda _: pytest.fail("all of them were looked at"))
    assert kept.find("a", "tiny", "Hello there, 123 and so on", [], True).said.prompt == "Hello there, 123"
    assert kept.bytes_held == 300 * one.bytes_held
    assert kept.bytes_on_disk == 0
    assert kept.kept == pytest.approx(300 * one.kept)
    kept.make_room(one.bytes_held)
    assert len(kept) == 299


# -- disks that fail ---------------------------------------------------------------------------------------------------


def gone(folder: Path) -> None:
    shutil.rmtree(folder)


def a_file_instead(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("not a folder")


def a_folder_in_the_way(folder: Path) -> None:
    """Whatever is written cannot take its final name."""
    folder.rename(folder.with_name("moved"))
    folder.symlink_to("/proc/self")


def full(folder: Path) -> None:
    mount(folder, "size=4k")


def read_only(folder: Path) -> None:
    mount(folder, "ro")


def mount(folder: Path, options: str) -> None:
    """Another file system over it, where this is allowed."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, check=False).returncode:
        pytest.skip("nothing can be mounted here")


FAULTS = [gone, a_file_instead, a_folder_in_the_way, full, read_only]


@pytest.fixture
def folder_to_break(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "spill"
    if os.path.ismount(tmp_path / "spill"):
        subprocess.run(["umount", "--lazy", tmp_path / "spill"], check=True)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_fails_costs_copies_only(serve: Serve, folder_to_break: Path, fault):
    folder = folder_to_break
    small = limit(serve(("full",)), 1.6)
    server = serve(("full",), limits={"memory": small}, spill=folder)
    chats = [Chat(server) for _ in range(6)]
    for number, chat in enumerate(chats[:3]):
        chat.say(f"{number} {LONG}")
    kept = server.engine.conversations
    spilled = kept.spilled
    assert spilled > 0
    fault(folder)
    for number, chat in enumerate(chats[3:]):
        chat.say(f"{number + 3} {LONG}")
    twins = [Chat(serve(("full",))) for _ in chats]
    for chat, twin in zip(chats, twins, strict=True):
        twin.messages = list(chat.messages)
        made, expected = chat.say("And then?"), twin.say("And then?")
        assert made.choices[0].message.content == expected.choices[0].message.content
    health = server.http().get("/health")
    assert (health.status_code, kept.spilled) == (200, spilled)
    assert not server.failed.is_set()
    assert kept.failed > 0
    line = f'namm_conversations_moved{{how="failed"}} {float(kept.failed)}'
    assert line in server.http().get("/metrics").text.splitlines()
    right(kept)
    assert server.engine.close()
    assert not server.failed.is_set()


@pytest.mark.parametrize("fault", [a_file_instead, a_folder_in_the_way])
def test_who_deletes_is_told_of_a_file_that_stays(serve: Serve, tmp_path: Path, monkeypatch, fault):
    folder = tmp_path / "spill"
    server = serve(("full",), limits={"memory": limit(serve(("full",)), 1.6)}, spill=folder)
    for number in range(3):
        Chat(server).say(f"{number} {LONG}")
    known = next(one for one in server.http("a").get("/v1/conversations").json()["data"] if one["on_disk"])
    fault(folder)
    if fault is a_folder_in_the_way:
        monkeypatch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(PermissionError("read-only")))
    answer = server.http("a").delete(f"/v1/conversations/{known['id']}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "not_removed")
    assert str(folder) not in answer.text
    assert server.http("a").delete(f"/v1/conversations/{known['id']}").status_code == 404
    monkeypatch.undo()
    assert server.engine.alive


def test_no_memory_for_a_copy_costs_the_copy(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kept = Conversations(host, tmp_path)
    one = read(host, "a", LONG)
    kept.add(one)
    monkeypatch.setattr("namm.serving.conversations.pack", lambda *_: (_ for _ in ()).throw(MemoryError))
    kept.make_room(1)
    assert (len(kept), kept.failed, kept.dropped, kept.spilled) == (0, 1, 1, 0)
    with pytest.raises(ArtefactError, match="one that made room"):
        kept.take(one)


# -- what a request waits for ------------------------------------------------------------------------------------------


def counted(server: Running, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often conversations are searched and rests of prompts cut into tokens from now on."""
    counts = {"find": 0, "new_tokens": 0, "decoded": 0}
    kept, engine = server.engine.conversations, server.engine
    real = {"find": kept.find, "new_tokens": conversations.new_tokens, "decoded": engine._answer}

    def counting(name: str):
        def count(*args):
            counts[name] += 1
            return real[name](*args)

        return count

    monkeypatch.setattr(kept, "find", counting("find"))
    monkeypatch.setattr(conversations, "new_tokens", counting("new_tokens"))
    monkeypatch.setattr(engine, "_answer", counting("decoded"))
    return counts


@pytest.mark.parametrize("change", ["nothing", "other", "itself"])
def test_a_request_that_waits_is_searched_once(serve: Serve, monkeypatch: pytest.MonkeyPatch, change: str):
    """It goes on with a conversation, and waits for the bytes of an answer of 300 tokens; when that comes to rest, it
    is looked at as well.
    """
    endless = {"logit_bias": {"10": 100}}  # one letter only
    server = serve(("full",), limits={"memory": limit(serve(("full",)), 3.6)})
    kept = server.engine.conversations
    chat, other = Chat(server), Chat(server)
    chat.say(LONG)
    other.say("Hello.", max_tokens=2)
    counts = counted(server, monkeypatch)
    running = stream(server, max_tokens=300, **endless)
    next(running)
    server.busy()
    before = dict(counts)
    asking = threading.Thread(target=lambda: chat.say("And then?", max_tokens=800, **endless))
    asking.start()
    while not server.engine.state()["waiting"]:
        pass
    if change != "nothing":
        while counts["find"] == before["find"]:
            pass
        ident = next(one.id for one in kept if ("Hello." in one.said.prompt) == (change == "other"))
        assert server.http("a").delete(f"/v1/conversations/{ident}").status_code == 204
    list(running)
    asking.join(60)
    assert counts["decoded"] - before["decoded"] > 250
    expected = {"nothing": (2, 1), "other": (3, 1), "itself": (3, 1)}[change]
    assert (counts["find"] - before["find"], counts["new_tokens"] - before["new_tokens"]) == expected
