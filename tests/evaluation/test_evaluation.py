"""An evaluation, end to end on a tiny model: the same twice, the same after kills, its budgets met in bytes."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import namm
from namm.evaluation import EvaluationConfig, evaluate
from namm.evaluation.folder import check_folder, open_folder
from namm.evaluation.identity import read_identity
from namm.evaluation.oracle import foresee, later_attention
from namm.evaluation.reader import Method, Reader, TextGroup
from namm.memory.cache import MemoryCache
from namm.memory.plan import Plan, Scaling
from namm.policies import H2O
from namm.selection import Budget
from namm.tasks import Sample, encode
from tests.harm import HARM, contents, harmed
from tests.letters import letters
from tests.tasks.test_benchmarks import choubun_record, infinitebench_record, longbench_record, write_lines
from tests.zoo import causal_model

SMALL = EvaluationConfig(
    policies=("h2o", "observed-max"),
    budgets=(0.5, 0.25),
    tasks=("passkey", "niah_word", "lm_prose"),
    tokens=(360,),
    samples=2,
    update_interval=128,
)


def run(out: Path, config: EvaluationConfig = SMALL, **options: Any) -> Any:
    return evaluate(config, out, model=(causal_model("llama"), letters()), **options)


def rows(out: Path) -> list[dict[str, Any]]:
    files = sorted(out.glob("rows*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def keys(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("task", "tokens", "sample", "policy", "budget"))


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: json.dumps([row[k] for k in ("task", "sample", "policy", "budget")]))


def rows_text(out: Path) -> str:
    return (out / "rows.jsonl").read_text()


def timeless(out: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in ("seconds", "commit")} for row in rows(out)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluation") / "run"
    run(out)
    return out


def test_every_sample_is_measured_under_every_memory(finished: Path) -> None:
    measured = rows(finished)
    lines = {(row["policy"], row["budget"]) for row in measured}
    sanity = {("full", None), ("floor", None)}
    compared = {"truncated", "oracle", "random", "streaming", "h2o", "observed-max"}
    assert lines == sanity | {(name, share) for name in compared for share in (0.5, 0.25)}
    assert len(measured) == len(set(map(keys, measured))) == 3 * 2 * len(lines)
    for name in ("summary.md", "summary.json", "report.html"):
        assert (finished / name).stat().st_size > 500


def test_the_same_command_gives_the_same_rows(finished: Path, tmp_path: Path) -> None:
    run(tmp_path / "again")
    assert timeless(tmp_path / "again") == timeless(finished)


def test_a_budget_is_met_by_bytes(finished: Path) -> None:
    for row in rows(finished):
        if isinstance(row["budget"], float):
            allowed = row["budget"] * row["bytes_full"]
            assert allowed - row["bytes_per_slot"] <= row["bytes_held"] <= allowed
            assert row["slots"] < row["budget"] * row["slots_full"] + 1
    full = [row for row in rows(finished) if row["policy"] == "full"]
    assert all(row["bytes_held"] == row["bytes_full"] and row["slots"] == row["slots_full"] for row in full)


def test_what_is_finished_is_not_measured_again(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (finished / "rows.jsonl").read_text()
    monkeypatch.setattr(Reader, "ask", lambda *_: pytest.fail("measured again"))
    run(finished)
    assert (finished / "rows.jsonl").read_text() == before


def test_a_grid_may_grow(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(out, SMALL.replace(samples=1, policies=("h2o",)))
    run(out)
    assert in_order(timeless(out)) == in_order(timeless(finished))


def test_a_row_that_was_cut_off_is_measured_again(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    text = (finished / "rows.jsonl").read_text()
    (out / "run.json").write_text((finished / "run.json").read_text())
    (out / "rows.jsonl").write_bytes(text[: len(text) // 2].encode() + "…".encode()[:1])  # torn inside a letter
    run(out)
    assert timeless(out) == timeless(finished)


def test_damaged_rows_are_named(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text((finished / "run.json").read_text())
    for line in ('{"task": ', '{"task": 1}', "7"):
        (tmp_path / "rows.jsonl").write_text(rows_text(finished).split("\n")[0] + f"\n{line}\n")
        with pytest.raises(namm.ArtefactError, match=r"line 2 of .*rows.jsonl"):
            run(tmp_path)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluation") / "tiny"
    run(out, TINY)
    return out


TINY = SMALL.replace(samples=1, policies=("h2o",), budgets=(0.5,))


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("name", ["run.json", "rows.jsonl", "run.parts.json", "summary.json"])
def test_a_damaged_file_is_told_or_does_not_matter(tiny: Path, tmp_path: Path, name: str, harm: str) -> None:
    seed = random.SystemRandom().randrange(10**6)
    rng = random.Random(seed)
    for attempt in range(3):
        out = tmp_path / str(attempt)
        shutil.copytree(tiny, out)
        harmed(out / name, harm, rng)
        before = contents(out)
        try:
            run(out, TINY)
        except namm.NammError:
            after = contents(out)
            assert after.get("rows.jsonl", b"").startswith(before.get("rows.jsonl", b"")), seed
            assert name == "summary.json" or after.get("run.json") == before.get("run.json"), seed
        else:
            assert {keys(row) for row in rows(tiny)} <= {keys(row) for row in rows(out)}, seed


KILLED = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.evaluation.test_evaluation import SMALL, run
run(Path(sys.argv[1]))
"""


