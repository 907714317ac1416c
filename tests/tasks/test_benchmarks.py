# ruff: noqa: RUF001  (full-width punctuation is meant)
"""Published data sets load from folders in their official layout, which the tests write, and say what is wrong."""

import json
import random
import re
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

import namm
from namm.tasks import Request, Sample, Task, choubun, encode, hub, infinitebench, longbench
from namm.tasks.jsonl import user_task
from namm.tasks.metrics import METRICS
from tests.harm import HARM


class Characters:
    """A tokenizer of characters."""

    chat_template = None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(c) for c in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


def load(task: Task, folder: Path | None, split: str = "test", count: int | None = None) -> list[Sample]:
    return list(task.samples(Request(Characters(), split=split, count=count, data=folder)))  # type: ignore[arg-type]


def longbench_record(task: str, number: int = 0) -> dict[str, Any]:
    answer = {"passage_retrieval_en": "Paragraph 7", "passage_retrieval_zh": "段落7", "passage_count": "7"}
    return {
        "input": "" if task in {"gov_report", "lcc", "multi_news", "vcsum", "passage_count"} else f"Which {number}?",
        "context": f"A {{text}} of {task}.",
        "answers": [answer.get(task, "Location")],
        "length": 4,
        "dataset": task,
        "language": "en",
        "all_classes": ["Location", "Number"] if task in {"trec", "lsht"} else None,
        "_id": f"{task}-{number}",
    }


INFINITEBENCH: dict[str, dict[str, Any]] = {
    "passkey": {"input": "What is the pass key?", "answer": ["71432"]},
    "number_string": {"input": "What is the sequence?", "answer": ["7711"]},
    "kv_retrieval": {"input": 'Key: "a"\nThe value is', "answer": ["b-1"]},
    "longdialogue_qa_eng": {"input": "Which character?", "answer": ["RICK DECKARD", "RICK"]},
    "longbook_sum_eng": {"input": "", "answer": ["Ann leaves. Bob stays."]},
    "longbook_choice_eng": {"input": "Where?", "answer": ["Rome"], "options": ["Oslo", "Rome", "Bonn", "Bern"]},
    "longbook_qa_eng": {"input": "Where?", "answer": ["Rome", "in Rome"]},
    "longbook_qa_chn": {"input": "在哪里？", "answer": ["罗马"]},
    "math_find": {"input": "The second largest number of the list is: ", "answer": [37]},
    "math_calc": {"input": "", "answer": [1, 4, 8]},
    "code_run": {"input": "Please give me the exact return value of func_12(-3).", "answer": [-6]},
    "code_debug": {"input": "Which?", "answer": ["pack", "C"], "options": ["load", "save", "pack", "move"]},
}


def infinitebench_record(task: str, number: int = 0) -> dict[str, Any]:
    return {"id": number, "context": f"A {{text}} of {task}.", "options": []} | INFINITEBENCH[task]


def choubun_record(task: str, number: int = 0) -> dict[str, Any]:
    fields = {"context": "東京は日本の首都です。", "input": "首都は？", "answers": ["東京", "東京都"]}
    return fields | {"length": 11, "dataset": task, "language": "ja", "all_classes": None, "_id": f"{task}{number}"}


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


def write_parquet(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(records), path)


def write_zip(folder: Path, task: str, records: list[dict[str, Any]]) -> None:
    with zipfile.ZipFile(folder / "data.zip", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"data/{task}.jsonl", "".join(json.dumps(record) + "\n" for record in records))
        archive.writestr(f"data/{task}_e.jsonl", "")


def write_shards(folder: Path, *parts: list[dict[str, Any]]) -> None:
    for i, part in enumerate(parts):
        write_parquet(folder / f"test-{i:05}-of-{len(parts):05}.parquet", part)


ALL: list[tuple[Task, dict[str, Any]]] = [
    (task, record(name.partition("/")[2]))
    for suite, record in (
        (longbench.TASKS, longbench_record),
        (infinitebench.TASKS, infinitebench_record),
        (choubun.TASKS, choubun_record),
    )
    for name, task in suite.items()
]


