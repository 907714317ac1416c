"""An evaluation run: policies, budgets, tasks and lengths become rows in a file, one for each sample.

Rows are appended as they are measured. A run that was stopped goes on where it was: what is in the file is neither
measured again nor lost, and the rest is measured as it would have been.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from namm.errors import ArtefactError, ConfigurationError
from namm.evaluation.config import GRID, OWN, EvaluationConfig, alignment
from namm.evaluation.reader import Answer, Contender, Group, Reader
from namm.models import load_model
from namm.policies import MemoryPolicy, NAMMPolicy, resolve
from namm.report.evaluation_page import to_html
from namm.report.statistics import summarise
from namm.report.summary import Summary, to_json, to_markdown
from namm.tasks.base import Encoded, Request, Sample, encode
from namm.tasks.registry import find_tasks, sources
from namm.version import __version__

log = logging.getLogger(__name__)
Row = dict[str, Any]
Key = tuple[Any, ...]
IDENTITY = ("task", "tokens", "sample", "policy", "budget")


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
    """Measure what memories are worth; goes on with the run in `out`, if there is one.

    The folder holds `run.json` (the configuration), `rows.jsonl` (a line for each sample under each memory) and the
    report: `summary.md`, `summary.json`, `report.html`.

    Args:
        model: a loaded model and tokenizer, instead of loading `config.model`.
        part: `(k, n)`: only every n-th text, from the k-th. n processes or machines that share `out` do it all
            together, each with its own file of rows; on a CPU, processes of one thread beat one process of many.

    Raises:
        ConfigurationError: `out` holds a run of another configuration, or a sample that cannot be read.
        ArtefactError: the rows in `out` are damaged.
        NotFoundError: a policy, task, model or file that is not there.
    """
    out = Path(out)
    policies = _policies(config)
    for name, policy in policies.items():
        if isinstance(policy, NAMMPolicy) and policy.network.config.update_interval != config.update_interval:
            log.warning(
                "%s was evolved with an update each %d tokens and is evaluated with one each %d.",
                name, policy.network.config.update_interval, config.update_interval,
            )  # fmt: skip
    step = alignment([policy.hop for policy in policies.values()], config.update_interval)
    tasks = find_tasks(config.tasks)
    if config.threads:
        torch.set_num_threads(config.threads)
    if not 1 <= part[0] <= part[1]:
        raise ConfigurationError("a part k/n with 1 <= k <= n", f"{part[0]}/{part[1]}", "Try 1/2 and 2/2.")
    _check_folder(out, config, policies)
    lm, tokenizer = model or load_model(config.model, None if config.dtype == "auto" else config.dtype)
    groups = list(_groups(config, tasks, tokenizer, _longest(config, lm), step))[part[0] - 1 :: part[1]]
    _start_folder(out, config, policies, sources(tasks, Path(config.data) if config.data else None))
    reader = Reader(lm, tokenizer, config.update_interval)
    rows = _Rows(out, part)
    common = _common(config, lm, tokenizer)
    work = [(group, batch) for group in groups for batch in _batches(config, policies)]
    total = sum(len(group.samples) * len(batch) for group, batch in work)
    done = sum(len(_keys(group, batch) & rows.known) for group, batch in work)
    prefix = None
    for group, batch in work:
        if batch[0].name == "full":
            prefix = None
        if on_progress:
            on_progress(Progress(done, total, f"{group.samples[0].sample.task} {batch[0].name}"))
        if _keys(group, batch) <= rows.known:
            continue
        prefix = prefix or reader.prefix(group)
        done -= len(_keys(group, batch) & rows.known)
        ask = {"truncated": reader.ask_truncated, "oracle": reader.ask_oracle}.get(batch[0].name, reader.ask)
        rows.add([_row(group, answer) | common for answer in ask(group, prefix, batch)])
        done += len(_keys(group, batch))
    if on_progress:
        on_progress(Progress(done, total, "done"))
    return write_report(out)


def write_report(out: str | Path) -> Summary:
    """Write `summary.md`, `summary.json` and `report.html` from the rows in `out`."""
    out = Path(out)
    if not (out / "run.json").exists():
        raise ConfigurationError(f"a folder with an evaluation, for {out}", "no run.json there", "Check the path.")
    saved = json.loads((out / "run.json").read_text())
    summary = summarise(read_rows(out), saved)
    title = f"{saved['config']['model']} with a memory"
    for name, text in (
        ("summary.md", to_markdown(summary)), ("summary.json", to_json(summary)),
        ("report.html", to_html(summary, title)),
    ):  # fmt: skip
        (out / name).write_text(text, encoding="utf-8")
    return summary


# -- what there is to do ---------------------------------------------------------------------------------------------


def _policies(config: EvaluationConfig) -> dict[str, MemoryPolicy]:
    special = ("full", "floor", "truncated", "oracle")
    return {name: resolve(name) for name in config.all_policies if name not in special}


def _batches(config: EvaluationConfig, policies: dict[str, MemoryPolicy]) -> list[list[Contender]]:
    """Contenders that read side by side; the full cache and the floor alone, so that more policies change no batch."""
    shares = [budget for budget in config.budgets if budget != OWN]
    batches = [[Contender("full", None)], [Contender("floor", None)]]
    batches += [[Contender("truncated", share)] for share in shares]
    if shares:
        batches += _chunks([Contender("oracle", share) for share in shares], config.batch)
    contenders = [
        Contender(name, budget, policy)
        for name, policy in policies.items() for budget in config.budgets
        if budget != OWN or policy.absolute
    ]  # fmt: skip
    return batches + _chunks(contenders, config.batch)


def _chunks(items: list[Contender], size: int) -> list[list[Contender]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _longest(config: EvaluationConfig, model: PreTrainedModel) -> int:
    """Most tokens of a sample."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**31
    return min(limit, config.longest) if config.longest else limit


