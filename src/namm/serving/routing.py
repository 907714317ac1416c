"""Which replica a request goes to: the one that its conversation's key names, as long as that one is there.

Keys are spread by rendezvous hashing: each key has an order of all replicas, and Ray Serve tries them in that order.
When one is missing, its keys move and all others stay. Serve's interface for routers is alpha: its version is pinned.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

NUMBER = "number"  # of a replica, in its metadata; another one that takes its place has the same


def order(session: str, numbers: Iterable[int]) -> list[int]:
    """Replicas in the order in which they are asked.

    Args:
        session: a key, a slash, and how many of its first replicas come last, since they are known to have no place.
    """
    key, _, last = session.rpartition("/")
    first = sorted(numbers, key=lambda number: sha256(f"{number} {key}".encode()).digest(), reverse=True)
    turned = int(last or 0) % max(1, len(first))  # a request of no session goes to any
    return first[turned:] + first[:turned]


class ConversationRouter(RequestRouter):
    """Goes by `session_id` of a request's handle, see `order`. A replica that does not answer is passed over."""

    # a replica whose processors are busy may be slow to say how much it has to do, and must not lose its conversations
    queue_len_response_deadline_s = max_queue_len_response_deadline_s = 3.0

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True  # once all were tried
        found = {int(one.replica_metadata[NUMBER]): one for one in candidate_replicas}
        return [[found[number]] for number in order(pending_request.metadata.session_id, found)]
