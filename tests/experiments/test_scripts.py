"""The steps as one types them, from any folder."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

STEPS = Path(__file__).parents[2] / "experiments"
SCRIPTS = ["control/data.py", "control/train.py", "control/evaluate.py"]
SCRIPTS += ["video/train.py", "video/evaluate.py", "video/show.py"]


@pytest.fixture
def step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs a script in an empty folder; gives its exit status and what it wrote to each stream."""

    def run(script: str, *words: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", [script, *words])
        monkeypatch.setattr("sys.path", list(sys.path))
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(STEPS / script), run_name="__main__")
        return ended.value.code, *capsys.readouterr()

    return run


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_step_says_what_it_takes(script: str, step) -> None:
    status, out, _ = step(script, "--help")
    assert status == 0
    assert "--out" in out
    folder, _, _ = script.partition("/")
    assert f"python experiments/{script} " in (STEPS / folder / "README.md").read_text()


def test_a_script_finds_what_stands_beside_it(tmp_path: Path) -> None:
    command = [sys.executable, str(STEPS / "video" / "evaluate.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["control/evaluate.py", "--model", "nowhere", "--out", "x"], "a folder with a Decision Transformer"),
        (["video/train.py", "--out", "no-such-run", "--images", "nowhere"], "apt install dataset-fashion-mnist"),
        (["video/evaluate.py", "--model", "nowhere", "--out", "x"], "experiments/video/train.py --out nowhere"),
        (["video/evaluate.py", "--model", "a", "--out", "x", "--split", "train"], "that the model has not seen"),
        (["video/evaluate.py", "--model", "a", "--out", "x", "--budget", "2"], "a budget above 0 and below 1"),
    ],
)
def test_mistakes_get_one_clear_message(words: list[str], message: str, step, tmp_path: Path) -> None:
    status, _, said = step(*words)
    assert status == 2
    assert message in " ".join(said.split())
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []
