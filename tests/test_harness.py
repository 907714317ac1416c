"""lm-evaluation-harness with a memory: its own numbers where nothing is forgotten, those of `attach` elsewhere."""

import importlib
import json
import logging
import random
import sys
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

import namm
from namm.errors import ConfigurationError, ModelError, NotFoundError
from tests.zoo import VOCABULARY, causal_model

pytest.importorskip("lm_eval")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.registry import Registry, get_model
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from namm.lm_eval import MemoryLM
from namm.lm_eval.__main__ import main

BUILTIN = "builtin:universal"
FORGETFUL = [("h2o", 0.25), ("tova", 24), ("random", 0.25), (BUILTIN, 0.3)]
LENGTHS = (37, 150, 64, 33, 201, 90)  # shorter and longer than an update interval of 32, and a multiple of it


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random two-layer Llama and a tokenizer whose words are w3 ... w96."""
    where = tmp_path_factory.mktemp("tiny")
    causal_model("llama").save_pretrained(where)
    tf.GenerationConfig(pad_token_id=0, bos_token_id=1, eos_token_id=2).save_pretrained(where)
    words = ["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(3, VOCABULARY))]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(where)
    return str(where)


@pytest.fixture
def _local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data sets are cached here, and the many tasks that lm_eval brings along are not searched."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))
    monkeypatch.setattr("lm_eval.evaluator.TaskManager", partial(TaskManager, include_defaults=False))


def words(count: int, seed: int) -> str:
    return " ".join(f"w{i}" for i in random.Random(seed).choices(range(3, 90), k=count))


def remembering(folder: str, memory: str = "h2o", budget: object = 0.25, **options: object) -> MemoryLM:
    options = {"device": "cpu", "update_interval": 32} | options
    return MemoryLM(folder, memory=memory, budget=budget, **options)


def choices() -> list[Instance]:
    """Contexts of many lengths, each with two continuations of one word and one of three."""
    return [
        Instance("loglikelihood", {}, (words(length, i), continuation), i)
        for i, length in enumerate(LENGTHS)
        for continuation in (" w5", " w6", " w7 w8 w9")
    ]


def likelihoods(lm: HFLM) -> torch.Tensor:
    return torch.tensor([value for value, _ in lm.loglikelihood(choices(), disable_tqdm=True)])


def rolling(lm: HFLM) -> torch.Tensor:
    texts = [Instance("loglikelihood_rolling", {}, (words(n, i),), i) for i, n in enumerate(LENGTHS)]
    return torch.tensor(lm.loglikelihood_rolling(texts, disable_tqdm=True))


def answers(lm: HFLM) -> list[str]:
    how = {"until": ["w44"], "max_gen_toks": 16, "do_sample": False}
    texts = [Instance("generate_until", {}, (words(n, i), how), i) for i, n in enumerate(LENGTHS[:4])]
    return lm.generate_until(texts, disable_tqdm=True)


MEASURES = [likelihoods, rolling, answers]


def same(a: object, b: object) -> bool:
    return torch.allclose(a, b, atol=1e-3) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_keeping_all_is_the_untouched_model(folder: str, measure: object, batch_size: int) -> None:
    plain = HFLM(folder, device="cpu", batch_size=batch_size)
    assert same(measure(remembering(folder, "full", "own", batch_size=batch_size)), measure(plain))


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(("memory", "budget"), FORGETFUL)
def test_forgetting_changes_the_numbers(folder: str, memory: str, budget: float, measure: object) -> None:
    assert not same(measure(remembering(folder, memory, budget)), measure(HFLM(folder, device="cpu")))


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(("memory", "budget"), FORGETFUL)
def test_a_batch_is_each_row_alone(folder: str, memory: str, budget: float, measure: object) -> None:
    alone = measure(remembering(folder, memory, budget, batch_size=1))
    assert same(measure(remembering(folder, memory, budget, batch_size=4)), alone)


@pytest.mark.parametrize(("memory", "budget"), FORGETFUL)
def test_likelihoods_are_those_of_a_call_in_an_attach_block(folder: str, memory: str, budget: float) -> None:
    selection = namm.Budget(tokens=budget) if isinstance(budget, int) else namm.Budget(fraction=budget)
    lm, expected = remembering(folder, memory, budget, batch_size=3), []
    calibrated = namm.calibrated(memory, lm.model, lm.tokenizer)
    with namm.attach(lm.model, calibrated, selection, update_interval=32), torch.no_grad():
        for request in choices():
            context, continuation = (lm.tok_encode(text) for text in request.args)
            ids = torch.tensor([context + continuation])
            ahead = lm.model(ids[:, :-1]).logits.log_softmax(-1)[0, -len(continuation) :]
            expected.append(ahead.gather(1, ids[0, -len(continuation) :, None]).sum())
    assert same(likelihoods(lm), torch.stack(expected))


def test_a_cached_continuation_is_a_computed_one(folder: str) -> None:
    cached, computed = remembering(folder), remembering(folder, logits_cache=False)
    assert same(likelihoods(cached), likelihoods(computed))
    assert (cached.calls, computed.calls) == (2 * len(LENGTHS), 3 * len(LENGTHS))


def test_the_budgets(folder: str) -> None:
    spared = namm.Budget(tokens=16, sinks=2)
    assert remembering(folder, budget=0.5).selection == namm.Budget(fraction=0.5)
    assert remembering(folder, budget=16).selection == namm.Budget(tokens=16)
    assert remembering(folder, budget=spared).selection is spared
    own = remembering(folder, BUILTIN, "own", update_interval=None)
    assert own.selection is None
    learned = namm.NAMM.from_pretrained(namm.policies.builtin_memories()[BUILTIN])
    assert own.update_interval == learned.config.update_interval
    assert remembering(folder, update_interval=None).update_interval == 512


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"memory": None}, ConfigurationError, "expected a memory; got none. Add memory=h2o"),
        ({"memory": "h20"}, NotFoundError, "Did you mean 'h2o'?"),
        ({"budget": 0}, ConfigurationError, "at least 1 token; got 0"),
        ({"budget": 1.5}, ConfigurationError, r"a fraction in \(0, 1\]; got 1.5"),
        ({"budget": True}, ConfigurationError, "a number above 0.*; got True. Add budget=0.25"),
        ({"budget": "much"}, ConfigurationError, "a number above 0.*; got 'much'. Add budget=0.25"),
        ({"budget": "own"}, ConfigurationError, "a budget for H2O.*; got budget=own. Add budget=0.25"),
        ({"update_interval": 100}, ConfigurationError, "a positive multiple of 16"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_a_model_is_looked_for(
    options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        MemoryLM("/no/such/model", **({"memory": "h2o", "budget": 0.25} | options))


def test_a_model_that_cannot_be_served_is_refused_at_once(folder: str) -> None:
    config = tf.T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    tokenizer = tf.AutoTokenizer.from_pretrained(folder)
    with pytest.raises(ModelError, match="expected a decoder-only model; got T5"):
        MemoryLM(tf.T5ForConditionalGeneration(config), memory="h2o", budget=0.25, tokenizer=tokenizer)


def test_the_model_is_as_it_was(folder: str) -> None:
    lm = remembering(folder)
    before = lm.model.config._attn_implementation
    ids = torch.full((1, 100), 5)
    plain = lm.model(ids).logits
    answers(lm)
    with pytest.raises(IndexError):
        lm._model_call(torch.full((1, 100), VOCABULARY))  # an id that no embedding has
    assert lm.model.config._attn_implementation == before
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in lm.model.modules())
    assert torch.equal(lm.model(ids).logits, plain)


def test_what_happened_is_reported(folder: str, caplog: pytest.LogCaptureFixture) -> None:
    lm = remembering(folder, max_batch_size=2, batch_size="auto", max_length=256)
    likelihoods(lm)
    info = lm.get_model_info()
    assert info["memory"] == "H2O()"
    assert info["memory_selection"] == repr(namm.Budget(fraction=0.25))
    assert info["memory_update_interval"] == 32
    assert info["memory_calls"] == info["memory_calls_that_forgot"] == len(LENGTHS)  # trials of batch sizes not counted
    assert not caplog.records

    idle = remembering(folder, update_interval=512)
    likelihoods(idle)
    with caplog.at_level(logging.WARNING, "namm"):
        assert idle.get_model_info()["memory_calls_that_forgot"] == 0
    assert "no text reached 512 tokens" in caplog.text


def task(where: Path, kind: str, **config: object) -> dict[str, object]:
    """A task over a local file, as lm_eval's YAML files describe it."""
    rows = [{"text": words(n, i), "choices": ["w5", "w6 w7"], "answer": i % 2} for i, n in enumerate(LENGTHS)]
    file = where / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "task": f"local_{kind}", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test", "output_type": kind, "doc_to_text": "text", **config,
    }  # fmt: skip


