"""kvpress's RULER: records become what kvpress's pipeline asks, and are scored as its script scores them."""

import copy
import re
from pathlib import Path
from typing import Any

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import namm
from namm.evaluation import EvaluationConfig, evaluate
from namm.tasks import Request, Sample, encode
from namm.tasks.kvpress import LENGTHS, PUBLISHED, SUITES
from namm.tasks.metrics import METRICS
from namm.tasks.registry import find_tasks, sources
from namm.tasks.ruler import TASKS as RULER
from tests.letters import letters
from tests.zoo import causal_model

NAMES = [name.partition("/")[2] for name in RULER]


def record(task: str, number: int = 0, length: int = 200) -> dict[str, Any]:
    answers = {"qa": ["Rome", "in Rome"], "cwe": ["apple", "pear"], "vt": ["AAAAA", "BBBBB"]}
    return {
        "context": f"Read {number} of {task}. " + "The grass is green. " * (length // 20),
        "question": f"What of {number}? ",
        "answer_prefix": "Answer:",
        "answer": answers.get(task.partition("_")[0], ["12", "34"]),
        "task": task,
        "max_new_tokens": 5,
    }


def write(folder: Path, records: list[dict[str, Any]], length: int = 4096) -> Path:
    file = folder / str(length) / "test-00000-of-00001.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(records), file)
    return file


def load(name: str, folder: Path | None, count: int | None = None) -> list[Sample]:
    (task,) = find_tasks([name])
    return list(task.samples(Request(letters(), count=count, data=folder)))


def test_thirteen_tasks_at_three_lengths() -> None:
    assert list(SUITES) == [f"kvpress-{length}" for length in LENGTHS]
    assert all(list(tasks) == [f"{suite}/{name}" for name in NAMES] for suite, tasks in SUITES.items())
    assert re.fullmatch("[0-9a-f]{40}", PUBLISHED.revision)


def test_records_of_a_task_in_the_order_of_the_file(tmp_path: Path) -> None:
    write(tmp_path, [record(name, number) for number in range(3) for name in NAMES])
    write(tmp_path, [record("vt", 7)], length=8192)
    for name in NAMES:
        found = load(f"kvpress-4096/{name}", tmp_path)
        assert [sample.id for sample in found] == [str(1 + NAMES.index(name) + 13 * number) for number in range(3)]
        assert found[:2] == load(f"kvpress-4096/{name}", tmp_path, count=2)
        assert METRICS[found[0].metric](found[0].gold, found[0].answers, ()) == 1
    (longer,) = load("kvpress-8192/vt", tmp_path)
    assert longer.context.startswith("Read 7 of vt.")


def test_a_prompt_is_that_of_the_pipeline(tmp_path: Path) -> None:
    write(tmp_path, [record("fwe")])
    (sample,) = load("kvpress-4096/fwe", tmp_path)
    encoded = encode(sample, letters())
    assert letters().decode(encoded.context) == "<" + sample.context
    assert letters().decode(encoded.question) == "What of 0? >:Answer: "  # the bare space is the answer's
    assert letters().decode(encoded.answer) == "12, 34"


def test_a_model_that_thinks_aloud_is_told_to_answer_at_once() -> None:
    tokenizer = copy.deepcopy(letters())
    tokenizer.chat_template = "<{{ messages[0]['content'] | trim }}>{% if not enable_thinking %}!{% endif %}"
    encoded = encode(Sample("own", "1", "A text. ", "What? ", ("a",)), tokenizer)
    assert tokenizer.decode(encoded.prompt) == "<A text. What? >! "  # the turn is not stripped, as kvpress has it
    tokenizer.chat_template = "nothing"
    with pytest.raises(namm.ConfigurationError, match="a chat template that holds what a user says; got 'nothing'"):
        encode(Sample("own", "1", "A text. ", "What? ", ("a",)), tokenizer)


@pytest.mark.parametrize(
    ("task", "prediction", "score"),
    [
        ("qa_1", "It was in rome.", 1),
        ("qa_1", "Ro\nme", 1),
        ("qa_1", "Ro me", 0),
        ("niah_multivalue", "12 and 5", 0.5),
        ("niah_multivalue", "1\t2 3\x004", 1),
        ("vt", "aaaaa", 0.5),
        ("fwe", "", 0),
    ],
)
def test_scores_by_hand(task: str, prediction: str, score: float, tmp_path: Path) -> None:
    write(tmp_path, [record(task)])
    (sample,) = load(f"kvpress-4096/{task}", tmp_path)
    assert METRICS[sample.metric](prediction, sample.answers, ()) == score


def test_a_task_that_is_missing_is_named(tmp_path: Path) -> None:
    write(tmp_path, [record("vt"), record("cwe")])
    with pytest.raises(namm.NotFoundError, match=r"the task 'fwe' for kvpress-4096/fwe; got vt, cwe\. Download"):
        load("kvpress-4096/fwe", tmp_path)
    with pytest.raises(namm.NotFoundError, match=r"8192/test\*\.parquet .*; got 4096\."):
        load("kvpress-8192/vt", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer_prefix": None}, "a text in the field 'answer_prefix'; got None in row 1 of .*parquet"),
        ({"max_new_tokens": 0}, "a whole number above 0 in the field 'max_new_tokens'; got 0 in row 1 of"),
        ({"answer": []}, "at least one answer that is not empty in the field 'answer'"),
    ],
)
def test_records_of_another_layout_are_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    write(tmp_path, [record("vt") | change])
    with pytest.raises(namm.ConfigurationError, match=message):
        load("kvpress-4096/vt", tmp_path)


