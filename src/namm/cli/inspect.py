"""`namm inspect`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from namm.cli.options import Memory, Model
from namm.cli.shared import console, quiet, read_share, table_of
from namm.defaults import DEFAULT_MEMORY, DEFAULT_MODEL
from namm.errors import ConfigurationError, NotFoundError
from namm.files import write, writing
from namm.json_files import write_rows

if TYPE_CHECKING:
    from namm.report import Forgetting, Language
    from namm.report.memory_page import Recording
    from namm.selection import Budget, Selection

_PROSE_SUFFIXES = (".txt", ".md", ".rst", ".html", ".json", ".csv", ".tex", ".log", ".yaml", ".yml", ".toml")


class _Source(NamedTuple):
    """A text to read, whether its file name says what it is, and the name of the file."""

    title: str
    text: str
    language: Language | None = None
    file: str | None = None


def inspect(
    texts: Annotated[
        list[str] | None, typer.Argument(help="Files, or texts in quotes; three embedded ones if left out.")
    ] = None,
    memory: Memory = DEFAULT_MEMORY,
    budget: Annotated[str, typer.Option(help='Share of the tokens, or "own": a NAMM\'s own threshold.')] = "0.25",
    update_interval: Annotated[
        int | None, typer.Option(help="Tokens between two updates; what the memory was evolved with, or 512.")
    ] = None,
    model: Model = DEFAULT_MODEL,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    layer: Annotated[int | None, typer.Option(help="Layer to show; all together if left out.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for page, tables and picture.")] = Path("inspect-output"),
    html: Annotated[Path | None, typer.Option(help="Also write the page into this file.")] = None,
    against: Annotated[str | None, typer.Option(help="Memory to show beside the first one on the page.")] = None,
) -> None:
    """Show what a memory forgets of a text: which tokens, of which class, in which layer, update by update."""
    from namm.calibrating import calibrated
    from namm.models import load_model
    from namm.policies import own_interval, resolve
    from namm.report import class_heatmap, forgetting_of, of_forgetting, record, save
    from namm.report.memory_page import memory_page

    quiet()
    selection, policy = read_budget(budget), resolve(memory)
    other = None if against is None else resolve(against)
    for name, chosen in ((memory, policy), (against, other)):
        if chosen is not None and selection is None and chosen.evicts and not chosen.absolute:
            raise ConfigurationError(
                f"a budget for {name}, which has no threshold", "--budget own", "Try --budget 0.25."
            )
    if html is not None:
        _make_room_for(html)
    sources = list(read_sources(texts or []))
    with console.status(f"loading {model}"):
        lm, tokenizer = load_model(model, dtype)
    with console.status(f"calibrating for {model}, once"):
        policy = calibrated(policy, lm, tokenizer)
        other = None if other is None else calibrated(other, lm, tokenizer)
    runs: dict[str, Forgetting] = {}
    recordings: list[Recording] = []
    for title, text, language, file in sources:
        with console.status(f"reading {title}"):
            names = (model, memory)
            run = forgetting_of(lm, tokenizer, text, policy, selection, update_interval, language, file, names)
        run.share(layer)  # raises for a layer that is not there, before the next text is read
        runs[title] = run
        _tell(title, run, layer)
        if update_interval is None and run.update_interval < own_interval(policy):
            console.print(f"The text is short: one update, after {run.update_interval} tokens.\n")
        traces = [run.events]
        if against is not None and other is not None:
            with console.status(f"reading {title} with {against}"):
                traces.append(record(lm, tokenizer, text, other, selection, update_interval, names=(model, against)))
        recordings.append(
            {"title": title, "traces": traces, "language": run.classes.language, "classes": list(run.classes.names)}
        )
    page = memory_page(recordings, runs=runs, layer=layer)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    write(out / "inspect.html", page)
    write(out / "classes.md", of_forgetting(runs, _setting(model, memory, selection, policy.evicts), layer))
    write_rows(out / "tokens.jsonl", _token_rows(runs))
    save(class_heatmap(runs), out / "kept.png")
    console.print(
        f"The text, shaded, update by update: {out / 'inspect.html'}   (also classes.md, tokens.jsonl, kept.png)",
        soft_wrap=True,
    )
    if html is not None:
        write(html, page)
        console.print(f"The same page: {html}", soft_wrap=True)


# -- what is asked for ---------------------------------------------------------------------------------------------


def read_budget(said: str) -> Budget | None:
    """`0.25` -> that share of the tokens; `own` -> None, a NAMM's own threshold."""
    from namm.selection import Budget

    share = read_share(said)
    return None if share is None else Budget(fraction=share)


