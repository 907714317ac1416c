"""Speed of reading and answering under a memory, as ratios to the untouched model in the same process.

    python benchmarks/speed.py [--repeats 2] [--dtype float32]

Texts are read alone, and several side by side. The untouched model (SDPA, DynamicCache) and the memory take turns, so that a
busy machine slows both; the ratio of the minima over the turns is what counts, the ratio of each turn is in the row file.
"""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import rows
import torch
from rich.console import Console
from rich.table import Table

import namm
from namm.policies import DEFAULT_MEMORY

DECODED = 24
SHAPES = ("1x2048", "1x4096", "1x8192", "4x2048", "8x1024")
TARGETS = {  # of a memory at a quarter, by texts and tokens: at most this part of the time to read, this speed at least
    (1, 4096): (0.95, None), (1, 8192): (0.80, 1.3), (4, 2048): (0.95, 1.15), (8, 1024): (1.0, 1.0),
}  # fmt: skip


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


def memories(learned: Any, texts: int, tokens: int) -> list[tuple[str, tuple[Any, ...], float | None, float | None]]:
    """What reads texts like these: its name, what is attached, and the targets of reading and of decoding."""
    quarter, targets = namm.Budget(fraction=0.25), TARGETS.get((texts, tokens), (None, None))
    found = [(f"{DEFAULT_MEMORY}, 25 %", (learned, quarter), *targets)]
    if texts > 1:  # heads that hold equally many tokens
        found.append(("h2o, 25 %", ("h2o", quarter), *targets))
    elif tokens == 4096:  # what one budget for the model costs
        for per in ("layer", "model"):
            found.append((f"requery, 25 % by {per}", ("requery", replace(quarter, per=per)), None, None))
    elif tokens == 2048:
        found.append(("paper features, keep-all", (namm.NAMM.zeros(),), 1.3, None))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=2, help="turns; twice as many of a single text of 2,048 tokens")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shapes", nargs="*", default=SHAPES, help="texts x tokens of each")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model, tokenizer = namm.models.load_model(dtype=options.dtype)
    learned = namm.calibrated(DEFAULT_MEMORY, model, tokenizer)
    shapes = [tuple(map(int, shape.split("x"))) for shape in options.shapes]
    cases = [(texts, tokens, *case) for texts, tokens in shapes for case in memories(learned, texts, tokens)]
    table = Table(title=f"against the untouched model, {options.dtype}, {options.threads} threads", box=None)
    for heading in ("memory", "texts", "tokens", "prefill time", "target", "decode tokens/s", "target"):
        table.add_column(heading, justify="left" if heading == "memory" else "right")
    other = "" if options.dtype == "float32" else f" --dtype {options.dtype}"
    written = []
    for texts, tokens, name, attached, prefill_target, decode_target in cases:
        ids = torch.randint(0, model.config.vocab_size, (texts, tokens))
        turns = []
        # short texts are cheap to repeat, and noisier
        repeats = options.repeats * max(1, 8192 // (texts * tokens) // 2)
        for _ in range(repeats):
            untouched = once(model, ids, None, True)
            turns.append((untouched, once(model, ids, attached, True)))
        best = {k: [min(turn[side][k] for turn in turns) for side in (0, 1)] for k in ("prefill", "decode")}
        prefill, decode = best["prefill"][1] / best["prefill"][0], best["decode"][0] / best["decode"][1]
        written.append(
            {
                "memory": name, "texts": texts, "tokens": tokens, "dtype": options.dtype, "threads": options.threads,
                "prefill_ratio": round(prefill, 3), "prefill_target": prefill_target,
                "decode_ratio": round(decode, 3), "decode_target": decode_target,
                "prefill_ratio_of_each_turn": [round(b["prefill"] / a["prefill"], 3) for a, b in turns],
                "decode_ratio_of_each_turn": [round(a["decode"] / b["decode"], 3) for a, b in turns],
                "prefill_seconds": [round(s, 3) for s in best["prefill"]],
                "decode_seconds_per_token": [round(s, 4) for s in best["decode"]],
                "n": repeats, "seed": 0, "script": f"benchmarks/speed.py{other}",
            }
        )  # fmt: skip
        table.add_row(
            name, str(texts), f"{tokens:,}", f"{prefill:.2f}x", f"<= {prefill_target}" if prefill_target else "",
            f"{decode:.2f}x", f">= {decode_target}" if decode_target else "",
        )  # fmt: skip
        Console().print(f"{name}, {texts} x {tokens} tokens: prefill {prefill:.2f}x, decode {decode:.2f}x")
    Console().print(table)
    name = "speed" if options.dtype == "float32" else f"speed_{options.dtype}"
    Console().print(f"rows: {rows.write(name, written)}")


if __name__ == "__main__":
    main()
