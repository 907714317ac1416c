"""RULER: every answer is worked out again from the text, and prompts have the length that was asked for."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from platformdirs import user_cache_path
from transformers import AutoTokenizer

import namm
from namm.defaults import DEFAULT_MODEL
from namm.tasks.base import Request, Sample
from namm.tasks.ruler import TASKS
from namm.tasks.text import novel

NIAH = [name for name in TASKS if "/niah" in name]
PROSE = [name for name in NIAH if name not in ("ruler/niah_single_1", "ruler/niah_multikey_2", "ruler/niah_multikey_3")]
MADE = [*NIAH, "ruler/vt", "ruler/cwe", "ruler/fwe"]
UUID = r"[\da-f]{8}(-[\da-f]{4}){3}-[\da-f]{12}"
NEEDLE = re.compile(r"One of the special magic (numbers|uuids) for ([\w-]+) is: ([\w-]+)\.")
SQUAD, HOTPOT = "ruler/qa_1", "ruler/qa_2"


class Words:
    """A tokenizer of words and signs that counts how often it was asked."""

    asked = 0

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        self.asked += 1
        return [len(word) for word in re.findall(r"\w+|[^\w\s]", text)]


def samples(name: str, **options: object) -> list[Sample]:
    request = Request(**{"tokenizer": Words(), "tokens": 1000, "count": 4} | options)
    return list(TASKS[name].samples(request))


def prompt(sample: Sample) -> str:
    return sample.context + sample.question + sample.reply


def length(sample: Sample) -> int:
    return len(Words().encode(prompt(sample)))


def needles(sample: Sample) -> list[tuple[str, str]]:
    return [(key, value) for _, key, value in NEEDLE.findall(sample.context)]


def squashed(text: str) -> str:
    return " ".join(text.split())


def test_the_thirteen_tasks() -> None:
    assert list(TASKS) == [
        *(f"ruler/niah_{kind}" for kind in ("single_1", "single_2", "single_3")),
        *(f"ruler/niah_{kind}" for kind in ("multikey_1", "multikey_2", "multikey_3", "multivalue", "multiquery")),
        *("ruler/vt", "ruler/cwe", "ruler/fwe", "ruler/qa_1", "ruler/qa_2"),
    ]
    assert all(task.generated and task.name == name and task.description for name, task in TASKS.items())
    assert {name: samples(name)[0].max_new_tokens for name in MADE} == dict.fromkeys(NIAH, 128) | {
        "ruler/vt": 30, "ruler/cwe": 120, "ruler/fwe": 50,
    }  # fmt: skip
    assert {samples(name)[0].metric for name in MADE} == {"string_match_all"}


@pytest.mark.parametrize("tokens", [800, 3000, 4096, 10000])
@pytest.mark.parametrize("name", MADE)
def test_prompts_are_as_long_as_they_may_be(name: str, tokens: int) -> None:
    lengths = [length(sample) for sample in samples(name, tokens=tokens)]
    assert max(lengths) <= tokens
    assert min(lengths) > tokens - (200 if name in PROSE else 45)  # a long sentence; a piece


@pytest.mark.parametrize("name", MADE)
def test_length_is_found_in_few_steps(name: str) -> None:
    tokenizer = Words()
    samples(name, tokens=32000, count=1, tokenizer=tokenizer)
    assert tokenizer.asked <= 13


@pytest.mark.model
@pytest.mark.parametrize("name", MADE)
def test_lengths_are_those_of_the_tokenizer(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(user_cache_path("namm") / "models" / DEFAULT_MODEL)
    for tokens in (1024, 5000):
        for sample in samples(name, tokens=tokens, tokenizer=tokenizer):
            assert tokens - 300 < len(tokenizer.encode(prompt(sample))) <= tokens


@pytest.mark.parametrize("name", MADE)
def test_samples_are_reproducible(name: str) -> None:
    first = samples(name, split="train", seed=5)
    assert first == samples(name, split="train", seed=5)
    assert first[:2] == samples(name, split="train", seed=5, count=2)
    others = [*samples(name, split="test", seed=5), *samples(name, split="train", seed=6), *first]
    assert len({sample.answers for sample in others}) == len({sample.id for sample in others}) == 12


def test_there_are_500_without_a_count() -> None:
    assert len(samples("ruler/niah_single_1", count=None, tokens=200)) == 500


@pytest.mark.parametrize("name", NIAH)
def test_facts_are_the_same_at_every_length(name: str) -> None:
    for short, long in zip(samples(name), samples(name, tokens=2000), strict=True):
        assert (short.question, short.answers) == (long.question, long.answers)
        assert short.id != long.id


@pytest.mark.parametrize(
    ("kind", "count", "keys", "values", "key", "value"),
    [
        ("single_1", 1, 1, 1, r"\w+-\w+", r"\d{7}"),
        ("single_2", 1, 1, 1, r"\w+-\w+", r"\d{7}"),
        ("single_3", 1, 1, 1, r"\w+-\w+", UUID),
        ("multikey_1", 4, 1, 1, r"\w+-\w+", r"\d{7}"),
        ("multikey_2", None, 1, 1, r"\w+-\w+", r"\d{7}"),
        ("multikey_3", None, 1, 1, UUID, UUID),
        ("multivalue", 4, 1, 4, r"\w+-\w+", r"\d{7}"),
        ("multiquery", 4, 4, 1, r"\w+-\w+", r"\d{7}"),
    ],
)  # fmt: skip
def test_needles(kind: str, count: int | None, keys: int, values: int, key: str, value: str) -> None:
    for sample in samples(f"ruler/niah_{kind}"):
        found = needles(sample)
        assert len(found) == (count or len(sample.context.split("\n")) - 1)
        assert all(re.fullmatch(key, k) and re.fullmatch(value, v) for k, v in found)
        assert len({v for _, v in found}) == len(found)
        assert len({k for k, _ in found}) == len(found) // values
        asked = re.search(r"for (.*) mentioned", sample.question).group(1).replace("and ", "").split(", ")  # type: ignore[union-attr]
        assert len(asked) == keys
        held = [{v for k, v in found if k == name} for name in asked]
        given = [set(sample.answers[i : i + values]) for i in range(0, len(sample.answers), values)]
        assert held == given
        assert sample.target == ", ".join(sample.answers)


def test_the_target_is_written_as_the_example_before_it() -> None:
    (tracked,) = samples("ruler/vt", tokens=2000, count=1)
    assert tracked.target.split() == list(tracked.answers)
    (counted,) = samples("ruler/cwe", tokens=2000, count=1)
    assert re.findall(r"\d+\. (\w+)", counted.target) == list(counted.answers)
    assert counted.target.startswith("1. ")


def test_keys_among_many_are_distinct() -> None:
    found = needles(samples("ruler/niah_multikey_2", tokens=60000, count=1)[0])
    assert len(found) == len({key for key, _ in found}) == len({value for _, value in found}) > 3000


def test_wording_of_needles() -> None:
    one, many = samples("ruler/niah_single_3")[0], samples("ruler/niah_multiquery")[0]
    key = needles(one)[0][0]
    assert one.context.startswith(
        "A special magic uuid is hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the uuid afterwards.\n"
    )
    assert one.question == f"\nWhat is the special magic uuid for {key} mentioned in the provided text?"
    assert one.reply == f" The special magic uuid for {key} mentioned in the provided text is"
    assert many.context.startswith("Some special magic numbers are hidden within the following text. Make sure")
    assert re.fullmatch(
        r"\nWhat are all the special magic numbers for \S+, \S+, \S+, and \S+ mentioned in the provided text\?",
        many.question,
    )
    assert many.reply.endswith("mentioned in the provided text are")


@pytest.mark.parametrize("name", NIAH)
def test_needles_lie_at_all_depths(name: str) -> None:
    depths = []
    for sample in samples(name, count=40, tokens=600):
        text = sample.context.split("afterwards.\n", 1)[1]
        depths += [text.index(f" is: {answer}.") / len(text) for answer in sample.answers]
    assert min(depths) < 0.15
    assert max(depths) > 0.85
    assert 0.35 < sum(depths) / len(depths) < 0.65


def test_lines_of_noise_hold_nothing_else() -> None:
    lines = Counter(NEEDLE.sub("needle", samples("ruler/niah_single_1")[0].context).split("\n")[1:])
    noise = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
    assert lines.keys() == {"needle", noise}
    assert lines["needle"] == 1


@pytest.mark.parametrize("name", PROSE)
def test_prose_is_the_novel_of_the_split(name: str) -> None:
    persuasion = squashed(novel("persuasion"))
    for split, inside in (("test", True), ("train", False), ("validation", False)):
        for sample in samples(name, split=split, count=8):
            text = sample.context.split("afterwards.\n", 1)[1]
            pieces = [piece.strip() for piece in NEEDLE.sub("|", text).replace("numbers", "").split("|")]
            found = [piece[:60] in persuasion for piece in pieces if len(piece) > 60]
            assert found
            assert set(found) == {inside}


def test_prose_starts_anew_where_it_ends(tmp_path: Path) -> None:
    essays = "Write well.  Do it\nnow. Do it often!"
    (tmp_path / "PaulGrahamEssays.json").write_text(json.dumps({"text": essays}))
    for sample in samples("ruler/niah_multikey_1", data=tmp_path):
        text = squashed(NEEDLE.sub("", sample.context.split("afterwards.\n", 1)[1]))
        whole = f"{squashed(essays)} " * 300
        assert whole.startswith(text)
        assert text[-1] in ".!"
        assert len(text) > 5 * len(essays)
        assert sample.id.endswith("-essays")
    assert not any("Write well" in s.context for s in samples("ruler/niah_multikey_1", data=tmp_path, split="train"))
    assert not any("Write well" in s.context for s in samples("ruler/niah_single_1", data=tmp_path))


@pytest.mark.parametrize("text", ["not json", "[1]", '{"essay": "a"}', '{"text": 3}', '{"text": " "}'])
def test_malformed_essays(tmp_path: Path, text: str) -> None:
    (tmp_path / "PaulGrahamEssays.json").write_text(text)
    with pytest.raises(
        namm.ConfigurationError, match=r"RULER's essays.*got .*PaulGrahamEssays.json.*Make the file with"
    ):
        samples("ruler/niah_single_2", data=tmp_path)


def interpret(text: str) -> dict[str, str]:
    """Runs assignments in the order in which they stand; a variable must have a value before it is copied."""
    values: dict[str, str] = {}
    for name, copied, value in re.findall(r"VAR ([A-Z]+) = (VAR )?(\w+)", text):
        assert name not in values
        values[name] = values[value] if copied else value
    return values


@pytest.mark.parametrize("tokens", [1000, 5000])
def test_chains_resolve(tokens: int) -> None:
    for sample in samples("ruler/vt", tokens=tokens, count=8):
        example, text = sample.context.split("\n\n\n\n")
        values = interpret(text)
        query = re.search(r"assigned the value (\d{5}) in the text above\.$", sample.question).group(1)  # type: ignore[union-attr]
        assert tuple(name for name, value in values.items() if value == query) == sample.answers
        assert len(sample.answers) == 5 == len(values)
        assert all(re.fullmatch("[A-Z]{5}", name) for name in sample.answers)
        assert sample.reply.endswith(f"above, 5 variables are assigned the value {query}, they are: ")
        body, shown = example.split("\nQuestion: Find all")
        values = interpret(body)
        assert shown.endswith(f"they are:  {' '.join(values)}")
        assert set(values.values()) == set(re.findall(r"\d{5}", shown)) != {query}
        assert text.count("The grass is green.") > (20 if tokens == 1000 else 150)


def listed(text: str) -> Counter[str]:
    entries = re.findall(r"(\d+)\. (\w+)", text)
    assert [int(number) for number, _ in entries] == list(range(1, len(entries) + 1))
    return Counter(word for _, word in entries)


@pytest.mark.parametrize(
    ("tokens", "shown", "asked"), [(3000, {3: 10, 1: 10}, (6, 1)), (5000, {10: 10, 3: 30}, (30, 3))]
)
def test_common_words_are_counted(tokens: int, shown: dict[int, int], asked: tuple[int, int]) -> None:
    for sample in samples("ruler/cwe", tokens=tokens):
        example, text = (part.split("\n", 1)[1] for part in sample.context.split("Below is a numbered list")[1:])
        counts = listed(text)
        top = counts.most_common(10)
        assert {word for word, _ in top} == set(sample.answers)
        assert len(sample.answers) == 10
        assert set(counts.values()) == set(asked)
        body, answer = example.split("\nQuestion: What are the 10 most common words in the above list? Answer:")
        assert Counter(listed(body).values()) == shown
        assert listed(answer.split(":", 1)[1]).keys() == {word for word, _ in listed(body).most_common(10)}


@pytest.mark.parametrize("tokens", [280, 400, 1000, 5000])
def test_frequent_words_are_counted(tokens: int) -> None:
    for sample in samples("ruler/fwe", tokens=tokens, count=20):
        text = sample.context.split("Find the three most frequently appeared coded words. ")[1]
        ranks = Counter(text.split()).most_common()
        assert ranks[0][0] == "..."
        assert tuple(word for word, _ in ranks[1:4]) == sample.answers
        assert ranks[1][1] > ranks[2][1] > ranks[3][1] > ranks[4][1]
        assert all(re.fullmatch("[a-z]{6}", word) for word in sample.answers)
        assert {"..."} < set(text.split()[:30])  # shuffled
        assert {"..."} < set(text.split()[-30:])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Both files, in the official layout: 5 articles of 6 paragraphs; 12 questions of 3 documents."""
    articles = [
        {
            "title": f"A{a}",
            "paragraphs": [
                {
                    "context": f"Article {a} part {p}: the number is {a}{p}{a}{p}. " + "It goes on so. " * 5,
                    "qas": [
                        {"question": f"Of {a}-{p}?", "is_impossible": False, "answers": [{"text": f"{a}{p}" * 2}] * 3},
                        {"question": f"Not {a}-{p}?", "is_impossible": True, "answers": [], "plausible_answers": []},
                    ],
                }
                for p in range(6)
            ],
        }
        for a in range(5)
    ]  # fmt: skip
    entries = [
        {
            "question": f"Who is {q}?", "answer": f"Person {q}", "supporting_facts": [],
            "context": [[f"Page {q}-{d}", [f"Person {q} is here.", f" Number {d}."]] for d in range(3)],
        }
        for q in range(12)
    ]  # fmt: skip
    (tmp_path / "squad.json").write_text(json.dumps({"version": "v2.0", "data": articles}))
    (tmp_path / "hotpotqa.json").write_text(json.dumps(entries))
    return tmp_path


