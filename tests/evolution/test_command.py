"""`namm evolve` as a user types it."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import namm
from benchmarks.planted import Planted
from namm.evolution import evolve
from tests.evolution.planted import small

# the command, on the planted problem
SCRIPT = """
import sys
from namm.evolution import run
from benchmarks.planted import Planted
run._language_problem = lambda config, model: Planted
from namm.cli import main
main()
"""


# three kinds that cannot all be kept: no search is done with it before it is interrupted, however slow the machine
HARD = ('stages.1.tasks=["slow", "quick", "march"]', "stages.1.tokens=[256]")


def start(*words: str) -> "subprocess.Popen[str]":
    command, root = [sys.executable, "-c", SCRIPT, "evolve", *words], Path(__file__).parents[2]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    small(*HARD, "stages.1.generations=3000").save(tmp_path / "mine.json")
    return tmp_path / "mine.json"


def test_ctrl_c_says_how_to_go_on_and_going_on_is_the_same_run(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    running = start("--config", str(config), "--out", str(out), "--set", "search.sigma=0.3")
    while not (out / "checkpoint.json").exists():
        assert running.poll() is None, running.stderr
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    said, errors = running.communicate(timeout=300)
    assert running.returncode == 130, errors
    assert "every finished generation is kept. Go on with: namm evolve --out" in " ".join(said.split())
    assert "Traceback" not in errors
    done = len(json.loads((out / "checkpoint.json").read_text())["state"]["told"])
    going_on = start("--out", str(out), "--resume", "--generations", str(done + 2))  # three are the first stage's
    said, errors = going_on.communicate(timeout=300)
    assert going_on.returncode == 0, errors
    assert re.search(r"two: fitness of mean \d\.\d+ best \d\.\d+ validated \d\.\d+ kept \d+%", " ".join(said.split()))
    assert f"The memory: {out / 'memory'}" in " ".join(said.split())
    same = small(*HARD, "search.sigma=0.3", f"stages.1.generations={done + 2}")
    evolve(same, tmp_path / "whole", problem=Planted)
    told = [json.loads((run / "checkpoint.json").read_text())["state"]["told"] for run in (out, tmp_path / "whole")]
    assert told[0] == told[1]
    assert namm.NAMM.from_pretrained(out / "memory").config.update_interval == 32
