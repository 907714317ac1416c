"""RULER's questions: `scripts/data/synthetic/qa.py` of NVIDIA/RULER, on the development sets of SQuAD and HotpotQA."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from namm.errors import ArtefactError, ConfigurationError, NotFoundError
from namm.files import read
from namm.json_files import parsed_value
from namm.tasks.base import Request, Sample, Task
from namm.tasks.ruler.shared import SAMPLES, longest, name_of, stream
from namm.tasks.text import check_split

CONTEXT = (
    "Answer the question based on the given documents. Only give me the answer and do not output any other words.\n\n"
    "The following are given documents.\n\n{text}"
)
QUESTION = (
    "\n\nAnswer the question based on the given documents. "
    "Only give me the answer and do not output any other words.\n\nQuestion: {query}"
)
REPLY = " Answer:"


@dataclass(frozen=True)
class Question:
    """A question, its answers, and places of documents: those it is about, and others of the same article."""

    query: str
    answers: tuple[str, ...]
    gold: tuple[int, ...]
    related: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Corpus:
    """Questions in the order of the file, and all documents."""

    questions: tuple[Question, ...]
    documents: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """A published file: its name in `Request.data`, where it comes from, its format, and who reads it."""

    file: str
    address: str
    layout: str
    parse: Callable[[Any], _Corpus]


def _squad(raw: Any) -> _Corpus:
    articles = [article["paragraphs"] for article in raw["data"]]
    documents = sorted({paragraph["context"] for article in articles for paragraph in article})
    place = {document: number for number, document in enumerate(documents)}
    questions = [
        Question(entry["question"], _texts(entry["answers"]), (gold,), tuple(n for n in of_article if n != gold))
        for article in articles
        for of_article in (list(dict.fromkeys(place[paragraph["context"]] for paragraph in article)),)
        for paragraph in article
        for gold in (place[paragraph["context"]],)
        for entry in paragraph["qas"]
        if not entry["is_impossible"]
    ]
    return _Corpus(tuple(questions), tuple(documents))


def _hotpotqa(raw: Any) -> _Corpus:
    pages = [[f"{title}\n{''.join(sentences)}" for title, sentences in entry["context"]] for entry in raw]
    documents = sorted({page for entry in pages for page in entry})
    place = {document: number for number, document in enumerate(documents)}
    questions = [
        Question(entry["question"], (entry["answer"],), tuple(dict.fromkeys(place[page] for page in of_entry)))
        for entry, of_entry in zip(raw, pages, strict=True)
    ]
    return _Corpus(tuple(questions), tuple(documents))


def _texts(answers: list[dict[str, str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(answer["text"] for answer in answers))


_SOURCES = {
    "qa_1": Source(
        "squad.json", "https://rajpurkar.github.io/SQuAD-explorer/dataset/dev-v2.0.json", "SQuAD dev-v2.0", _squad
    ),
    "qa_2": Source(
        "hotpotqa.json", "http://curtis.ml.cmu.edu/datasets/hotpot/hotpot_dev_distractor_v1.json",
        "HotpotQA dev distractor v1", _hotpotqa,
    ),
}  # fmt: skip


def make_sample(task: str, corpus: _Corpus, request: Request, index: int) -> Sample:
    """Question `index` of the file, its documents among others: those of its article first, then any."""
    asked = corpus.questions[index]
    rng = stream(task, request, index)
    first = {*asked.gold, *asked.related}
    order = [*asked.gold, *rng.sample(asked.related, len(asked.related))]
    enough = min(len(corpus.documents), request.tokens)  # a document has a token at least
    order += [place for place in rng.sample(range(len(corpus.documents)), enough) if place not in first]
    state = rng.getstate()

    def build(count: int) -> Sample:
        rng.setstate(state)
        chosen = order[:count]
        rng.shuffle(chosen)
        text = "\n\n".join(f"Document {n}:\n{corpus.documents[place]}" for n, place in enumerate(chosen, 1))
        return Sample(
            task=task, id=name_of(request, index), context=CONTEXT.format(text=text), reply=REPLY,
            question=QUESTION.format(query=asked.query), answers=asked.answers, metric="string_match_part",
            max_new_tokens=32,
        )  # fmt: skip

    return longest(build, request, least=len(asked.gold), most=len(order))


def load(source: Source, request: Request) -> _Corpus:
    """The questions and documents of a local file.

    Raises:
        NotFoundError: there is no such file; the message says where to get it.
        ConfigurationError: the file is not what it should be.
    """
    path = request.data / source.file if request.data is not None else None
    if path is None or not path.is_file():
        raise NotFoundError(
            f"{source.file} in the data folder", "no data folder" if path is None else f"no file {path}",
            f"Download {source.address}, save it as {source.file} in a folder, and give that folder as the data; or "
            "make one of other questions with benchmarks/passages.py.",
        )  # fmt: skip
    try:
        corpus = source.parse(parsed_value(read(path, _again(source)), str(path), _again(source)))
    except (ArtefactError, ValueError, KeyError, TypeError, AttributeError) as error:
        got = f"{path} ({type(error).__name__}: {error})"
        raise ConfigurationError(f"a file in the format of {source.layout}", got, _again(source)) from error
    if not corpus.questions:
        got = f"{path} without an answerable question"
        raise ConfigurationError(f"a file in the format of {source.layout}", got, _again(source))
    return corpus


def _again(source: Source) -> str:
    return f"Download it again from {source.address}."


def _samples(task: str, source: Source, request: Request) -> Iterator[Sample]:
    if check_split(request.split) != "test":
        raise ConfigurationError(
            f'the split "test" for {task}, which asks the questions of a development set', repr(request.split),
            "Train on other tasks, such as ruler/niah_multikey_1.",
        )  # fmt: skip
    corpus = load(source, request)
    count = min(len(corpus.questions), SAMPLES if request.count is None else request.count)
    return (make_sample(task, corpus, request, index) for index in range(count))


TASKS = [
    Task(
        f"ruler/{name}", partial(_samples, f"ruler/{name}", source), generated=True,
        description=f"a question of {source.layout}, its documents among others",
    )
    for name, source in _SOURCES.items()
]  # fmt: skip