def test_killed_ten_times_and_resumed_is_uninterrupted(finished: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run(tmp_path / "whole")
    finally:
        torch.set_num_threads(threads)
    out, rng, sizes = tmp_path / "killed", random.Random(0), []
    file = out / "rows.jsonl"
    for _ in range(10):
        before = file.stat().st_size if file.exists() else 0
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(out)], cwd=Path(__file__).parents[2])
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:  # until some rows are there, then at any moment
            if file.exists() and file.stat().st_size > before:
                time.sleep(rng.random() * 0.05)
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        process.wait()
        sizes.append(file.stat().st_size)
    assert sizes[0] < (tmp_path / "whole" / "rows.jsonl").stat().st_size * 0.9  # it was killed in the middle
    torch.set_num_threads(1)
    try:
        run(out)
    finally:
        torch.set_num_threads(threads)
    assert timeless(out) == timeless(tmp_path / "whole")


# -- what is measured ------------------------------------------------------------------------------------------------


def group(context: str, *questions: tuple[str, str], metric: str = "exact") -> TextGroup:
    samples = [
        encode(Sample("own", str(i), context, question, (answer,), metric=metric, completion=True), letters())
        for i, (question, answer) in enumerate(questions)
    ]
    return TextGroup(0, samples[0].context[: len(samples[0].context) // 16 * 16], tuple(samples))


TEXT = "It is a truth universally acknowledged, that a single man in possession of a good fortune. " * 4


def test_the_full_row_is_the_untouched_model() -> None:
    model = causal_model("llama")
    read = group(TEXT, (" What is it?", "truth"), (" Who?", "a man"))
    reader = Reader(model, letters(), 64)
    for sample, answer in zip(read.samples, reader.ask(read, reader.prefix(read), [Method("full", None)]), strict=True):
        ids = torch.tensor([sample.prompt + sample.answer])
        with torch.no_grad():
            logits = model(ids).logits[0, -len(sample.answer) - 1 : -1]
        gold = torch.tensor(sample.answer)
        assert answer.nll == pytest.approx(float(torch.nn.functional.cross_entropy(logits, gold)), abs=1e-4)
        assert answer.exact == bool((logits.argmax(-1) == gold).all())


def test_shared_texts_and_batches_change_nothing() -> None:
    reader = Reader(causal_model("llama"), letters(), 64)
    questions = [(" What is it?", "truth"), (" Who?", "a man")]
    methods = [Method("h2o", share, H2O()) for share in (0.5, 0.3)] + [Method("full", None)]
    together = group(TEXT, *questions)
    batched = reader.ask(together, reader.prefix(together), methods)
    alone = []
    for method in methods:
        for question in questions:
            one = group(TEXT, question)
            alone += reader.ask(one, reader.prefix(one), [method])
    assert [a.nll for a in batched] == pytest.approx([a.nll for a in alone], abs=1e-4)
    assert [a.held.bytes_held for a in batched] == [a.held.bytes_held for a in alone]


def test_attend_outside_and_evaluate_inside_agree() -> None:
    """What `attach` gives a user is what the evaluation measured, where the schedules are the same."""
    model = causal_model("llama")
    read = group(TEXT[:256], (" Who?", "a man"))
    reader = Reader(model, letters(), 64)
    (answer,) = reader.ask(read, reader.prefix(read), [Method("h2o", 0.5, H2O())])
    tokens = answer.held.slots * len(read.text) // answer.held.slots_full
    sample = read.samples[0]
    ids = torch.tensor([sample.prompt + sample.answer])
    assert len(read.text) == 256
    assert len(ids[0]) < 256 + 64  # no further update falls due
    with namm.attach(model, "h2o", Budget(tokens=tokens), 64), torch.no_grad():
        logits = model(ids).logits[0, -len(sample.answer) - 1 : -1]
    assert answer.nll == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits, torch.tensor(sample.answer))), abs=1e-4
    )


