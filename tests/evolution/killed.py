"""A run whose process is killed at random moments: `python -m tests.evolution.killed OUT KILLS SEED`.

Each attempt is a fork, so that only the first pays for imports.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

from benchmarks.planted import Planted
from namm.evolution import EvolutionConfig, evolve
from tests.evolution.planted import small


def config() -> EvolutionConfig:
    return small("stages.0.generations=40", "stages.1.generations=60", "search.strategy=full", "search.space=head")


def attempt(out: Path) -> int:
    """Start or resume the run in a fork; its process id."""
    child = os.fork()
    if child == 0:
        evolve(config(), out, resume=(out / "run.json").exists(), problem=Planted)
        os._exit(0)
    return child


def main(out: Path, kills: int, seed: int) -> None:
    rng = random.Random(seed)
    killed = 0
    while killed < kills:
        child = attempt(out)
        time.sleep(rng.uniform(0.0, 0.3))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            break
        killed += 1
    _, status = os.waitpid(attempt(out), 0)
    print(killed, os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
