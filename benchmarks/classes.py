"""What kinds of tokens a memory keeps, against their neighbours of equal age, and what it would cost to interfere.

    python benchmarks/classes.py read smollm2-135m-instruct [--texts 30]   # goes on where it was stopped
    python benchmarks/classes.py show                                      # docs/classes.png, and tables on standard output

Code is the modules of Python's library, from their beginning; prose and dialogue are the parts of a novel that nobody
was evolved on with the least and the most of it in quotation marks. Each text is read under a quarter of the cache,
with two updates; then the loss on the 128 tokens that follow says what was lost.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rows import add, made_by, read
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import namm
from namm.policies import DEFAULT_MEMORY, MemoryPolicy, View, resolve
from namm.policies.base import PROTECTED
from namm.report import CLASSES, SPECIAL, classify, resample
from namm.tasks import text

TOKENS, AFTER, INTERVAL, BUDGET = 1024, 128, 512, 0.25
PICTURE = Path(__file__).parents[1] / "docs" / "classes.png"
KINDS = ("code", "prose", "dialogue")
MEMORIES = (DEFAULT_MEMORY, "requery", "paper")
RULES = {  # classes that are kept first, or dropped first, whatever their scores
    "code": (("indentation", "white space"), ("comments", "docstrings"), ("identifiers",)),
    "prose": (("stop words",), ("punctuation",), ("content words",)),
    "dialogue": (("stop words",), ("punctuation",), ("content words",)),
}
DEPTHS = ("all", "first third", "middle", "last third")
SINKS = 4
FEW = 5  # tokens of a class; a text with fewer says nothing of it


class Ruled(MemoryPolicy):
    """Another policy, but certain tokens stay, or go, before all others; the first of the text, the sinks, stay."""

    name = "ruled"

    def __init__(self, policy: MemoryPolicy, tokens: Tensor, stay: bool) -> None:
        self.policy, self.tokens, self.value = policy, tokens, PROTECTED if stay else -PROTECTED
        for part in ("channels", "hop", "overlap", "half_scale", "rehearsal", "per", "safeguard"):
            setattr(self, part, getattr(policy, part))

    def observe(self, state: Tensor, attention: Tensor) -> Tensor:
        return self.policy.observe(state, attention)

    def rehearse(self, state: Tensor, attention: Tensor) -> Tensor:
        return self.policy.rehearse(state, attention)

    def score(self, view: View) -> Tensor:
        chosen = torch.isin(view.positions, self.tokens.to(view.positions))
        sinks = (view.positions >= 0) & (view.positions < SINKS)
        return self.policy.score(view).masked_fill(chosen, self.value).masked_fill(sinks, torch.inf)


def paper() -> MemoryPolicy:
    """The paper's features, as their simplest reading: the moving average of attention (bin 0 of its spectrum)."""
    config = namm.NAMMConfig(features="paper", per="model", safeguard=0.2)
    network = namm.NAMM.zeros(config)
    network.tensors()["w_s"][8] = 1.0  # after eight of age
    return resolve(network)