@pytest.mark.usefixtures("_local")
def test_a_whole_evaluation(folder: str, tmp_path: Path) -> None:
    metrics = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
    spec = task(tmp_path, "multiple_choice", doc_to_choice="choices", doc_to_target="answer", metric_list=metrics)

    def run(model: str, batch_size: int = 1, **options: object) -> torch.Tensor:
        found = simple_evaluate(
            model, {"pretrained": folder, "dtype": "float32"} | options, [spec], device="cpu", batch_size=batch_size,
            bootstrap_iters=0,
        )  # fmt: skip
        samples = sorted(found["samples"]["local_multiple_choice"], key=lambda sample: sample["doc_id"])
        return torch.tensor([[value for value, _ in sample["filtered_resps"]] for sample in samples])

    plain = run("hf")
    small = {"memory": "h2o", "budget": 0.25, "update_interval": 32}
    assert plain.shape == (len(LENGTHS), 2)
    assert same(run("namm", memory="full"), plain)
    assert not same(run("namm", **small), plain)
    assert same(run("namm", batch_size=4, **small), run("namm", **small))


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["namm.lm_eval", *arguments])
    main()


@pytest.mark.usefixtures("_local")
def test_the_command_line(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = [{"metric": "bits_per_byte"}]
    spec = task(tmp_path, "loglikelihood_rolling", doc_to_target="text", metric_list=metrics) | {"doc_to_text": ""}
    (tmp_path / "local.yaml").write_text(json.dumps(spec))  # JSON is YAML
    options = f"pretrained={folder},memory=h2o,budget=0.25,update_interval=32"
    command(
        monkeypatch, "--model", "namm", "--model_args", options, "--tasks", "local_loglikelihood_rolling",
        "--include_path", str(tmp_path), "--device", "cpu", "--output_path", str(tmp_path / "out.json"),
    )  # fmt: skip
    results = json.loads(next(tmp_path.glob("out*.json")).read_text())
    assert results["config"]["memory_calls_that_forgot"] == len(LENGTHS)
    nats = -rolling(remembering(folder)).sum() / sum(len(words(n, i)) for i, n in enumerate(LENGTHS))
    measured = results["results"]["local_loglikelihood_rolling"]["bits_per_byte,none"]
    assert measured == pytest.approx(float(nats) / torch.log(torch.tensor(2.0)).item(), rel=1e-4)


@pytest.mark.usefixtures("_local")
def test_the_command_line_says_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    spec = task(tmp_path, "loglikelihood_rolling", doc_to_target="text")
    (tmp_path / "local.yaml").write_text(json.dumps(spec))
    arguments = [
        "--model",
        "namm",
        "--model_args",
        "memory=h20",
        "--tasks",
        "local_loglikelihood_rolling",
        "--include_path",
    ]
    with pytest.raises(SystemExit) as stop:
        command(monkeypatch, *arguments, str(tmp_path))
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "NotFoundError" in said
    assert "Did you mean 'h2o'?" in said


def test_without_lm_eval_the_way_out_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", None)
    monkeypatch.delitem(sys.modules, "namm.lm_eval")
    monkeypatch.delattr(namm, "lm_eval")
    with pytest.raises(NotFoundError, match=r"pip install 'namm\[lm-eval\]'"):
        importlib.import_module("namm.lm_eval")
    with pytest.raises(SystemExit):
        command(monkeypatch, "ls", "tasks")
    assert "pip install 'namm[lm-eval]'" in capsys.readouterr().err


def test_lm_eval_finds_the_model_by_name() -> None:
    assert get_model("namm") is MemoryLM
    point = EntryPoint("namm", "namm.lm_eval:MemoryLM", "lm_eval.models")  # as versions after 0.4.13 discover it
    registry: Registry[type] = Registry("model", base_cls=HFLM)
    registry.register("namm", target=point)
    assert registry.get("namm") is MemoryLM


@pytest.mark.model
def test_the_embedded_model_is_known_by_name() -> None:
    lm = MemoryLM("smollm2-135m-instruct", memory="full", device="cpu")
    assert Path(lm.pretrained).name == "smollm2-135m-instruct"
    request = Instance("loglikelihood", {}, ("The capital of France is", " Paris"), 0)
    other = Instance("loglikelihood", {}, ("The capital of France is", " Berlin"), 1)
    (paris, _), (berlin, _) = lm.loglikelihood([request, other], disable_tqdm=True)
    assert paris > berlin
