"""Search spaces on the planted problem, from zeros: a minute or two, and no language model.

python benchmarks/spaces.py [--generations 60]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from planted import Planted
from rows import write

from namm.evolution import EvolutionConfig, evolve, make_space, read_log
from namm.network import NAMM

CASES = (("scoring", "full"), ("head", "full"), ("low-rank", "full"), ("random", "full"), ("all", "diagonal"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generations", type=int, default=60)
    options = parser.parse_args()
    written = []
    for space, strategy in CASES:
        config = EvolutionConfig.model_validate({
            "memory": {"update_interval": 32},
            "objective": {"budgets": [0.2]},
            "search": {"strategy": strategy, "space": space, "population": 16, "samples": 8, "sigma": 0.2},
            "stages": [{"name": "one", "tasks": ["march"], "tokens": [128], "generations": options.generations}],
            "validation": {"samples": 16, "every": options.generations},
        })  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            evolve(config, Path(folder) / "run", problem=Planted, curves=False)
            log = read_log(Path(folder) / "run")
        row = {
            "space": space,
            "strategy": strategy,
            "dimensions": make_space(space, NAMM.zeros()).dimensions,
            "generations": options.generations,
            "evaluations": log[-1]["evaluations"],
            "seed": config.seed,
            "start": log[0]["validated"]["start"]["fitness"],
            "mean": log[-1]["validated"]["mean"]["fitness"],
            "n": 16,
        }
        print(row)
        written.append(row)
    print(write("spaces", written))


if __name__ == "__main__":
    main()
