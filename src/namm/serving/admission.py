"""Whether a request may begin: what it goes on with, and the room for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from namm.serving.conversations import Conversation, Conversations, new_tokens
from namm.serving.host import Host, Limits
from namm.serving.job import Job


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


class Admission:
    """Finds and makes room; what was found is kept with a request that has to wait."""

    def __init__(self, host: Host, limits: Limits, conversations: Conversations) -> None:
        self._host, self._limits, self._conversations = host, limits, conversations

    def fits(self, job: Job, running: Iterable[Job]) -> bool:
        """Whether the most that a request may hold is free beside those that run; conversations at rest make way."""
        match = job.match = self._match(job)
        tokens = max(match.tokens, len(job.prompt_ids)) + job.most
        job.reserved = job.width * job.served.bytes_for(tokens)
        held, found = self._conversations.bytes_held, match.found
        if found is not None:
            self._conversations.touch(found)  # the last to make room
            held -= found.bytes_held if found.cache is not None else 0
        missing = sum(one.reserved for one in running) + held + job.reserved - self._limits.memory
        if missing > held:
            return False
        if missing > 0:
            self._conversations.make_room(missing)
        return True

    def _match(self, job: Job) -> Match:
        """Looked for again only if conversations came or went since."""
        known, version = job.match, self._conversations.version
        if known is not None and known.version == version:
            return known
        if job.scored:
            return Match(version, None, job.prompt_ids)
        found = self._conversations.find(job.owner, job.served.id, job.prompt, job.prompt_ids, job.chat)
        if found is None:
            return Match(version, None, job.prompt_ids)
        if known is not None and known.found is not None and known.found.said is found.said:
            return Match(version, found, known.new)
        return Match(version, found, new_tokens(found.said, job.prompt, job.prompt_ids, self._host))
