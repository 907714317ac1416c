"""The text of tokens that come one by one, as a model writes them."""

from __future__ import annotations

from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

_SPLIT = 4  # tokens that one character can be split over, at most: its bytes in UTF-8


class Detokeniser:
    """The text of tokens that come one by one.

    A character that is split over several tokens comes with its last one; those before it have no text.
    `DecodeStream` of tokenizers would do where all bytes are text: where a tokenizer spells what it does not know in
    bytes, it raises after a broken character, and again with each token that follows.

    Args:
        special: whether special tokens have their name as text, or none.
        longest: tokens after which there is text even if it ends within a character; None to wait for its end, as
            long as that takes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, special: bool = True, longest: int | None = _SPLIT) -> None:
        self._tokenizer, self._special, self._longest = tokenizer, special, longest
        self._shown: list[int] = []  # the last tokens whose text was given; what follows may hang together with them
        self._new: list[int] = []  # tokens whose text was not given yet

    def next(self, token: int) -> str:
        """The text that `token` adds."""
        self._new.append(token)
        text = self._text()
        if text.endswith("\ufffd") and (self._longest is None or len(self._new) < self._longest):
            return ""  # the middle of a character
        self._shown, self._new = self._new, []
        return text

    def rest(self) -> str:
        """The text of tokens that still wait for the end of a character."""
        return self._text()

    def _text(self) -> str:
        """Of the new tokens, after those before them."""
        return self._decode(self._shown + self._new)[len(self._decode(self._shown)) :]

    def _decode(self, tokens: list[int]) -> str:
        text = self._tokenizer.decode(tokens, skip_special_tokens=not self._special, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


def pieces(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> list[str]:
    """The text of each token; together they are the text."""
    stream = Detokeniser(tokenizer)
    return [stream.next(token) for token in ids]
