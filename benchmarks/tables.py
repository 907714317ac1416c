"""Write docs/results.md from the row files.

python benchmarks/tables.py
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from rows import RESULTS, read

from namm.json_files import read_json
from namm.policies import builtin_memories
from namm.report.bootstrap import interval, resample
from namm.report.statistics import summarise
from namm.report.summary import Summary, label, to_markdown

EMBEDDED = RESULTS / "embedded.jsonl.xz"
README = Path(__file__).parents[1] / "README.md"
PAGE = Path(__file__).parents[1] / "docs" / "results.md"


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
    return summarise(read("embedded"), read_json(RESULTS / "embedded.json", "Check the file out again."))


def embedded() -> str:
    return (
        "## The embedded suite on SmolLM2-135M-Instruct\n\n"
        "`benchmarks/embedded.sh` (about two hours on two cores; `make results` runs it and writes this page). Test split; a "
        "share of the full cache's bytes is allowed, the memory's own state included; an update each 512 tokens and one "
        "at the end of the text; the question is not known to the memory. How to read this: [evaluate.md](evaluate.md).\n\n"
        + to_markdown(evaluation())
    )


def _between(found: dict[str, Any] | None) -> str:
    return f"{found['mean']:.2f} [{found['low']:.2f}, {found['high']:.2f}]" if found else "-"


def _targets(memory: str | None = None) -> str:
    rows = [row for row in read("targets") if memory in (None, row["memory"])]
    lines = []
    for r in rows:
        once, against, h2o = r["best_once"], r["against"], r["nll_against_h2o"]
        worst = max(h2o["tasks"], key=h2o["tasks"].get) if h2o else ""
        lines.append(
            [
                label(r["memory"]), f"{r['tokens']:,}", f"{100 * r['budget']:g} %", str(r['normalised'][r['memory']]['samples']), _between(r["normalised"][r["memory"]]),
                f"{once} {r['normalised'][once]['mean']:.2f}", _between(against[once]), _between(against["kvzip"]),
                f"{r['gap_closed']['normalised']:.0%}" if r["gap_closed"]["normalised"] is not None else "-",
                f"{worst} {h2o['tasks'][worst]:+.2f}" if h2o else "-",
            ]
        )  # fmt: skip
    headings = [
        "memory", "tokens", "bytes", "n", "normalised", "best that reads once", "above it", "above kvzip", "gap closed",
        "NLL against h2o, worst task",
    ]  # fmt: skip
    return table(headings, lines)


def targets() -> str:
    return (
        "## The shipped memories against every heuristic\n\n"
        "`python benchmarks/targets.py`, from the rows below: paired differences of the normalised score on the samples "
        "that both have, with 95 % intervals. *Gap closed*: share of the way from the best heuristic that reads once to "
        "the oracle, in normalised score.\n\n" + _targets() + "\n"
    )


def gain(scores: list[float], start: list[float]) -> str:
    """Mean paired difference over the validation samples, with its 95 % bootstrap interval."""
    drawn = resample((np.array(scores) - np.array(start))[:, None], [str(i) for i in range(len(start))])
    low, high = interval(drawn)[:, 0]
    return f"{drawn.mean[0]:+.3f} [{low:+.3f}, {high:+.3f}]"


def spaces() -> str:
    rows = read("spaces")
    lines = [[r["space"], r["strategy"], f"{r['dimensions']:,}", f"{r['start']:.3f}", f"{r['mean']:.3f}"] for r in rows]
    return (
        "## Search spaces on the planted problem\n\n`python benchmarks/spaces.py`: which of five made-up kinds of token "
        f"matters? Score of the mean on held-out samples after {rows[0]['generations']} generations from zeros, paper "
        "features; 1 is the optimum.\n\n"
        + table(["space", "CMA-ES", "dimensions", "at the start", "at the end"], lines) + "\n" + made_by(rows)
    )  # fmt: skip


def searches() -> str:
    ladder = ("paper", "extended")  # and what rehearses above them
    rows = sorted(
        read("searches"), key=lambda r: ladder.index(r["features"]) if r["features"] in ladder else len(ladder)
    )
    lines = [
        [
            r["features"], r["space"] + (", ranks" if r["ranks"] else ""), r["strategy"], f"{r['dimensions']:,}",
            f"{np.mean(r['start']):.3f}", f"{np.mean(r['mean']):.3f}", gain(r["mean"], r["start"]),
        ]
        for r in rows
    ]  # fmt: skip
    return (
        "## What a search sees and what it changes\n\n`python benchmarks/searches.py`: on SmolLM2, texts of 512 tokens at a "
        "quarter and an eighth of the bytes, state included; each feature set fitted by gradient (*fitted*), then searched for "
        f"{rows[0]['evaluations']:,} candidate-samples from there (*evolved*: the mean of the search). Score on the same "
        f"{len(rows[0]['start'])} validation samples; the gain is paired, with its 95 % interval. One seed each: gains that "
        "differ by less than their intervals do not rank two searches.\n\n"
        + table(
            ["features", "space", "CMA-ES", "dimensions", "fitted", "evolved", "gain"], lines
        )
        + "\n" + made_by(rows)
    )  # fmt: skip


def rehearsal() -> str:
    rows = read("rehearsal")
    lines = [[r["reads again"], f"{r['score']:.3f}", f"{r['n']}", f"{r['prefill_ratio']:.2f}"] for r in rows]
    return (
        "## Rehearsal: what it is worth, and what it costs\n\n`python benchmarks/rehearsal.py`: observed maximum plus "
        "rehearsed maximum, unlearned, a quarter of the bytes, validation texts of 1,024 tokens; and the time to read "
        f"{rows[0]['prefill_tokens']:,} tokens, over that of the untouched model in the same process.\n\n"
        + table(["reads again", "normalised", "n", "prefill time"], lines) + "\n" + made_by(rows)
    )  # fmt: skip


def evolution() -> str:
    rows, lines = read("evolution"), []
    for name in dict.fromkeys(row["run"] for row in rows):
        mine = [row for row in rows if row["run"] == name]
        if "reference" in mine[0]:
            lines.append([name, "", "", "", "", f"{sum(mine[0]['reference']) / mine[0]['n']:.3f}", ""])
            continue
        for row in mine:
            for kind, found in (row["validated"] or {}).items():
                if kind != "best":
                    spent = 0 if kind == "start" else row["evaluations"]
                    start = next(iter(mine))["validated"]["start"]["scores"]
                    lines.append(
                        [
                            name,
                            row["features"],
                            row["start"],
                            row["space"],
                            f"{spent:,}",
                            f"{found['fitness']:.3f}",
                            gain(found["scores"], start) if spent else "-",
                        ]
                    )
    return (
        "## Evolution\n\n`benchmarks/evolution.sh`: fitness of the mean on 24 validation samples (512 tokens), over "
        "candidate-samples spent. 1 is the full cache, 0 its first four tokens.\n\n"
        + table(["run", "features", "start", "space", "evaluations", "validation", "above its start"], lines)
        + "\n![The same as curves](evolution.png)\n\n" + made_by(rows)
    )  # fmt: skip


def throughput() -> str:
    rows = read("throughput")
    lines = [
        [
            r["features"], f"{r['tokens']:,}", f"{r['per_second_alone']:.2f}", f"{r['per_second_together']:.2f}",
            f"{r['ratio']:.2f} ({against(r['target'], r['ratio'], '>=')})", f"{r['largest_score_difference']:.1e}",
        ]
        for r in rows
    ]  # fmt: skip
    headings = ["features", "tokens", "a second, one at a time", "a second, together", "ratio", "largest difference"]
    return (
        "## Throughput of an evolution\n\nCandidate-samples a second: two worker processes of one thread that share what "
        "comes before the first update, against one candidate at a time in one process with all threads; in turns.\n\n"
        + table(headings, lines) + "\n" + made_by(rows)
    )  # fmt: skip


def strategy() -> str:
    rows = read("strategy")
    lines = [
        [r["variant"], f"{r['dimensions']:,}", f"{r['mean_seconds']:.3f}", f"{r['worst_seconds']:.2f}"] for r in rows
    ]
    return (
        "## Cost of the search itself\n\nSeconds of one ask and tell of 32 candidates, mean and worst.\n\n"
        + table(["CMA-ES", "dimensions", "mean", "worst"], lines) + "\n" + made_by(rows)
    )  # fmt: skip


RUNS = {
    "builtin:smollm2-135m-instruct": "echo",
    "builtin:smollm2-135m-instruct-once": "once",
}  # of the shipped memories


def _own(memory: str) -> str:
    """What a shipped memory holds and is worth at its own threshold."""
    found = [
        (group, line.overall)
        for group in evaluation().groups if group.budget == "own"
        for line in group.lines if line.policy == memory
    ]  # fmt: skip
    return "".join(
        f"Without a budget, at its own threshold, it holds {s.bytes_share:.1%} of the bytes ({s.bytes_range[0]:.0%} to "
        f"{s.bytes_range[1]:.0%}) of texts of {group.tokens:,} tokens and scores "
        f"{_between({'mean': s.normalised.mean, 'low': s.normalised.low, 'high': s.normalised.high})} (n = {s.n}).\n\n"
        for group, s in found if s.normalised and s.bytes_range
    )  # fmt: skip


def _curve(memory: str) -> str:
    """How the run that gave a shipped memory went on: candidate-samples spent, fitness on the validation samples."""
    rows = [row for row in read("evolution") if row["run"] == RUNS[memory] and row["validated"]]
    lines = []
    for row in rows:
        for kind, spent in (("start", 0), ("mean", row["evaluations"])):
            if found := row["validated"].get(kind):
                lines.append([f"{spent:,}", f"{found['fitness']:.3f}", str(row["n"])])
    return table(["candidate-samples", "fitness of the mean", "validation samples"], lines)


def cards() -> None:
    """The shipped memories' cards, with what was measured of them."""
    for name, folder in builtin_memories().items():
        card = folder / "README.md"
        text = card.read_text().partition("\n## On the test split")[0].rstrip()
        card.write_text(
            f"{text}\n\n## On the test split\n\nThe embedded suite on SmolLM2-135M-Instruct at equal bytes, the state included; "
            "1 is the full cache, 0 its first four tokens; in brackets 95 % intervals, differences are paired.\n\n"
            + _targets(name) + "\n" + _own(name) + "## Its evolution\n\nTexts of 512 tokens, at the budgets named above.\n\n" + _curve(name)
        )  # fmt: skip