@pytest.mark.parametrize(("task", "record"), ALL, ids=lambda value: value.name if isinstance(value, Task) else "")
def test_every_task_from_its_file_to_its_score(task: Task, record: dict[str, Any], tmp_path: Path) -> None:
    write_lines(tmp_path / f"{task.name.partition('/')[2]}.jsonl", [record])
    (sample,) = load(task, tmp_path)
    assert sample.task == task.name
    assert record["context"] in sample.context
    assert not (sample.context + sample.question).count("{input}")
    scored = METRICS[sample.metric]
    assert scored(sample.gold, sample.answers, sample.classes) == pytest.approx(1, abs=1e-7)
    assert scored("zzz", sample.answers, sample.classes) == 0
    encoded = encode(sample, Characters(), longest=10**6)  # type: ignore[arg-type]
    assert Characters().decode(list(encoded.prompt)).rstrip() == (sample.context + sample.question).rstrip()
    assert task.description
    assert not task.generated


def test_the_suites_are_whole() -> None:
    assert [len(suite) for suite in (longbench.TASKS, infinitebench.TASKS, choubun.TASKS)] == [21, 12, 4]
    for published in (longbench.PUBLISHED, infinitebench.PUBLISHED, choubun.PUBLISHED):
        assert re.fullmatch("[0-9a-f]{40}", published.revision)


def test_longbench_as_its_authors_ask_it(tmp_path: Path) -> None:
    for name in ("hotpotqa", "trec", "repobench-p", "samsum"):
        write_lines(tmp_path / "data" / f"{name}.jsonl", [longbench_record(name)])
    (hotpotqa,) = load(longbench.TASKS["longbench/hotpotqa"], tmp_path)
    assert hotpotqa == Sample(
        task="longbench/hotpotqa",
        id="hotpotqa-0",
        context="Answer the question based on the given passages. Only give me the answer and do not output any other "
        "words.\n\nThe following are given passages.\nA {text} of hotpotqa.",
        question="\n\nAnswer the question based on the given passages. Only give me the answer and do not output any "
        "other words.\n\nQuestion: Which 0?\nAnswer:",
        answers=("Location",),
        metric="qa_f1",
        max_new_tokens=32,
    )
    (trec,) = load(longbench.TASKS["longbench/trec"], tmp_path)
    assert (trec.question, trec.completion, trec.classes) == ("\nWhich 0?", True, ("Location", "Number"))
    (code,) = load(longbench.TASKS["longbench/repobench-p"], tmp_path)
    assert code.question == "Which 0?Next line of code:\n"
    assert (code.metric, code.max_new_tokens, code.completion) == ("edit_similarity", 64, True)
    (samsum,) = load(longbench.TASKS["longbench/samsum"], tmp_path)
    assert (samsum.metric, samsum.max_new_tokens) == ("rouge_l_first_line", 128)


def test_infinitebench_as_its_authors_ask_it(tmp_path: Path) -> None:
    def only(name: str) -> Sample:
        write_lines(tmp_path / f"{name}.jsonl", [infinitebench_record(name)])
        return load(infinitebench.TASKS[f"infinitebench/{name}"], tmp_path)[0]

    choice = only("longbook_choice_eng")
    assert choice.context == "Read the book and answer the question.\n\nA {text} of longbook_choice_eng."
    assert choice.question == (
        "\n\nQuestion: Where?\nA. Oslo\nB. Rome\nC. Bonn\nD. Bern\n\nThe letter of the correct answer is"
    )
    assert (choice.answers, choice.gold) == (("Rome", "B"), "B")
    run = only("code_run")
    assert run.context.startswith("There is a function called func_12 in the following Python code.\n\nA {text}")
    assert run.question == "\n\nPlease compute the exact value of func_12(-3). The value of func_12(-3) is"
    assert (run.answers, run.max_new_tokens) == (("-6",), 5)
    find = only("math_find")
    assert find.context.startswith("What is the second largest number in the following list?\n\n")
    assert find.question == "\n\nThe second largest number of the list is: "
    assert only("math_calc").gold == "[1, 4, 8]"
    assert only("code_debug").answers == ("pack", "C")
    assert only("passkey").id == "0"


