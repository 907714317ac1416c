"""Recording what a memory holds of a text, for the memory page; the events are those of `namm.trace`."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from namm.compat import passing
from namm.detokeniser import pieces
from namm.memory.attach import attach, find_decoder
from namm.memory.cache import make_plan
from namm.network import NAMM
from namm.policies import MemoryPolicy, resolve
from namm.report.reading import to_read
from namm.selection import Selection
from namm.trace import Event, Recorder, end_event, rule_of, shape_of, start_event


@torch.inference_mode()
def record(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    memory: NAMM | MemoryPolicy | str | Path,
    selection: Selection | None = None,
    update_interval: int | None = None,
    *,
    names: tuple[str, str] | None = None,
) -> list[Event]:
    """Read `text` under a memory and record what it held after each update.

    Args:
        memory: as for `namm.attach`.
        selection: which scored tokens stay; a NAMM decides at its threshold if left out.
        update_interval: tokens between two updates; `fitting_interval` if left out.
        names: of the model and of the memory, for the page; their own if left out.

    Raises:
        ConfigurationError: the text is empty, too short for one update, or longer than the model's context; or
            options that do not fit together.
        ModelError: the tokenizer cannot say where its tokens stand in the text.
    """
    policy = resolve(memory)
    ids, _, interval = to_read(model, tokenizer, text, policy, update_interval)
    plan = make_plan(policy, selection, interval)
    reader, remembered = names or (model.config.name_or_path or type(model).__name__, policy.name)
    decoder = find_decoder(model)
    events = [
        start_event(
            None, shape_of(decoder.config, model.dtype), model=reader, memory=remembered, rule=rule_of(plan),
            interval=interval, tokens=pieces(tokenizer, ids),
        )
    ]  # fmt: skip
    cache, recorder = None, Recorder()
    with attach(model, policy, selection, interval) as handle:
        for block in torch.tensor([ids], device=model.device).split(interval, dim=1):
            decoder(input_ids=block, **passing(decoder, cache), use_cache=True)
            cache = handle.cache
            events.append(recorder.after(cache))
        events.append(end_event(handle.cache))
    return events