def documents(sample: Sample) -> list[str]:
    text = sample.context.split("The following are given documents.\n\n", 1)[1]
    parts = re.split(r"(?:^|\n\n)Document (\d+):\n", text)
    assert [int(number) for number in parts[1::2]] == list(range(1, len(parts) // 2 + 1))
    return parts[2::2]


def test_questions_of_squad(data: Path) -> None:
    made = samples(SQUAD, data=data, count=None, tokens=500)
    assert [sample.question.split("Question: ")[1] for sample in made] == [
        f"Of {a}-{p}?" for a in range(5) for p in range(6)
    ]
    assert (
        len({documents(sample).index(next(d for d in documents(sample) if sample.answers[0] in d)) for sample in made})
        > 5
    )
    for sample in made:
        a, p = sample.answers[0][:2]
        assert sample.answers == (f"{a}{p}{a}{p}",)
        found = documents(sample)
        assert len(found) == len(set(found)) > 6
        assert sum(sample.answers[0] in document for document in found) == 1
        assert sum(f"Article {a}" in document for document in found) == 6  # those of the article first
        assert 440 < length(sample) <= 500
        assert (sample.metric, sample.max_new_tokens, sample.reply) == ("string_match_part", 32, " Answer:")


def test_questions_of_hotpotqa(data: Path) -> None:
    for number, sample in enumerate(samples(HOTPOT, data=data, count=50, tokens=250)):
        assert sample.answers == (f"Person {number}",)
        found = documents(sample)
        gold = {f"Page {number}-{d}\nPerson {number} is here. Number {d}." for d in range(3)}
        assert gold < set(found)
        assert length(sample) <= 250
    assert number == 11
    assert len(documents(samples(HOTPOT, data=data, tokens=9000)[0])) == 36  # all there are


def test_the_seed_chooses_the_other_documents(data: Path) -> None:
    first, other = (samples(HOTPOT, data=data, tokens=250, seed=seed) for seed in (0, 1))
    assert first == samples(HOTPOT, data=data, tokens=250)
    assert [s.question for s in first] == [s.question for s in other]
    assert first[0].context != other[0].context


@pytest.mark.parametrize(
    ("name", "file", "address"), [(SQUAD, "squad", "dev-v2.0"), (HOTPOT, "hotpotqa", "distractor")]
)
def test_missing_questions(tmp_path: Path, name: str, file: str, address: str) -> None:
    with pytest.raises(namm.NotFoundError, match=rf"no data folder. Download http.*{address}.*save it as {file}.json"):
        samples(name)
    with pytest.raises(namm.NotFoundError, match=rf"no file {tmp_path}/{file}.json. Download http"):
        samples(name, data=tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[" * 10**5,
        r'{"data": "\ud800"}',
        "[]",
        '{"data": []}',
        '{"data": [{"paragraphs": [{}]}]}',
        '[{"context": [["a"]]}]',
    ],
)
def test_malformed_questions(tmp_path: Path, text: str) -> None:
    for name, file in ((SQUAD, "squad"), (HOTPOT, "hotpotqa")):
        (tmp_path / f"{file}.json").write_text(text)
        with pytest.raises(namm.ConfigurationError, match=rf"a file in the format of .*{file}.json.*Download it again"):
            samples(name, data=tmp_path)


@pytest.mark.parametrize("name", TASKS)
def test_what_cannot_be_made(name: str, data: Path) -> None:
    with pytest.raises(namm.ConfigurationError, match=r"at least \d+ tokens for sample .* got 40\. Ask for longer"):
        samples(name, data=data, tokens=40)
    with pytest.raises(namm.ConfigurationError, match="Did you mean 'test'"):
        TASKS[name].samples(replace(Request(Words(), data=data), split="tests"))
    if "/qa" in name:
        with pytest.raises(namm.ConfigurationError, match=r"""the split "test".*got 'train'.*Train on"""):
            samples(name, data=data, split="train")


@pytest.mark.parametrize("name", TASKS)
def test_the_length_that_the_error_asks_for_is_enough(name: str, data: Path) -> None:
    with pytest.raises(namm.ConfigurationError) as caught:
        samples(name, data=data, tokens=40, count=1)
    least = int(re.search(r"at least (\d+) tokens", str(caught.value)).group(1))  # type: ignore[union-attr]
    sample = samples(name, data=data, tokens=least, count=1)[0]
    assert length(sample) == least
    assert name != HOTPOT or len(documents(sample)) == 3
    with pytest.raises(namm.ConfigurationError, match=rf"at least {least} tokens"):
        samples(name, data=data, tokens=least - 1, count=1)