def test_choubun_is_japanese(tmp_path: Path) -> None:
    write_parquet(tmp_path / "wiki_qa" / "test-00000-of-00001.parquet", [choubun_record("wiki_qa")])
    (sample,) = load(choubun.TASKS["choubun/wiki_qa"], tmp_path)
    assert sample.context.endswith("文書：\n東京は日本の首都です。")
    assert sample.question.endswith("質問：首都は？\n答え：")
    assert METRICS[sample.metric]("東京です。", sample.answers, ()) == pytest.approx(2 / 3)


def test_all_layouts_give_the_same_samples(tmp_path: Path) -> None:
    task, records = longbench.TASKS["longbench/qasper"], [longbench_record("qasper", i) for i in range(5)]
    layouts: dict[str, Callable[[Path], None]] = {
        "flat": lambda f: write_lines(f / "qasper.jsonl", records),
        "data": lambda f: write_lines(f / "data" / "qasper.jsonl", records),
        "zip": lambda f: write_zip(f, "qasper", records),
        "parquet": lambda f: write_parquet(f / "qasper.parquet", records),
        "shard": lambda f: write_parquet(f / "data" / "qasper-00000-of-00001.parquet", records),
        "shards": lambda f: write_shards(f / "qasper", records[:2], records[2:]),
    }
    loaded = {}
    for name, write in layouts.items():
        (tmp_path / name).mkdir()
        write(tmp_path / name)
        loaded[name] = load(task, tmp_path / name)
        assert load(task, tmp_path / name, count=2) == loaded[name][:2]
    assert [sample.id for sample in loaded["flat"]] == [f"qasper-{i}" for i in range(5)]
    assert all(samples == loaded["flat"] for samples in loaded.values())


def test_the_middle_of_a_long_context_goes(tmp_path: Path) -> None:
    write_lines(tmp_path / "narrativeqa.jsonl", [longbench_record("narrativeqa") | {"context": "x" * 3000}])
    (sample,) = load(longbench.TASKS["longbench/narrativeqa"], tmp_path)
    encoded = encode(sample, Characters(), longest=1000)  # type: ignore[arg-type]
    prompt = Characters().decode(list(encoded.prompt))
    assert len(encoded.prompt) + sample.max_new_tokens <= 1000
    assert encoded.removed > 2000
    assert prompt.startswith("You are given a story")
    assert prompt.rstrip().endswith("Question: Which 0?\n\nAnswer:")


