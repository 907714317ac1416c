"""The embedded suite: reproducible, disjoint between splits, as long as asked, answerable from the text."""

import re
from pathlib import Path

import pytest

import namm
from namm.tasks import SPLITS, Sample, encode, make_sample, novel, paragraphs
from namm.tasks.embedded import TASKS
from namm.tasks.registry import SUITES, find_tasks
from namm.tasks.text import modules
from tests.letters import letters


class SpacesAreNothing:
    """A tokenizer of letters that has no token for white space."""

    chat_template = None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(c) for c in text if not c.isspace()]

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


HIDDEN = [name for name in TASKS if name.startswith(("passkey", "niah"))]


def test_novels_are_whole() -> None:
    books = [book for split in SPLITS.values() for book in split]
    assert len(books) == len(set(books)) == 5
    assert sum(len(novel(book).split()) for book in books) > 600_000
    assert "Walter Elliot" in novel("persuasion")
    assert all("\n" not in p for p in paragraphs("persuasion"))
    with pytest.raises(namm.NotFoundError, match="persuasion"):
        novel("persuation")


@pytest.mark.parametrize("task", TASKS)
def test_samples_are_reproducible_and_as_long_as_asked(task: str) -> None:
    first = make_sample(task, "train", 3, 1200, letters(), seed=5)
    assert first == make_sample(task, "train", 3, 1200, letters(), seed=5)
    others = [
        make_sample(task, s, i, 1200, letters(), seed=d)
        for s, i, d in (("train", 4, 5), ("test", 3, 5), ("train", 3, 6))
    ]
    assert len({first.context, *(other.context for other in others)}) == 4
    assert len({first.id, *(other.id for other in others)}) == 4
    for sample in (first, *others):
        assert 600 < len(sample.context) <= 1200


@pytest.mark.parametrize("task", HIDDEN)
def test_every_answer_stands_once_in_the_text_under_its_name(task: str) -> None:
    for index in range(8):
        sample = make_sample(task, "test", index, 1500, letters())
        asked = sample.question.replace("and the", "of the")
        names = re.findall(r"of the (\w+)", asked)
        for answer in sample.answers:
            if names:
                found = re.findall(rf"The special \w+ of the (\w+) is {answer}\.", sample.context)
                assert len(found) == 1
                assert found[0] in names
            else:
                assert f"The pass key is {answer}. Remember it. {answer} is the pass key." in sample.context
        assert sample.gold.replace(" and ", ", ").split(", ") == list(sample.answers)
    assert len(sample.answers) == {"niah_multivalue": 3, "niah_multiquery": 2}.get(task, 1)


def test_hidden_facts_stand_anywhere_but_at_the_end() -> None:
    samples = [make_sample("passkey", "train", index, 1500, letters()) for index in range(60)]
    depths = [sample.context.index("The pass key is") / len(sample.context) for sample in samples]
    assert min(depths) < 0.1
    assert max(depths) > 0.75
    assert 0.3 < sum(depths) / len(depths) < 0.6
    assert not any(sample.context.endswith("is the pass key.") for sample in samples)


def test_a_variable_has_the_value_that_its_chain_gives_it() -> None:
    for index in range(8):
        sample = make_sample("vartrack", "test", index, 1500, letters())
        values: dict[str, str] = {}
        for name, value in re.findall(r"Let (\w+) be (?:equal to )?(\w+)\.", sample.context):
            values[name] = values.get(value, value)
        assert len(values) == 6
        asked = re.search(r"value of (\w+)\?", sample.question)
        assert asked is not None
        assert sample.answers == (values[asked[1]],)


def test_completions_go_on_as_the_text_does() -> None:
    book = " ".join(" ".join(paragraphs("persuasion")).split())
    for index in range(5):
        for task in ("character", "lm_prose"):
            sample = make_sample(task, "test", index, 900, letters())
            whole = " ".join(f"{sample.context} {sample.gold}".split())
            assert sample.completion
            assert whole in book or whole.replace(" ", "") in book.replace(" ", "")
        sample = make_sample("quote", "test", index, 900, letters())
        assert f"{sample.question.removeprefix(chr(10) * 2 + 'As was said above: ')} {sample.gold}" in sample.context


def test_a_character_was_named_before_but_not_lately() -> None:
    for index in range(8):
        sample = make_sample("character", "test", index, 1500, letters())
        last = sample.context.rindex(f" {sample.gold}")
        assert last < len(sample.context) * 0.7


