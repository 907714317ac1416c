"""A tokenizer of letters for the models of the zoo, which know 97 tokens."""

from __future__ import annotations

import string
from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHAT = "{% for m in messages %}<{{ m['content'] }}>{% endfor %}{% if add_generation_prompt %}:{% endif %}"


@cache
def letters(chat: bool = True) -> PreTrainedTokenizerFast:
    """One token for each printable letter; every other is unknown."""
    known = [c for c in string.printable if c not in "\r\t\x0b\x0c`~^\\"]
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {c: i + 3 for i, c in enumerate(known[:94])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")
    made.chat_template = CHAT if chat else None
    return made