def test_a_folder_of_another_revision_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "own", [record("vt")])
    notes = tmp_path / "own" / ".cache" / "huggingface" / "download" / "4096" / f"{file.name}.metadata"
    notes.parent.mkdir(parents=True)
    notes.write_text(f"{PUBLISHED.revision}\n{'b' * 64}\n1712656091.1\n")
    assert len(load("kvpress-4096/vt", tmp_path / "own")) == 1
    notes.write_text(f"{'a' * 40}\n{'b' * 64}\n1712656091.1\n")
    way_out = f"hf download simonjegou/ruler --repo-type dataset --revision {PUBLISHED.revision} --local-dir"
    expected = rf"simonjegou/ruler at {PUBLISHED.revision}; got .*parquet of revision aaaa.*{way_out}"
    with pytest.raises(namm.ConfigurationError, match=expected):
        load("kvpress-4096/vt", tmp_path / "own")
    for revision in (PUBLISHED.revision, "a" * 40):
        write(tmp_path / "snapshots" / revision, [record("vt")])
    assert len(load("kvpress-4096/vt", tmp_path / "snapshots" / PUBLISHED.revision)) == 1
    with pytest.raises(namm.ConfigurationError, match=expected):
        load("kvpress-4096/vt", tmp_path / "snapshots" / ("a" * 40))


def test_only_the_length_that_is_asked_for_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def snapshot(repository: str, local_files_only: bool, **options: Any) -> str:
        if not local_files_only:
            asked.append({"repository": repository} | options)
            write(tmp_path, [record("vt")], length=16384)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert len(load("kvpress-16384/vt", None)) == 1
    assert [one["allow_patterns"] for one in asked] == [["16384/test-*.parquet"]]
    assert (asked[0]["repository"], asked[0]["revision"]) == ("simonjegou/ruler", PUBLISHED.revision)
    assert sources(find_tasks(["kvpress-4096"]), None) == {"kvpress-4096": f"simonjegou/ruler@{PUBLISHED.revision}"}


def test_an_evaluation_asks_when_the_memory_has_forgotten(tmp_path: Path) -> None:
    write(tmp_path / "data", [record(name) for name in NAMES])
    config = EvaluationConfig(
        policies=("h2o",),
        budgets=(0.5,),
        tasks=("kvpress-4096",),
        samples=0,
        update_interval=64,
        data=str(tmp_path / "data"),
    )
    summary = evaluate(config, tmp_path / "run", model=(causal_model("llama"), letters()))
    (group,) = summary.groups
    assert list(group.tasks) == [f"kvpress-4096/{name}" for name in NAMES]
    assert group.tasks["kvpress-4096/qa_2"] == "string_match_part_joined"


def test_a_model_that_cannot_read_the_task_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "data", [record("vt", length=600)])
    config = EvaluationConfig(tasks=("kvpress-4096/vt",), samples=0, data=str(tmp_path / "data"))
    with pytest.raises(
        namm.ConfigurationError,
        match=r"reads 1\d\d tokens more, since kvpress-4096/vt is asked whole; got one that reads 512, and sample '1'",
    ):
        evaluate(config, tmp_path / "run", model=(causal_model("llama"), letters()))