def _groups(
    config: EvaluationConfig, tasks: list[Any], tokenizer: PreTrainedTokenizerBase, longest: int, step: int
) -> Iterator[Group]:
    """Texts with their samples, lengths one after the other, tasks taking turns."""
    generated = [task for task in tasks if task.generated]
    loaded = [task for task in tasks if not task.generated]
    turns = [(generated, tokens) for tokens in config.tokens if generated] + ([(loaded, 0)] if loaded else [])
    for together, tokens in turns:
        request = Request(
            tokenizer, config.split, config.samples or None, tokens, config.seed,
            Path(config.data) if config.data else None,
        )  # fmt: skip
        texts: dict[tuple[int, ...], list[Encoded]] = {}
        for turn in zip_longest(*(task.samples(request) for task in together)):
            for sample in turn:
                if sample is not None:
                    encoded = _encoded(config, sample, tokenizer, longest, whole=tokens > 0)
                    texts.setdefault(_text(config, encoded, step), []).append(encoded)
        for text, samples in texts.items():
            yield Group(tokens, text, tuple(samples))


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


def _text(config: EvaluationConfig, encoded: Encoded, step: int) -> tuple[int, ...]:
    """The tokens up to the boundary: whole hops of what the protocol lets the memory read, one token left at least."""
    read = len(encoded.context) if config.protocol == "context-first" else len(encoded.prompt)
    length = min(read, len(encoded.prompt) - 1) // step * step
    if length < 2 * step:
        raise ConfigurationError(
            f"a text of at least {2 * step} tokens before the question",
            f"{read} in sample {encoded.sample.id!r} of {encoded.sample.task}",
            "There is nothing to forget in it; drop it or use a longer text.",
        )
    return encoded.prompt[:length]


# -- rows ------------------------------------------------------------------------------------------------------------


def read_rows(out: str | Path) -> list[Row]:
    """All rows in a folder, of every part; a line that is still being written is left out.

    Raises:
        ArtefactError: a line is no JSON; the message names file and line.
    """
    rows: list[Row] = []
    for file in sorted(Path(out).glob("rows*.jsonl")):
        text = file.read_text(encoding="utf-8")
        for number, line in enumerate(text.split("\n")[:-1], 1):
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ArtefactError(
                    "a row in JSON", f"line {number} of {file} ({error})", "Remove that line; it is measured again."
                ) from error
    return rows


class _Rows:
    """What is measured already, and the file that this process adds to."""

    def __init__(self, out: Path, part: tuple[int, int]) -> None:
        self.file = out / ("rows.jsonl" if part[1] == 1 else f"rows-{part[0]}-of-{part[1]}.jsonl")
        self.known = {_key(row) for row in read_rows(out)}
        text = self.file.read_bytes() if self.file.exists() else b""
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:
            log.warning("The last row of %s was cut off; it is measured again.", self.file)
            os.truncate(self.file, len(whole))

    def add(self, rows: list[Row]) -> None:
        new = [row for row in rows if _key(row) not in self.known]
        with self.file.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in new))
            file.flush()
            os.fsync(file.fileno())
        self.known |= {_key(row) for row in new}


