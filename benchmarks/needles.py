"""What the shipped memory is worth beside the baselines: hidden facts in a novel it has never seen.

    python benchmarks/needles.py [--samples 6] [--lengths 512 1536] [--budget 0.25]

For each policy at the same budget and schedule: negative log-likelihood per token of the right answer (teacher-forced),
and the share of samples whose every answer token is the model's first choice. Test split, common samples. +- is the
standard error over samples.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import rows
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import namm
from namm.evolution.fitness import Encoded, answer_scores
from namm.memory import attach
from namm.tasks import TASKS, encode, make_sample

MEMORY = "builtin:smollm2-135m-instruct"
POLICIES = ("full", MEMORY, "observed-max", "h2o", "streaming", "random")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=6)
    parser.add_argument("--lengths", type=int, nargs="*", default=[512, 1536])
    parser.add_argument("--budget", type=float, default=0.25)
    options = parser.parse_args()
    model, tokenizer = namm.models.load_model()
    learned = namm.policies.resolve(MEMORY)
    interval = learned.network.config.update_interval
    cells = [(task, length) for length in options.lengths for task in TASKS]
    samples: dict[tuple[str, int], list[Encoded]] = {}
    for task, length in cells:
        made = (make_sample(task, "test", i, length, tokenizer) for i in range(options.samples))
        encoded = (encode(sample, tokenizer) for sample in made)
        samples[task, length] = [Encoded(task, tuple(prompt), tuple(answer)) for prompt, answer in encoded]
    written: list[dict[str, Any]] = []
    work = [(policy, cell) for cell in cells for policy in POLICIES]
    for policy, (task, length) in track(work, console=Console(), description="reading"):
        selection = None if policy == "full" else namm.Budget(fraction=options.budget)
        with attach(model, learned if policy == MEMORY else policy, selection, interval):
            scores = [answer_scores(model, sample) for sample in samples[task, length]]
        nll, right = zip(*scores, strict=True)
        written.append(
            {
                "policy": policy, "task": task, "tokens": length, "budget": options.budget if selection else 1.0,
                "update_interval": interval, "nll": round(statistics.mean(nll), 4),
                "nll_standard_error": round(statistics.stdev(nll) / len(nll) ** 0.5, 4),
                "exact": round(statistics.mean(right), 4), "nll_of_each_sample": [round(x, 4) for x in nll],
                "exact_of_each_sample": list(right), "n": len(nll), "seed": 0, "split": "test",
                "threads": torch.get_num_threads(),
            }
        )  # fmt: skip
    table = Table(title=f"NLL per answer token (exact match), {options.budget:.0%} of the cache", box=None)
    for heading in ("policy", *(f"{task}, {length:,}" for task, length in cells)):
        table.add_column(heading, justify="left" if heading == "policy" else "right")
    for policy in POLICIES:
        mine = [row for row in written if row["policy"] == policy]
        table.add_row(policy, *(f"{r['nll']:.2f} +- {r['nll_standard_error']:.2f} ({r['exact']:.2f})" for r in mine))
    Console().print(table)
    Console().print(f"rows: {rows.write('needles', written)}")


if __name__ == "__main__":
    main()
