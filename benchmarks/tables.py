"""Write docs/results.md from the row files.

python benchmarks/tables.py
"""

from __future__ import annotations

import json
import lzma
from functools import cache
from pathlib import Path
from typing import Any

from rows import RESULTS

from namm.report.statistics import summarise
from namm.report.summary import Summary, estimate, label, to_markdown

EMBEDDED = RESULTS / "embedded.jsonl.xz"
README = Path(__file__).parents[1] / "README.md"
PAGE = Path(__file__).parents[1] / "docs" / "results.md"


def read(name: str) -> list[dict[str, Any]]:
    file = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def made_by(rows: list[dict[str, Any]]) -> str:
    r = rows[0]
    return (
        f"`python {r['script']}` at commit {r['commit']}; {r['hardware']}; torch {r['torch']}, transformers "
        f"{r['transformers']}, {r['kernels']} kernels.\n"
    )


def table(headings: list[str], lines: list[list[str]]) -> str:
    rule = [" --- "] + [" ---: "] * (len(headings) - 1)
    text = ["| " + " | ".join(headings) + " |", "|" + "|".join(rule) + "|"]
    return "\n".join(text + ["| " + " | ".join(line) + " |" for line in lines]) + "\n"


def against(target: float | None, value: float, better: str) -> str:
    if target is None:
        return ""
    met = value <= target if better == "<=" else value >= target
    return f"{better} {target} {'met' if met else '**missed**'}"


def speed() -> str:
    rows = [row for name in ("speed", "speed_bfloat16") for row in read(name)]
    lines = [
        [
            r["memory"], r["dtype"], f"{r['tokens']:,}", f"{r['prefill_ratio']:.2f}",
            against(r["prefill_target"], r["prefill_ratio"], "<="), f"{r['decode_ratio']:.2f}",
            against(r["decode_target"], r["decode_ratio"], ">="),
            " ".join(f"{x:.2f}" for x in r["prefill_ratio_of_each_turn"]),
            " ".join(f"{x:.2f}" for x in r["decode_ratio_of_each_turn"]),
        ]
        for r in rows
    ]  # fmt: skip
    headings = [
        "memory",
        "dtype",
        "tokens",
        "prefill time",
        "target",
        "decode speed",
        "target",
        "turns: prefill",
        "decode",
    ]
    return (
        "## Speed\n\nAgainst the untouched model (SDPA, DynamicCache) in the same process, taking turns: ratio of the best "
        "prefill times (lower is better) and of the best decode speeds after reading (higher is better), then the ratio "
        "within each turn.\n\n" + table(headings, lines) + "\n" + made_by(rows)
    )


def bytes_held() -> str:
    rows = read("bytes")
    slots = [
        [
            r["dtype"].removeprefix("torch."), f"{r['tokens']:,}", f"{r['kept_share'][0]:.0%} to {r['kept_share'][1]:.0%}",
            f"{r['bytes_over_kept_slots']:.3f} ({against(r['target'], r['bytes_over_kept_slots'], '<=')})",
            f"{r['state_over_key_and_value']:.1%} ({against(r['state_target'], r['state_over_key_and_value'], '<=')})",
            f"{r['tail_bytes'] / 1e6:.2f} MB",
        ]
        for r in rows if r["measure"] == "slots"
    ]  # fmt: skip
    (peak,) = [r for r in rows if r["measure"] == "peak"]
    headings = [
        "dtype",
        "tokens",
        "heads keep",
        "bytes held / bytes of kept slots",
        "state / key and value",
        "constant tail",
    ]
    return (
        "## Bytes\n\nBytes of every storage that exists, the memory's own state included.\n\n"
        + table(headings, slots)
        + f"\nReading {peak['tokens']:,} tokens at a 25 % budget: at most {peak['peak_over_full']:.3f} of a full cache was held "
        f"at any time ({against(peak['target'], peak['peak_over_full'], '<=')}), {peak['held_over_full']:.3f} at the end.\n\n"
        + made_by(rows)
    )


@cache
def evaluation() -> Summary:
    with lzma.open(EMBEDDED, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file.read().split("\n")[:-1]]
    return summarise(rows, json.loads((RESULTS / "embedded.json").read_text()))


def embedded() -> str:
    return (
        "## The embedded suite on SmolLM2-135M-Instruct\n\n"
        "`benchmarks/embedded.sh` (about two hours on two cores; `make results` runs it and writes this page). Test split; a "
        "share of the full cache's bytes is allowed, the memory's own state included; an update each 512 tokens and one "
        "at the end of the text; the question is not known to the memory. The NAMM was evolved with an update each 64 "
        "tokens. How to read this: [evaluate.md](evaluate.md).\n\n" + to_markdown(evaluation())
    )


def in_short() -> str:
    """The normalised scores, for the README."""
    groups = [group for group in evaluation().groups if group.budget is not None]
    headings = [
        "normalised score",
        *(f"{group.tokens:,} tokens, {group.budget:.0%} of the bytes".replace("%", " %") for group in groups),
    ]
    found = [{line.policy: line for line in group.lines} for group in groups]
    lines = [
        [label(policy), *(estimate(of_group[policy].overall.normalised) for of_group in found)]
        for policy, line in found[0].items()
        if line.kind not in ("full", "floor")
    ]
    counts = {group.tokens: len(group.tasks) for group in groups}
    tasks = ", ".join(f"{count} tasks at {tokens:,} tokens" for tokens, count in counts.items())
    return (
        table(headings, lines) + "\n1: the full cache; 0: its first four tokens only; in brackets the 95 % interval. "
        f"{evaluation().config['config']['samples']} samples of each task; {tasks}.\n"
    )


PARTS = ((speed, RESULTS / "speed.jsonl"), (bytes_held, RESULTS / "bytes.jsonl"), (embedded, EMBEDDED))


def main() -> None:
    head = (
        "# Results\n\nGenerated by `python benchmarks/tables.py` from `benchmarks/results/`; do not edit by hand.\n\n"
    )
    if EMBEDDED.exists():
        before, _, after = README.read_text().split("<!-- results -->\n")
        README.write_text("<!-- results -->\n".join([before, in_short(), after]))
    PAGE.write_text(head + "\n".join(part() for part, file in PARTS if file.exists()))


if __name__ == "__main__":
    main()
