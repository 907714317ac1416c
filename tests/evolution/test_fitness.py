"""Fitness of a memory on a language model."""

import pytest

import namm
from namm.evolution.fitness import Referenced, answer_nll, memory_nll, normalised, reference
from namm.tasks import Encoded, Sample
from tests.zoo import causal_model, ids


def test_fitness_is_between_its_references() -> None:
    model = causal_model("llama")
    made = Sample("t", "0", "context", "question", ("answer",))
    sample = Encoded(made, tuple(ids(1, 90)[0].tolist()), (), (5, 6), "raw")
    assert answer_nll(model, sample) == pytest.approx(memory_nll(model, sample, namm.NAMM.zeros(), None, 16), abs=1e-4)
    given = reference(model, sample, 16)
    assert given.full == answer_nll(model, sample)
    there = Referenced(sample, full=1.0, floor=3.0)
    assert [normalised(x, there) for x in (1.0, 2.0, 3.0, 4.0)] == [1.0, 0.5, 0.0, -0.5]
    assert normalised(7.0, Referenced(sample, 1.0, 1.0)) == 1.0
