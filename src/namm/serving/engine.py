"""The engine: one thread that reads prompts in chunks, answers all requests side by side, and keeps within its bytes.

The scheduler says who is next, the runner runs the model, sessions tell their clients. A request waits until what it
will hold at most fits, beside what others will hold; conversations at rest make room, least recently used first.
Prompts take turns chunk by chunk, and after each chunk the answers that are being written get as long as the chunk
took. So a long prompt makes nobody wait for more than two chunks of it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

from jaxtyping import Float
from torch import Tensor

from namm.errors import ArtefactError, NammError
from namm.memory.batch import can_join
from namm.memory.cache import MemoryCache
from namm.serving.conversations import Conversations, Match, Said, kept_tokens, rested
from namm.serving.fatal import end_process, is_fatal
from namm.serving.host import Host, Limits
from namm.serving.metrics import Metrics
from namm.serving.refusals import Refusal, draining, generation_failed, never_fits
from namm.serving.runner import Runner
from namm.serving.sampling import Sampler
from namm.serving.scheduler import Scheduler
from namm.serving.session import Session, Status

log = logging.getLogger("namm.serving")
Result = TypeVar("Result")


class Engine:
    """Runs the model of a host for many requests. All but `submit`, `call` and `close` happens in its own thread.

    Args:
        on_failure: called in that thread when it cannot go on, after everybody who waits was told. A supervisor can
            only start the process again if it ends.
    """

    def __init__(
        self,
        host: Host,
        limits: Limits,
        conversations: Conversations,
        metrics: Metrics,
        on_failure: Callable[[], None] = end_process,
    ) -> None:
        self.host, self.limits, self.conversations, self._metrics = host, limits, conversations, metrics
        self._scheduler, self._runner = Scheduler(limits), Runner(host.model, host.decoder)
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._on_failure = on_failure
        self._state: dict[str, int] = {}
        self._measured = 0.0
        self._stepped = time.monotonic()  # when the last step ended, or work came for an idle engine
        self._seconds = 1.0  # that a request takes, smoothed
        metrics.step_age.set_function(lambda: self.step_age)
        self._thread = threading.Thread(target=self._run, name="namm-engine", daemon=True)
        self._thread.start()

    # -- for other threads ---------------------------------------------------------------------------------------------

    def submit(self, sessions: Sequence[Session]) -> None:
        """All of these, or none: they are one request.

        Raises:
            Refusal: the request can never be held, the queue is full, or the server is shutting down.
        """
        with self._work_comes():
            self._scheduler.add(sessions, self.wait_seconds())

    def call(self, action: Callable[[], Result]) -> Future[Result]:
        """Have something done between two steps, with the conversations at rest."""
        done: Future[Result] = Future()
        with self._work_comes():
            self._calls.append((action, done))
        return done

    @contextmanager
    def _work_comes(self) -> Iterator[None]:
        with self._wake:
            if self._closing:
                raise draining()
            if self._idle():
                self._stepped = time.monotonic()
            yield
            self._wake.notify()

    def close(self, seconds: float = 30.0) -> bool:
        """Refuse what comes, finish what runs within `seconds`, put conversations to disk; True if all was done."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closing

    @property
    def step_age(self) -> float:
        """Seconds since a step ended, or since there is work if that is shorter; 0 while there is none."""
        return 0.0 if self._idle() else time.monotonic() - self._stepped

    @property
    def status(self) -> str:
        """ "ok"; "stalled" if a step takes too long; "unavailable" when it takes no requests."""
        if not self.alive:
            return "unavailable"
        return "ok" if self.step_age < self.limits.step_timeout else "stalled"

    def wait_seconds(self) -> int:
        """A guess of when a request may come again."""
        return max(1, min(60, round(self._seconds * (1 + len(self._scheduler.waiting) / self.limits.parallel))))

    def state(self) -> dict[str, float]:
        """Counts and bytes after the last step, and its age."""
        waiting, running = len(self._scheduler.waiting), len(self._scheduler.running)
        return self._state | {
            "waiting": waiting, "running": running, "step_age_seconds": round(self.step_age, 3)
        }  # fmt: skip

    # -- the loop ------------------------------------------------------------------------------------------------------

    def _idle(self) -> bool:
        return self._scheduler.idle and not self._calls

    def _run(self) -> None:
        done = False
        try:
            with self._runner.running():
                while self._waits_for_work():
                    self._serve_calls()
                    self._turn()
                self.conversations.close()
            done = True
        finally:
            if not done:
                self._give_up()

    def _give_up(self) -> None:
        """The loop itself failed: nobody waits for ever."""
        log.critical("the engine cannot go on", exc_info=True)
        try:
            with self._wake:
                self._closing = True
            for session in (*self._scheduler.waiting, *self._scheduler.running):
                session.fail(generation_failed(session.id))
            for _, done in self._calls:
                if done.running() or done.set_running_or_notify_cancel():
                    done.set_exception(draining())
            self.conversations.close(to_disk=False)
        finally:
            self._on_failure()

    def _waits_for_work(self) -> bool:
        """True as soon as there is some; False once all is done that came before closing."""
        with self._wake:
            while self._idle() and not self._closing:
                self._wake.wait()
            return not (self._idle() and self._closing)

    def _serve_calls(self) -> None:
        while self._calls:
            action, done = self._calls[0]
            if done.set_running_or_notify_cancel():  # else whoever asked is gone
                try:
                    done.set_result(action())
                except NammError as error:
                    done.set_exception(error)
            self._calls.popleft()
            self._stepped = time.monotonic()
        self._measure()

    def _turn(self) -> None:
        """One chunk of one prompt, and answers for as long as that took."""
        self._drop_cancelled()
        self._admit()
        started = time.monotonic()
        if (session := self._scheduler.next_to_read()) is not None:
            with self._guarded(session):
                self._read(session)
        now = time.monotonic()
        until = now + (now - started)
        while answering := self._scheduler.having(Status.ANSWERING):
            for group in _groups(answering):
                with self._guarded(*group):
                    self._answer(group)
            others = self._scheduler.having(Status.WAITING, Status.READING)
            if not others or time.monotonic() >= until:
                break
        with self._wake:
            self._scheduler.sweep()
        self._measure()

    @contextmanager
    def _guarded(self, *sessions: Session) -> Iterator[None]:
        """What fails must cost its own requests only, whatever it was: their memories are in no known state. A device
        that is lost is lost for all.
        """
        try:
            yield
        except Refusal as error:
            for session in sessions:
                session.fail(error)
        except Exception as error:
            if is_fatal(error, self.host.model.device):
                raise
            log.exception("a request failed", extra={"requests": [session.id for session in sessions]})
            for session in sessions:
                session.fail(generation_failed(session.id))
        self._stepped = time.monotonic()

    # -- who gets in ---------------------------------------------------------------------------------------------------

    def _drop_cancelled(self) -> None:
        """Clients that left free their memory."""
        for session in (*self._scheduler.waiting, *self._scheduler.running):
            if session.outbox.closed:
                session.cancel()
                self._metrics.cancelled.inc()

    def _admit(self) -> None:
        """In the order of the queue, as far as bytes and places reach."""
        while (session := self._scheduler.next) is not None:
            with self._guarded(session):
                if self._fits(session):
                    self._scheduler.admit(session)
                    self._begin(session)
                elif self._scheduler.running:
                    return
                else:  # nothing is in its way, and still it does not fit
                    raise never_fits(session.reserved, self.limits.memory, len(session.prompt_ids), session.most)

    def _fits(self, session: Session) -> bool:
        """Whether the most that it may hold is free beside those that run; conversations at rest make way."""
        if session.scored:
            session.match = Match(self.conversations.version, None, session.prompt_ids)
        else:
            session.match = self.conversations.match(
                session.match, session.owner, session.served.id, session.prompt, session.prompt_ids, session.chat
            )
        tokens = max(session.match.tokens, len(session.prompt_ids)) + session.most
        session.reserved = session.width * session.served.bytes_for(tokens)
        resting, found = self.conversations.bytes_held, session.match.found
        if found is not None:
            self.conversations.touch(found)  # the last to make room
            resting -= found.bytes_held if found.cache is not None else 0
        missing = self._scheduler.missing(session, resting)
        if missing:
            self.conversations.make_room(missing)
        return missing is not None

    def _begin(self, session: Session) -> None:
        """With the memory of the conversation that goes on, or a new one."""
        assert session.match is not None
        cache = self._taken(session, session.match)
        if cache is None:
            cache = self._runner.new_cache(session.served.plan)
        session.begin(cache, Sampler(self.host.model, session.sampling, len(session.prompt_ids)))

    def _taken(self, session: Session, match: Match) -> MemoryCache | None:
        """What a conversation holds, unless its file is damaged or gone."""
        if (found := match.found) is None:
            return None
        try:
            cache = self.conversations.take(found)
        except ArtefactError as error:  # the whole prompt is here: nothing is lost but time
            log.warning("a conversation is read anew", extra={"conversation": found.id, "error": str(error)})
            return None
        session.prompt_ids = [*found.said.ids, *match.new]
        session.reused, session.conversation = len(found.said.ids), found.id
        session.forgotten_before = session.reused - found.kept
        return cache

    # -- reading and answering -----------------------------------------------------------------------------------------

    def _read(self, session: Session) -> None:
        """The next chunk of a prompt; the last one gives the first token."""
        assert session.cache is not None
        chunk = session.next_chunk(self.limits.chunk)
        logits = self._runner.read(session.cache, chunk, session.scored)
        session.was_read(len(chunk), logits)
        self._metrics.read.inc(len(chunk))
        if session.unread:
            return
        for one in self._branched(session):
            one.status = Status.ANSWERING
            if one.most:
                self._write(one, logits[-1:])
            else:
                self._finish(one, "length")

    def _branched(self, session: Session) -> list[Session]:
        """All answers to a prompt that was read, each with a memory of its own."""
        assert session.cache is not None
        branches, session.branches = session.branches, ()
        session.reserved //= 1 + len(branches)
        forgotten = len(session.ids) - kept_tokens(session.cache)
        for one in branches:
            one.branch_off(session, Sampler(self.host.model, one.sampling, len(session.ids)), forgotten)
            one.reserved, one.status = session.reserved, Status.ANSWERING
        with self._wake:
            self._scheduler.join(branches)
        return [session, *branches]

    def _answer(self, sessions: list[Session]) -> None:
        """One more token for each of these."""
        caches = [session.cache for session in sessions if session.cache is not None]
        logits = self._runner.write(caches, [session.ids[-1] for session in sessions])
        for session, row in zip(sessions, logits, strict=True):
            session.wrote_was_read()
            with self._guarded(session):
                self._write(session, row[None])

    def _write(self, session: Session, logits: Float[Tensor, "1 vocabulary"]) -> None:
        """Choose a token, show its text, and see whether it was the last."""
        assert session.sampler is not None
        token = session.sampler.next(session.ids, logits)
        self._metrics.written.inc()
        if (reason := session.write(token, logits)) is not None:
            self._finish(session, reason)

    def _finish(self, session: Session, reason: str) -> None:
        """The conversation comes to rest before its client hears the end, and may go on at once."""
        cache, read = session.cache, session.read_ids
        assert cache is not None
        session.leave()
        shown = self.host.text_of(read[len(session.prompt_ids) :])
        session.close_text()
        said = Said(session.chat, session.prompt, shown, tuple(read))
        rest = rested(session.owner, session.served, said, cache, session.conversation)
        # not so if more was read than is shown, a long stop sequence; nor is what only evaluates a text a conversation
        goes_on = session.text.shown.startswith(shown) and not session.scored
        if goes_on:
            self.conversations.add(rest)
        session.complete(reason, rest, goes_on)
        self._metrics.finished(session)
        self._seconds += 0.2 * (session.seconds - self._seconds)

    def _measure(self) -> None:
        """Counts for other threads, twice a second while something runs."""
        now = time.monotonic()
        if now - self._measured < 0.5 and not self._idle():
            return
        self._measured = now
        running = self._scheduler.running
        self._state = {
            "running_bytes": sum(one.cache.memory().bytes_held for one in running if one.cache is not None),
            "reserved_bytes": sum(one.reserved for one in running),
            "conversations": len(self.conversations),
            "resting_bytes": self.conversations.bytes_held,
            "disk_bytes": self.conversations.bytes_on_disk,
            "limit_bytes": self.limits.memory,
        }
        self._metrics.gauge(self.state(), self.conversations)


def _groups(sessions: list[Session]) -> list[list[Session]]:
    """Answers that can be written in one batch: of the same memory, with nothing but memories as layers."""
    groups: dict[object, list[Session]] = {}
    for session in sessions:
        assert session.cache is not None
        groups.setdefault(session.served.id if can_join(session.cache) else session, []).append(session)
    return list(groups.values())