def test_generated_answers_are_those_of_generate(monkeypatch: pytest.MonkeyPatch) -> None:
    model = causal_model("llama")
    monkeypatch.setattr(model.generation_config, "repetition_penalty", 5.0)  # would tell what was forgotten
    read = group(TEXT, (" What is it?", "truth"), metric="qa_f1")
    reader = Reader(model, letters(), 64)
    (answer,) = reader.ask(read, reader.prefix(read), [Method("full", None)])
    ids = torch.tensor([read.samples[0].prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=32,
        pad_token_id=2,
        repetition_penalty=1.0,
    )
    assert answer.prediction == letters().decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def test_later_attention_is_the_largest_of_all_later_queries() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(4, 40, 8), torch.randn(2, 40, 8)
    found = later_attention(query, key, key, Scaling(0.5), (16, 32))
    logits = (query.unflatten(0, (2, 2)) @ key.transpose(1, 2).unsqueeze(1)) * 0.5
    logits = logits.masked_fill(torch.ones(40, 40, dtype=torch.bool).triu(1), -torch.inf)
    mean = logits.softmax(-1).mean(1)
    for index, update in enumerate((16, 32)):
        torch.testing.assert_close(found[index], mean[:, update:, :update].amax(1), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_oracle_keeps_what_will_be_attended_to() -> None:
    model = causal_model("llama", "eager")
    ids = torch.randint(5, 90, (1, 150), generator=torch.Generator().manual_seed(2))
    oracle = foresee(model, ids, (64, 128))
    cache = MemoryCache.planned(model.config, (Plan(oracle, Budget(tokens=20), 64, last=128),))
    model(ids[:, :64], past_key_values=cache)
    first = [cache.kept_positions(layer)[0] for layer in range(2)]
    model(ids[:, 64:], past_key_values=cache)
    attention = model(ids, output_attentions=True).attentions
    for layer in range(2):
        mean = attention[layer][0].unflatten(0, (2, -1)).mean(1)
        for head in range(2):
            later = mean[head, 64:, :63].amax(0)  # the newest token always stays
            assert first[layer][head] == sorted([63, *later.topk(19).indices.tolist()])
            survivors = torch.tensor([*first[layer][head], *range(64, 127)])
            latest = mean[head, 128:, survivors].amax(0)
            kept = [token for token in cache.kept_positions(layer)[0][head] if token < 128]
            assert kept == sorted([127, *survivors[latest.topk(19).indices].tolist()])


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policies": ("h20",)}, "Did you mean 'h2o'"),
        ({"tasks": ("paskey",)}, "Did you mean 'passkey'"),
        ({"tasks": ("none.jsonl",)}, "none.jsonl"),
        ({"tokens": (4000,)}, "samples of at most 512 tokens"),
        ({"budgets": (0.001,)}, "a budget that holds the state"),
        ({"update_interval": 100}, "multiple of 16"),
    ],
)
def test_mistakes(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(namm.NammError, match=message):
        run(tmp_path / "run", SMALL.replace(**change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budgets": (1.5,)}, "a budget above 0 and below 1"),
        ({"budgets": ()}, "budgets: Tuple should have at least 1 item"),
        ({"split": "tests"}, "split: 'train', 'validation' or 'test'"),
        ({"protocol": "question-first"}, "protocol: 'context-first' or 'whole'"),
        ({"template": "chatty"}, "template: 'auto', 'chat' or 'raw'"),
        ({"budgets": (0.5, 0.5)}, "budgets that differ"),
        ({"samples": -1}, "samples: greater than or equal to 0; got -1. Samples of each"),
        ({"data": "no-such-folder"}, "a folder of benchmark data"),
    ],
)
def test_configurations_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(namm.ConfigurationError, match=message):
        SMALL.replace(**change)


def test_a_folder_with_the_checksum_of_before_goes_on(finished: Path, tmp_path: Path) -> None:
    out = shutil.copytree(finished, tmp_path / "run")
    saved = json.loads((out / "run.json").read_text())
    saved["weights"]["sha256"] = saved["weights"].pop("fingerprint")
    (out / "run.json").write_text(json.dumps(saved))
    before = rows_text(out)
    run(out)
    assert rows_text(out) == before
    assert json.loads((out / "run.json").read_text()) == json.loads((finished / "run.json").read_text())


def test_a_folder_of_another_evaluation_is_refused(finished: Path, tmp_path: Path) -> None:
    before = (finished / "rows.jsonl").read_bytes()
    with pytest.raises(namm.ConfigurationError, match=r"update_interval: 128.*another update_interval"):
        run(finished, SMALL.replace(update_interval=64))
    with pytest.raises(namm.ConfigurationError, match=r"another weights: fingerprint"):
        evaluate(SMALL, finished, model=(causal_model("qwen2"), letters()))
    assert (finished / "rows.jsonl").read_bytes() == before
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(namm.ConfigurationError, match="an empty or new folder"):
        run(tmp_path)


def test_two_processes_do_not_measure_the_same(finished: Path) -> None:
    told = rf"no other process that measures in the folder {finished}; .*divide the work with --part"
    with open_folder(finished), pytest.raises(namm.ConfigurationError, match=told):
        run(finished)


def test_parts_of_another_division_or_grid_do_not_measure_beside_others(tmp_path: Path) -> None:
    out, one = tmp_path / "run", SMALL.replace(samples=1, policies=("h2o",))
    run(out, one)
    now = read_identity(out)
    for part, beside in (((1, 2), [(1, 1), (2, 3)]), ((1, 1), [(1, 2), (2, 2)])):
        with open_folder(out, part, now):
            before = contents(out)
            for other in beside:
                with pytest.raises(namm.ConfigurationError, match="a --part of the same number"):
                    run(out, one, part=other)
            with pytest.raises(namm.ConfigurationError, match="divide the work with --part"):
                run(out, one, part=part)
            assert contents(out) == before
    with open_folder(out, (1, 2), now):
        before = contents(out)
        with pytest.raises(
            namm.ConfigurationError, match=r"a part of 2, of the grid .*'samples': 1.*Give the same grid"
        ):
            run(out, one.replace(samples=2), part=(2, 2))
        assert contents(out) == before
        run(out, one, part=(2, 2))
    run(out, one.replace(samples=2), part=(2, 2))  # one after the other, all may be divided anew
    run(out, one.replace(samples=2))
    measured = list(map(keys, rows(out)))
    assert len(measured) == len(set(measured)) == 3 * 2 * 12


AT_ONCE = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from namm.errors import NammError
from tests.evaluation.test_evaluation import run
out, k, n = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
try:
    run(Path(out), part=(int(k), int(n)))
except NammError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def test_parts_at_once_measure_everything_once(finished: Path, tmp_path: Path) -> None:
    out, root = tmp_path / "run", Path(__file__).parents[2]
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    parts = [(1, 1), (1, 2), (2, 2)]
    running = [
        subprocess.Popen([sys.executable, "-c", AT_ONCE, str(out), str(k), str(n)], text=True, cwd=root, **pipes)
        for k, n in parts
    ]
    assert [process.stdout.readline() for process in running] == ["ready\n"] * 3  # type: ignore[union-attr]
    for process in running:
        process.stdin.write("go\n")  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
    errors = [process.communicate(timeout=120)[1] for process in running]
    done = [part for part, process in zip(parts, running, strict=True) if process.returncode == 0]
    assert done in ([(1, 1)], [(1, 2), (2, 2)])
    for part, error in zip(parts, errors, strict=True):
        assert part in done or error.startswith("ConfigurationError: expected a part of "), error
    assert sorted(map(str, map(keys, rows(out)))) == sorted(map(str, map(keys, rows(finished))))


def test_rows_that_are_there_twice_are_named(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    text = rows_text(tmp_path / "run")
    (tmp_path / "run" / "rows-1-of-2.jsonl").write_text("".join(text.splitlines(keepends=True)[3:5]))
    before = contents(tmp_path / "run")
    with pytest.raises(namm.ArtefactError, match=r"line 1 of .*rows-1-of-2.jsonl and line 4 of .*rows.jsonl .*Remove"):
        run(tmp_path / "run")
    assert contents(tmp_path / "run") == before


def test_a_folder_in_which_another_part_is_just_beginning(tmp_path: Path) -> None:
    """Its files are written beside their names first."""
    (tmp_path / ".run.json.0123.partial").write_text("{")
    (tmp_path / "run.1-of-2.lock").touch()
    check_folder(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(namm.ConfigurationError, match=r"which holds notes\.txt"):
        check_folder(tmp_path)


def test_parts_share_a_folder(finished: Path, tmp_path: Path) -> None:
    for part in ((2, 3), (1, 3), (3, 3)):
        run(tmp_path / "run", part=part)
    files = sorted((tmp_path / "run").glob("rows*.jsonl"))
    assert [file.name for file in files] == [f"rows-{k}-of-3.jsonl" for k in (1, 2, 3)]
    assert in_order(timeless(tmp_path / "run")) == in_order(timeless(finished))
    with pytest.raises(namm.ConfigurationError, match="a part k/n"):
        run(tmp_path / "run", part=(4, 3))


def test_a_chat_template_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(namm.ConfigurationError, match="a tokenizer with a chat template"):
        evaluate(SMALL.replace(template="chat"), tmp_path / "run", model=(causal_model("llama"), letters(chat=False)))


def test_a_text_too_short_to_forget_anything(tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    own.write_text('{"context": "Short.", "question": "What?", "answers": ["this"]}\n')
    with pytest.raises(namm.ConfigurationError, match="a text of at least 32 tokens before the question"):
        run(tmp_path / "run", SMALL.replace(tasks=(str(own),)))


@pytest.mark.parametrize("name", ["longbench/trec", "longbench/lcc", "infinitebench/passkey", "choubun/wiki_qa"])
def test_a_folder_in_the_official_layout_is_evaluated(tmp_path: Path, name: str) -> None:
    suite, _, task = name.partition("/")
    make = {"longbench": longbench_record, "infinitebench": infinitebench_record, "choubun": choubun_record}[suite]
    records = [make(task, number) | {"context": TEXT[:90] if number == 0 else 2 * TEXT} for number in range(2)]
    write_lines(tmp_path / "data" / f"{task}.jsonl", records)
    config = SMALL.replace(tasks=(name,), data=str(tmp_path / "data"), policies=("h2o",), budgets=(0.5,), samples=0)
    run(tmp_path / "run", config)
    measured = rows(tmp_path / "run")
    assert len(measured) == 2 * 7
    assert {row["removed_tokens"] > 0 for row in measured} == {False, True}  # the longer one is cut in the middle
    assert all(0 <= row["score"] <= 1 and row["metric"] != "exact" for row in measured)
    saved = json.loads((tmp_path / "run" / "run.json").read_text())
    assert str(tmp_path / "data") in saved["sources"][suite]


def test_data_that_changed_is_noticed(tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    line = {"context": TEXT, "question": " What is acknowledged?", "answers": ["truth"]}
    config = SMALL.replace(tasks=(str(own),), policies=("h2o",), update_interval=64)
    own.write_text(json.dumps(line) + "\n")
    run(tmp_path / "run", config)
    own.write_text(json.dumps(line | {"answers": ["the truth"]}) + "\n")
    with pytest.raises(namm.ConfigurationError, match="the data, or the Python of code samples, has changed"):
        run(tmp_path / "run", config)
    own.write_text(json.dumps(line | {"id": "a"}) + "\n" + json.dumps(line | {"id": "a"}) + "\n")
    with pytest.raises(namm.ConfigurationError, match="samples with an id each"):
        run(tmp_path / "other", config)


def test_a_users_own_file_is_a_task(tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    line = {"context": TEXT, "question": " What is acknowledged?", "answers": ["truth", "a truth"], "metric": "qa_f1"}
    own.write_text(
        json.dumps(line) + "\n" + json.dumps(line | {"question": " Who is in possession?", "answers": "a man"}) + "\n"
    )
    run(tmp_path / "run", SMALL.replace(tasks=(str(own),), policies=("h2o",), protocol="whole", update_interval=64))
    measured = rows(tmp_path / "run")
    assert {row["metric"] for row in measured} == {"qa_f1"}
    assert {row["tokens"] for row in measured} == {0}
    assert len({row["context_hash"] for row in measured}) == 1  # drawn together in the bootstrap
