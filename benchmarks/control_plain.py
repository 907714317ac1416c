"""Whether a window gives what the usual, plain rollout of the same model gives, and how far rounding carries them apart.

    python benchmarks/control_plain.py [folder] [--seeds 3]

The folder is that of experiments/control/run.sh. In float64 both must agree; in float32 the simulator makes much of little.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import rows
import torch
from rich.console import Console

from namm.rl import Decision, Window, rollout

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.rl.plain import plain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/control"))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    written = []
    for folder in sorted((options.folder / "models").iterdir()):
        for dtype in (torch.float64, torch.float32):
            decision = Decision.load(folder)
            decision.model.to(dtype)
            env_id = decision.about.env_id
            episodes = rollout(decision, partial(gymnasium.make, env_id), range(options.seeds), Window())
            for episode in episodes:
                actions, total = plain(decision, gymnasium.make(env_id), episode.seed)
                steps = min(len(actions), len(episode))
                apart = np.abs(actions[:steps] - episode.actions[:steps]).max(1)
                row = {
                    "model": folder.name,
                    "dtype": str(dtype).removeprefix("torch."),
                    "seed": episode.seed,
                    "return": episode.total,
                    "plain_return": float(total),
                    "length": len(episode),
                    "plain_length": len(actions),
                    "largest_difference_first_20": float(apart[:20].max()),
                    "largest_difference": float(apart.max()),
                }
                console.print(row)
                written.append(row)
    console.print(rows.write("control_plain", written))


if __name__ == "__main__":
    main()
