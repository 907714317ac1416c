"""An evaluation run: policies, budgets, tasks and lengths become rows in a file, one for each sample.

Rows are appended as they are measured. A run that was stopped goes on where it was: what is in the file is neither
measured again nor lost, and the rest is measured as it would have been.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from namm.calibrating import calibrated
from namm.configuration import OWN
from namm.errors import ConfigurationError
from namm.evaluation.config import EvaluationConfig
from namm.evaluation.folder import check_folder, open_folder
from namm.evaluation.identity import identity_of, read_identity
from namm.evaluation.reader import Method, Reader, TextGroup, alignment, methods, text_before
from namm.evaluation.rows import common_fields, keys, read_rows, row_of
from namm.files import write
from namm.memory.prefix import Prefix
from namm.models import context_length, load_model
from namm.policies import BASELINES, MemoryPolicy, NAMMPolicy, builtin_memories, own_interval, resolve, spent
from namm.report import Summary, summarise, to_html, to_json, to_markdown
from namm.selection import WAYS
from namm.tasks import Encoded, Request, Sample, Task, encode, find_tasks, sources

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """Rows there are and will be, and what is being read."""

    done: int
    total: int
    reading: str


def evaluate(
    config: EvaluationConfig,
    out: str | Path,
    on_progress: Callable[[Progress], None] | None = None,
    model: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None,
    part: tuple[int, int] = (1, 1),
) -> Summary:
    """Measure how well memories answer; goes on with the run in `out`, if there is one.

    The folder holds `run.json` (the configuration), `rows.jsonl` (a line for each sample under each memory) and the
    report: `summary.md`, `summary.json`, `report.html`.

    Args:
        model: a loaded model and tokenizer, instead of loading `config.model`.
        part: `(k, n)`: only every n-th text, from the k-th. n processes or machines that share `out` do it all
            together, each with its own file of rows.

    Raises:
        ConfigurationError: `out` holds a run of another configuration, a process measures there what this one would, or
            a sample cannot be read.
        ArtefactError: a file in `out` is damaged; none was changed.
        RunError: `out` cannot be written.
        NotFoundError: a policy, task, model or file that is not there.
    """
    out, data = Path(out), Path(config.data) if config.data else None
    policies, tasks = _policies(config), find_tasks(config.tasks)
    step = alignment([policy.hop for policy in policies.values()], config.update_interval)
    if not 1 <= part[0] <= part[1]:
        raise ConfigurationError("a part k/n with 1 <= k <= n", f"{part[0]}/{part[1]}", "Try 1/2 and 2/2.")
    check_folder(out)
    if config.threads:
        torch.set_num_threads(config.threads)
    lm, tokenizer = model or load_model(config.model, None if config.dtype == "auto" else config.dtype)
    policies = {name: calibrated(policy, lm, tokenizer) for name, policy in policies.items()}
    groups = list(_groups(config, tasks, tokenizer, _longest(config, lm), step))[part[0] - 1 :: part[1]]
    now = identity_of(config, policies, lm, sources(tasks, data))
    reader, batches = Reader(lm, tokenizer, config.update_interval), _batches(config, policies)
    common = common_fields(config, lm, tokenizer)
    wanted = {key for group in groups for batch in batches for key in keys(group, batch)}
    with open_folder(out, part, now, groups) as file:
        for group in groups:
            missing = [batch for batch in batches if not keys(group, batch) <= file.known]
            if not missing:
                continue
            prefixes: dict[bool, Prefix] = {}
            for batch in missing:
                whole = batch[0].whole
                if whole not in prefixes:  # one at a time, they are as large as the text
                    mine = [policy for policy in policies.values() if policy.whole == whole]
                    prefixes = {whole: reader.prefix(group, mine, len(group.text) if whole else None)}
                if on_progress:
                    reading = f"{group.samples[0].sample.task}: {batch[0].name}"
                    on_progress(Progress(len(wanted & file.known), len(wanted), reading))
                ask = {"truncated": reader.ask_truncated, "oracle": reader.ask_oracle}.get(batch[0].name, reader.ask)
                file.add([row_of(group, answer) | common for answer in ask(group, prefixes[whole], batch)])
    if on_progress:
        on_progress(Progress(len(wanted), len(wanted), "done"))
    return write_report(out)


def write_report(out: str | Path) -> Summary:
    """Write `summary.md`, `summary.json` and `report.html` from the rows in `out`."""
    out = Path(out)
    if not (out / "run.json").exists():
        raise ConfigurationError(f"a folder with an evaluation, for {out}", "no run.json there", "Check the path.")
    saved = read_identity(out)
    summary = summarise(read_rows(out), saved)
    title = f"{saved['config']['model']} with a memory"
    for name, text in (
        ("summary.md", to_markdown(summary)),
        ("summary.json", to_json(summary)),
        ("report.html", to_html(summary, title)),
    ):
        write(out / name, text)
    return summary


def _policies(config: EvaluationConfig) -> dict[str, MemoryPolicy]:
    special = ("full", "floor", "truncated", "oracle")
    policies = {name: _policy(name) for name in config.all_policies if name not in special}
    for name, policy in policies.items():
        if isinstance(policy, NAMMPolicy) and (evolved := own_interval(policy)) != config.update_interval:
            log.warning("%s was evolved with an update each %d tokens, not %d.", name, evolved, config.update_interval)
    return policies


def _policy(name: str) -> MemoryPolicy:
    """By its name; "h2o@model" is h2o with its budget spent across the model."""
    base, _, said = name.rpartition("@")
    for per in WAYS:
        if base and said == per:
            return spent(resolve(base), per)
    if base in BASELINES or base in builtin_memories():  # an @ may stand in a path
        raise ConfigurationError(f"{base}@head, @layer or @model", repr(name), "Or leave it out, for the policy's own.")
    return resolve(name)


def _batches(config: EvaluationConfig, policies: dict[str, MemoryPolicy]) -> list[list[Method]]:
    """Methods that read side by side; the full cache and the floor alone, so that more policies change no batch."""
    shares = [budget for budget in config.budgets if budget != OWN]
    batches = [[Method("full", None)], [Method("floor", None)]]
    batches += [[Method("truncated", share)] for share in shares]
    batches += [[Method("oracle", share) for share in shares]] if shares else []
    chosen = methods(policies, config.budgets)
    for whole in (False, True):
        batches += _chunks([method for method in chosen if method.whole == whole], config.batch)
    return batches


def _chunks(items: list[Method], size: int) -> list[list[Method]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _longest(config: EvaluationConfig, model: PreTrainedModel) -> int:
    """Most tokens of a sample."""
    limit = context_length(model) or 2**31
    return min(limit, config.longest) if config.longest else limit


def _groups(
    config: EvaluationConfig, tasks: list[Task], tokenizer: PreTrainedTokenizerBase, longest: int, step: int
) -> Iterator[TextGroup]:
    """Texts with their samples, lengths one after the other, tasks taking turns."""
    generated = [task for task in tasks if task.generated]
    loaded = [task for task in tasks if not task.generated]
    data = Path(config.data) if config.data else None
    for together, tokens in [*((generated, tokens) for tokens in config.tokens), (loaded, 0)]:
        request = Request(tokenizer, config.split, config.samples or None, tokens, config.seed, data)
        turns = zip_longest(*(task.samples(request) for task in together))
        samples = [sample for turn in turns for sample in turn if sample is not None]
        _check_names(samples)
        texts: dict[tuple[int, ...], list[Encoded]] = {}
        for sample in samples:
            encoded = _encoded(config, sample, tokenizer, longest, whole=tokens > 0)
            texts.setdefault(text_before(encoded, step, config.protocol == "whole"), []).append(encoded)
        for text, of_text in texts.items():
            yield TextGroup(tokens, text, tuple(of_text))


def _check_names(samples: list[Sample]) -> None:
    for (task, name), times in Counter((sample.task, sample.id) for sample in samples).items():
        if times > 1:
            way_out = "Give each its own; samples may share a text."
            raise ConfigurationError("samples with an id each", f"{times} of {name!r} in {task}", way_out)


def _encoded(
    config: EvaluationConfig, sample: Sample, tokenizer: PreTrainedTokenizerBase, longest: int, whole: bool
) -> Encoded:
    """The sample as tokens; `whole` if nothing may be taken out of it."""
    encoded = encode(sample, tokenizer, config.template, longest)
    if encoded.removed and whole:
        length = len(encoded.prompt) + encoded.removed
        raise ConfigurationError(
            f"samples of at most {longest} tokens, which is what the model can read",
            f"a prompt of {length} and an answer of {len(encoded.answer)} in sample {sample.id!r} of {sample.task}",
            "Ask for shorter contexts with --tokens.",
        )
    return encoded
