"""`namm inspect`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from rich.table import Table

from namm.cli.shared import console, quiet, read_share
from namm.errors import ConfigurationError, NotFoundError
from namm.files import write, writing
from namm.json_files import write_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from namm.policies import MemoryPolicy
    from namm.report.forgetting import Forgetting
    from namm.report.memory_page import Recording
    from namm.report.token_classes import Language
    from namm.selection import Budget, Selection

_PROSE_SUFFIXES = (".txt", ".md", ".rst", ".html", ".json", ".csv", ".tex", ".log", ".yaml", ".yml", ".toml")
_COLUMNS = ("class", "tokens", "kept", "ratio", "neighbours")


class Source(NamedTuple):
    """A text to read, and whether its file name says what it is."""

    title: str
    text: str
    language: Language | None = None


def inspect(
    texts: Annotated[
        list[str] | None, typer.Argument(help="Files, or texts in quotes; three embedded ones if left out.")
    ] = None,
    memory: Annotated[str, typer.Option(help="Memory to read with.")] = "builtin:universal",
    budget: Annotated[str, typer.Option(help='Share of the tokens to keep, or "own": a NAMM\'s own threshold.')] = (
        "0.25"
    ),
    update_interval: Annotated[
        int | None, typer.Option(help="Tokens between two updates; what the memory was evolved with, or 512.")
    ] = None,
    model: Annotated[str, typer.Option(help="Model to read with.")] = "smollm2-135m-instruct",
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    layer: Annotated[int | None, typer.Option(help="Layer to show; all together if left out.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for page, tables and picture.")] = Path("inspect-output"),
    html: Annotated[
        Path | None, typer.Option(help="Also write a page that shows update by update what each head lets go.")
    ] = None,
    against: Annotated[str | None, typer.Option(help="Memory to show beside the first one in --html.")] = None,
) -> None:
    """Show what a memory forgets of a text: which tokens, of which class, in which layer."""
    from namm.models import load_model
    from namm.policies import own_interval, resolve
    from namm.report.class_plot import class_heatmap
    from namm.report.forgetting import forgetting
    from namm.report.inspect_page import Setting, inspect_page

    quiet()
    if against is not None and html is None:
        raise ConfigurationError("--html FILE, the page that compares", "--against alone", "Try --html memory.html.")
    selection, policy = read_budget(budget), resolve(memory)
    watched = {memory: policy} | ({against: resolve(against)} if against is not None else {})
    for name, chosen in watched.items():
        if selection is None and chosen.evicts and not chosen.absolute:
            raise ConfigurationError(
                f"a budget for {name}, which has no threshold", "--budget own", "Try --budget 0.25."
            )
    if html is not None:
        _make_room_for(html)
    sources = list(read_sources(texts or []))
    with console.status(f"loading {model}"):
        lm, tokenizer = load_model(model, dtype)
    runs: dict[str, Forgetting] = {}
    recordings: list[Recording] = []
    for title, text, language in sources:
        with console.status(f"reading {title}"):
            run = forgetting(lm, tokenizer, text, policy, selection, update_interval, language)
        run.share(layer)  # raises for a layer that is not there, before the next text is read
        runs[title] = run
        _tell(title, run, layer)
        if update_interval is None and run.update_interval < own_interval(policy):
            console.print(f"The text is short: one update, after {run.update_interval} tokens.\n")
        if html is not None:
            with console.status(f"recording {title}"):
                recordings.append(_recording(lm, tokenizer, model, run, title, watched, selection, update_interval))
    setting = Setting(model, memory, _rule(selection, policy.evicts))
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    write(out / "inspect.html", inspect_page(runs, setting, layer))
    write(out / "classes.md", "\n".join(_markdown(runs, setting, layer)))
    write_rows(out / "tokens.jsonl", _token_rows(runs))
    class_heatmap(runs, out / "kept.png")
    console.print(
        f"The text, shaded: {out / 'inspect.html'}   (also classes.md, tokens.jsonl, kept.png)", soft_wrap=True
    )
    if html is not None:
        _write_memory_page(html, recordings)


# -- what is asked for ---------------------------------------------------------------------------------------------


def read_budget(said: str) -> Budget | None:
    """`0.25` -> that share of the tokens; `own` -> None, a NAMM's own threshold."""
    from namm.selection import Budget

    share = read_share(said)
    return None if share is None else Budget(fraction=share)


def read_sources(words: list[str]) -> Iterator[Source]:
    """The texts that were asked for, under titles that differ."""
    from namm.report.samples import embedded_samples

    if not words:
        yield from (Source(title, text) for title, text in embedded_samples().items())
    seen: set[str] = set()
    for place, word in enumerate(words, 1):
        source = _read(word, place)
        title = source.title if source.title not in seen else f"{source.title} ({place})"
        seen.add(title)
        yield source._replace(title=title)


