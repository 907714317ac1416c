"""What kind of token each token of a text is: of prose by simple rules, of Python by the standard library's `tokenize`.

Every character of the text gets a class first; a token then has the class of most of its characters, so that the parts
of a split word share the class of the word.
"""

from __future__ import annotations

import ast
import io
import keyword
import re
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Language = Literal["prose", "code"]
Method = Literal["prose rules", "Python's tokenize", "code rules"]

SPACE, PUNCTUATION, STOP, CONTENT, NUMBER = "white space", "punctuation", "stop words", "content words", "numbers"
INDENTATION, COMMENT, DOCSTRING = "indentation", "comments", "docstrings"
KEYWORD, IDENTIFIER, LITERAL = "keywords", "identifiers", "literals"
SPECIAL = "special tokens"  # such as <s>, which stand for no character of the text

CLASSES = (
    CONTENT, STOP, NUMBER, IDENTIFIER, KEYWORD, LITERAL, COMMENT, DOCSTRING, PUNCTUATION, INDENTATION, SPACE, SPECIAL,
)  # fmt: skip

PYTHON_SUFFIXES = (".py", ".pyi")
CODE_SUFFIXES = (*PYTHON_SUFFIXES, ".c", ".h", ".cc", ".cpp", ".cs", ".go", ".java", ".js", ".rs", ".sh", ".ts")

Span = tuple[int, int]

