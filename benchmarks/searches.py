"""What a search sees and what it changes, compared on the language model at equal evaluations and equal bytes.

python benchmarks/searches.py [FOLDER]

Feature sets in the space "scoring", then search spaces with the features of the shipped memory; all warm-started, one
thread, about an hour and a half. Stopped, the same command goes on.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from rows import write

from namm.evolution import EvolutionConfig, ModelProblem, evolve, make_executor, make_space, read_log, start_memory
from namm.network import NAMM

SHIPPED = "compact-rehearsed"
FEATURES = (SHIPPED, "paper", "extended")
SPACES = ("head", "gains", "low-rank", "random", "all")
GENERATIONS = 6


def config_of(features: str) -> EvolutionConfig:
    return EvolutionConfig.preset("embedded").changed(
        f"memory.features={features}",
        "start.from=warm",
        "start.scoring={}",
        "search.sigma=0.3",
        f"stages.0.generations={GENERATIONS}",
        f"validation.every={GENERATIONS}",
        "workers.keep=6",
    )


def started(config: EvolutionConfig, problem: ModelProblem, folder: Path) -> EvolutionConfig:
    """The same search, from a warm start that is fitted once and saved."""
    if not folder.exists():
        with make_executor(config.workers, lambda: problem, here=True) as executor:
            start_memory(config, executor).save_pretrained(folder)
    return config.changed(f"start.from={json.dumps(str(folder.resolve()))}")


def search(name: str, config: EvolutionConfig, problem: ModelProblem, out: Path) -> dict[str, Any]:
    """Where one search started and what its mean came to, sample by sample."""
    run = out / name
    evolve(config, run, resume=(run / "run.json").exists(), problem=lambda: problem, curves=False)
    log = read_log(run)
    space = make_space(config.search.space, NAMM.from_pretrained(run / "memory"), rank=config.search.rank)
    row = {
        "run": name,
        "features": config.memory.features,
        "space": config.search.space,
        "strategy": config.search.strategy,
        "ranks": config.search.ranks,
        "sigma": config.search.sigma,
        "seed": config.seed,
        "dimensions": space.dimensions,
        "evaluations": log[-1]["evaluations"],
        "start": log[0]["validated"]["start"]["scores"],
        "mean": log[-1]["validated"]["mean"]["scores"],
        "fitness_of_generations": [row["mean"] for row in log],
    }
    print(name, sum(row["start"]) / len(row["start"]), sum(row["mean"]) / len(row["mean"]), flush=True)
    return row


def main() -> None:
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/searches")
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for features in FEATURES:
        base = config_of(features)
        problem = ModelProblem(base)
        config = started(base, problem, out / f"start-{features}")
        rows.append(search(f"features-{features}", config, problem, out))
        if features == SHIPPED:
            for space in SPACES:
                strategy = "vd" if space == "all" else "full"
                other = config.changed(f"search.space={space}", f"search.strategy={strategy}")
                rows.append(search(f"space-{space}", other, problem, out))
            rows.append(search("ranks", config.changed("search.ranks=true"), problem, out))
        write("searches", rows)


if __name__ == "__main__":
    main()
