"""What kind of token each token of a text is: of prose by simple rules, of code by Pygments.

Every character of the text gets a class first; a token then has the class of most of its characters, so that the parts
of a split word share the class of the word.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Language = Literal["prose", "code"]

SPACE, PUNCTUATION, STOP, CONTENT, NUMBER = "white space", "punctuation", "stop words", "content words", "numbers"
INDENTATION, COMMENT, DOCSTRING = "indentation", "comments", "docstrings"
KEYWORD, IDENTIFIER, LITERAL = "keywords", "identifiers", "literals"
SPECIAL = "special tokens"  # such as <s>, which stand for no character of the text

CLASSES = (
    CONTENT,
    STOP,
    NUMBER,
    IDENTIFIER,
    KEYWORD,
    LITERAL,
    COMMENT,
    DOCSTRING,
    PUNCTUATION,
    INDENTATION,
    SPACE,
    SPECIAL,
)

CODE_SUFFIXES = (".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".cs", ".go", ".java", ".js", ".rs", ".sh", ".ts")

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
_PROSE = re.compile(
    r"(?P<space>\s+)|(?P<number>\d+(?:[.,:]\d+)*[^\W\d_]*)|(?P<word>[^\W_]+(?:['\u2019][^\W_]+)*)|(?P<other>\S)"
)
_LINE_START = re.compile(r"^[ \t]+", re.MULTILINE)


@dataclass(frozen=True)
class Classes:
    """The class of each token, and how the classes were found: "prose rules", or the name of Pygments' lexer."""

    names: tuple[str, ...]
    language: Language
    method: str


def classify(text: str, spans: Sequence[Span], language: Language | None = None, file: str | None = None) -> Classes:
    """The class of the tokens that stand at `spans` (first and past-the-last character) of `text`.

    Args:
        language: "prose" or "code"; found by trying to parse the text as Python if left out.
        file: the name of the file it comes from, whose ending says which code it is; else it is Python if it can be
            parsed as that, and C, which many languages resemble, if not.

        >>> classify("the sea, 1817", [(0, 3), (3, 7), (7, 8), (8, 9), (9, 13)]).names
        ('stop words', 'content words', 'punctuation', 'white space', 'numbers')
    """
    language = language or detect(text)
    method = "prose rules"
    indented: set[int] = set()
    if language == "prose":
        painted = _painted(text, _prose(text))
    else:
        lexer = _lexer(text, file)
        painted, method = _painted(text, _code(text, lexer)), f"Pygments' {lexer.name} lexer"
        indented = {i for m in _LINE_START.finditer(text) for i in range(*m.span())}
    return Classes(tuple(_class_of(text, painted, indented, span) for span in spans), language, method)


def detect(text: str) -> Language:
    """Whether `text` is code: it is what Python can parse, other than a few words that happen to be an expression."""
    tree = _parsed(text)
    words = (ast.Name, ast.Constant, ast.Tuple, ast.Compare, ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.AnnAssign)
    body = tree.body if tree else []
    code = [s for s in body if not isinstance(s.value if isinstance(s, ast.Expr) else s, words)]
    return "code" if code else "prose"


def _parsed(text: str) -> ast.Module | None:
    """The text as Python; None if it is not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in the strings of somebody else's code
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


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


def _lexer(text: str, file: str | None) -> Any:
    from pygments.lexers import get_lexer_by_name, get_lexer_for_filename
    from pygments.util import ClassNotFound

    if file is not None:
        try:
            return get_lexer_for_filename(file)
        except ClassNotFound:
            pass  # an ending that Pygments does not know
    return get_lexer_by_name("c" if _parsed(text) is None else "python")


def _code(text: str, lexer: Any) -> Iterator[tuple[Span, str]]:
    from pygments.token import Token

    classes = (
        (Token.Comment.PreprocFile, LITERAL),
        (Token.Comment.Preproc, KEYWORD),
        (Token.Comment, COMMENT),
        (Token.Literal.String.Doc, DOCSTRING),
        (Token.Literal, LITERAL),
        (Token.Keyword, KEYWORD),
        (Token.Operator.Word, KEYWORD),
        (Token.Name, IDENTIFIER),
        (Token.Text, SPACE),
    )
    for start, kind, piece in lexer.get_tokens_unprocessed(text):
        yield (start, start + len(piece)), next((name for of, name in classes if kind in of), PUNCTUATION)
