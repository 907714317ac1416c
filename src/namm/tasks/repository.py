"""Code across files: a name that another file of the library defines, to be used (after RepoBench, arXiv 2306.03091).

The context holds files of Python's standard library, one of them with the definition of a function or class. The
question is a part of another file, its import and the lines before the one where it first uses that name through the
module it is in; the answer is the rest of the line.
"""

from __future__ import annotations

import ast
import random
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from namm.errors import ConfigurationError
from namm.tasks.base import Request, Sample, Task
from namm.tasks.text import check_split, modules

_BEFORE = 12  # lines of the question before the one that is asked for
SHORTEST = 512  # tokens; with less, there is hardly room for a definition
_LONGEST = 2000  # characters of a line: none is that long but data


@dataclass(frozen=True)
class Use:
    """The first place where a file uses a name of another.

    Attributes:
        file, line, column: where the name stands, after the dot; lines count from 1.
        imported: the line of the import.
        definition: the file that defines it, and in which lines, the last one excluded.
    """

    file: Path
    line: int
    column: int
    imported: int
    definition: tuple[Path, int, int]


@lru_cache(maxsize=3)
def uses(split: str) -> tuple[Use, ...]:
    """All of the modules of a split, in the order of the files."""
    return tuple(use for file in modules(split) for use in _uses(file))


def _uses(file: Path) -> Iterator[Use]:
    tree = _parsed(file)
    known = {name: (path, line) for name, path, line in _imported(tree, file) if path.is_file() and path != file}
    attributes = (
        node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    )
    first: dict[tuple[str, str], ast.Attribute] = {}
    for node in sorted(attributes, key=lambda node: (node.lineno, node.col_offset)):
        assert isinstance(node.value, ast.Name)
        if node.value.id in known and node.end_lineno == node.lineno:
            first.setdefault((node.value.id, node.attr), node)
    for (name, attribute), node in first.items():
        path, line = known[name]
        if span := _defined(path).get(attribute):
            assert node.end_col_offset is not None
            yield Use(file, node.lineno, node.end_col_offset - len(attribute.encode()), line, (path, *span))


def _imported(tree: ast.Module, file: Path) -> Iterator[tuple[str, Path, int]]:
    """Names of modules that a file imports, where these are, and the line of the import."""
    library = Path(sysconfig.get_paths()["stdlib"])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if "." not in alias.name:
                    yield alias.asname or alias.name, library / f"{alias.name}.py", node.lineno
        elif isinstance(node, ast.ImportFrom) and node.level < 2:
            folder = (file.parent if node.level else library).joinpath(*(node.module or "").split("."))
            for alias in node.names:
                yield alias.asname or alias.name, folder / f"{alias.name}.py", node.lineno


@lru_cache(maxsize=256)
def _defined(file: Path) -> dict[str, tuple[int, int]]:
    """Functions and classes of a file, and their lines."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {
        node.name: (node.lineno, (node.end_lineno or 0) + 1) for node in _parsed(file).body if isinstance(node, kinds)
    }


@lru_cache(maxsize=256)
def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_bytes())


def make_sample(split: str, index: int, tokens: int, tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> Sample:
    """Sample `index`: the same arguments give the same sample, with the same version of Python.

    Args:
        tokens: most tokens of the context; a little less is used.

    Raises:
        ConfigurationError: no such split, or too few tokens.
    """
    if tokens < SHORTEST:
        raise ConfigurationError(f"contexts of at least {SHORTEST} tokens", tokens, "Ask for longer ones.")
    known = list(uses(check_split(split)))
    random.Random(f"{seed}/repository/{split}").shuffle(known)
    use = known[index % len(known)]
    rng = random.Random(f"{seed}/repository/{split}/{tokens}/{index}")
    lines = use.file.read_text(encoding="utf-8", errors="replace").splitlines()
    asked = lines[use.line - 1].encode()
    first = max(0, use.line - 1 - _BEFORE)
    shown = ([lines[use.imported - 1]] if use.imported <= first else []) + lines[first : use.line - 1]
    question = "\n".join([f"\n\n{_title(use.file)}", *shown, asked[: use.column].decode(errors="replace")])
    return Sample(
        task="repository/cross_file", id=f"{split}/{seed}/{index}", context=_files(use, tokens, tokenizer, rng),
        question=question, answers=(asked[use.column :].decode(errors="replace").rstrip(),), metric="edit_similarity",
        max_new_tokens=48, completion=True,
    )  # fmt: skip


def _files(use: Use, tokens: int, tokenizer: PreTrainedTokenizerBase, rng: random.Random) -> str:
    """The part of a file that defines the name, among the beginnings of others, as many tokens together as fit."""
    path, start, stop = use.definition
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    room = tokens * 2 // 3
    costs = [len(tokenizer.encode(line, add_special_tokens=False)) for line in lines]
    low, high, held = start - 1, start - 1, len(tokenizer.encode(f"{_title(path)}\n", add_special_tokens=False))
    while high < min(stop - 1, len(lines)) and held + costs[high] <= room:  # the definition from its head on,
        held, high = held + costs[high], high + 1
    while low > 0 and held + costs[low - 1] <= room:  # then what comes before it
        held, low = held + costs[low - 1], low - 1
    parts = [f"{_title(path)}\n{''.join(lines[low:high])}"]
    others = [
        file for file in path.parent.glob("*.py") if file not in (path, use.file) and not file.name.startswith("_")
    ]
    for other in rng.sample(sorted(others), len(others)):
        text = other.read_text(encoding="utf-8", errors="replace")
        piece = _beginning(f"{_title(other)}\n{text}\n", tokens - held, tokenizer)
        held += len(tokenizer.encode(piece, add_special_tokens=False))
        parts.insert(rng.randint(0, len(parts)), piece)
        if tokens - held < SHORTEST // 8:
            break
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def _beginning(text: str, tokens: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """Whole lines from the beginning of a text, of at most so many tokens together."""
    chosen, held = [], 0
    for line in text.splitlines(keepends=True):
        held += len(tokenizer.encode(line[:_LONGEST], add_special_tokens=False))
        if held >= tokens:
            break
        chosen.append(line)
    return "".join(chosen)


def _title(file: Path) -> str:
    library = Path(sysconfig.get_paths()["stdlib"])
    return f"# {file.relative_to(library).as_posix()}"


def _samples(request: Request) -> Iterator[Sample]:
    for index in range(request.count if request.count is not None else 24):
        yield make_sample(request.split, index, request.tokens, request.tokenizer, request.seed)


TASKS = {
    "repository/cross_file": Task(
        "repository/cross_file", _samples, generated=True,
        description="the rest of a line that uses a name which another file defines",
    )
}  # fmt: skip
