"""What single tokens stand for."""

from __future__ import annotations

import json
import re

from transformers import PreTrainedTokenizerBase

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # a token for a byte, where other tokens are characters


class Vocabulary:
    """The bytes of each token, which may be a part of a character only."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._added = {token: added.content.encode() for token, added in tokenizer.added_tokens_decoder.items()}
        self._special = frozenset(tokenizer.all_special_ids)
        decoder = tokenizer.backend_tokenizer.decoder
        told = json.loads(decoder.__getstate__()) if decoder is not None else {}
        kinds = {one.get("type") for one in (told, *told.get("decoders", ()))}
        self._bytes = _byte_of_character() if "ByteLevel" in kinds else None
        self._known: dict[int, bytes] = {}

    def bytes_of(self, token: int) -> bytes:
        """What a token adds to a text."""
        if token not in self._known:
            self._known[token] = self._added[token] if token in self._added else self._bytes_of(token)
        return self._known[token]

    def is_special(self, token: int) -> bool:
        """Whether an answer does not show this token."""
        return token in self._special

    def _bytes_of(self, token: int) -> bytes:
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if piece is None:  # models may have more tokens than their tokenizers
            return b""
        if self._bytes is not None:
            return bytes(self._bytes[character] for character in piece)
        if found := _BYTE.fullmatch(piece):
            return bytes([int(found[1], 16)])
        return piece.replace("\u2581", " ").removeprefix("##").encode()


def _byte_of_character() -> dict[str, int]:
    """How GPT-2's tokenizers, and many since, write bytes: those that print as themselves, others from 256 on."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(256 + i): byte for i, byte in enumerate(others)}
