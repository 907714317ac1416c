"""The other way to say what a memory did: dense attention over all tokens with a mask for each row and head.

`Diary` wraps a policy and a selection and writes down what was kept. `dense_logits` runs the model with an attention
function that shares no code with the library and hides what the diary says was forgotten.
"""

from dataclasses import dataclass, field

import torch
import transformers as tf
from transformers import AttentionInterface, AttentionMaskInterface

from namm.policies import MemoryPolicy
from namm.selection import Selection


@dataclass
class Diary:
    """Kept tokens: `entries[layer, row]` is a list of (tokens seen, kept positions of each head)."""

    entries: dict[tuple[int, int], list[tuple[int, list[set[int]]]]] = field(default_factory=dict)
    here: tuple[int, list[int]] = (0, [])

    def watch(self, policy: MemoryPolicy, selection: Selection) -> tuple[MemoryPolicy, Selection]:
        diary = self
        score = type(policy).score

        class Watched(type(policy)):
            def score(self, view):
                diary.here = (view.layer, view.rows.tolist())
                return score(self, view)

        class WatchedSelection:
            needs_zero = selection.needs_zero

            def target(self, seen):
                return selection.target(seen)

            def select(self, scores, positions, seen):
                kept = selection.select(scores, positions, seen)
                layer, rows = diary.here
                for row, held, chosen in zip(rows, positions, kept, strict=True):
                    heads = [set(p[k].tolist()) for p, k in zip(held, chosen, strict=True)]
                    diary.entries.setdefault((layer, row), []).append((seen, heads))
                return kept

        twin = object.__new__(Watched)
        twin.__dict__.update(policy.__dict__)
        return twin, WatchedSelection()

    def visible(self, layer: int, row: int, heads: int, tokens: int) -> torch.Tensor:
        """`[head, query, token]`: causal, without what was forgotten before the query came."""
        mask = torch.ones(tokens, tokens, dtype=torch.bool).tril().repeat(heads, 1, 1)
        for seen, kept in self.entries.get((layer, row), []):
            for head, positions in enumerate(kept):
                forgotten = [t for t in range(seen) if t not in positions]
                mask[head, seen:, forgotten] = False
        return mask


def dense_logits(model: tf.PreTrainedModel, diary: Diary, **inputs: torch.Tensor) -> torch.Tensor:
    """Logits of one forward pass without a cache, each layer's attention masked by the diary. No padding."""

    def attention(module, query, key, value, attention_mask, scaling=None, softcap=None, sliding_window=None, **kwargs):
        group = query.shape[1] // key.shape[1]
        key, value = (t.repeat_interleave(group, 1) for t in (key, value))
        logits = query @ key.transpose(2, 3) * (scaling if scaling is not None else query.shape[-1] ** -0.5)
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        rows, heads, tokens, _ = query.shape
        hidden = []
        for row in range(rows):
            mask = diary.visible(module.layer_idx, row, heads // group, tokens).repeat_interleave(group, 0)
            if sliding_window:
                mask &= torch.ones(tokens, tokens, dtype=torch.bool).triu(1 - sliding_window)
            hidden.append(~mask)
        weights = logits.masked_fill(torch.stack(hidden), -torch.inf).softmax(-1)
        return (weights @ value).transpose(1, 2), None

    AttentionInterface.register("dense-test", attention)
    AttentionMaskInterface.register("dense-test", lambda *args, **kwargs: None)
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "layer_idx")}.values()
    before = [config._attn_implementation for config in configs]
    try:
        for config in configs:
            config._attn_implementation_internal = "dense-test"
        with torch.no_grad():
            out = model(**inputs, use_cache=False)
        return out.logits if hasattr(out, "logits") else out.action_preds
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation_internal = name
