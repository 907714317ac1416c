"""Steps a second of a Decision Transformer under each context, as ratios to computing its window anew.

    python benchmarks/control_speed.py [--steps 400]

Processor time of the model only, no simulator: random states of Hopper's size. The contexts take turns at every step, so
that a busy machine slows all of them; means over the steps after the window is full count. What the weights are does not
change what a step costs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import ExitStack
from copy import deepcopy

import rows
import torch
from rich.console import Console
from rich.table import Table
from transformers import DecisionTransformerConfig, DecisionTransformerModel

from namm.policies import resolve
from namm.rl import About, Context, Decision, Growing, Remembered, Scale, Window, at_bytes_of
from namm.rl.rollout import acting

WINDOW = 20
MEMORIES = ("streaming", "h2o", "builtin:universal")


def untrained(width: int, steps: int) -> Decision:
    torch.manual_seed(0)
    config = DecisionTransformerConfig(
        state_dim=11, act_dim=3, hidden_size=width, n_layer=3, n_head=1, max_ep_len=steps, n_positions=1,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    about = About("Hopper-v5", "none", 0, 0, 0.0, WINDOW, 1.0, 1.0, [0.0] * 11, [1.0] * 11, Scale(0.0, 1.0, "none"))
    return Decision(DecisionTransformerModel(config), about)


@torch.no_grad()
def together(
    decision: Decision, contexts: dict[str, Context], states: torch.Tensor
) -> dict[str, tuple[list[float], int]]:
    """For each context the seconds of each step, and bytes held at the end; each has a copy of the model."""
    with ExitStack() as stack:
        actors = {name: stack.enter_context(acting(deepcopy(decision), c)) for name, c in contexts.items()}
        before: dict[str, torch.Tensor | None] = dict.fromkeys(actors)
        seconds: dict[str, list[float]] = {name: [] for name in actors}
        for step, now in enumerate(states):
            for name, actor in actors.items():
                start = time.thread_time()
                before[name] = actor.act(now, torch.ones(len(now)), step, before[name])
                seconds[name].append(time.thread_time() - start)
        return {name: (seconds[name], actor.held(0)) for name, actor in actors.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--widths", type=int, nargs="*", default=[64, 128])
    parser.add_argument("--beside", type=int, nargs="*", default=[1, 10], help="episodes side by side")
    options = parser.parse_args()
    torch.set_num_threads(1)
    written = []
    table = Table(box=None)
    for heading in ("width", "beside", "context", "steps/s", "ratio"):
        table.add_column(heading, justify="right")
    for width in options.widths:
        decision = untrained(width, options.steps)
        contexts: dict[str, Context] = {"window": Window(), "full": Growing()}
        for name in MEMORIES:
            contexts[name] = Remembered(resolve(name), at_bytes_of(decision, resolve(name), WINDOW))
        for beside in options.beside:
            states = torch.randn(options.steps, beside, 11)
            measured = together(decision, contexts, states)
            halves = [slice(WINDOW, options.steps // 2), slice(options.steps // 2, None)]
            mean = {name: statistics.fmean(seconds[WINDOW:]) for name, (seconds, _) in measured.items()}
            of_half = [{name: statistics.fmean(s[half]) for name, (s, _) in measured.items()} for half in halves]
            for name in contexts:
                row = {
                    "width": width, "layers": 3, "window": WINDOW, "beside": beside, "context": name,
                    "steps": options.steps, "dtype": "float32", "steps_per_second": round(beside / mean[name], 1),
                    "ratio": round(mean["window"] / mean[name], 3),
                    "ratio_of_each_half": [round(half["window"] / half[name], 3) for half in of_half],
                    "bytes_held": measured[name][1], "bytes_full": measured["full"][1],
                }  # fmt: skip
                table.add_row(str(width), str(beside), name, f"{row['steps_per_second']:.0f}", f"{row['ratio']:.2f}")
                written.append(row)
    Console().print(table)
    print(rows.write("control_speed", written))


if __name__ == "__main__":
    main()
