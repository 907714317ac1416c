"""Candidate-samples per second of an evolution: worker processes and shared reading, against one candidate at a time.

    python benchmarks/throughput.py [--tokens 1024] [--candidates 8] [--samples 4]

One at a time: one process with all threads, every candidate reads each text from its first token. Together: two worker
processes of one thread, a text is read up to the first update once for all candidates. The two take turns, and measure
the same candidates on the same samples; references are known before, and fitness must agree.
"""

from __future__ import annotations

import argparse
import os
import time
from functools import partial
from typing import Any

import rows
import torch

from namm.evolution import EvolutionConfig, Item, ModelProblem, Outcome, Workers, make_executor
from namm.network import NAMM, NAMMConfig
from namm.selection import Per

PER: dict[str, Per] = {"paper": "head", "levelled": "model"}  # as memories of these features are deployed


def measured(problem: Any, unit: tuple[Item, NAMM]) -> list[Outcome]:
    problem._kept.clear()  # a text is read anew in every generation here, as if the pool never ended
    return problem.measure(*unit)


def alone(problem: ModelProblem, item: Item, networks: NAMM) -> list[Outcome]:
    rows = (NAMM.from_vector(theta[None], networks.mean, networks.var, networks.config) for theta in networks.theta)
    return [measured(problem, (item, network))[0] for network in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--features", nargs="*", choices=PER, default=["paper", "levelled"])
    options = parser.parse_args()
    written = []
    for features in options.features:
        config = EvolutionConfig().changed(
            f"memory.features={features}", f"memory.per={PER[features]}", "objective.budgets=[0.25]"
        )
        layout = NAMMConfig(features=features, per=PER[features])
        generator = torch.Generator().manual_seed(0)
        theta = torch.randn(options.candidates, layout.size, generator=generator) * 0.1
        networks = NAMM.from_vector(theta, config=layout)
        items = [Item("train", "niah_multikey", options.tokens, index, 0.25) for index in range(options.samples)]
        units = [(item, networks) for item in items]
        here = ModelProblem(config)
        with make_executor(Workers(count=options.workers, threads=1), partial(ModelProblem, config)) as executor:
            for _ in range(options.workers):  # references, in every worker
                executor.map(measured, units)
            torch.set_num_threads(os.cpu_count() or 1)
            for item in items:
                here.measure(item, networks)
            turns = []
            for _ in range(options.turns):
                start = time.perf_counter()
                one = [alone(here, item, networks) for item in items]
                middle = time.perf_counter()
                together = executor.map(measured, units)
                turns.append((middle - start, time.perf_counter() - middle))
        apart = max(
            abs(a.score - b.score) for x, y in zip(one, together, strict=True) for a, b in zip(x, y, strict=True)
        )
        count = options.candidates * options.samples
        best = [min(turn[side] for turn in turns) for side in (0, 1)]
        row = {
            "features": features, "tokens": options.tokens, "candidates": options.candidates, "samples": options.samples,
            "workers": options.workers, "dtype": "bfloat16", "per_second_alone": round(count / best[0], 3),
            "per_second_together": round(count / best[1], 3), "ratio": round(best[0] / best[1], 3), "target": 1.8,
            "ratio_of_each_turn": [round(a / b, 3) for a, b in turns], "largest_score_difference": apart, "seed": 0,
        }  # fmt: skip
        print(row)
        written.append(row)
    print(rows.write("throughput", written))


if __name__ == "__main__":
    main()