def read_sources(words: list[str]) -> Iterator[_Source]:
    """The texts that were asked for, under titles that differ."""
    from namm.report import embedded_samples

    if not words:
        yield from (_Source(title, text) for title, text in embedded_samples().items())
    seen: set[str] = set()
    for place, word in enumerate(words, 1):
        source = _read(word, place)
        title = source.title if source.title not in seen else f"{source.title} ({place})"
        seen.add(title)
        yield source._replace(title=title)


def _read(word: str, place: int) -> _Source:
    from namm.report import CODE_SUFFIXES

    path = Path(word).expanduser()
    if not _looks_like_path(word) and not _is_file(path):
        return _Source(f"text {place}", word)
    if not _is_file(path):
        kind = "a folder" if path.is_dir() else f"no file {word}"
        raise NotFoundError("a file to read", kind, "Check the path; a text of its own is given in quotes.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigurationError("a text file in UTF-8", f"{path}, which is not", "Convert it first.") from error
    language: Language = "code" if path.suffix in CODE_SUFFIXES else "prose"
    known = path.suffix in (*CODE_SUFFIXES, ".txt", ".md")
    return _Source(path.name, text, language if known else None, path.name)


def _looks_like_path(word: str) -> bool:
    from namm.report import CODE_SUFFIXES

    if "\n" in word:
        return False
    return word.endswith((*CODE_SUFFIXES, *_PROSE_SUFFIXES)) or ("/" in word and len(word.split()) == 1)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a long text is no valid file name
        return False


def _setting(model: str, memory: str, selection: Selection | None, evicts: bool) -> str:
    from namm.selection import Budget

    rule = "keeps what the network scores at 0 or above"
    if not evicts:
        rule = "keeps everything"
    elif isinstance(selection, Budget):
        rule = f"keeps {selection.fraction:.0%} of the tokens read"
    return f"{model} with the memory {memory}, which {rule}."


def _make_room_for(file: Path) -> None:
    """The folder of a file that will be written, made before the work is done that it is for."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a"):
            pass
    except OSError as error:
        raise ConfigurationError("a file that can be written for --html", f"{file}: {error}", "Try another.") from error


# -- what is shown -------------------------------------------------------------------------------------------------


def _tell(title: str, run: Forgetting, layer: int | None) -> None:
    from namm.report import COLUMNS, FEW, class_table

    judged, tokens = int(run.judged.sum()), len(run.spans)
    place = "all layers" if layer is None else f"layer {layer}"
    console.print(
        f"[bold]{_plain(title)}[/]: {tokens:,} tokens, {judged:,} judged at updates every {run.update_interval}; "
        f"{run.mean(layer):.1%} of these kept in {place}. Classes by {run.classes.method}.",
        highlight=False,
        soft_wrap=True,
    )
    table = table_of(COLUMNS, padding=(0, 2, 0, 0))
    rows = class_table(run, layer)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if any(row[0].endswith("*") for row in rows):
        console.print(f"* fewer than {FEW} tokens", style="dim")
    console.print()


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _token_rows(runs: dict[str, Forgetting]) -> Iterator[dict[str, object]]:
    """One row for each token; no shares for tokens that no update has judged."""
    for title, run in runs.items():
        share, layers = run.share().tolist(), run.kept.T.tolist()
        for position, (start, stop) in enumerate(run.spans):
            judged = bool(run.judged[position])
            yield {
                "text": title,
                "position": position,
                "token": run.text[start:stop],
                "start": start,
                "stop": stop,
                "class": run.classes.names[position],
                "judged": judged,
                "kept": round(share[position], 4) if judged else None,
                "layers": [round(part, 4) for part in layers[position]] if judged else None,
            }
