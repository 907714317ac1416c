"""Write docs/results.md from the row files.

python benchmarks/tables.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from evidence import MODELS, PLAIN, RULE, TARGETS, TWICE, complete
from rows import RESULTS, made_by, read

from namm.json_files import read_json
from namm.policies import DEFAULT_MEMORY, builtin_memories
from namm.report import interval, label, resample, summarise, table, to_markdown

README = Path(__file__).parents[1] / "README.md"
PAGE = Path(__file__).parents[1] / "docs" / "results.md"
CHOICE = Path(__file__).parents[1] / "docs" / "which-memory.md"


def against(target: float | None, value: float, better: str) -> str:
    if target is None:
        return ""
    met = value <= target if better == "<=" else value >= target
    return f"{better} {target} {'met' if met else '**missed**'}"


def speed() -> str:
    files = [rows for name in ("speed", "speed_bfloat16") if (rows := read(name))]
    lines = [
        [
            r["memory"], r["dtype"], f"{r.get('texts', 1)} x {r['tokens']:,}", f"{r['prefill_ratio']:.2f}",
            against(r["prefill_target"], r["prefill_ratio"], "<="), f"{r['decode_ratio']:.2f}",
            against(r["decode_target"], r["decode_ratio"], ">="),
            " ".join(f"{x:.2f}" for x in r["prefill_ratio_of_each_turn"]),
            " ".join(f"{x:.2f}" for x in r["decode_ratio_of_each_turn"]),
        ]
        for rows in files for r in rows
    ]  # fmt: skip
    headings = [
        "memory",
        "dtype",
        "texts x tokens",
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
        "within each turn. Several texts are read side by side, as one batch.\n\n"
        + table(headings, lines) + "\n" + "\n".join(map(made_by, files))
    )  # fmt: skip


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


def _between(found: dict[str, Any]) -> str:
    return f"{found['mean']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def _difference(found: dict[str, Any]) -> str:
    sure = found["low"] > 0 or found["high"] < 0
    text = f"{found['mean']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}]"
    return f"**{text}**" if sure else text


TEN = (DEFAULT_MEMORY, RULE, PLAIN, "kvzip@model", "kvzip-whole", "observed-max", "snapkv", "tova", "h2o", "streaming")
COLUMNS = (
    ("smollm2", 1024, 0.25), ("smollm2", 1024, 0.125), ("smollm2", 1024, 0.0625), ("gemma", 1024, 0.25),
    ("gemma", 1024, 0.125), ("qwen", 1024, 0.25), ("qwen", 1024, 0.125),
)  # fmt: skip


def _found(suite: str, tokens: int, budget: float) -> dict[str, Any] | None:
    rows = [r for r in read("evidence") if (r["model"], r["tokens"], r["budget"]) == (suite, tokens, budget)]
    return rows[0] if rows else None


def _ten(columns: tuple[tuple[str, int, float], ...]) -> str:
    """Ten memories, their scores where they were measured."""
    rows = [row for column in columns if (row := _found(*column))]
    headings = ["memory", "reads", *(f"{MODELS[r['model']]}, {100 * r['budget']:g} %" for r in rows)]
    lines = [
        [label(name), "twice" if name in TWICE else "once", *(f"{r['normalised'][name]['mean']:.2f}" for r in rows)]
        for name in TEN
    ]
    counts = dict.fromkeys(f"{MODELS[r['model']]} n = {r['n']}" for r in rows)
    return table(headings, lines) + f"\nTexts of {columns[0][1]:,} tokens; {', '.join(counts)}.\n"


def in_a_minute() -> str:
    return (
        "![Score over bytes](results.png)\n\nTest split, tasks that hide what will be asked in novels and code; every "
        "memory on the same samples with the same share of the cache's *bytes*, its own state included; an update each 512 "
        "tokens; the question is not known when the memory decides. Score: 1 is the full cache, 0 its first four tokens. "
        "Unseen: used in no evolution. How to read this: [evaluate.md](evaluate.md).\n\n" + _ten(COLUMNS)
    )


def choices() -> str:
    """The memories that one may choose from, by model, length and budget."""
    names = (DEFAULT_MEMORY, RULE, "kvzip@model", "observed-max", "snapkv", "streaming")
    lines = [
        [
            MODELS[r["model"]], f"{r['tokens']:,}", f"{100 * r['budget']:g} %", str(r["n"]),
            *(_between(r["normalised"][name]) for name in names),
        ]
        for r in read("evidence")
    ]  # fmt: skip
    return table(["model", "tokens", "bytes", "n", *map(label, names)], lines)


def against_each() -> str:
    lines, commits = [], sorted({commit for row in read("evidence") for commit in row["commits"]})
    for r in read("evidence"):
        target, ours, best = (
            TARGETS.get((r["model"], r["tokens"], r["budget"])),
            r["normalised"][DEFAULT_MEMORY],
            r["best_heuristic"],
        )
        lines.append(
            [
                MODELS[r["model"]], f"{r['tokens']:,}", f"{100 * r['budget']:g} %", str(r["n"]), _between(ours),
                against(target, ours["mean"], ">="), f"{best} {r['normalised'][best]['mean']:.2f}",
                *(_difference(r["above"][name]) for name in (best, RULE, PLAIN, *TWICE)),
            ]
        )  # fmt: skip
    headings = [
        "model", "tokens", "bytes", "n", DEFAULT_MEMORY, "aimed at", "best heuristic", "above it", f"above {RULE}",
        f"above {PLAIN}", *(f"above {name}" for name in TWICE),
    ]  # fmt: skip
    return (
        f"## {DEFAULT_MEMORY} against each\n\n`benchmarks/evidence.sh` and `python benchmarks/evidence.py`. Differences are "
        "paired, with 95 % intervals, bold where these leave out zero. *Best heuristic*: the best published one that reads "
        f"once, chosen on these rows. `{PLAIN}`: the rule by hand, whose queries ask their window in place; `{RULE}`: the same "
        "read through the model's calibration, the best rule by hand that reads once, so what stands above it is the "
        "evolution's own. KVzip as published reads the whole prompt and then all of it again with one threshold for "
        "the model (`kvzip-whole`); the others read block by block, as every other memory here. A method is measured again, on "
        f"the same samples, when it has changed: rows are of the commits {', '.join(commits)}.\n\n"
        + table(headings, lines)
    )


def every_table() -> str:
    parts = []
    for suite, name in MODELS.items():
        if rows := complete(suite):
            summary = summarise(rows, read_json(RESULTS / f"{suite}.json", "Check the file out again."))
            parts.append(f"## {name}: every table\n\n" + to_markdown(summary))
    return "\n".join(parts)


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


def _curve() -> str:
    """Each validation of the evolution's mean; the gain is paired, over the mean at which the stage began."""
    lines, began = [], dict[tuple[str, int], list[float]]()
    for row in read("evolution"):
        for kind, spent in (("start", 0), ("mean", row["evaluations"])):
            if found := (row["validated"] or {}).get(kind):
                start = began.setdefault((row["run"], row["stage"]), found["scores"])
                lines.append(
                    [
                        row["run"], row["stage"], f"{spent:,}" if spent else "-", f"{found['fitness']:.3f}",
                        *(f"{score:.3f}" for score in found["models"]), "-" if kind == "start" else gain(found["scores"], start),
                    ]
                )  # fmt: skip
    headings = [
        "run",
        "stage",
        "candidate-samples",
        "fitness of the mean",
        *read("evolution")[0]["models"],
        "above the stage's start",
    ]
    return table(headings, lines)


