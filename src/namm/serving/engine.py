"""The engine: one thread that reads prompts in chunks, answers all requests side by side, and keeps within its bytes.

A request waits until what it will hold at most fits, beside what others will hold; owners take turns; conversations at
rest make room, least recently used first. Prompts take turns chunk by chunk, and after each chunk the answers that are
being written get as long as the chunk took. So a long prompt makes nobody wait for more than two chunks of it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch

from namm.compat import passing
from namm.errors import ArtefactError, NammError
from namm.memory.batch import can_join, together
from namm.memory.cache import MemoryCache
from namm.memory.rehearsal import rehearsing
from namm.memory.routing import route, unroute
from namm.report.trace import Pieces, Recorder, end_event, pieces, start_event, token_event
from namm.serving.admission import Admission
from namm.serving.answer import Piece, Scored
from namm.serving.conversations import Conversation, Conversations, Said, kept_tokens, rested
from namm.serving.fair_queue import FairQueue
from namm.serving.fatal import end_process, is_fatal
from namm.serving.host import Host, Limits
from namm.serving.job import Job
from namm.serving.metrics import Metrics
from namm.serving.refusals import Refusal, draining, generation_failed, invalid, never_fits
from namm.serving.sampling import Sampler, scored

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
        self._queue = FairQueue(limits.waiting, limits.waiting_all)
        self._admission = Admission(host, limits, conversations)
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._jobs: set[Job] = set()  # admitted; each is in one of the two that follow
        self._reading: deque[Job] = deque()
        self._answering: list[Job] = []
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

    def submit(self, jobs: Sequence[Job]) -> None:
        """All of these, or none: they are one request.

        Raises:
            Refusal: the request can never be held, the queue is full, or the server is shutting down.
        """
        for job in jobs:
            needed = job.width * job.served.bytes_for(len(job.prompt_ids) + job.most)
            if needed > self.limits.memory:
                raise never_fits(needed, self.limits.memory, len(job.prompt_ids), job.most)
            if job.width > self.limits.parallel:
                raise invalid(f"expected at most {self.limits.parallel} answers at once; got {job.width}.", "n")
        with self._work_comes():
            self._queue.add(jobs, max(0, self.limits.parallel - len(self._jobs)), self.wait_seconds())

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
        return max(1, min(60, round(self._seconds * (1 + len(self._queue) / self.limits.parallel))))

    def state(self) -> dict[str, float]:
        """Counts and bytes after the last step, and its age."""
        now = {"waiting": len(self._queue), "running": len(self._jobs), "step_age_seconds": round(self.step_age, 3)}
        return self._state | now

    # -- the loop ------------------------------------------------------------------------------------------------------

    def _idle(self) -> bool:
        return not (self._queue or self._calls or self._jobs)

    def _run(self) -> None:
        done = False
        try:
            with ExitStack() as stack, torch.inference_mode():
                route(self.host.model.config)
                stack.callback(unroute, self.host.model.config)
                stack.enter_context(rehearsing(self.host.decoder))
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
            for job in (*self._queue, *self._jobs):
                self._fail(job, generation_failed(job.id))
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
        if self._reading:
            job = self._reading.popleft()
            with self._guarded(job):
                self._read(job)
        now = time.monotonic()
        until = now + (now - started)
        while self._answering:
            for group in self._groups():
                with self._guarded(*group):
                    self._answer(group)
            if not (self._reading or self._queue) or time.monotonic() >= until:
                break
        self._measure()

    @contextmanager
    def _guarded(self, *jobs: Job) -> Iterator[None]:
        """What fails must cost its own requests only, whatever it was: their memories are in no known state. A device
        that is lost is lost for all.
        """
        try:
            yield
        except Refusal as error:
            for job in jobs:
                self._fail(job, error)
        except Exception as error:
            if is_fatal(error, self.host.model.device):
                raise
            log.exception("a request failed", extra={"requests": [job.id for job in jobs]})
            for job in jobs:
                self._fail(job, generation_failed(job.id))
        self._stepped = time.monotonic()

    def _fail(self, job: Job, reason: Refusal) -> None:
        self._leave(job)
        job.failed = reason
        job.streamer.fail(reason)

    # -- who gets in ---------------------------------------------------------------------------------------------------

    def _drop_cancelled(self) -> None:
        """Clients that left free their memory."""
        with self._wake:
            gone = [job for job in (*self._queue, *self._jobs) if job.streamer.cancelled]
        for job in gone:
            self._leave(job)
            job.finish = "cancelled"
            job.streamer.end()
        if gone:
            self._metrics.cancelled.inc(len(gone))

    def _admit(self) -> None:
        """In the order of the queue, as far as bytes and places reach."""
        while (job := self._queue.next) is not None:
            if sum(one.width for one in self._jobs) + job.width > self.limits.parallel:
                return
            with self._guarded(job):
                if self._admission.fits(job, self._jobs):
                    with self._wake:
                        self._queue.take(job)
                        self._jobs.add(job)
                    self._begin(job)
                elif self._jobs:
                    return
                else:  # nothing is in its way, and still it does not fit
                    self._fail(job, never_fits(job.reserved, self.limits.memory, len(job.prompt_ids), job.most))

    def _begin(self, job: Job) -> None:
        """A new memory, or the one of the conversation that goes on."""
        job.began = time.monotonic()
        if job.match is not None and job.match.found is not None:
            self._go_on(job, job.match.found, job.match.new)
        job.match = None
        if job.cache is None:
            job.cache = MemoryCache.planned(self.host.model.config, (job.served.plan,))
        job.ids, job.unread = list(job.prompt_ids), len(job.prompt_ids) - job.reused
        job.sampler = Sampler(self.host.model, job.sampling, len(job.ids))
        if job.echo:
            first = (Scored(job.ids[0], None),) if job.scored else ()
            job.streamer.text(Piece(job.prompt, first))
        if job.watch:
            job.recorder = Recorder(job.cache)
            job.written = Pieces(self.host.tokenizer)
            job.streamer.event(
                start_event(
                    job.cache, self.host.shape, model=self.host.name, memory=job.served.memory, rule=job.served.rule,
                    interval=job.served.plan.update_interval, tokens=pieces(self.host.tokenizer, job.ids),
                )
            )  # fmt: skip
        self._reading.append(job)

    def _go_on(self, job: Job, found: Conversation, new: list[int]) -> None:
        """Take up what a conversation holds, unless its file is damaged or gone."""
        try:
            job.cache = self.conversations.take(found)
        except ArtefactError as error:  # the whole prompt is here: nothing is lost but time
            log.warning("a conversation is read anew", extra={"conversation": found.id, "error": str(error)})
            return
        job.prompt_ids = [*found.said.ids, *new]
        job.reused, job.conversation = len(found.said.ids), found.id
        job.forgotten_before = job.reused - found.kept

    # -- reading and answering -----------------------------------------------------------------------------------------

    def _read(self, job: Job) -> None:
        """The next chunk of a prompt, no further than the next update; the last one gives the first token."""
        assert job.cache is not None
        seen = len(job.ids) - job.unread
        due = job.served.plan.next_update(seen)
        count = min(self.limits.chunk, job.unread, job.unread if due is None else due - seen)
        chunk = torch.tensor([job.ids[seen : seen + count]], device=self.host.model.device)
        kept = count if job.scored else 1
        logits = self.host.model(chunk, **passing(self.host.model, job.cache), logits_to_keep=kept).logits
        if job.scored:
            following = job.ids[seen + 1 : seen + 1 + count]
            tokens = scored(logits[0, : len(following)], following, job.likeliest or 0)
            job.streamer.text(Piece("", tuple(tokens)))
        job.unread -= count
        self._metrics.read.inc(count)
        self._note(job, reading=True)
        if job.unread:
            self._reading.append(job)
            return
        for one in self._branched(job):
            self._answering.append(one)
            if one.most:
                self._write(one, logits[:, -1])
            else:
                self._finish(one, "length")

    def _branched(self, job: Job) -> list[Job]:
        """All answers to a prompt that was read, each with a memory of its own."""
        assert job.cache is not None
        jobs = [job, *job.branches]
        forgotten = len(job.ids) - kept_tokens(job.cache)
        for one in job.branches:
            one.cache, one.prompt_ids, one.ids = job.cache.fork(), job.prompt_ids, list(job.ids)
            one.sampler = Sampler(self.host.model, one.sampling, len(one.ids))
            one.began, one.forgotten_before = job.began, forgotten
        job.branches, job.reserved = (), job.reserved // len(jobs)
        for one in jobs:
            one.reserved = job.reserved
        with self._wake:
            self._jobs.update(jobs)
        return jobs

    def _groups(self) -> list[list[Job]]:
        """Answers that can be written in one batch: of the same memory, with nothing but memories as layers."""
        groups: dict[object, list[Job]] = {}
        for job in self._answering:
            assert job.cache is not None
            groups.setdefault(job.served.id if can_join(job.cache) else job, []).append(job)
        return list(groups.values())

    def _answer(self, jobs: list[Job]) -> None:
        """One more token for each of these."""
        device = self.host.model.device
        caches = [job.cache for job in jobs if job.cache is not None]
        tokens = torch.tensor([[job.ids[-1]] for job in jobs], device=device)
        if len(jobs) == 1:
            logits = self.host.model(tokens, **passing(self.host.model, caches[0])).logits[:, -1]
        else:
            places = torch.tensor([[cache.get_seq_length()] for cache in caches], device=device)
            with together(caches) as batch:
                logits = self.host.model(tokens, **passing(self.host.model, batch), position_ids=places).logits[:, -1]
        for job, row in zip(jobs, logits, strict=True):
            job.unread = 0
            self._note(job, reading=False)
            with self._guarded(job):
                self._write(job, row[None])

    def _write(self, job: Job, logits: torch.Tensor) -> None:
        """Choose a token, show its text, and see whether it was the last."""
        assert job.sampler is not None
        token = job.sampler.next(job.ids, logits)
        job.ids.append(token)
        job.unread = 1
        job.first = job.first or time.monotonic()
        self._metrics.written.inc()
        if job.written is not None:
            job.streamer.event(token_event([job.written.next(token)]))
        told = None if job.likeliest is None else scored(logits, [token], job.likeliest)[0]
        job.streamer.text(job.text.add(token, told))
        if job.sampler.ends(token) or job.text.stopped:
            self._finish(job, "stop")
        elif len(job.answer_ids) >= job.most:
            self._finish(job, "length")

    def _note(self, job: Job, reading: bool) -> None:
        """Show what became of a memory; while it answers, only what was forgotten."""
        if job.recorder is not None and job.cache is not None:
            event = job.recorder.after(job.cache)
            if reading or event["type"] == "update":
                job.streamer.event(event)

    def _finish(self, job: Job, reason: str) -> None:
        """The conversation comes to rest before its client hears the end, and may go on at once."""
        cache, read = job.cache, job.read_ids
        assert cache is not None
        self._leave(job)
        job.finish = reason
        shown = self.host.text_of(read[len(job.prompt_ids) :])
        job.streamer.text(job.text.close())
        said = Said(job.chat, job.prompt, shown, tuple(read))
        rest = rested(job.owner, job.served, said, cache, job.conversation)
        job.kept, job.bytes_held, job.bytes_full = rest.kept, rest.bytes_held, rest.bytes_full
        # not so if more was read than is shown, a long stop sequence; nor is what only evaluates a text a conversation
        goes_on = job.text.shown.startswith(shown) and not job.scored
        job.conversation = rest.id if goes_on else None
        if goes_on:
            self.conversations.add(rest)
        job.ended = time.monotonic()
        job.first = job.first or job.ended
        self._seconds += 0.2 * (job.ended - (job.began or job.ended) - self._seconds)
        self._metrics.finished(job)
        if job.watch:
            job.streamer.event(end_event(cache))
        job.streamer.end()

    def _leave(self, job: Job) -> None:
        """The job runs no more; what it held is free unless it comes to rest."""
        job.cache = job.match = None
        with self._wake:
            self._queue.remove(job)
            self._jobs.discard(job)
        if job in self._reading:
            self._reading.remove(job)
        if job in self._answering:
            self._answering.remove(job)

    def _measure(self) -> None:
        """Counts for other threads, twice a second while something runs."""
        now = time.monotonic()
        if now - self._measured < 0.5 and not self._idle():
            return
        self._measured = now
        held = [job.cache.memory().bytes_held for job in self._jobs if job.cache is not None]
        self._state = {
            "running_bytes": sum(held),
            "reserved_bytes": sum(job.reserved for job in self._jobs),
            "conversations": len(self.conversations),
            "resting_bytes": self.conversations.bytes_held,
            "disk_bytes": self.conversations.bytes_on_disk,
            "limit_bytes": self.limits.memory,
        }
        self._metrics.gauge(self.state(), self.conversations)
