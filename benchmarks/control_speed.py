"""Steps a second of a Decision Transformer under each context, as ratios to computing its window anew.

    python benchmarks/control_speed.py [--turns 3] [--steps 500]

Model time only, no simulator: random states of Hopper's size. The contexts take turns in one process; the ratio of the
best times counts, and the ratio of each turn is in the row file. What the weights are does not change what a step costs.
"""

from __future__ import annotations

import argparse
import time

import rows
import torch
from rich.console import Console
from rich.table import Table
from transformers import DecisionTransformerConfig, DecisionTransformerModel

from namm.policies import resolve
from namm.rl.decision import About, Decision
from namm.rl.rollout import Context, Growing, Remembered, Window, acting, at_bytes_of
from namm.rl.simulators import D4RL

WINDOW = 20
MEMORIES = ("streaming", "h2o", "builtin:smollm2-135m-instruct-once", "builtin:smollm2-135m-instruct")


def untrained(width: int, steps: int) -> Decision:
    torch.manual_seed(0)
    config = DecisionTransformerConfig(
        state_dim=11, act_dim=3, hidden_size=width, n_layer=3, n_head=1, max_ep_len=steps, n_positions=1,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    scale = D4RL["Hopper"]
    about = About("Hopper-v5", "none", 0, 0, 0.0, WINDOW, 1.0, 1.0, [0.0] * 11, [1.0] * 11, scale)
    return Decision(DecisionTransformerModel(config), about)


@torch.no_grad()
def once(decision: Decision, context: Context, states: torch.Tensor) -> tuple[float, int]:
    """Seconds for all steps, and bytes held at the end."""
    before = None
    with acting(decision, context) as actor:
        start = time.perf_counter()
        for step, now in enumerate(states):
            before = actor.act(now, torch.ones(len(now)), step, before)
        return time.perf_counter() - start, actor.held(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=500)
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
            turns = [{name: once(decision, c, states) for name, c in contexts.items()} for _ in range(options.turns)]
            best = {name: min(turn[name][0] for turn in turns) for name in contexts}
            for name in contexts:
                row = {
                    "width": width, "layers": 3, "window": WINDOW, "beside": beside, "context": name,
                    "steps": options.steps, "turns": options.turns, "dtype": "float32",
                    "steps_per_second": round(options.steps * beside / best[name], 1),
                    "ratio": round(best["window"] / best[name], 3),
                    "ratio_of_each_turn": [round(turn["window"][0] / turn[name][0], 3) for turn in turns],
                    "bytes_held": turns[0][name][1], "bytes_full": turns[0]["full"][1],
                }  # fmt: skip
                table.add_row(str(width), str(beside), name, f"{row['steps_per_second']:.0f}", f"{row['ratio']:.2f}")
                written.append(row)
    Console().print(table)
    print(rows.write("control_speed", written))


if __name__ == "__main__":
    main()