def evolution() -> str:
    rows = read("evolution")
    return (
        "## Evolution\n\n`benchmarks/evolution.sh`: fitness of the mean of the search on "
        f"{next(row['n'] for row in rows if row['n'])} validation samples, over candidate-samples spent. 1 is the full cache, "
        "0 its first four tokens. Each stage has validation samples of its own lengths.\n\n"
        + _curve() + "\n![The same as curves](evolution.png)\n\n" + made_by(rows)
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


def calibration() -> str:
    rows = read("calibration")
    shares = sorted({r["share"] for r in rows}, reverse=True)
    found = {(r["model"], r["texts"], r["share"]): f"{r['agreement']:.2f}" for r in rows}
    kinds = dict.fromkeys((r["model"], r["texts"]) for r in rows)
    lines = [[model, str(texts or "none"), *(found[model, texts, share] for share in shares)] for model, texts in kinds]
    return (
        "## What a calibration is worth\n\nPart of the tokens with the largest attention from a second reading, over all heads "
        "of all layers, that is also among as many with the largest attention in place: as it is, and read through "
        "calibrations from so many texts of another split (`namm.calibrate` takes two).\n\n"
        + table(["model", "texts", *(f"{100 * share:g} %" for share in shares)], lines) + "\n" + made_by(rows)
    )  # fmt: skip


def card() -> None:
    """The shipped memory's card, with what was measured of it."""
    file = builtin_memories()[DEFAULT_MEMORY] / "README.md"
    text = file.read_text().partition("\n## On the test split")[0].rstrip()
    measured = against_each().partition("\n\n")[2]
    file.write_text(
        f"{text}\n\n## On the test split\n\n{measured}\n## Its evolution\n\nA quarter, an eighth and a sixteenth of the bytes together.\n\n{_curve()}"
    )


def _fill(page: Path, mark: str, text: str) -> None:
    """Put a text between two marks of a page."""
    before, _, after = page.read_text().split(mark)
    page.write_text(mark.join([before, text, after]))


def gpu() -> str:
    from gpu import page

    rows = read("gpu")
    return page(rows) + "\n" + made_by(rows)


PARTS = (
    (in_a_minute, "evidence"),
    (against_each, "evidence"),
    (calibration, "calibration"),
    (speed, "speed"),
    (gpu, "gpu"),
    (bytes_held, "bytes"),
    (evolution, "evolution"),
    (searches, "searches"),
    (spaces, "spaces"),
    (throughput, "throughput"),
    (strategy, "strategy"),
    (every_table, "evidence"),
)


def main() -> None:
    head = "# Results\n\nWritten by `python benchmarks/tables.py` from `benchmarks/results/`; do not edit by hand.\n\n"
    if read("evidence"):
        _fill(README, "<!-- results -->\n", _ten(COLUMNS))
        _fill(CHOICE, "<!-- figures -->\n", choices())
        card()
    PAGE.write_text(head + "\n".join(part() for part, rows in PARTS if read(rows)))


if __name__ == "__main__":
    main()
