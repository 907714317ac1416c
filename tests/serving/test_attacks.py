"""Who has no business here gets nothing, and keeps nobody else from getting it."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import time
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from namm.cli.serve_options import KEYS, listening, reached_by, read_keys
from namm.errors import ConfigurationError
from namm.serving import connections, middleware
from namm.serving.access import Access, Keys
from namm.serving.conversations import Conversations
from namm.serving.host import Host
from namm.serving.refusals import Refusal
from tests.serving.conftest import Running, Serve
from tests.serving.test_conversations import Chat

EVERYWHERE = ["/", "/health", "/metrics", "/openapi.json", "/v1/models", "/v1/conversations"]


def port_of(server: Running) -> int:
    return httpx.URL(server.url).port


def raw(server: Running, sent: bytes, seconds: float = 10.0) -> bytes:
    """What the server says to these bytes until it closes the connection or says no more."""
    with socket.create_connection(("127.0.0.1", port_of(server)), timeout=seconds) as wire:
        wire.sendall(sent)
        said = b""
        try:
            while part := wire.recv(65536):
                said += part
        except TimeoutError:
            pass
        return said


# -- names of the server -----------------------------------------------------------------------------------------------


def test_a_page_that_calls_this_machine_by_its_own_name_gets_nothing(serve: Serve) -> None:
    """DNS rebinding: the browser thinks that it talks to evil.example, and says so in the header."""
    server = serve()
    Chat(server).say("Hello.")
    (one,) = httpx.get(f"{server.url}/v1/conversations").json()["data"]
    for name in ("evil.example", f"evil.example:{port_of(server)}", "127.0.0.1.evil.example", "localhost.evil.example"):
        for path in EVERYWHERE:
            refused = httpx.get(server.url + path, headers={"Host": name})
            assert refused.status_code == 421, path
            assert one["id"] not in refused.text
            assert "--allow-host" in refused.json()["error"]["message"]
        gone = httpx.delete(f"{server.url}/v1/conversations/{one['id']}", headers={"Host": name})
        assert gone.status_code == 421
    assert [left["id"] for left in httpx.get(f"{server.url}/v1/conversations").json()["data"]] == [one["id"]]


@pytest.mark.parametrize(
    "name", ["localhost", "LOCALHOST", "localhost.", "127.0.0.1", "127.0.0.2:80", "[::1]", "[::1]:8000", "chat.example"]
)
def test_names_of_the_server_are_known_in_every_spelling(serve: Serve, name: str) -> None:
    server = serve(hosts=("Chat.Example",))
    assert httpx.get(f"{server.url}/health", headers={"Host": name}).status_code == 200


@pytest.mark.parametrize(
    "headers", ["", "Host: localhost\r\nHost: evil.example\r\n", "Host: \r\n", "Host: local host\r\n", "Host: a/b\r\n"]
)
def test_no_name_two_names_and_none_that_is_one(serve: Serve, headers: str) -> None:
    said = raw(serve(), f"GET /health HTTP/1.1\r\n{headers}Connection: close\r\n\r\n".encode())
    assert said.startswith(b"HTTP/1.1 400 ")


def test_addresses_that_the_server_listens_at_are_its_names() -> None:
    from starlette.datastructures import Headers

    def calls(access: Access, host: str) -> bool:
        try:
            access.check_origin(Headers({"host": host}))
        except Refusal:
            return False
        return True

    assert calls(Access(hosts=("10.1.2.3",)), "10.1.2.3:8000")
    assert not calls(Access(hosts=("10.1.2.3",)), "10.1.2.4")
    assert calls(Access(hosts=("0.0.0.0",)), "10.1.2.4")  # listens at all addresses, so any may be meant
    assert not calls(Access(hosts=("0.0.0.0",)), "evil.example")
    assert calls(Access(hosts=("*",)), "anything.example")
    assert calls(Access(hosts=("::1", "[2001:db8::1]")), "[2001:db8::1]:8000")
    would_match_nothing = ("chat.example:8443", "10.1.2.3:80", "https://chat.example", "chat.example/chat")
    for wrong in would_match_nothing:
        with pytest.raises(ConfigurationError, match=f"a host such as chat.example; got '{wrong}'"):
            Access(hosts=(wrong,))


# -- pages from elsewhere ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost:1", "http://127.0.0.1.evil.example"]
)
def test_pages_from_elsewhere_get_nothing(serve: Serve, origin: str) -> None:
    server = serve()
    for path in EVERYWHERE:
        assert httpx.get(server.url + path, headers={"Origin": origin}).status_code == 403, path
    body = {"model": "tiny", "prompt": "Hello.", "max_tokens": 1}
    assert httpx.post(f"{server.url}/v1/completions", json=body, headers={"Origin": origin}).status_code == 403
    assert httpx.options(
        f"{server.url}/v1/completions", headers={"Origin": origin, "Access-Control-Request-Method": "POST"}
    ).status_code == 403  # fmt: skip


def test_our_own_page_allowed_pages_and_clients_without_one_are_served(serve: Serve) -> None:
    server = serve(origins=("https://chat.example",))
    body = {"model": "tiny", "prompt": "Hello.", "max_tokens": 1}
    for origin, allowed in ((None, None), (server.url, None), ("https://chat.example", "https://chat.example")):
        headers = {} if origin is None else {"Origin": origin}
        answer = httpx.post(f"{server.url}/v1/completions", json=body, headers=headers)
        assert answer.status_code == 200
        assert answer.headers.get("access-control-allow-origin") == allowed
    asked = {"Origin": "https://chat.example", "Access-Control-Request-Method": "POST"}
    assert httpx.options(f"{server.url}/v1/completions", headers=asked).status_code == 200


# -- keys --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", ["", " ", ",", " , "])
def test_a_variable_for_keys_without_any_opens_nothing(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv(KEYS, said)
    with pytest.raises(ConfigurationError, match=f"expected keys in {KEYS}; got none"):
        read_keys(None, None)


def test_keys_of_the_command_line_a_file_and_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(KEYS, raising=False)
    assert read_keys(None, None) == ()
    for empty in ("", "  "):
        with pytest.raises(ConfigurationError, match="an empty --api-key"):
            read_keys(["a", empty], None)
    file = tmp_path / "keys"
    with pytest.raises(ConfigurationError, match="a file with a key a line"):
        read_keys(None, file)
    file.write_text("\n \n")
    with pytest.raises(ConfigurationError, match="expected keys in"):
        read_keys(None, file)
    file.write_text("one\n\n two \n")
    monkeypatch.setenv(KEYS, "three, four")
    assert read_keys(["zero"], file) == ("zero", "one", "two", "three", "four")
    with pytest.raises(ConfigurationError, match="printable ASCII"):
        Access(("with a space",))


def test_the_command_refuses_an_empty_key_before_anything_is_loaded() -> None:
    from namm.cli import app

    for arguments in (["--api-key", ""], ["--host", "0.0.0.0", "--port", "0"]):
        result = CliRunner().invoke(app, ["serve", "no/such-model", *arguments])
        assert isinstance(result.exception, ConfigurationError), arguments
    assert "--allow-anyone" in str(result.exception)


def test_beyond_the_loopback_a_key_is_asked_for() -> None:
    with listening("0.0.0.0", 0) as address:
        with pytest.raises(ConfigurationError, match=r"that others can reach, at .*; got none"):
            reached_by(address, "0.0.0.0", (), anyone=False)
        assert reached_by(address, "0.0.0.0", (), anyone=True) == ("0.0.0.0", "0.0.0.0")
        assert reached_by(address, "0.0.0.0", ("a",), anyone=False) == ("0.0.0.0", "0.0.0.0")
    with listening("127.0.0.1", 0) as address:
        assert reached_by(address, "localhost", (), anyone=False) == ("localhost", "127.0.0.1")


def test_a_key_is_known_by_its_digest_only() -> None:
    keys = Keys(("one", "two"))
    assert "one" not in repr(vars(keys))
    assert keys.owner("Bearer one") != keys.owner("bearer two")
    for wrong in ("", "one", "Basic one", "Bearer", "Bearer ", "Bearer onee", "Bearer on"):
        with pytest.raises(Refusal) as refused:
            keys.owner(wrong)
        assert refused.value.status == 401


# -- bodies and connections --------------------------------------------------------------------------------------------


def test_a_key_is_looked_at_before_a_body_is_read(serve: Serve) -> None:
    server = serve(keys=("a",))
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {1 << 20}\r\n\r\n"
    began = time.monotonic()
    assert raw(server, head.encode(), 3.0).startswith(b"HTTP/1.1 401 ")
    assert b"401" in raw(server, head.encode() + b"[" * 1000, 3.0)
    assert time.monotonic() - began < 15


def test_bodies_are_read_where_one_is_taken_only(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    plain = middleware._read_body

    async def counted(*args, **options):
        reads.append(1)
        return await plain(*args, **options)

    monkeypatch.setattr(middleware, "_read_body", counted)
    server = serve()
    for method in ("GET", "DELETE", "PUT", "POST"):
        for path in (*EVERYWHERE, "/v1/conversations/x", "/nowhere"):
            httpx.request(method, server.url + path, content=b"x" * 100_000)
    assert reads == []
    httpx.post(f"{server.url}/v1/completions", json={"model": "tiny", "prompt": "a", "max_tokens": 1})
    assert reads == [1]


def test_who_never_ends_a_body_is_let_go(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "BODY_SECONDS", 0.5)
    said = raw(serve(), b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{", 20.0)
    assert said.startswith(b"HTTP/1.1 408 ")


def test_who_never_ends_the_headers_is_let_go(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.5)
    server = serve()
    with socket.create_connection(("127.0.0.1", port_of(server)), timeout=20) as wire:
        wire.sendall(b"GET /health HTTP/1.1\r\nHost: loc")
        began = time.monotonic()
        with contextlib.suppress(ConnectionResetError):
            assert wire.recv(1) == b""
        assert time.monotonic() - began < 15


def test_connections_that_say_nothing_keep_nobody_out(serve: Serve) -> None:
    assert connections.CONNECTIONS < 700
    server = serve()
    idle = [socket.create_connection(("127.0.0.1", port_of(server)), timeout=20) for _ in range(700)]
    try:
        for wire in idle[::50]:
            wire.sendall(b"GET /health HTTP/1.1\r\n")
        assert httpx.get(f"{server.url}/health", timeout=20).status_code == 200
        body = {"model": "tiny", "prompt": "Hello.", "max_tokens": 1}
        assert httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).status_code == 200
    finally:
        for wire in idle:
            wire.close()


# -- the folder of conversations ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def host(pair) -> Host:
    return Host("tiny", *pair, ["h2o"], 0.25, 32)


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_only_its_owner_reads_what_is_put_to_disk(serve: Serve, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "spilled"
    server = serve(spill=folder)
    Chat(server).say("Hello.")
    assert server.engine.close()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (file,) = folder.glob("conv-*")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_folder_that_others_may_enter_is_refused(host: Host, tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir(mode=0o755)
    with pytest.raises(ConfigurationError, match=r"permissions 755.*chmod 700"):
        Conversations(host, folder)
    folder.chmod(0o700)
    Conversations(host, folder).close()


def test_a_second_server_takes_nothing_of_the_first(host: Host, serve: Serve, tmp_path: Path) -> None:
    folder = tmp_path / "spilled"
    server = serve(spill=folder)
    Chat(server).say("Hello.")
    with pytest.raises(ConfigurationError, match=r"one that holds its server\.lock"):
        Conversations(host, folder)
    assert server.engine.close()
    before = {file.name for file in folder.glob("conv-*")}
    assert len(before) == 1
    second = Conversations(host, folder)
    assert len(second) == 1
    second.close()
    assert {file.name for file in folder.glob("conv-*")} == before


def test_what_a_killed_server_left_half_written_goes(host: Host, tmp_path: Path) -> None:
    folder = tmp_path / "spilled"
    folder.mkdir(mode=0o700)
    (folder / ".conv-1.safetensors.0123.partial").write_bytes(b"x" * 1000)
    (folder / "notes.txt").write_text("somebody's")
    Conversations(host, folder).close()
    assert sorted(file.name for file in folder.iterdir() if file.name != "server.lock") == ["notes.txt"]


def test_a_lower_limit_on_disk_holds_from_the_start(serve: Serve, host: Host, tmp_path: Path) -> None:
    folder = tmp_path / "spilled"
    server = serve(spill=folder)
    for text in ("Hello.", "Good day.", "Good night."):
        Chat(server).say(text)
    assert server.engine.close()
    one = max(1, sum(1 for _ in folder.glob("conv-*")))
    assert one == 3
    held = Conversations(host, folder)
    most = held.bytes_on_disk // 2
    held.close()
    second = Conversations(host, folder, most)
    assert 0 < second.bytes_on_disk <= most
    second.close()
    assert len(list(folder.glob("conv-*"))) < 3
