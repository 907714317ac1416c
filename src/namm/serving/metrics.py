"""What a server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.registry import Collector

from namm.serving.conversations import Conversations
from namm.serving.session import Session

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_SPEEDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class Collected(Collector):
    """Meters that were read already."""

    def __init__(self, found: list[Metric]) -> None:
        self._found = found

    def collect(self) -> Iterator[Metric]:
        return iter(self._found)


class Metrics:
    """The meters of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"namm_{name}", what, labels, registry=registry)

        def gauge(name: str, what: str, *labels: str) -> Gauge:
            return Gauge(f"namm_{name}", what, labels, registry=registry)

        self.read = counter("tokens_read", "Tokens of prompts that the model read")
        self.reused = counter("tokens_reused", "Tokens of prompts that a conversation remembered")
        self.written = counter("tokens_written", "Tokens of answers")
        self.forgotten = counter("tokens_forgotten", "Tokens forgotten by finished requests, as a mean over heads")
        self.cancelled = counter("requests_cancelled", "Requests whose client left")
        self.first = Histogram(
            "namm_time_to_first_token_seconds", "From the request's arrival", buckets=_SECONDS, registry=registry
        )
        self.speed = Histogram(
            "namm_answer_tokens_per_second", "Of each answer, after its first token", buckets=_SPEEDS, registry=registry
        )
        self._bytes = gauge("bytes_held", "Bytes of memories", "where")
        self._reserved = gauge("bytes_reserved", "The most that running requests may come to hold")
        self._limit = gauge("bytes_limit", "Bytes that all memories may hold")
        self._waiting = gauge("requests_waiting", "Requests in the queue")
        self._running = gauge("requests_running", "Requests that are read or answered")
        self._resting = gauge("conversations", "Conversations that can go on without being read again")
        self._kept = gauge("tokens_kept", "Tokens held by conversations at rest, as a mean over heads")
        self.step_age = gauge("step_age_seconds", "Since a step of the engine ended while there is work, else 0")
        self._moved = gauge(
            "conversations_moved", "Conversations that made room, came back, or failed to reach the disk, so far", "how"
        )

    def finished(self, session: Session) -> None:
        """An answer is complete."""
        assert session.first is not None
        assert session.ended is not None
        self.reused.inc(session.reused)
        self.forgotten.inc(max(0.0, len(session.read_ids) - session.kept - session.forgotten_before))
        self.first.observe(session.first - session.came)
        after = len(session.answer_ids) - 1
        if after > 0 and session.ended > session.first:
            self.speed.observe(after / (session.ended - session.first))

    def gauge(self, state: dict[str, float], conversations: Conversations) -> None:
        """What is held now."""
        self._bytes.labels("running").set(state["running_bytes"])
        self._bytes.labels("resting").set(state["resting_bytes"])
        self._bytes.labels("disk").set(state["disk_bytes"])
        self._reserved.set(state["reserved_bytes"])
        self._limit.set(state["limit_bytes"])
        self._waiting.set(state["waiting"])
        self._running.set(state["running"])
        self._resting.set(state["conversations"])
        self._kept.set(conversations.kept)
        for how, count in (
            ("dropped", conversations.dropped),
            ("failed", conversations.failed),
            ("spilled", conversations.spilled),
            ("returned", conversations.returned),
        ):
            self._moved.labels(how).set(count)
