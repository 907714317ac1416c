"""Which request runs next: owners take turns, within a number of places and of bytes.

A scheduler knows of a session its owner, its answers, the bytes reserved for it and its status, and nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from namm.serving.host import Limits
from namm.serving.refusals import Refusal, invalid, never_fits
from namm.serving.session import Session, Status


class Scheduler:
    """All sessions that are not over. One thread runs them; `add` and `sweep` exclude each other."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._sessions: list[Session] = []  # in the order in which they came
        self._turns = count()
        self._owners: dict[str, int] = {}  # of those that wait: when they had their last turn
        self._read: dict[Session, int] = {}  # of those that are read: when they had their last turn

    def having(self, *statuses: Status) -> list[Session]:
        return [one for one in self._sessions if one.status in statuses]

    @property
    def waiting(self) -> list[Session]:
        return self.having(Status.WAITING)

    @property
    def running(self) -> list[Session]:
        return self.having(Status.READING, Status.ANSWERING)

    @property
    def idle(self) -> bool:
        return all(one.status is Status.OVER for one in self._sessions)

    def add(self, sessions: Sequence[Session], seconds: int) -> None:
        """All sessions of a request, which are of one owner, or none.

        An owner may have so many requests waiting, and all together too; one who has none waiting may always add one.

        Args:
            seconds: after which a refused request may come again.

        Raises:
            Refusal: the request can never be held, or too many wait already.
        """
        for one in sessions:
            needed = one.width * one.served.bytes_for(len(one.prompt_ids) + one.most)
            if needed > self._limits.memory:
                raise never_fits(needed, self._limits.memory, len(one.prompt_ids), one.most)
            if one.width > self._limits.parallel:
                raise invalid(f"expected at most {self._limits.parallel} answers at once; got {one.width}.", "n")
        owner, waiting = sessions[0].owner, self.waiting
        own = len({one.id for one in waiting if one.owner == owner})
        free = max(0, self._limits.parallel - len(self.running))  # whoever gets a place need not wait
        if own >= self._limits.waiting + free or (own and len(waiting) >= self._limits.waiting_all + free):
            raise Refusal(
                429,
                f"expected a place in the queue; got {own} requests of this key that wait already, in a queue that is "
                f"full. Try again in {seconds} s.",
                "queue_full",
                retry_after=seconds,
            )
        if not own:
            self._owners[owner] = next(self._turns)
        self._sessions.extend(sessions)

    def join(self, branches: Sequence[Session]) -> None:
        """Answers that begin within a session that runs."""
        self._sessions.extend(branches)

    def sweep(self) -> None:
        """Drop those that are over."""
        self._sessions = [one for one in self._sessions if one.status is not Status.OVER]
        waiting = {one.owner for one in self.waiting}
        self._owners = {owner: turn for owner, turn in self._owners.items() if owner in waiting}
        self._read = {one: turn for one, turn in self._read.items() if one.status is Status.READING}

    # -- turns ---------------------------------------------------------------------------------------------------------

    @property
    def next(self) -> Session | None:
        """The first that waits of the owner whose last turn is longest ago, if there is a place for it."""
        found = min(self.waiting, key=lambda one: self._owners[one.owner], default=None)
        if found is None or sum(one.width for one in self.running) + found.width > self._limits.parallel:
            return None
        return found

    def missing(self, session: Session, resting: int) -> int | None:
        """Bytes that memories at rest have to make free for it; None if all of theirs would not do.

        Args:
            resting: bytes of those that may make room.
        """
        missing = sum(one.reserved for one in self.running) + resting + session.reserved - self._limits.memory
        return None if missing > resting else max(0, missing)

    def admit(self, session: Session) -> None:
        """It gets its place, and its owner's next turn comes after everyone else's."""
        session.status = Status.READING
        self._owners[session.owner] = self._read[session] = next(self._turns)

    def next_to_read(self) -> Session | None:
        """The one of which a chunk was read longest ago."""
        found = min(self.having(Status.READING), key=self._read.__getitem__, default=None)
        if found is not None:
            self._read[found] = next(self._turns)
        return found
