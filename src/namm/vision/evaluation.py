"""Video evaluation: memories and budgets on videos become rows in a file, one for each question.

The folder is that of a text evaluation: `run.json`, `rows.jsonl`, `summary.md`. A run that was stopped goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from namm.calibrating import calibrated
from namm.configuration import OWN
from namm.evaluation import (
    Method,
    Progress,
    alignment,
    check_folder,
    identity_of,
    methods,
    open_folder,
    provenance,
    read_rows,
)
from namm.files import write
from namm.policies import MemoryPolicy, resolve
from namm.vision.config import VideoConfig
from namm.vision.reading import Listing, Watcher
from namm.vision.summary import to_markdown

_THINNED = "fewer-frames"


def evaluate_video(
    config: VideoConfig,
    listings: Iterable[Listing],
    model: PreTrainedModel,
    out: str | Path,
    on_progress: Callable[[Progress], None] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> str:
    """Measure, or go on measuring, how well memories answer on clips; returns the table, which is also in `out`.

    A clip is read when its turn comes, and not at all if all its rows are there.

    Args:
        tokenizer: of a model that knows language: memories that want to be calibrated for it are, by two texts.

    Raises:
        ConfigurationError: `out` holds a run of another configuration, or a budget cannot be met.
        ModelError: a model that cannot be given a memory.
    """
    out = Path(out)
    check_folder(out)
    if config.threads:
        torch.set_num_threads(config.threads)
    policies = {name: resolve(name) for name in config.policies}
    if tokenizer is not None:
        policies = {name: calibrated(policy, model, tokenizer) for name, policy in policies.items()}
    listings = list(listings)
    watcher = Watcher(
        model, config.update_interval, alignment([p.hop for p in policies.values()], config.update_interval)
    )
    chosen = _methods(config, policies)
    common = provenance(model) | config.row()
    with open_folder(out, now=identity_of(config, policies, model, {})) as file:
        for number, listing in enumerate(listings):
            missing = [c for c in chosen if not _keys(listing, c) <= file.known]
            if not missing:
                continue
            showing = listing.load()
            whole = watcher.whole(showing)
            for method in missing:
                if on_progress:
                    on_progress(Progress(number, len(listings), f"{showing.name}: {method.name}"))
                if method.name == _THINNED:
                    assert isinstance(method.budget, float)
                    cache, held = watcher.watch_thinned(showing, whole, method.budget)
                else:
                    cache, held = watcher.watch(showing, whole, method)
                replies = watcher.ask(cache, showing.queries)
                file.add(
                    [
                        {
                            "task": reply.query.kind,
                            "tokens": showing.length,
                            "sample": reply.query.name,
                            "policy": method.name,
                            "budget": method.budget,
                            "clip": showing.name,
                            "exact": int(reply.right),
                            "nll": reply.nll,
                            "clip_tokens": showing.tokens,
                            **asdict(held),
                        }
                        | common
                        for reply in replies
                    ]
                )
    if on_progress:
        on_progress(Progress(len(listings), len(listings), "done"))
    text = to_markdown(read_rows(out), config.unit)
    write(out / "summary.md", text)
    return text


def _methods(config: VideoConfig, policies: dict[str, MemoryPolicy]) -> list[Method]:
    shares = [budget for budget in config.budgets if budget != OWN]
    return [
        Method("full", None),
        Method("floor", None),
        *(Method(_THINNED, share) for share in shares),
        *methods(policies, config.budgets),
    ]


def _keys(listing: Listing, method: Method) -> set[tuple[Any, ...]]:
    return {(kind, listing.length, name, method.name, method.budget) for kind, name in listing.asked}