def test_splits_share_no_text() -> None:
    def sentences(split: str) -> set[str]:
        contexts = [make_sample("passkey", split, i, 2000, letters()).context for i in range(20)]
        return {s for c in contexts for s in c.split(". ") if len(s) > 60 and "pass key" not in s}

    train, validation, test = (sentences(split) for split in SPLITS)
    assert len(train) > 100
    assert not train & test
    assert not train & validation
    assert not validation & test
    shares = [set(modules(split)) for split in SPLITS]
    assert all(len(share) > 30 for share in shares)
    assert not shares[0] & shares[1] | shares[0] & shares[2] | shares[1] & shares[2]


def test_unknown_names_and_lengths() -> None:
    with pytest.raises(namm.ConfigurationError, match="Did you mean 'passkey'"):
        make_sample("paskey", "train", 0, 300, letters())
    with pytest.raises(namm.ConfigurationError, match="train"):
        make_sample("passkey", "training", 0, 300, letters())
    with pytest.raises(namm.ConfigurationError, match="at least 256 tokens; got 100"):
        make_sample("passkey", "train", 0, 100, letters())


def test_tasks_are_found_by_name_suite_and_file(tmp_path: Path) -> None:
    assert [task.name for task in find_tasks(["niah_word", "embedded"])] == [
        "niah_word",
        *(name for name in TASKS if name != "niah_word"),
    ]
    assert {name: len(suite) for name, suite in SUITES.items()} == {
        "embedded": 11,
        "repository": 1,
        "ruler": 13,
        "kvpress-4096": 13,
        "kvpress-8192": 13,
        "kvpress-16384": 13,
        "longbench": 21,
        "infinitebench": 12,
        "choubun": 4,
    }
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.jsonl").touch()
    assert [task.name for task in find_tasks(["mine.jsonl", "passkey", "mine.jsonl"], tmp_path / "a")] == [
        "mine",
        "passkey",
    ]
    with pytest.raises(namm.ConfigurationError, match="files with a name each; got two tasks called 'mine'"):
        find_tasks(["a/mine.jsonl", "b/mine.jsonl"], tmp_path)
    with pytest.raises(namm.NotFoundError, match="Did you mean 'ruler/vt'"):
        find_tasks(["ruler/v"])


# -- tokens ----------------------------------------------------------------------------------------------------------

SAMPLE = Sample("own", "1", "Read this. A text.", "\n\nWhat is it?", ("a text",), reply="It is")


def test_a_sample_becomes_context_question_and_answer() -> None:
    chat = encode(SAMPLE, letters())
    assert chat.template == "chat"
    assert letters().decode(chat.context) == "<Read this. A text."
    assert letters().decode(chat.question) == "\n\nWhat is it?>:It is "  # the bare space is not scored
    assert letters().decode(chat.answer) == "a text"
    raw = encode(SAMPLE, letters(), "raw")
    assert letters().decode(raw.prompt) == "Read this. A text.\n\nWhat is it?It is "
    assert encode(SAMPLE, letters(chat=False)).template == "raw"
    with pytest.raises(namm.ConfigurationError, match="tokenizer with a chat template"):
        encode(SAMPLE, letters(chat=False), "chat")


def test_the_middle_of_a_prompt_that_is_too_long_is_removed() -> None:
    long = Sample("own", "2", "a" * 50 + "b" * 50, "question?", ("yes",), max_new_tokens=10)
    cut = encode(long, letters(), "raw", longest=50)
    assert letters().decode(cut.prompt) == "a" * 20 + "b" * 10 + "question? "
    assert cut.removed == len("question? ") + 100 - 40
    assert len(cut.question) == len("question? ")
    with pytest.raises(namm.ConfigurationError, match="fits into 12 tokens"):
        encode(long, letters(), "raw", longest=12)


def test_a_sample_needs_an_answer() -> None:
    for answers in ((), ("",)):
        with pytest.raises(namm.ConfigurationError, match="at least one answer"):
            Sample("own", "3", "text", "question", answers)
    with pytest.raises(namm.ConfigurationError, match="one answer, or a target"):
        Sample("own", "4", "text", "question", ("one", "two"))
    empty = Sample("own", "5", "text", "question", ("  ",))
    with pytest.raises(namm.ConfigurationError, match="an answer of at least one token"):
        encode(empty, SpacesAreNothing())


@pytest.mark.model
def test_a_bare_space_is_not_scored() -> None:
    _, tokenizer = namm.models.load_model()
    sample = make_sample("passkey", "train", 0, 300, tokenizer)
    encoded = encode(sample, tokenizer)
    assert tokenizer.decode(encoded.answer) == sample.gold
    assert len(encoded.answer) == 5
    assert tokenizer.decode(encoded.prompt).endswith("The pass key is ")
    assert tokenizer.decode(encoded.context).endswith(sample.context[-40:])
