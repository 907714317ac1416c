"""What a rehearsal is worth when all, half, or some of a block is read again, and what it costs.

    python benchmarks/rehearsal.py [--samples 1] [--turns 2]

Worth: normalised score of an unlearned memory, the observed maximum plus the rehearsed one, at a quarter of the bytes, on
validation texts of 1,024 tokens. Cost: time to read a text, as a ratio to the untouched model in turns.
"""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from rows import write
from torch import Tensor

import namm
from namm.evolution.config import EvolutionConfig
from namm.evolution.fitness import ModelProblem
from namm.evolution.problem import Item
from namm.policies import MemoryPolicy, View
from namm.policies.base import Rehearsal

TASKS = ("passkey", "niah_single", "niah_word", "niah_multikey", "vartrack", "quote", "lm_code")
CASES = {
    "nothing": None,
    "every fourth token": Rehearsal(1.0, 4),
    "every second token": Rehearsal(1.0, 2),
    "the newer half": Rehearsal(0.5),
    "everything": Rehearsal(),
}


@dataclass(frozen=True, repr=False, eq=False)
class Both(MemoryPolicy):
    """The largest attention while reading, plus the largest in rehearsals."""

    name = "both"
    channels = 2
    per = "layer"
    rehearsal: Rehearsal | None = None

    def observe(self, state: Tensor, attention: Tensor) -> Tensor:
        most = torch.maximum(state[..., :1, :], attention.amax(-2, keepdim=True))
        return torch.cat([most, state[..., 1:, :]], -2)

    def rehearse(self, state: Tensor, attention: Tensor) -> Tensor:
        most = torch.maximum(state[..., 1:, :], attention.amax(-2, keepdim=True))
        return torch.cat([state[..., :1, :], most], -2)

    def score(self, view: View) -> Tensor:
        return view.state.sum(-2)


@torch.no_grad()
def prefill(model: Any, ids: Tensor, policy: MemoryPolicy | None) -> float:
    with namm.attach(model, policy, namm.Budget(fraction=0.25)) if policy else nullcontext():
        start = time.perf_counter()
        model(ids, logits_to_keep=1)
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=1, help="of each task")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=2048, help="of the text that is timed")
    options = parser.parse_args()
    config = EvolutionConfig(models=[{"dtype": "bfloat16"}])
    problem = ModelProblem(config)
    items = [Item("validation", task, 1024, index, 0.25) for index in range(options.samples) for task in TASKS]
    ids = torch.randint(
        0, problem.model.config.vocab_size, (1, options.tokens), generator=torch.Generator().manual_seed(0)
    )
    written = []
    for name, rehearsal in CASES.items():
        policy = Both(rehearsal)
        scores = [problem.compare(item, policy).score for item in items]
        turns = [(prefill(problem.model, ids, None), prefill(problem.model, ids, policy)) for _ in range(options.turns)]
        best = [min(turn[side] for turn in turns) for side in (0, 1)]
        row = {
            "reads again": name, "score": sum(scores) / len(scores), "scores": scores, "n": len(scores), "seed": 0,
            "budget": 0.25, "tokens": 1024, "prefill_tokens": options.tokens, "prefill_ratio": round(best[1] / best[0], 3),
            "prefill_ratio_of_each_turn": [round(b / a, 3) for a, b in turns], "dtype": "bfloat16",
        }  # fmt: skip
        print(row)
        written.append(row)
    print(write("rehearsal", written))


if __name__ == "__main__":
    main()
