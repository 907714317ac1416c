"""Conversations that rest: found by what they said, kept least recently used last, spilled to disk or forgotten."""

from __future__ import annotations

import json
import logging
import os
import stat
import time
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, ValidationError

from namm import files
from namm.errors import ArtefactError, ConfigurationError, NammError, NotFoundError
from namm.memory.cache import MemoryCache
from namm.memory.saved import pack, read_notes, unpack
from namm.serving.host import Host, Served
from namm.serving.prefixes import Prefixes

_NOTE = "conversation"  # a file's note of whose it is and what was said
log = logging.getLogger("namm.serving")


def _new_id() -> str:
    return f"conv-{uuid4().hex}"


@dataclass(frozen=True)
class Said:
    """What was said in a conversation, which is how it is found again.

    Attributes:
        chat: whether it is a chat, found by its text; a completion is found by its tokens.
        prompt: the last prompt as the chat template rendered it.
        answer: as much of the answer as was read again by the model; its last token never is.
        ids: every token that was read.
    """

    chat: bool
    prompt: str
    answer: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Conversation:
    """A conversation at rest.

    Attributes:
        owner: whom it belongs to; nobody else finds it.
        served: id of the model and memory that read it.
        cache: what is remembered, of one row; None while it is on disk only.
        bytes_held: by the cache.
        path: its file, while it is on disk.
        file_bytes: of that file, which holds the text too.
    """

    owner: str
    served: str
    said: Said
    cache: MemoryCache | None
    bytes_held: int
    bytes_full: int
    kept: float
    id: str = field(default_factory=_new_id)
    created: int = field(default_factory=lambda: int(time.time()))
    path: Path | None = None
    file_bytes: int = 0

    @property
    def bytes_taken(self) -> int:
        """Where it is: in memory or on disk."""
        return self.bytes_held if self.path is None else self.file_bytes

    def describe(self) -> dict[str, Any]:
        """For a client."""
        return {
            "id": self.id, "object": "conversation", "created": self.created, "model": self.served,
            "tokens": len(self.said.ids), "kept_tokens": round(self.kept, 1),
            "bytes_held": self.bytes_held, "bytes_full": self.bytes_full, "on_disk": self.cache is None,
        }  # fmt: skip


@dataclass(frozen=True)
class Match:
    """What a request goes on with.

    Attributes:
        version: of the conversations when it was looked for, see `Conversations.version`.
        new: tokens to be read after those of the conversation.
    """

    version: int
    found: Conversation | None
    new: list[int]

    @property
    def tokens(self) -> int:
        """Of the whole prompt; a chat that goes on may have been cut into a few more than it is now."""
        return len(self.new) + (len(self.found.said.ids) if self.found is not None else 0)


class _Note(BaseModel):
    """What a file says of its conversation."""

    model_config = ConfigDict(strict=True, extra="forbid")

    owner: str
    served: str
    said: Said
    bytes_held: int
    bytes_full: int
    kept: float
    created: int


class _Place:
    """Conversations in one place, least recently used first, and what they take there together."""

    def __init__(self) -> None:
        self.known: OrderedDict[str, Conversation] = OrderedDict()
        self.bytes_taken, self.kept = 0, 0.0

    def add(self, one: Conversation) -> None:
        self.known[one.id] = one
        self.bytes_taken += one.bytes_taken
        self.kept += one.kept

    def remove(self, one: Conversation) -> None:
        del self.known[one.id]
        self.bytes_taken -= one.bytes_taken
        self.kept = self.kept - one.kept if self.known else 0.0  # no error of rounding stays for good


