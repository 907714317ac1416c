"""Owners take turns, so do prompts; nobody gets in beyond the places and the bytes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from namm.serving.host import Limits
from namm.serving.refusals import Refusal
from namm.serving.scheduler import Scheduler
from namm.serving.session import Status


class Asked(SimpleNamespace):
    """All that a scheduler knows of a session."""

    __hash__ = object.__hash__


def asked(owner: str, ident: str = "", width: int = 1, needed: int = 1) -> Asked:
    served = SimpleNamespace(bytes_for=lambda tokens: needed)
    return Asked(
        owner=owner, id=f"{owner}{ident}", width=width, served=served, prompt_ids=[], most=0, reserved=needed * width,
        status=Status.WAITING,
    )  # fmt: skip


def filled(owners: str, **limits: int) -> Scheduler:
    scheduler = Scheduler(Limits(**limits))
    for number, owner in enumerate(owners):
        scheduler.add([asked(owner, str(number))], 1)
    return scheduler


def full(owners: str, **limits: int) -> Scheduler:
    """The only place is taken by somebody else."""
    scheduler = Scheduler(Limits(parallel=1, **limits))
    scheduler.add([asked("somebody")], 1)
    take(scheduler)
    for number, owner in enumerate(owners):
        scheduler.add([asked(owner, str(number))], 1)
    return scheduler


def take(scheduler: Scheduler) -> str:
    found = scheduler.next
    assert found is not None
    scheduler.admit(found)
    return found.owner


def order(scheduler: Scheduler) -> str:
    return "".join(take(scheduler) for _ in scheduler.waiting)


def test_owners_take_turns():
    assert order(filled("aaaaabbc")) == "abcabaaa"
    scheduler = filled("aaa", parallel=99)
    take(scheduler)
    scheduler.add([asked("b")], 1)
    take(scheduler)
    assert scheduler.next.owner == "b"


def test_the_first_of_an_owner_stays_first_until_it_is_taken():
    scheduler = filled("aab")
    first = scheduler.next
    scheduler.add([asked("c")], 1)
    assert scheduler.next is first
    first.status = Status.OVER
    scheduler.sweep()
    assert (scheduler.next.owner, len(scheduler.waiting)) == ("a", 3)
    assert order(scheduler) == "abc"


def test_limits_are_those_of_an_owner_and_of_all():
    scheduler = full("aa", waiting=2, waiting_all=3)
    with pytest.raises(Refusal, match="got 2 requests of this key"):
        scheduler.add([asked("a")], 7)
    scheduler.running[0].status = Status.OVER
    scheduler.add([asked("a", "2")], 7)  # one place is free
    scheduler.running.append(take(scheduler))
    scheduler.add([asked("b")], 7)  # who has none always may
    scheduler.add([asked("c")], 7)
    with pytest.raises(Refusal, match="got 1 requests of this key") as refused:
        scheduler.add([asked("b", "2")], 7)
    assert (refused.value.status, refused.value.retry_after) == (429, 7)
    assert len(scheduler.waiting) == 4


def test_a_queue_for_nobody():
    with pytest.raises(Refusal, match="place in the queue"):
        full("a", waiting=0)


def test_a_request_of_many_prompts_is_one_request():
    scheduler = full("", waiting=2, waiting_all=9)
    scheduler.add([asked("a") for _ in range(5)], 1)
    scheduler.add([asked("b")], 1)
    scheduler.add([asked("a", "again") for _ in range(2)], 1)
    with pytest.raises(Refusal, match="got 2 requests of this key"):
        scheduler.add([asked("a", "more")], 1)
    assert len(scheduler.waiting) == 8


def test_nobody_gets_in_beyond_the_places():
    scheduler = filled("ab", parallel=3)
    scheduler.add([asked("c", width=2)], 1)
    assert order(filled("ab", parallel=3)) == "ab"
    take(scheduler)
    take(scheduler)
    assert scheduler.next is None  # two answers, and one place
    scheduler.running[0].status = Status.OVER
    assert scheduler.next.owner == "c"
    with pytest.raises(Refusal, match="at most 3 answers at once; got 4"):
        scheduler.add([asked("d", width=4)], 1)


def test_what_is_missing_is_taken_from_memories_at_rest():
    scheduler = Scheduler(Limits(memory=100))
    one, other = asked("a", needed=60), asked("b", needed=40)
    scheduler.add([one], 1)
    scheduler.add([other], 1)
    assert [scheduler.missing(one, resting) for resting in (0, 40, 50, 100)] == [0, 0, 10, 60]
    scheduler.admit(one)
    assert [scheduler.missing(other, resting) for resting in (0, 5, 10, 40)] == [0, 5, 10, 40]
    other.reserved = 41
    assert scheduler.missing(other, 40) is None  # nothing at rest can make room for what runs
    with pytest.raises(Refusal, match="holds at most 100 bytes; got one that may hold 200"):
        scheduler.add([asked("c", width=2, needed=100)], 1)


def test_prompts_take_turns():
    scheduler = filled("abc")
    for _ in range(3):
        take(scheduler)
    read = [scheduler.next_to_read() for _ in range(4)]
    assert [one.owner for one in read] == ["a", "b", "c", "a"]
    read[1].status = Status.ANSWERING
    assert scheduler.next_to_read().owner == "c"
    assert scheduler.next_to_read().owner == "a"
    for one in read:
        one.status = Status.OVER
    scheduler.sweep()
    assert scheduler.next_to_read() is None
    assert scheduler.idle
