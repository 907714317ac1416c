"""Conversations that rest: found by what they said, kept least recently used last, spilled to disk or forgotten."""

from __future__ import annotations

import json
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, ValidationError

from namm.errors import ArtefactError, ConfigurationError, ModelError, NammError, NotFoundError
from namm.memory.cache import MemoryCache
from namm.memory.saved import pack, read_notes, unpack
from namm.serving.host import Host, Served

_NOTE = "conversation"  # a file's note of whose it is and what was said
log = logging.getLogger("namm.serving")


def new_id() -> str:
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
    """

    owner: str
    served: str
    said: Said
    cache: MemoryCache | None
    bytes_held: int
    bytes_full: int
    kept: float
    id: str = field(default_factory=new_id)
    created: int = field(default_factory=lambda: int(time.time()))
    path: Path | None = None

    def describe(self) -> dict[str, Any]:
        """For a client."""
        return {
            "id": self.id, "object": "conversation", "created": self.created, "model": self.served,
            "tokens": len(self.said.ids), "kept_tokens": round(self.kept, 1),
            "bytes_held": self.bytes_held, "bytes_full": self.bytes_full, "on_disk": self.cache is None,
        }  # fmt: skip


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


class Conversations:
    """The conversations of a server, least recently used first. One thread uses it.

    Args:
        folder: where those go that memory has no room for; without one they are forgotten.
        most_on_disk: bytes of all files there.

    Raises:
        ConfigurationError: there can be no such folder.
    """

    def __init__(self, host: Host, folder: Path | None = None, most_on_disk: int = 16 << 30) -> None:
        self._host, self._folder, self._most_on_disk = host, folder, most_on_disk
        self._resting: OrderedDict[str, Conversation] = OrderedDict()
        self.dropped = self.spilled = self.returned = 0
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigurationError("a folder for conversations", f"{folder}: {error}", "Try --spill.") from error
            self._adopt(folder)

    def __iter__(self) -> Iterator[Conversation]:
        return iter(self._resting.values())

    def __len__(self) -> int:
        return len(self._resting)

    @property
    def bytes_held(self) -> int:
        """Bytes of those that are not on disk."""
        return sum(one.bytes_held for one in self if one.cache is not None)

    @property
    def bytes_on_disk(self) -> int:
        return sum(one.bytes_held for one in self if one.path is not None)

    def of(self, owner: str) -> list[Conversation]:
        return [one for one in self if one.owner == owner]

    def get(self, owner: str, ident: str) -> Conversation:
        """
        Raises:
            NotFoundError: this owner has no such conversation.
        """
        one = self._resting.get(ident)
        if one is None or one.owner != owner:
            raise NotFoundError("the id of one of your conversations", repr(ident), "See GET /v1/conversations.")
        return one

    def find(self, owner: str, served: str, prompt: str, ids: list[int], chat: bool) -> Conversation | None:
        """The longest conversation that this prompt goes on with."""
        found = [one for one in self.of(owner) if one.served == served and continues(one.said, prompt, ids, chat)]
        return max(found, key=lambda one: len(one.said.ids), default=None)

    def add(self, conversation: Conversation) -> None:
        """As the most recently used."""
        self._resting[conversation.id] = conversation
        self._resting.move_to_end(conversation.id)

    def remove(self, conversation: Conversation) -> None:
        """Forget it, on disk as well."""
        del self._resting[conversation.id]
        if conversation.path is not None:
            conversation.path.unlink(missing_ok=True)

    def take(self, conversation: Conversation) -> MemoryCache:
        """Its cache, which goes on elsewhere; the conversation no longer rests here.

        Raises:
            ArtefactError: its file was damaged; it is removed.
        """
        try:
            cache = self._cache_of(conversation)
        finally:
            self.remove(conversation)
        self.returned += conversation.cache is None
        return cache

    def _cache_of(self, conversation: Conversation) -> MemoryCache:
        if conversation.cache is not None:
            return conversation.cache
        assert conversation.path is not None
        model, plan = self._host.model, self._host.served[conversation.served].plan
        try:
            data = conversation.path.read_bytes()
        except OSError as error:
            raise ArtefactError("a file of a conversation", error, "It is read again from its text.") from error
        return unpack(data, model.config, plan, self._host.print, model.device)[0]

    def make_room(self, needed: int) -> int:
        """Let go of the least recently used until `needed` bytes are free or nothing is left; returns bytes freed."""
        freed = 0
        for one in list(self):
            if freed >= needed:
                break
            if one.cache is not None:
                freed += one.bytes_held
                self._let_go(one)
        return freed

    def _let_go(self, one: Conversation) -> None:
        if self._folder is None:
            self.dropped += 1
            self.remove(one)
            return
        path = self._folder / f"{one.id}.safetensors"
        scratch = path.with_suffix(".partial")
        try:
            scratch.write_bytes(self._file_of(one))
            os.replace(scratch, path)
        except (OSError, ModelError) as error:  # a full disk costs this conversation and not the server
            scratch.unlink(missing_ok=True)
            log.warning("a conversation could not be put to disk", extra={"error": str(error), "folder": str(path)})
            self.dropped += 1
            self.remove(one)
            return
        self.spilled += 1
        self._resting[one.id] = replace(one, cache=None, path=path)  # keeps its place
        for oldest in [known for known in self if known.path is not None]:
            if self.bytes_on_disk <= self._most_on_disk:
                break
            self.dropped += 1
            self.remove(oldest)

    def spill_all(self) -> None:
        """Before the end: whatever rests goes to disk, if there is a folder."""
        if self._folder is not None:
            self.make_room(self.bytes_held)

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
                self.add(Conversation(**dict(note), cache=None, id=path.stem, path=path))


def rested(owner: str, served: Served, said: Said, cache: MemoryCache, ident: str | None = None) -> Conversation:
    """A conversation that comes to rest, without free slots; a new one if it has no id yet."""
    cache.trim()
    report = cache.memory()
    return Conversation(
        owner, served.id, said, cache, report.bytes_held, report.bytes_full, kept_tokens(cache), id=ident or new_id()
    )


def kept_tokens(cache: MemoryCache) -> float:
    """Tokens held, as a mean over heads."""
    counts = [count for layer in cache.memory().kept for row in layer for count in row]
    return sum(counts) / len(counts) if counts else 0.0


# -- does a prompt go on with a conversation? --------------------------------------------------------------------------


def continues(said: Said, prompt: str, ids: list[int], chat: bool) -> bool:
    """Whether the prompt begins with all that was said, and adds something to read."""
    if said.chat != chat:
        return False
    if not chat:
        return len(ids) > len(said.ids) and tuple(ids[: len(said.ids)]) == said.ids
    return _rest(said, prompt) is not None


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