_STOP_WORDS = """
a about above after again against all almost also although always am among an and another any are aren't as at be
because been before being below between both but by can can't cannot could couldn't did didn't do does doesn't
doing don't down during each either else ever every few for from further had hadn't has hasn't have haven't having
he her here hers herself him himself his how however i if in into is isn't it its itself just less let many may me
might more most much must my myself neither never no none nor not now of off often on once one only or other others
ought our ours ourselves out over own perhaps quite rather same shall she should shouldn't since so some still such
than that the their theirs them themselves then there therefore these they this those though through thus to too
under until up upon us very was wasn't we were weren't what when where whether which while who whom whose why will
with within without won't would wouldn't yet you your yours yourself yourselves
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
# of the usual C-like languages, for code that is not Python
_FOREIGN = """
auto bool boolean break case catch char class const continue default delete do double else enum export extends
extern false final float fn for func function goto if impl implements import inline int interface let long match mod
mut namespace new nil null package private protected pub public return self short signed sizeof static struct super
switch template this throw throws trait true try type typedef typename union unsigned use using var virtual void
volatile while
"""
_FOREIGN_KEYWORDS = frozenset(_FOREIGN.split())
_PROSE = re.compile(
    r"(?P<space>\s+)|(?P<number>\d+(?:[.,:]\d+)*[^\W\d_]*)|(?P<word>[^\W_]+(?:['\u2019][^\W_]+)*)|(?P<other>\S)"
)  # fmt: skip
_CODE = re.compile(
    r"""(?P<comment>\#(?:[\s!].*|$)|//.*|/\*(?s:.*?)\*/)
    | (?P<literal>\"{3}(?s:.*?)\"{3} | '{3}(?s:.*?)'{3} | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*' | `[^`]*`
        | \b\d[\w.]*)
    | (?P<word>[^\W\d]\w*) | (?P<space>\s+) | (?P<other>\S)""",
    re.VERBOSE | re.MULTILINE,
)
_LINE_START = re.compile(r"^[ \t]+", re.MULTILINE)


@dataclass(frozen=True)
class Classes:
    """The class of each token, and how the classes were found."""

    names: tuple[str, ...]
    language: Language
    method: Method


def classify(text: str, spans: Sequence[Span], language: Language | None = None) -> Classes:
    """The class of the tokens that stand at `spans` (first and past-the-last character) of `text`.

    Args:
        language: "prose" or "code"; found by trying to parse the text as Python if left out.

        >>> classify("the sea, 1817", [(0, 3), (3, 7), (7, 8), (8, 9), (9, 13)]).names
        ('stop words', 'content words', 'punctuation', 'white space', 'numbers')
    """
    language = language or detect(text)
    method: Method = "prose rules"
    if language == "prose":
        painted = _painted(text, _prose(text))
    else:
        try:
            painted, method = _painted(text, _python(text)), "Python's tokenize"
        except (SyntaxError, tokenize.TokenError, ValueError):
            painted, method = _painted(text, _code(text)), "code rules"
    indented = {i for m in _LINE_START.finditer(text) for i in range(*m.span())} if language == "code" else set()
    return Classes(tuple(_class_of(text, painted, indented, span) for span in spans), language, method)


def detect(text: str) -> Language:
    """Whether `text` is code: it is what Python can parse, other than a few words that happen to be an expression."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in the strings of somebody else's code
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "prose"
    words = (ast.Name, ast.Constant, ast.Tuple, ast.Compare, ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.AnnAssign)
    code = [s for s in tree.body if not isinstance(s.value if isinstance(s, ast.Expr) else s, words)]
    return "code" if code else "prose"


def _painted(text: str, pieces: Iterator[tuple[Span, str]]) -> list[str]:
    """The class of each character; what no piece covers is white space, or the mark that continues a line."""
    painted = [SPACE if character.isspace() else PUNCTUATION for character in text]
    for (start, stop), name in pieces:
        painted[start:stop] = [name] * (stop - start)
    return painted


def _class_of(text: str, painted: list[str], indented: set[int], span: Span) -> str:
    if span[0] == span[1]:
        return SPECIAL
    inked = [i for i in range(*span) if not text[i].isspace()]
    if inked:
        return Counter(painted[i] for i in inked).most_common(1)[0][0]
    return INDENTATION if indented.intersection(range(*span)) else SPACE


def _prose(text: str) -> Iterator[tuple[Span, str]]:
    for match in _PROSE.finditer(text):
        name = {"space": SPACE, "number": NUMBER, "other": PUNCTUATION}.get(match.lastgroup or "")
        yield match.span(), name or (STOP if _is_stop_word(match.group()) else CONTENT)


def _is_stop_word(word: str) -> bool:
    word = word.lower().replace("\u2019", "'")
    return word in STOP_WORDS or word.split("'")[0] in STOP_WORDS


def _python(text: str) -> Iterator[tuple[Span, str]]:
    """Raises what `tokenize` raises if the text is not Python.

    A string that is a statement of its own is a docstring.
    """
    ast.parse(text)  # `tokenize` alone accepts much that is not Python
    lines = [0, *(match.end() for match in re.finditer("\n", text))]
    fresh = True  # at the start of a statement
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        name = _python_class(token, fresh)
        if name:
            yield (lines[token.start[0] - 1] + token.start[1], lines[token.end[0] - 1] + token.end[1]), name
        if token.type not in (tokenize.COMMENT, tokenize.NL):
            fresh = token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING)


def _python_class(token: tokenize.TokenInfo, fresh: bool) -> str | None:
    kind = tokenize.tok_name[token.type]
    if kind == "STRING" and fresh:
        return DOCSTRING
    if kind in ("STRING", "NUMBER") or kind.startswith(("FSTRING", "TSTRING")):  # f-strings come in parts from 3.12 on
        return LITERAL
    if kind == "NAME":
        return KEYWORD if keyword.iskeyword(token.string) else IDENTIFIER
    return {"COMMENT": COMMENT, "OP": PUNCTUATION, "ERRORTOKEN": PUNCTUATION}.get(kind)


def _code(text: str) -> Iterator[tuple[Span, str]]:
    names = {"comment": COMMENT, "literal": LITERAL, "space": SPACE, "other": PUNCTUATION}
    for match in _CODE.finditer(text):
        word = match.group()
        known = keyword.iskeyword(word) or word in _FOREIGN_KEYWORDS
        yield match.span(), names.get(match.lastgroup or "") or (KEYWORD if known else IDENTIFIER)
