"""The commands as a user types them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import namm
from namm.cli import main
from namm.evaluation import EvaluationConfig
from tests.test_network import reference_checkpoint


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "namm.cli", *words], capture_output=True, text=True, check=False)


def test_help_and_version() -> None:
    assert "demo" in command("--help").stdout
    assert command("--version").stdout.strip() == namm.__version__
    assert "Usage" in command("demo", "--help").stdout


def test_help_waits_for_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'numpy', 'pydantic', 'matplotlib', 'jinja2', 'pygments'}"
    code = f"import sys, namm, namm.cli; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
    assert set(namm.__all__) < set(dir(namm))


def test_figures_and_pages_are_waited_for_only_where_they_are_drawn() -> None:
    drawing = "{'matplotlib', 'pygments'}"
    imports = "namm.evaluation, namm.serving.app, namm.report.figures, namm.report.forgetting, namm.report.memory_page"
    code = f"import sys, {imports}; print({drawing} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_what_a_command_takes_if_nothing_is_said_is_what_python_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[EvaluationConfig] = []

    def note(config: EvaluationConfig, *_: object, **__: object) -> None:
        asked.append(config)
        raise namm.ConfigurationError("no evaluation", "one", "This is a test.")

    monkeypatch.setattr("namm.evaluation.evaluate", note, raising=False)
    for words in ([], ["--budget", "own", "--budget", "0.125", "--tokens", "64", "--memory", "mine", "--seed", "3"]):
        monkeypatch.setattr("sys.argv", ["namm", "eval", "--out", "x", *words])
        with pytest.raises(SystemExit):
            main()
    plain = EvaluationConfig()
    changed = plain.replace(budgets=("own", 0.125), tokens=(64,), policies=(*plain.policies, "mine"), seed=3)
    assert asked == [plain, changed]


def test_import(tmp_path: Path) -> None:
    file = reference_checkpoint(tmp_path / "ckpt.pt")
    done = command("import", str(file), "--out", str(tmp_path / "memory"))
    assert done.returncode == 0, done.stderr
    assert "4,172 parameters" in done.stdout
    assert namm.NAMM.from_pretrained(tmp_path / "memory").theta.shape == (4172,)
    again = command("import", str(file), "--out", str(tmp_path / "memory"))
    assert again.returncode == 2
    assert "Choose another one" in again.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["demo", "--memory", "builtin:smolm2"], "Did you mean 'builtin:universal'"),
        (["demo", "--budget", "1.5"], "a fraction in (0, 1]"),
        (["demo", "--file", "README.md"], "--file and --question together"),
        (["demo", "--file", "none.txt", "--question", "Why?"], "none.txt"),
        (["demo", "--file", "docs/evolution.png", "--question", "Why?"], "a text file in UTF-8"),
        (["demo", "--file", "README.md", "--question", " "], "a text and a question about it"),
        (["demo", "--model", "smollm2-135m"], "Did you mean 'smollm2-135m-instruct'"),
        (["eval", "--out", "x", "--policy", "h20"], "Did you mean 'h2o'"),
        (["eval", "--out", "x", "--task", "longbench/hotpot"], "Did you mean 'longbench/hotpotqa'"),
        (["eval", "--out", "x", "--task", "longbench/trec", "--data", "nowhere"], "a folder of benchmark data"),
        (["eval", "--out", "x", "--budget", "2"], "a budget above 0 and below 1"),
        (["eval", "--out", "x", "--part", "3/2"], "a part k/n"),
        (["eval"], "a folder for the results"),
        (["eval", "--out", "no-such-run", "--report"], "a folder with an evaluation"),
        (["inspect", "missing.txt"], "a file to read"),
        (["import", "none.pt", "--out", "x"], "a checkpoint file"),
        (["vision", "eval", "--model", "a/b", "--out", "x", "--task", "mlvu"], "a folder with mlvu"),
        (["vision", "eval", "--model", "a/b", "--out", "x", "--task", "mlvu", "--data", "."], "1_plotQA.json"),
        (["vision", "eval", "--model", "a", "--out", "x", "--task", "nlvu", "--data", "."], "Did you mean 'mlvu'"),
        (["vision", "eval", "--model", "a", "--out", "x", "--task", "mlvu", "--budget", "2"], "above 0 and below 1"),
        (["evolve", "--out", "no-such-run", "--set", 'stages.0.tasks=["pass"]'], "Did you mean 'passkey'"),
        (["evolve", "--out", "no-such-run", "--set", "search.space=heads"], "search.space: 'all', 'scoring', 'head'"),
        (["evolve", "--out", "no-such-run", "--preset", "papr"], "Did you mean 'paper'"),
        (["evolve", "--out", "no-such-run", "--config", "x.toml", "--preset", "paper"], "--config or --preset"),
        (["evolve", "--out", "no-such-run", "--ray", "no-such-host.invalid:1"], "a Ray cluster at"),
        (["evolve", "--out", "no-such-run", "--resume"], "a run to resume"),
    ],
)
def test_mistakes_get_one_clear_message(words: list[str], message: str) -> None:
    done = command(*words)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not Path("no-such-run").exists()


@pytest.mark.model
def test_the_demo_measures_what_it_prints(tmp_path: Path) -> None:
    done = command("demo", "--tokens", "700", "--budget", "0.5", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "full cache" in done.stdout
    for name in ("StreamingLLM", "H2O", "NAMM"):
        assert name in done.stdout
    assert (tmp_path / "kept.png").stat().st_size > 10_000
    assert re.search(r"NAMM +\w+ .* 5[0-5]%", done.stdout), done.stdout  # the budget, when the text has been read


@pytest.mark.model
def test_the_demo_of_a_text_of_ones_own(tmp_path: Path) -> None:
    text = tmp_path / "mine.txt"
    text.write_text("The key to the red door hangs behind the clock. " * 12, encoding="utf-8")
    options = ["--file", str(text), "--question", "Where is the key [to the door]?", "--out", str(tmp_path)]
    done = command("demo", *options, "--budget", "0.5")
    assert done.returncode == 0, done.stderr
    assert "Where is the key [to the door]?" in done.stdout
    assert re.search(r"full cache +the same .* 100%", done.stdout), done.stdout


@pytest.mark.model
def test_the_embedded_model_and_its_memory() -> None:
    model, tokenizer = namm.models.load_model()
    text = tokenizer("The first rule of the library is", return_tensors="pt")
    untouched = model.generate(**text, max_new_tokens=8, do_sample=False)
    with namm.attach(model, "builtin:universal", namm.Budget(fraction=1.0), update_interval=16):
        torch.testing.assert_close(model.generate(**text, max_new_tokens=8, do_sample=False), untouched)


def test_models_that_are_not_there(tmp_path: Path) -> None:
    for name in (str(tmp_path / "none.gguf"), "no-such-model", str(tmp_path)):
        with pytest.raises(namm.NotFoundError):
            namm.models.load_model(name)
    (tmp_path / "half.gguf").write_bytes(b"GGUF\3\0\0\0\2\0")
    with pytest.raises(namm.NotFoundError, match=r"half\.gguf \(.*It has 10 bytes: .* join all of its parts"):
        namm.models.load_model(tmp_path / "half.gguf")
    with pytest.raises(namm.ConfigurationError, match="torch dtype"):
        namm.models.load_model(dtype="float31")


def test_the_names_exported_are_the_names_documented() -> None:
    readme = (Path(__file__).parents[1] / "docs" / "use.md").read_text()
    table = readme.split("<!-- names -->")[1]
    documented = {row.split("`")[1] for row in table.splitlines() if row.startswith("| `")}
    assert documented == set(namm.__all__) - {"__version__"}
    assert all(getattr(namm, name) is not None for name in namm.__all__)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("serve", "--budget", "two"), "a share in (0, 1]"),
        (("serve", "--memory-limit", "lots"), "a number of bytes"),
        (("serve", "--log-level", "loud"), "Try --log-level info"),
        (("serve", "--queue", "-1"), "positive whole number for waiting"),
        (("serve", "--port", "99999"), "a free address to listen at"),
        (("serve", "--device", "abacus"), "a torch device"),
        (("serve", "--memory", "h2o", "--spill", "/dev/null/x"), "a folder for conversations"),
        (("serve", "--memory", "h2o", "--memory", "h2o"), "memories of different names"),
        (("serve", "--replicas", "0"), "at least one replica"),
        (("inspect", "--html", "/dev/null/x"), "can be written for --html"),
    ],
)
@pytest.mark.model
def test_what_a_server_or_a_page_cannot_do(words, told, capsys, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["namm", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert told in capsys.readouterr().err