class Conversations:
    """The conversations of a server, least recently used first. One thread uses it.

    What cannot be put to disk or removed from it costs that conversation and is counted. The folder holds texts: only
    its owner may enter it, and one server at a time, until it is closed.

    Args:
        folder: where those go that memory has no room for; without one they are forgotten.
        most_on_disk: bytes of its files there; those that another model or memory left are not counted.

    Attributes:
        version: another number whenever a conversation came, went or was put to disk.
        dropped, spilled, returned: conversations that were forgotten, put to disk, and taken up again from there.
        failed: files that could not be written or removed.

    Raises:
        ConfigurationError: there can be no such folder, others may enter it, or another server holds it.
    """

    def __init__(self, host: Host, folder: Path | None = None, most_on_disk: int = 16 << 30) -> None:
        self._host, self._folder, self._most_on_disk = host, folder, most_on_disk
        self._held, self._on_disk, self._prefixes = _Place(), _Place(), Prefixes()
        self.version = self.dropped = self.spilled = self.returned = self.failed = 0
        self._until_closed = ExitStack()
        if folder is not None:
            _make_private(folder)
            self._until_closed.enter_context(files.locked(folder, "server.lock"))
            if swept := files.sweep(folder):
                log.warning("files of a server that was killed were removed", extra={"files": swept})
            self._adopt(folder)
            self._keep_to_disk_limit()

    def __iter__(self) -> Iterator[Conversation]:
        return chain(self._on_disk.known.values(), self._held.known.values())

    def __len__(self) -> int:
        return len(self._on_disk.known) + len(self._held.known)

    @property
    def bytes_held(self) -> int:
        """Bytes of those that are not on disk."""
        return self._held.bytes_taken

    @property
    def bytes_on_disk(self) -> int:
        return self._on_disk.bytes_taken

    @property
    def kept(self) -> float:
        """Tokens held by all."""
        return self._held.kept + self._on_disk.kept

    def of(self, owner: str) -> list[Conversation]:
        return [one for one in self if one.owner == owner]

    def get(self, owner: str, ident: str) -> Conversation:
        """
        Raises:
            NotFoundError: this owner has no such conversation.
        """
        one = self._held.known.get(ident) or self._on_disk.known.get(ident)
        if one is None or one.owner != owner:
            raise NotFoundError("the id of one of your conversations", repr(ident), "See GET /v1/conversations.")
        return one

    def find(self, owner: str, served: str, prompt: str, ids: list[int], chat: bool) -> Conversation | None:
        """The longest conversation that this prompt goes on with."""
        ident = self._prefixes.longest(_group(owner, served, chat), _text(prompt) if chat else _tokens(ids))
        return self.get(owner, ident) if ident is not None else None

    def match(self, known: Match | None, owner: str, served: str, prompt: str, ids: list[int], chat: bool) -> Match:
        """What this prompt goes on with; looked for again only if conversations came or went since it was `known`."""
        if known is not None and known.version == self.version:
            return known
        found = self.find(owner, served, prompt, ids, chat)
        if found is None:
            return Match(self.version, None, ids)
        if known is not None and known.found is not None and known.found.said is found.said:
            return Match(self.version, found, known.new)
        return Match(self.version, found, new_tokens(found.said, prompt, ids, self._host))

    def add(self, one: Conversation) -> None:
        """As the most recently used."""
        self._place(one).add(one)
        for text in _texts(one.said):
            self._prefixes.add(_group(one.owner, one.served, one.said.chat), text, one.id)
        self.version += 1

    def touch(self, one: Conversation) -> None:
        """It was used, and is the last to make room."""
        self._place(one).known.move_to_end(one.id)

    def remove(self, one: Conversation) -> bool:
        """Forget it, on disk as well; whether its file is gone."""
        self._place(one).remove(one)
        for text in _texts(one.said):
            self._prefixes.remove(_group(one.owner, one.served, one.said.chat), text, one.id)
        self.version += 1
        try:
            if one.path is not None:
                one.path.unlink(missing_ok=True)
        except OSError as error:
            self._failed("a file of a conversation could not be removed", one, error)
            return False
        return True

    def take(self, one: Conversation) -> MemoryCache:
        """Its cache, which goes on elsewhere; the conversation no longer rests here.

        Raises:
            ArtefactError: its file is damaged or gone, and so is the conversation.
        """
        if one.id not in self._place(one).known:
            raise ArtefactError("a conversation at rest", "one that made room", "It is read again from its text.")
        try:
            cache = self._cache_of(one)
        finally:
            self.remove(one)
        self.returned += one.cache is None
        return cache

    def _place(self, one: Conversation) -> _Place:
        return self._on_disk if one.cache is None else self._held

    def _failed(self, what: str, one: Conversation, error: Exception) -> None:
        self.failed += 1
        log.warning(what, extra={"conversation": one.id, "folder": str(self._folder), "error": str(error)})

    def _cache_of(self, conversation: Conversation) -> MemoryCache:
        if conversation.cache is not None:
            return conversation.cache
        assert conversation.path is not None
        model, plan = self._host.model, self._host.served[conversation.served].plan
        try:
            data = conversation.path.read_bytes()
        except OSError as error:
            raise ArtefactError("a file of a conversation", error, "It is read again from its text.") from error
        return unpack(data, model, plan, self._host.print)[0]

    def make_room(self, needed: int) -> None:
        """Let go of the least recently used until `needed` bytes are free or nothing is left."""
        most = self.bytes_held - needed
        while self._held.known and self.bytes_held > most:
            self._let_go(next(iter(self._held.known.values())))

    def _let_go(self, one: Conversation) -> None:
        """To disk, if there is a folder that takes it."""
        moved = None if self._folder is None else self._put_to_disk(self._folder / f"{one.id}.safetensors", one)
        if moved is None:
            self.dropped += 1
            self.remove(one)
            return
        self.spilled += 1
        self.version += 1
        self._held.remove(one)
        self._on_disk.add(moved)
        self._keep_to_disk_limit()

    def _keep_to_disk_limit(self) -> None:
        while self.bytes_on_disk > self._most_on_disk:
            self.dropped += 1
            self.remove(next(iter(self._on_disk.known.values())))

    def _put_to_disk(self, path: Path, one: Conversation) -> Conversation | None:
        """The conversation as a file, if all of it is there."""
        try:
            data = self._file_of(one)
            files.write(path, data, mode=0o600)
        except (NammError, MemoryError) as error:
            self._failed("a conversation could not be put to disk", one, error)
            return None
        return replace(one, cache=None, path=path, file_bytes=len(data))

    def close(self, to_disk: bool = True) -> None:
        """Whatever rests goes `to_disk`, if there is a folder, which is free for another server then."""
        if to_disk and self._folder is not None:
            self.make_room(self.bytes_held)
        self._until_closed.close()

    # -- files ---------------------------------------------------------------------------------------------------------

    def _file_of(self, one: Conversation) -> bytes:
        assert one.cache is not None
        note = {name: getattr(one, name) for name in _Note.model_fields} | {"said": asdict(one.said)}
        return pack(one.cache, self._host.print, {_NOTE: json.dumps(note)})

    def _adopt(self, folder: Path) -> None:
        """Take up what an earlier server put to disk, oldest first; leave the rest alone."""
        for path in sorted(folder.glob("conv-*.safetensors"), key=lambda known: known.stat().st_mtime):
            try:
                note = _Note.model_validate_json(read_notes(path).get(_NOTE, ""))
            except (NammError, ValidationError) as error:
                log.warning("left alone", extra={"file": str(path), "error": str(error)})
                continue
            if note.served in self._host.served:
                size = path.stat().st_size
                self.add(Conversation(**dict(note), cache=None, id=path.stem, path=path, file_bytes=size))


