"""`calibrated`: let a model read two texts twice, once for all, so that it need not read any other text twice."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from platformdirs import user_cache_path
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from namm.calibration import Calibration
from namm.errors import ConfigurationError
from namm.files import locked
from namm.memory.attach import attached, find_decoder
from namm.memory.identity import fingerprint
from namm.memory.plan import Plan, Probe
from namm.models import context_length
from namm.network import NAMM
from namm.policies import KVzip, MemoryPolicy, Requery, View, resolve
from namm.selection import Threshold
from namm.tasks import code, passage

TOKENS = 1024  # of a text, or two thirds of a context that ends before its second half was read again
SHORTEST = 128
_VERSION = 3  # of what is measured
_PATIENCE = 3600.0  # seconds to wait for another process that calibrates the same model


def calibrated(
    memory: NAMM | MemoryPolicy | str | Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> MemoryPolicy:
    """A memory that knows what attention in place is worth in each head of `model`, if it is one that wants to.

        memory = namm.calibrated("builtin:universal", model, tokenizer)
        with namm.attach(model, memory, namm.Budget(fraction=0.25)):
            model.generate(**inputs)

    Other memories are as they were. For the price see `calibrate`, for errors too.

    Args:
        memory: as for `namm.attach`.
    """
    policy = resolve(memory)
    return policy.calibrated(calibrate(model, tokenizer)) if policy.calibrates else policy


def calibrate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    texts: Sequence[Sequence[int]] | None = None,
    folder: str | Path | None = None,
) -> Calibration:
    """How much attention in place is worth in each head of `model`; see `namm.calibration`.

    Two texts of 1,024 tokens, prose and code, are read three times each, which takes a model of 135 million parameters
    half a minute on a CPU. It is done once: what was found is kept, by the model's fingerprint and the texts.

    Args:
        tokenizer: of the model, for the two texts; may be left out if `texts` are given.
        texts: other texts, as ids, equally long, of 128 tokens at least. What is found is not kept.
        folder: where it is kept; the user's cache folder if left out.

    Raises:
        ConfigurationError: neither a tokenizer nor texts, or texts that are too short or of different lengths.
        ModelError: a model that cannot read in pieces, or has no full-attention layer.
        ArtefactError: what was kept is damaged.
    """
    if texts is not None:
        return _measured(model, texts)
    if tokenizer is None:
        raise ConfigurationError("a tokenizer, or texts as ids", "neither", "Try namm.calibrate(model, tokenizer).")
    folder = Path(folder) if folder else user_cache_path("namm") / "calibrations"
    given = _texts(model, tokenizer)
    what = hashlib.sha256(f"{fingerprint(find_decoder(model))} {given} {_VERSION}".encode()).hexdigest()
    file = folder / f"{what[:32]}.safetensors"
    with locked(folder, f"{file.stem}.lock", timeout=_PATIENCE):
        if file.exists():
            return Calibration.load(file)
        found = _measured(model, given)
        found.save(file)
    return found


def _texts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """A passage of a novel and one of code, of the split that is there to learn from."""
    tokens = min(TOKENS, 2 * (context_length(model) or TOKENS * 2) // 3)
    found = []
    for source in (passage, code):
        text = "".join(source("train", TOKENS * 3 // 2, tokenizer, random.Random(0)))
        found.append(tokenizer.encode(text, add_special_tokens=False)[:tokens])
    return found


def _measured(model: PreTrainedModel, texts: Sequence[Sequence[int]]) -> Calibration:
    lengths = sorted({len(text) for text in texts})
    if len(lengths) != 1 or lengths[0] < SHORTEST:
        raise ConfigurationError(f"texts of one length, of {SHORTEST} tokens at least", lengths, "Cut them alike.")
    ids = torch.tensor([list(text) for text in texts], device=model.device)
    if (most := int(ids.max())) >= (known := model.get_input_embeddings().num_embeddings):
        raise ConfigurationError(
            f"tokens of this model, which knows {known:,}", f"token {most:,}", "Give its own tokenizer."
        )
    asked, read = (_largest(model, policy, ids) for policy in (Requery(), KVzip()))
    return Calibration.fitted(asked, read, fingerprint(find_decoder(model)))


def _largest(model: PreTrainedModel, policy: MemoryPolicy, ids: Tensor) -> dict[int, Tensor]:
    """For each layer the policy's scores `[kv_head, token]` of all tokens, when all was read and nothing forgotten."""
    length, scores = ids.shape[1], dict[int, list[Tensor]]()  # texts one after another

    def note(view: View, found: Tensor) -> None:
        if view.seen == length:
            scores.setdefault(view.layer, []).extend(found.float().cpu())

    plan = Plan(policy, Threshold(0.0), length // 2, last=length, probe=Probe(on_update=note))
    with torch.no_grad(), attached(model, plan):
        find_decoder(model)(input_ids=ids, use_cache=True)
    return {layer: torch.cat(found, -1) for layer, found in scores.items()}