def in_short() -> str:
    """The shipped memories, for the README."""
    return (
        _targets() + "\nNormalised: 1 is the full cache, 0 its first four tokens only; differences are paired, on the "
        "samples that both have, with 95 % intervals. *Gap closed*: from the best heuristic that reads once to the oracle.\n"
        + "".join(f"\n`{name}`: {_own(name)[0].lower()}{_own(name)[1:].strip()}\n" for name in RUNS)
    )


PARTS = (
    (targets, RESULTS / "targets.jsonl"),
    (evolution, RESULTS / "evolution.jsonl"),
    (searches, RESULTS / "searches.jsonl"),
    (rehearsal, RESULTS / "rehearsal.jsonl"),
    (spaces, RESULTS / "spaces.jsonl"),
    (throughput, RESULTS / "throughput.jsonl"),
    (strategy, RESULTS / "strategy.jsonl"),
    (speed, RESULTS / "speed.jsonl"),
    (bytes_held, RESULTS / "bytes.jsonl"),
    (embedded, EMBEDDED),
)


def main() -> None:
    head = (
        "# Results\n\nGenerated by `python benchmarks/tables.py` from `benchmarks/results/`; do not edit by hand.\n\n"
    )
    if EMBEDDED.exists():
        before, _, after = README.read_text().split("<!-- results -->\n")
        README.write_text("<!-- results -->\n".join([before, in_short(), after]))
    if (RESULTS / "targets.jsonl").exists():
        cards()
    PAGE.write_text(head + "\n".join(part() for part, file in PARTS if file.exists()))


if __name__ == "__main__":
    main()