def _key(row: Row) -> Key:
    return tuple(row[name] for name in IDENTITY)


def _keys(group: Group, batch: Iterable[Contender]) -> set[Key]:
    return {
        (encoded.sample.task, group.tokens, encoded.sample.id, contender.name, contender.budget)
        for encoded in group.samples for contender in batch
    }  # fmt: skip


def _row(group: Group, answer: Answer) -> Row:
    sample, held = answer.sample.sample, answer.held
    return {
        "task": sample.task, "tokens": group.tokens, "sample": sample.id, "policy": answer.contender.name,
        "budget": answer.contender.budget, "nll": answer.nll, "exact": int(answer.exact), "metric": sample.metric,
        "score": answer.score, "prediction": answer.prediction, "gold": sample.gold,
        **dataclasses.asdict(held),
        "context_tokens": len(group.text), "prompt_tokens": len(answer.sample.prompt),
        "removed_tokens": answer.sample.removed, "rendered": answer.sample.template,
        "context_hash": _hash(group.text), "prompt_sha256": _hash(answer.sample.prompt),
        "seconds": round(answer.seconds, 4),
    }  # fmt: skip


def _hash(tokens: tuple[int, ...]) -> str:
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()


def _common(config: EvaluationConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Row:
    """What is the same in all rows. `template` is of the run; how a sample was put, `rendered`, stands in its row."""
    return {
        "template": "chat" if config.template != "raw" and tokenizer.chat_template else "raw",
        "split": config.split, "seed": config.seed, "protocol": config.protocol, "model": config.model,
        "dtype": str(model.dtype).removeprefix("torch."), "update_interval": config.update_interval,
        "namm": __version__, "torch": torch.__version__, "transformers": transformers.__version__,
        "python": platform.python_version(), "hardware": _hardware(), "commit": _commit(),
    }  # fmt: skip


def _hardware() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
    return f"{name}, {torch.get_num_threads()} threads"


def _commit() -> str | None:
    """The commit of this package, if it runs from a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


# -- the folder ------------------------------------------------------------------------------------------------------


def _identity(config: EvaluationConfig, policies: dict[str, MemoryPolicy]) -> dict[str, Any]:
    networks = {name: policy.network for name, policy in policies.items() if isinstance(policy, NAMMPolicy)}
    return {
        "config": dataclasses.asdict(config),
        "memories": {
            name: {
                "sha256": hashlib.sha256(b"".join(t.numpy().tobytes() for t in (n.theta, n.mean, n.var))).hexdigest(),
                "trained_on": n.config.trained_on, "update_interval": n.config.update_interval,
            }
            for name, n in networks.items()
        },
    }  # fmt: skip


def _check_folder(out: Path, config: EvaluationConfig, policies: dict[str, MemoryPolicy]) -> None:
    """The folder is new, empty, or holds a run that may go on: the grid may grow, the measurement may not change."""
    file = out / "run.json"
    if not file.exists():
        if out.exists() and any(out.iterdir()):
            raise ConfigurationError("an empty or new folder, or one with an evaluation", str(out), "Choose another.")
        return
    saved = json.loads(file.read_text())
    now = json.loads(json.dumps(_identity(config, policies)))
    changed = [k for k, v in now["config"].items() if k not in GRID and saved["config"].get(k) != v]
    changed += [name for name, card in now["memories"].items() if saved["memories"].get(name, card) != card]
    if changed:
        told = "; ".join(f"{k}: {saved['config'].get(k, 'other weights')!r}" for k in changed)
        raise ConfigurationError(
            f"the configuration of the evaluation in {out} ({told})", f"another {', '.join(changed)}",
            "Use the same options to go on with it, or another folder.",
        )  # fmt: skip


def _start_folder(
    out: Path, config: EvaluationConfig, policies: dict[str, MemoryPolicy], origins: dict[str, str]
) -> None:
    """Write `run.json`; its grid is what was asked for so far, all commands together."""
    out.mkdir(parents=True, exist_ok=True)
    file, now = out / "run.json", _identity(config, policies) | {"sources": origins}
    if file.exists():
        saved = json.loads(file.read_text())
        for name in GRID:
            old, new = saved["config"][name], now["config"][name]
            now["config"][name] = max(old, new) if name == "samples" else list(dict.fromkeys([*old, *new]))
        for name in ("memories", "sources"):
            now[name] = saved[name] | now[name]
    scratch = out / f"run.json.{os.getpid()}"
    scratch.write_text(json.dumps(now, indent=1))
    os.replace(scratch, file)