def _make_private(folder: Path) -> None:
    """
    Raises:
        ConfigurationError: there can be no such folder, or others may enter it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = stat.S_IMODE(folder.stat().st_mode)
    except OSError as error:
        raise ConfigurationError("a folder for conversations", f"{folder}: {error}", "Try --spill.") from error
    if os.name == "posix" and mode & 0o077:
        raise ConfigurationError(
            "a folder for conversations that only its owner may enter", f"{folder} with permissions {mode:o}",
            f"Name a new folder, or run: chmod 700 {folder}",
        )  # fmt: skip


def rested(owner: str, served: Served, said: Said, cache: MemoryCache, ident: str | None = None) -> Conversation:
    """A conversation that comes to rest, without free slots; a new one if it has no id yet."""
    cache.trim()
    report = cache.memory()
    return Conversation(
        owner, served.id, said, cache, report.bytes_held, report.bytes_full, kept_tokens(cache), id=ident or _new_id()
    )


def kept_tokens(cache: MemoryCache) -> float:
    """Tokens held, as a mean over heads."""
    counts = [count for layer in cache.memory().kept for row in layer for count in row]
    return sum(counts) / len(counts) if counts else 0.0


# -- does a prompt go on with a conversation? --------------------------------------------------------------------------


def _group(owner: str, served: str, chat: bool) -> str:
    return f"{owner} {served} {chat}"


def _text(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _tokens(ids: Iterable[int]) -> bytes:
    return array("I", ids).tobytes()


def _texts(said: Said) -> set[bytes]:
    """What a prompt that goes on begins with: all that was said; templates may strip an answer's white space."""
    if not said.chat:
        return {_tokens(said.ids)}
    return {_text(said.prompt + answer) for answer in (said.answer, said.answer.lstrip())}


def new_tokens(said: Said, prompt: str, ids: list[int], host: Host) -> list[int]:
    """What is still to be read of a prompt that continues a conversation.

    A chat is continued by its text: what was generated stays as it was generated, although a tokenizer might cut the
    same text in another way.
    """
    if not said.chat:
        return ids[len(said.ids) :]
    rest = _rest(said, prompt)
    assert rest is not None
    return list(host.tokenizer(rest, add_special_tokens=False)["input_ids"])


def _rest(said: Said, prompt: str) -> str | None:
    """The prompt after all that was said; templates may strip an answer's white space."""
    if not prompt.startswith(said.prompt):
        return None
    after = prompt[len(said.prompt) :]
    for answer in (said.answer, said.answer.lstrip()):
        if after.startswith(answer) and len(after) > len(answer):
            return after[len(answer) :]
    return None
