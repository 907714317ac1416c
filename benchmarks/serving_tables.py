"""Write the tables of docs/serve.md from the row files of serving.py and soak.py.

python benchmarks/serving_tables.py
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rows import made_by, read
from tables import against

from namm.report import table

PAGE = Path(__file__).parents[1] / "docs" / "serve.md"
HELD, SOONER = 3.0, 5.0  # what a memory was aimed at: times the conversations, times sooner
MEGA = 1e6
Rows = list[dict[str, Any]]


def serving() -> str:
    rows = read("serving")
    written = [write(rows) for write in (load, sooner, fair, batch)]
    return "\n".join(part for part in written if part) + "\n" + made_by(rows)


def of(rows: Rows, measure: str) -> Rows:
    return [row for row in rows if row["measure"] == measure]


def load(rows: Rows) -> str:
    """Conversations at the same limit of bytes."""
    rows = of(rows, "load")
    if not rows:
        return ""
    asked, full = rows[0]["settings"], next((row for row in rows if row["memory"] == "full"), None)
    lines = [
        [
            r["memory"], str(r["conversations_held_at_the_end"]), f"{1 / share(r):.2f}", more(r, full),
            f"{r['most_bytes_held'] / MEGA:,.0f}", f"{r['continued']} of {r['n']}", refused(r),
            seconds(r, "read"), seconds(r, "asked"), f"{r['requests_per_second']:.2f}",
        ]
        for r in rows
    ]  # fmt: skip
    headings = [
        "memory", "held at the end", "tokens in the bytes of one", "conversations against full", "most MB held",
        "went on", "refused", "first token, reading", "first token, asking", "questions/s",
    ]  # fmt: skip
    return (
        f"{asked['conversations']} conversations of {asked['tokens']:,} tokens, give or take a fifth, {asked['rounds']} round{'s' if asked['rounds'] > 1 else ''} of "
        f"questions to all of them in a random order, {asked['at_once']} requests open at any time, "
        f"{100 * asked['budget']:g} % of the tokens, and {rows[0]['limit_bytes'] / MEGA:,.0f} MB for all of them. *Tokens in the bytes "
        "of one*: of the conversations at rest in the end, a full cache's bytes over the bytes held; *conversations against "
        "full* is the same over the full server's. *Went on*: questions whose conversation was still there; the others were read again. "
        "Seconds to the first token: median, 90th percentile.\n\n" + table(headings, lines)
    )  # fmt: skip


def share(row: dict[str, Any]) -> float:
    """Bytes held by the conversations at rest, over those of full caches."""
    return row["bytes_held"] / row["bytes_full"]


def more(row: dict[str, Any], full: dict[str, Any] | None) -> str:
    if full is None or row is full:
        return ""
    times = share(full) / share(row)
    return f"{times:.2f} ({against(HELD, times, '>=')})"


def refused(row: dict[str, Any]) -> str:
    return str(sum(count for status, count in row["statuses"].items() if status != "200"))


def seconds(row: dict[str, Any], what: str) -> str:
    return f"{row[f'{what}_first_token']:.2f}, {row[f'{what}_first_token_p90']:.2f}"


def sooner(rows: Rows) -> str:
    lines = [
        [
            r["memory"], f"{r['tokens']:,}", f"{r['read_again']:.2f}", f"{r['continued']:.2f}",
            f"{r['ratio']:.1f} ({against(SOONER, r['ratio'], '>=')})",
            " ".join(f"{x:.1f}" for x in r["ratio_of_each_turn"]), f"{r['bytes_full'] / r['bytes_held']:.2f}",
        ]
        for r in of(rows, "sooner")
    ]  # fmt: skip
    headings = [
        "memory", "tokens", "read again", "goes on", "sooner", "in each turn", "full bytes over bytes held",
    ]  # fmt: skip
    said = "Seconds to the first token of a follow-up question: median of requests that go on, and of the same requests read anew."
    return f"{said}\n\n{table(headings, lines)}" if lines else ""


def fair(rows: Rows) -> str:
    lines = [
        [
            r["memory"], f"{r['tokens']:,}", str(r["n"]), f"{r['alone']:.2f}, {r['alone_most']:.2f}",
            f"{r['beside']:.2f}, {r['beside_most']:.2f}", f"{r['long_first_token']:.1f}",
        ]
        for r in of(rows, "fair")
    ]  # fmt: skip
    headings = ["memory", "tokens being read", "n", "alone", "meanwhile", "the long one"]
    said = "Seconds to the first token of a short question while a long text is read: median, longest."
    return f"{said}\n\n{table(headings, lines)}" if lines else ""


def batch(rows: Rows) -> str:
    lines = [[r["memory"], *(f"{speed:.1f}" for speed in r["tokens_per_second"].values())] for r in of(rows, "batch")]
    if not lines:
        return ""
    many = [f"{number} at once" for number in of(rows, "batch")[0]["tokens_per_second"]]
    return f"Tokens a second of all answers together, best of the turns.\n\n{table(['memory', *many], lines)}"


def soak() -> str:
    rows = read("soak")
    lines = [
        [
            r["model"], r["memory"], str(r["replicas"]), str(r["settings"]["clients"]), f"{r['settings']['minutes']:g}",
            f"{r['requests']:,}", f"{r['answers']:,}", f"{r['continued']:,}", f"{r['disconnects']:,}",
            ", ".join(f"{status}: {count:,}" for status, count in r["statuses"].items()),
            f"{r['rss_before'] / MEGA:,.0f} -> {r['rss_after'] / MEGA:,.0f}", str(len(r["violations"])), r["commit"],
        ]
        for r in rows
    ]  # fmt: skip
    headings = [
        "model", "memory", "replicas", "clients", "minutes", "requests", "answers compared", "went on", "clients left",
        "by status", "process MB", "violations", "commit",
    ]  # fmt: skip
    return table(headings, lines) + "\n" + made_by(rows[-1:])


def main() -> None:
    text = PAGE.read_text() if PAGE.exists() else ""
    parts: dict[str, Callable[[], str]] = {"serving": serving, "soak": soak}
    for name, part in parts.items():
        mark = f"<!-- {name} -->\n"
        if not read(name):
            continue
        if mark not in text:
            print(part())
            continue
        before, _, after = text.split(mark)
        text = mark.join([before, "\n" + part() + "\n", after])
    if text:
        PAGE.write_text(text)


if __name__ == "__main__":
    main()
