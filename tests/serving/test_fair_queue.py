"""Each owner has a queue, and they take turns."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from namm.serving.fair_queue import FairQueue
from namm.serving.refusals import Refusal


def job(owner: str, ident: str = "") -> SimpleNamespace:
    return SimpleNamespace(owner=owner, id=f"{owner}{ident}")


def filled(each: int, most: int, owners: str) -> FairQueue:
    queue = FairQueue(each, most)
    for number, owner in enumerate(owners):
        queue.add([job(owner, str(number))], 0, 1)
    return queue


def order(queue: FairQueue) -> str:
    taken = []
    while (job := queue.next) is not None:
        queue.take(job)
        taken.append(job.owner)
    return "".join(taken)


def test_owners_take_turns():
    assert order(filled(9, 99, "aaaaabbc")) == "abcabaaa"
    queue = filled(9, 99, "aaa")
    queue.take(queue.next)
    queue.add([job("b")], 0, 1)
    queue.take(queue.next)
    assert queue.next.owner == "b"


def test_the_first_of_an_owner_stays_first_until_it_is_taken():
    queue = filled(9, 99, "aab")
    first = queue.next
    queue.add([job("c")], 0, 1)
    assert queue.next is first
    queue.remove(first)
    assert (queue.next.owner, len(queue)) == ("a", 3)
    queue.remove(first)  # once is enough
    assert len(queue) == 3
    assert order(queue) == "abc"


def test_limits_are_those_of_an_owner_and_of_all():
    queue = filled(2, 3, "aa")
    with pytest.raises(Refusal, match="got 2 requests of this key"):
        queue.add([job("a")], 0, 7)
    queue.add([job("a")], 1, 7)  # one place is free
    queue.add([job("b")], 0, 7)  # who has none always may
    with pytest.raises(Refusal, match="got 1 requests of this key") as refused:
        queue.add([job("b")], 0, 7)
    assert (refused.value.status, refused.value.retry_after) == (429, 7)
    assert len(queue) == len(list(queue)) == 4


def test_a_queue_for_nobody():
    with pytest.raises(Refusal, match="place in the queue"):
        filled(0, 9, "a")


def test_a_request_of_many_prompts_is_one_request():
    queue = FairQueue(2, 9)
    queue.add([job("a")] * 5, 0, 1)
    queue.add([job("b")], 0, 1)
    queue.add([job("a", "again")] * 2, 0, 1)
    with pytest.raises(Refusal, match="got 2 requests of this key"):
        queue.add([job("a", "more")], 0, 1)
    assert len(queue) == 8
    assert order(queue) == "abaaaaaa"
