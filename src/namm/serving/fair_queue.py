"""Where requests wait: a queue for each owner. Owners take turns, so nobody waits for another's hundred requests."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from namm.serving.refusals import full_queue

if TYPE_CHECKING:
    from namm.serving.job import Job


class FairQueue:
    """
    Args:
        each: requests of one owner that may wait.
        most: requests of all owners together; an owner who has none here may always add one.
    """

    def __init__(self, each: int, most: int) -> None:
        self._each, self._most, self._count = each, most, 0
        self._queues: OrderedDict[str, deque[Job]] = OrderedDict()  # next owner first; no queue is empty

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Job]:
        return (job for queue in self._queues.values() for job in queue)

    def add(self, jobs: Sequence[Job], free: int, seconds: int) -> None:
        """All jobs of a request, which are of one owner.

        Args:
            free: requests that need not wait, since places are free.
            seconds: after which a refused request may come again.

        Raises:
            Refusal: too many wait already.
        """
        owner = jobs[0].owner
        own = len({job.id for job in self._queues.get(owner, ())})
        if own >= self._each + free or (own and self._count >= self._most + free):
            raise full_queue(own, seconds)
        self._queues.setdefault(owner, deque()).extend(jobs)
        self._count += len(jobs)

    @property
    def next(self) -> Job | None:
        """Whose turn it is."""
        return next(iter(self), None)

    def take(self, job: Job) -> None:
        """It gets its place, and its owner's next turn comes after everyone else's."""
        self.remove(job)
        if job.owner in self._queues:
            self._queues.move_to_end(job.owner)

    def remove(self, job: Job) -> None:
        """It waits no more, if it did."""
        queue = self._queues.get(job.owner, deque())
        if job not in queue:
            return
        queue.remove(job)
        self._count -= 1
        if not queue:
            del self._queues[job.owner]