QASPER = longbench.TASKS["longbench/qasper"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"input": "a", "context": "b", "ans', r"JSON in line 2 of .*qasper.jsonl; got b'{\"input\".*cut short"),
        (b'{"input": "\xff"}', "JSON in line 2 of .*qasper.jsonl"),
        (rb'{"input": "\ud83d"}', "JSON in line 2 of .*qasper.jsonl.*surrogates not allowed"),
        (b"[" * 100_000, "JSON in line 2 of .*qasper.jsonl.*recursion"),
        (b"[1]", r"a JSON object in line 2 of .*qasper.jsonl; got b'\[1\]"),
        (b'{"input": "a", "answers": ["c"]}', "a text in the field 'context'; got only input, answers in line 2 of"),
        (b'{"input": 3, "context": "b", "answers": ["c"]}', "a text in the field 'input'; got 3 in line 2 of"),
        (b'{"input": "a", "context": "b", "answers": []}', r"not empty in the field 'answers'; got \[\] in line 2 of"),
        (b'{"input": "a", "context": "b", "answers": [" "]}', r"not empty in the field 'answers'; got \[' '\] in line"),
        (b'{"input": "a", "context": "b", "answers": [{}]}', "a list of texts in the field 'answers'"),
        (b'{"input": "a", "context": "b"}', "in the field 'answers'; got only input, context in line 2 of"),
    ],
)
def test_damaged_lines_are_named(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "qasper.jsonl"
    path.write_bytes(json.dumps(longbench_record("qasper")).encode() + b"\n" + content)
    assert len(load(QASPER, tmp_path, count=1)) == 1
    with pytest.raises(namm.ConfigurationError, match=message):
        load(QASPER, tmp_path)


def test_an_empty_answer_beside_others_is_dropped(tmp_path: Path) -> None:
    write_lines(tmp_path / "qasper.jsonl", [longbench_record("qasper") | {"answers": ["", "yes"]}])
    assert load(QASPER, tmp_path)[0].answers == ("yes",)


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(namm.NotFoundError, match=r"a folder with the files of the data set; got .*nowhere"):
        load(QASPER, tmp_path / "nowhere")
    with pytest.raises(namm.NotFoundError, match=r"qasper.jsonl, qasper.parquet, .*; got nothing"):
        load(QASPER, tmp_path)
    (tmp_path / "hotpotqa.jsonl").touch()
    with pytest.raises(namm.NotFoundError, match=r"qasper.jsonl, .*; got hotpotqa.jsonl\."):
        load(QASPER, tmp_path)
    write_zip(tmp_path, "trec", [])
    with pytest.raises(namm.NotFoundError, match=r"qasper.jsonl in .*data.zip; got data/trec.jsonl"):
        load(QASPER, tmp_path)
    archive = tmp_path / "data.zip"
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(namm.ConfigurationError, match=r"a zip archive in .*data.zip; .*download it again"):
        load(QASPER, tmp_path)
    write_parquet(tmp_path / "qasper" / "test-00000-of-00002.parquet", [longbench_record("qasper")])
    with pytest.raises(namm.NotFoundError, match=r"2 parts of a file in .*; got test-00000-of-00002.parquet"):
        load(QASPER, tmp_path)
    whole = (tmp_path / "qasper" / "test-00000-of-00002.parquet").read_bytes()
    (tmp_path / "qasper.parquet").write_bytes(whole[:-20])
    with pytest.raises(namm.ConfigurationError, match=r"a Parquet file in .*qasper.parquet; .*download it again"):
        load(QASPER, tmp_path)


@pytest.mark.parametrize("harm", ["cut", "flipped", "zeros"])
@pytest.mark.parametrize("name", ["data.zip", "qasper.parquet", "qasper.jsonl"])
def test_damaged_files_of_any_kind_are_told(tmp_path: Path, name: str, harm: str) -> None:
    if name == "data.zip":
        write_zip(tmp_path, "qasper", [longbench_record("qasper")])
    elif name == "qasper.parquet":
        write_parquet(tmp_path / name, [longbench_record("qasper")])
    else:
        write_lines(tmp_path / name, [longbench_record("qasper")])
    whole = (tmp_path / name).read_bytes()
    rng = random.Random(0)
    for _ in range(300):
        (tmp_path / name).write_bytes(HARM[harm](whole, rng))
        with suppress(namm.NammError):  # or the damage is within a text
            load(QASPER, tmp_path)


def test_a_folder_is_no_file_of_records(tmp_path: Path) -> None:
    (tmp_path / "qasper.jsonl").mkdir()
    with pytest.raises(namm.ConfigurationError, match=r"a file that can be read, .*qasper.jsonl; got Is a directory"):
        load(QASPER, tmp_path)


def test_infinitebench_refuses_what_it_cannot_ask(tmp_path: Path) -> None:
    task = infinitebench.TASKS["infinitebench/longbook_choice_eng"]
    write_lines(tmp_path / "longbook_choice_eng.jsonl", [infinitebench_record("longbook_choice_eng") | {"answer": "X"}])
    with pytest.raises(namm.ConfigurationError, match=r"four options, the answer among them; got .*'X'.* in line 1 of"):
        load(task, tmp_path)
    write_lines(tmp_path / "code_run.jsonl", [infinitebench_record("code_run") | {"input": "f(3)"}])
    with pytest.raises(namm.ConfigurationError, match=r"got 'f\(3\)' in line 1 of"):
        load(infinitebench.TASKS["infinitebench/code_run"], tmp_path)


def test_only_the_test_split_is_published(tmp_path: Path) -> None:
    with pytest.raises(namm.ConfigurationError, match='the split "test", the only one of zai-org/LongBench; got train'):
        load(QASPER, tmp_path, split="train")


def test_the_hub_serves_one_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def snapshot(repository: str, local_files_only: bool, **options: Any) -> str:
        if not local_files_only:
            asked.append((repository, options))
            write_zip(tmp_path, "qasper", [longbench_record("qasper")])
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert load(QASPER, None)[0].id == "qasper-0"
    assert load(QASPER, None) == load(QASPER, tmp_path)
    options = {"repo_type": "dataset", "revision": longbench.PUBLISHED.revision, "allow_patterns": ["data.zip"]}
    assert asked == [("zai-org/LongBench", options)], "the second time it is in the cache"
    assert hub.origin(longbench.PUBLISHED, None) == f"zai-org/LongBench@{longbench.PUBLISHED.revision}"
    assert hub.origin(longbench.PUBLISHED, tmp_path) == f"folder {tmp_path}"


def test_only_the_files_of_the_task_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot(repository: str, local_files_only: bool, allow_patterns: list[str], **options: Any) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError("nothing cached")
        assert allow_patterns == ["passkey.jsonl"]
        write_lines(tmp_path / "passkey.jsonl", [infinitebench_record("passkey")])
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert load(infinitebench.TASKS["infinitebench/passkey"], None)[0].answers == ("71432",)


def test_no_network_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot(repository: str, **options: Any) -> str:
        raise LocalEntryNotFoundError("Got: ConnectError: Name or service not known\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(
        namm.NotFoundError,
        match=r"zai-org/LongBench at 5e628be.* hub; got ConnectError.* known\. Check the network, or",
    ):
        load(QASPER, None)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    plain = {"context": "Ann lives in Rome.", "question": "\n\nWhere?", "answers": "Rome", "note": 1}
    full = plain | {
        "id": 7, "answers": ["Rome", "Roma"], "reply": " In", "target": "Rome, Italy", "metric": "qa_f1",
        "max_new_tokens": 5, "classes": ["Rome", "Oslo"], "completion": True,
    }  # fmt: skip
    write_lines(path, [plain, full])
    task = user_task(path)
    assert task.name == "mine"
    first, second = load(task, None)
    assert first == Sample("mine", "1", "Ann lives in Rome.", "\n\nWhere?", ("Rome",))
    assert second == Sample(
        "mine", "7", "Ann lives in Rome.", "\n\nWhere?", ("Rome", "Roma"), reply=" In", target="Rome, Italy",
        metric="qa_f1", max_new_tokens=5, completion=True, classes=("Rome", "Oslo"),
    )  # fmt: skip
    assert load(task, None, split="train", count=1) == [first]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"metric": "qa_f"}, namm.NotFoundError, "known metric; got 'qa_f' in line 1 of .*Did you mean 'qa_f1'"),
        ({"answers": []}, namm.ConfigurationError, r"at least one answer .* got \[\] in line 1 of .*mine.jsonl"),
        ({"question": None}, namm.ConfigurationError, "a text in the field 'question'; got None in line 1"),
        ({"max_new_tokens": "5"}, namm.ConfigurationError, "a whole number above 0 .*; got '5' in line 1"),
        ({"max_new_tokens": 0}, namm.ConfigurationError, "a whole number above 0 .*; got 0 in line 1"),
        ({"completion": 1}, namm.ConfigurationError, "true or false in the field 'completion'; got 1 in line 1"),
    ],
)
def test_faults_in_a_file_of_ones_own(
    change: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.jsonl"
    write_lines(path, [{"context": "a", "question": "b", "answers": ["c"]} | change])
    with pytest.raises(error, match=message):
        load(user_task(path), None)


def test_a_missing_file_of_ones_own(tmp_path: Path) -> None:
    with pytest.raises(namm.NotFoundError, match=r"a JSONL file with context, question and answers.*got .*none.jsonl"):
        user_task(tmp_path / "none.jsonl")
