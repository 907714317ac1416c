"""Samples: reproducible, disjoint between splits, answerable."""

import pytest

import namm
from namm.tasks import SPLITS, encode, make_sample, novel, paragraphs


class Words:
    """A tokenizer of words, enough to build samples."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [len(word) for word in text.split()]


def test_novels_are_whole() -> None:
    books = [book for split in SPLITS.values() for book in split]
    assert len(books) == len(set(books)) == 5
    assert sum(len(novel(book).split()) for book in books) > 600_000
    assert "Walter Elliot" in novel("persuasion")
    assert all("\n" not in p for p in paragraphs("persuasion"))
    with pytest.raises(namm.NotFoundError, match="persuasion"):
        novel("persuation")


@pytest.mark.parametrize("task", ["passkey", "needle"])
def test_samples_are_reproducible_and_hold_their_answer(task: str) -> None:
    first = make_sample(task, "train", 3, 300, Words(), seed=5)
    assert first == make_sample(task, "train", 3, 300, Words(), seed=5)
    assert first.answer in first.prompt
    others = [
        make_sample(task, s, i, 300, Words(), seed=d) for s, i, d in (("train", 4, 5), ("test", 3, 5), ("train", 3, 6))
    ]
    assert len({first.answer, *(o.answer for o in others)}) == 4
    length = len(first.prompt.split())
    assert 150 < length < 400


def test_splits_share_no_text() -> None:
    def sentences(split: str) -> set[str]:
        prompts = [make_sample("passkey", split, i, 400, Words()).prompt for i in range(20)]
        return {s for p in prompts for s in p.split(". ") if len(s) > 60 and "pass key" not in s}

    train, validation, test = (sentences(split) for split in SPLITS)
    assert len(train) > 100
    assert not train & test
    assert not train & validation
    assert not validation & test


def test_unknown_names() -> None:
    with pytest.raises(namm.ConfigurationError, match="Did you mean 'passkey'"):
        make_sample("paskey", "train", 0, 100, Words())
    with pytest.raises(namm.ConfigurationError, match="train"):
        make_sample("passkey", "training", 0, 100, Words())


@pytest.mark.model
def test_a_bare_space_is_not_scored() -> None:
    _, tokenizer = namm.models.load_model()
    sample = make_sample("passkey", "train", 0, 200, tokenizer)
    prompt, answer = encode(sample, tokenizer)
    assert tokenizer.decode(answer) == sample.answer
    assert len(answer) == 5
    assert tokenizer.decode(prompt).endswith("The pass key is ")