def texts(kind: str, count: int, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """So many texts of a kind, each of a little more than is read."""
    length = TOKENS + AFTER + 64
    if kind == "code":
        sources = [path.read_text(encoding="utf-8", errors="replace") for path in text.modules("test")]
        return [source for source in sources if len(tokenizer.encode(source)) >= length][:count]
    (novel,) = text.SPLITS["test"]
    parts, part, held = [], "", 0
    for sentence in text.sentences(novel):
        part, held = part + sentence, held + len(tokenizer.encode(sentence, add_special_tokens=False))
        if held >= length:
            parts.append(part)
            part, held = "", 0
    return sorted(parts, key=quoted, reverse=kind == "dialogue")[:count]


def quoted(passage: str) -> float:
    """Part of a text that stands in quotation marks."""
    paragraphs = (paragraph.split('"') for paragraph in passage.split("\n\n"))
    return sum(len(piece) for pieces in paragraphs for piece in pieces[1::2]) / len(passage)


@torch.inference_mode()
def loss_and_kept(model: PreTrainedModel, ids: Tensor, memory: MemoryPolicy) -> tuple[float, Tensor]:
    """Loss on the last `AFTER` tokens when the others were read under `memory`, and which slots hold: `[layer, token]`."""
    selection = namm.Budget(fraction=BUDGET) if memory.evicts else None
    cache = namm.MemoryCache(model.config, memory, selection, INTERVAL)
    for piece in ids[:, :TOKENS].split(INTERVAL, dim=1):
        last = model(piece, past_key_values=cache, logits_to_keep=1).logits
    kept = [i for i, layer in enumerate(cache.memory().kept) if layer]
    held = torch.zeros(len(kept), TOKENS)
    for place, layer in enumerate(kept):
        heads = cache.kept_positions(layer)[0]
        for head in heads:
            held[place, head] += 1 / len(heads)
    after = ids[:, TOKENS:]
    logits = torch.cat([last, model(after[:, :-1], past_key_values=cache).logits], dim=1)
    return float(F.cross_entropy(logits[0].float(), after[0])), held


def shares(held: Tensor, names: list[str]) -> dict[str, Any]:
    """For each class its tokens, and what is kept of them over what is kept of their neighbours, at each depth."""
    layers = len(held)
    cuts = [
        slice(0, layers),
        *(slice(layers * i // 3, max(layers * (i + 1) // 3, layers * i // 3 + 1)) for i in range(3)),
    ]
    found: dict[str, Any] = {}
    for name in CLASSES:
        place = torch.tensor([n == name for n in names])
        if name == SPECIAL or int(place.sum()) < FEW:
            continue
        ratios = []
        for cut in cuts:
            kept = held[cut].mean(0)
            near = torch.cat([part.mean().expand(len(part)) for part in kept.split(INTERVAL)])
            ratios.append(float(kept[place].mean() / near[place].mean()))
        found[name] = {"tokens": int(place.sum()), "kept": float(held.mean(0)[place].mean()), "ratios": ratios}
    return found


def measure(name: str, count: int, rules: bool) -> None:
    model, tokenizer = namm.models.load_model(name)
    there = {(r["model"], r["kind"], r["text"], r["memory"], r["rule"]) for r in read("classes")}
    memories = {
        memory: paper() if memory == "paper" else namm.calibrated(memory, model, tokenizer) for memory in MEMORIES
    }
    for kind in KINDS:
        for i, source in enumerate(texts(kind, count, tokenizer)):
            encoded = tokenizer(source, return_offsets_mapping=True)
            ids = torch.tensor(encoded["input_ids"])[None, : TOKENS + AFTER]
            names = list(
                classify(source, encoded["offset_mapping"][:TOKENS], "code" if kind == "code" else "prose").names
            )
            plans: list[tuple[str, str, MemoryPolicy]] = [("full", "", resolve("full"))]
            plans += [(memory, "", policy) for memory, policy in memories.items()]
            for classes in RULES[kind] if rules else ():
                chosen = torch.tensor([place for place, known in enumerate(names) if known in classes])
                for stay in (True, False):
                    rule = f"{'keep' if stay else 'drop'} {' and '.join(classes)}"
                    plans.append((DEFAULT_MEMORY, rule, Ruled(memories[DEFAULT_MEMORY], chosen, stay)))
            rows: list[dict[str, Any]] = []
            for memory, rule, policy in plans:
                if (name, kind, i, memory, rule) in there:
                    continue
                loss, held = loss_and_kept(model, ids, policy)
                row = {"model": name, "kind": kind, "text": i, "memory": memory, "rule": rule, "loss": loss}
                rows.append(row | {"classes": {} if rule else shares(held, names)})
            if rows:
                add("classes", rows)
                print(name, kind, i, {(r["memory"], r["rule"]): round(r["loss"], 3) for r in rows}, flush=True)


def estimate(values: list[float]) -> tuple[float, float, float]:
    """Mean over texts, and its 95 % interval."""
    import numpy as np

    drawn = resample(np.array(values)[:, None], [str(i) for i in range(len(values))])
    low, high = np.percentile(drawn.draws[:, 0], (2.5, 97.5))
    return float(drawn.mean[0]), float(low), float(high)


def ratios(rows: list[dict[str, Any]], model: str, kind: str, memory: str, depth: int = 0) -> dict[str, Any]:
    """Of each class: ratio to the neighbours, its interval, and in how many texts it stands."""
    mine = [r["classes"] for r in rows if (r["model"], r["kind"], r["memory"], r["rule"]) == (model, kind, memory, "")]
    found = {}
    for name in CLASSES:
        there = [r[name]["ratios"][depth] for r in mine if name in r]
        values = [ratio for ratio in there if math.isfinite(ratio)]
        if len(values) >= len(mine) / 2 and len(values) > 1:
            found[name] = (*estimate(values), len(values))
    return found


def show() -> None:
    rows = read("classes")
    print(made_by(rows))
    models = sorted({r["model"] for r in rows})
    for model in models:
        for kind in KINDS:
            _show_kind(rows, model, kind)
    draw(rows, models)


def _show_kind(rows: list[dict[str, Any]], model: str, kind: str) -> None:
    count = len({r["text"] for r in rows if (r["model"], r["kind"]) == (model, kind)})
    print(f"\n**{model}, {kind}** ({count} texts): share kept over that of neighbours of equal age\n")
    print("| class | " + " | ".join((*MEMORIES, *(f"{DEFAULT_MEMORY}, {depth}" for depth in DEPTHS[1:]))) + " |")
    print("| --- " * (len(MEMORIES) + len(DEPTHS)) + "|")
    columns = [ratios(rows, model, kind, memory) for memory in MEMORIES]
    columns += [ratios(rows, model, kind, DEFAULT_MEMORY, depth) for depth in range(1, len(DEPTHS))]
    for name in CLASSES:
        if any(name in column for column in columns):
            cells = ["{:.2f} [{:.2f}, {:.2f}]".format(*c[name][:3]) if name in c else "-" for c in columns]
            print(f"| {name} | {' | '.join(cells)} |")
    base = {
        r["text"]: r["loss"]
        for r in rows
        if (r["model"], r["kind"], r["memory"], r["rule"]) == (model, kind, DEFAULT_MEMORY, "")
    }
    others = [
        r for r in rows if (r["model"], r["kind"]) == (model, kind) and (r["memory"], r["rule"]) != (DEFAULT_MEMORY, "")
    ]
    if not base:
        return
    print(f"\nLoss on what follows, above that of {DEFAULT_MEMORY} ({sum(base.values()) / len(base):.3f}):\n")
    for memory, rule in dict.fromkeys((r["memory"], r["rule"]) for r in others):
        apart = [
            r["loss"] - base[r["text"]]
            for r in others
            if (r["memory"], r["rule"]) == (memory, rule) and r["text"] in base
        ]
        print("* {}: {:+.3f} [{:+.3f}, {:+.3f}]".format(rule or memory, *estimate(apart)))


def draw(rows: list[dict[str, Any]], models: list[str]) -> None:
    """A panel for each model and kind: the ratio of each class, a colour for each memory, intervals over texts."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        len(models), len(KINDS), figsize=(11, 2.9 * len(models)), sharex=True, layout="constrained", squeeze=False
    )
    for line, model in zip(panels, models, strict=True):
        for panel, kind in zip(line, KINDS, strict=True):
            columns = {memory: ratios(rows, model, kind, memory) for memory in MEMORIES}
            names = [name for name in reversed(CLASSES) if any(name in column for column in columns.values())]
            for i, (memory, colour) in enumerate(zip(MEMORIES, ("tab:orange", "tab:olive", "tab:grey"), strict=True)):
                column = columns[memory]
                for place, name in enumerate(names):
                    if name in column:
                        mean, low, high, _ = column[name]
                        height = place + 0.22 * (1 - i)
                        panel.plot([low, high], [height, height], color=colour, linewidth=1.4)
                        panel.plot(mean, height, "o", color=colour, markersize=4, label=memory if place == 0 else None)
            panel.axvline(1, color="0.6", linewidth=0.8)
            panel.set_yticks(range(len(names)), names)
            panel.set_title(f"{model.removesuffix('-instruct')}, {kind}", fontsize=9)
            panel.tick_params(labelsize=8)
    panels[-1][0].set_xlabel("kept, over what is kept of neighbours", fontsize=8)
    handles = [
        plt.Line2D([], [], color=c, marker="o", label=m)
        for m, c in zip(MEMORIES, ("tab:orange", "tab:olive", "tab:grey"), strict=True)
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, fontsize=8)
    figure.savefig(PICTURE, dpi=110)
    print(f"\n{PICTURE}", file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    reading = commands.add_parser("read")
    reading.add_argument("model")
    reading.add_argument("--texts", type=int, default=30)
    reading.add_argument("--no-rules", action="store_true", help="leave out what interferes")
    commands.add_parser("show")
    options = parser.parse_args()
    if options.command == "read":
        measure(options.model, options.texts, not options.no_rules)
    else:
        show()
