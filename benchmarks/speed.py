"""Speed of reading and answering under a memory, as ratios to the untouched model in the same process.

    python benchmarks/speed.py [--repeats 2] [--dtype float32]

The untouched model (SDPA, DynamicCache) and the memory take turns, so that a busy machine slows both; the ratio of the
minima over the turns is what counts, the ratio of each turn is in the row file.
"""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext
from typing import Any

import rows
import torch
from rich.console import Console
from rich.table import Table

import namm
from namm.policies import DEFAULT_MEMORY

DECODED = 24


@torch.inference_mode()
def once(model: Any, ids: torch.Tensor, attached: tuple[Any, ...] | None, decode: bool) -> dict[str, float]:
    """Seconds to read `ids`, and seconds for each token after them."""
    token = ids[:, :1]
    with namm.attach(model, *attached) if attached else nullcontext():
        start = time.perf_counter()
        out = model(ids, logits_to_keep=1)
        seconds = {"prefill": time.perf_counter() - start}
        if decode:
            model(token, past_key_values=out.past_key_values)
            start = time.perf_counter()
            for _ in range(DECODED):
                model(token, past_key_values=out.past_key_values)
            seconds["decode"] = (time.perf_counter() - start) / DECODED
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=2, help="turns at 8,192 and 4,096 tokens; twice that at 2,048")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lengths", type=int, nargs="*", default=[2048, 4096, 8192])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model, tokenizer = namm.models.load_model(dtype=options.dtype)
    learned = namm.calibrated(DEFAULT_MEMORY, model, tokenizer)
    cases: list[tuple[str, int, tuple[Any, ...], float | None, float | None]] = []
    for length in options.lengths:
        target = {4096: 0.95, 8192: 0.80}.get(length)
        shipped = (learned, namm.Budget(fraction=0.25))
        cases.append((f"{DEFAULT_MEMORY}, 25 %", length, shipped, target, 1.3 if length == 8192 else None))
        if length == 4096:  # what one budget for the model costs
            for per in ("layer", "model"):
                budget = namm.Budget(fraction=0.25, per=per)
                cases.append((f"requery, 25 % by {per}", length, ("requery", budget), None, None))
        if length == 2048:
            cases.append(("paper features, keep-all", length, (namm.NAMM.zeros(),), 1.3, None))
    table = Table(title=f"against the untouched model, {options.dtype}, {options.threads} threads", box=None)
    for heading in ("memory", "tokens", "prefill time", "target", "decode tokens/s", "target"):
        table.add_column(heading, justify="left" if heading == "memory" else "right")
    written = []
    for name, length, attached, prefill_target, decode_target in cases:
        ids = torch.randint(0, model.config.vocab_size, (1, length))
        turns = []
        repeats = options.repeats * max(1, 8192 // length // 2)  # short texts are cheap to repeat, and noisier
        for _ in range(repeats):
            untouched = once(model, ids, None, True)
            turns.append((untouched, once(model, ids, attached, True)))
        best = {k: [min(turn[side][k] for turn in turns) for side in (0, 1)] for k in ("prefill", "decode")}
        prefill, decode = best["prefill"][1] / best["prefill"][0], best["decode"][0] / best["decode"][1]
        written.append(
            {
                "memory": name, "tokens": length, "dtype": options.dtype, "threads": options.threads,
                "prefill_ratio": round(prefill, 3), "prefill_target": prefill_target,
                "decode_ratio": round(decode, 3), "decode_target": decode_target,
                "prefill_ratio_of_each_turn": [round(b["prefill"] / a["prefill"], 3) for a, b in turns],
                "decode_ratio_of_each_turn": [round(a["decode"] / b["decode"], 3) for a, b in turns],
                "prefill_seconds": [round(s, 3) for s in best["prefill"]],
                "decode_seconds_per_token": [round(s, 4) for s in best["decode"]],
                "n": repeats, "seed": 0,
            }
        )  # fmt: skip
        table.add_row(
            name, f"{length:,}", f"{prefill:.2f}x", f"<= {prefill_target}" if prefill_target else "",
            f"{decode:.2f}x", f">= {decode_target}" if decode_target else "",
        )  # fmt: skip
        Console().print(f"{name}, {length} tokens: prefill {prefill:.2f}x, decode {decode:.2f}x")
    Console().print(table)
    name = "speed" if options.dtype == "float32" else f"speed_{options.dtype}"
    Console().print(f"rows: {rows.write(name, written)}")


if __name__ == "__main__":
    main()