def _read(word: str, place: int) -> Source:
    from namm.report.token_classes import CODE_SUFFIXES

    path = Path(word).expanduser()
    if not _looks_like_path(word) and not _is_file(path):
        return Source(f"text {place}", word)
    if not _is_file(path):
        kind = "a folder" if path.is_dir() else f"no file {word}"
        raise NotFoundError("a file to read", kind, "Check the path; a text of its own is given in quotes.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigurationError("a text file in UTF-8", f"{path}, which is not", "Convert it first.") from error
    language: Language = "code" if path.suffix in CODE_SUFFIXES else "prose"
    return Source(path.name, text, language if path.suffix in (*CODE_SUFFIXES, ".txt", ".md") else None)


def _looks_like_path(word: str) -> bool:
    from namm.report.token_classes import CODE_SUFFIXES

    if "\n" in word:
        return False
    return word.endswith((*CODE_SUFFIXES, *_PROSE_SUFFIXES)) or ("/" in word and len(word.split()) == 1)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a long text is no valid file name
        return False


def _rule(selection: Selection | None, evicts: bool) -> str:
    from namm.selection import Budget

    if not evicts:
        return "it keeps everything"
    if isinstance(selection, Budget):
        return f"it may keep {selection.fraction:.0%} of the tokens read so far"
    return "it keeps what the network scores at 0 or above"


# -- what is recorded ----------------------------------------------------------------------------------------------


def _recording(
    lm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    model: str,
    run: Forgetting,
    title: str,
    watched: dict[str, MemoryPolicy],
    selection: Selection | None,
    update_interval: int | None,
) -> Recording:
    """A text as the memories in `watched` (name -> policy) read it."""
    from namm.report.trace import record

    traces = [
        record(lm, tokenizer, run.text, policy, selection, update_interval, names=(model, name))
        for name, policy in watched.items()
    ]
    return {"title": title, "traces": traces, "language": run.classes.language}


def _make_room_for(file: Path) -> None:
    """The folder of a file that will be written, made before the work is done that it is for."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a"):
            pass
    except OSError as error:
        raise ConfigurationError("a file that can be written for --html", f"{file}: {error}", "Try another.") from error


def _write_memory_page(file: Path, recordings: list[Recording]) -> None:
    from namm.report.memory_page import memory_page

    write(file, memory_page(recordings))
    console.print(f"The memory, update by update: {file}", soft_wrap=True)


# -- what is shown -------------------------------------------------------------------------------------------------


def _tell(title: str, run: Forgetting, layer: int | None) -> None:
    from namm.report.inspect_page import FEW

    judged, tokens = int(run.judged.sum()), len(run.spans)
    place = "all layers" if layer is None else f"layer {layer}"
    console.print(
        f"[bold]{_plain(title)}[/]: {tokens:,} tokens, {judged:,} judged at updates every {run.update_interval}; "
        f"{run.mean(layer):.1%} of these kept in {place}. Classes by {run.classes.method}.",
        highlight=False,
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in _COLUMNS:
        table.add_column(heading, justify="left" if heading == "class" else "right", no_wrap=True)
    rows = _class_rows(run, layer)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if any(row[0].endswith("*") for row in rows):
        console.print(f"* fewer than {FEW} tokens", style="dim")
    console.print()


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _class_rows(run: Forgetting, layer: int | None) -> list[tuple[str, ...]]:
    from namm.report.forgetting import by_class
    from namm.report.inspect_page import FEW, percent, times

    return [
        (
            row.name + ("*" if row.tokens < FEW else ""), f"{row.tokens:,}", percent(row.share), times(row.ratio),
            times(row.ratio_among_neighbours),
        )
        for row in by_class(run, layer=layer)
    ]  # fmt: skip


def _markdown(runs: dict[str, Forgetting], setting: object, layer: int | None) -> Iterator[str]:
    place = "all layers" if layer is None else f"layer {layer}"
    yield f"# What is forgotten\n\n{setting}, {place}.\n"
    yield (
        "Shares are of heads that hold a token after the last update; `ratio` is against all judged tokens of the "
        "text, `neighbours` against those read between the same two updates."
    )
    for title, run in runs.items():
        yield f"\n## {title}\n"
        yield f"{len(run.spans):,} tokens, {int(run.judged.sum()):,} judged, updates every {run.update_interval}.\n"
        yield f"| {' | '.join(_COLUMNS)} |\n| --- | ---: | ---: | ---: | ---: |"
        yield from (f"| {' | '.join(row)} |" for row in _class_rows(run, layer))
    yield ""


def _token_rows(runs: dict[str, Forgetting]) -> Iterator[dict[str, object]]:
    """One row for each token; no shares for tokens that no update has judged."""
    for title, run in runs.items():
        share, layers = run.share().tolist(), run.kept.T.tolist()
        for position, (start, stop) in enumerate(run.spans):
            judged = bool(run.judged[position])
            yield {
                "text": title, "position": position, "token": run.text[start:stop], "start": start, "stop": stop,
                "class": run.classes.names[position], "judged": judged,
                "kept": round(share[position], 4) if judged else None,
                "layers": [round(part, 4) for part in layers[position]] if judged else None,
            }  # fmt: skip
