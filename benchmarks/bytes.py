"""Bytes that the shipped memory really holds, on the embedded model.

    python benchmarks/bytes.py

* `slots`: heads keep between 10 % and 40 % of 4,096 tokens; bytes held over the bytes of the slots kept.
* `peak`: the most held while reading 8,192 tokens at a 25 % budget, over a full cache.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import rows
import torch
from rich.console import Console

import namm
from namm.memory.ledger import storage_bytes
from namm.policies import DEFAULT_MEMORY, resolve


@dataclass(frozen=True)
class Uneven:
    """A selection that lets each head keep its own share, 10 % to 40 % of the tokens seen, by score."""

    needs_zero = False

    def target(self, seen: int) -> int:
        return seen // 4

    def select(self, scores: torch.Tensor, positions: torch.Tensor, seen: int) -> torch.Tensor:
        shares = torch.linspace(0.1, 0.4, scores.shape[1])
        kept = [
            namm.Budget(fraction=float(share)).select(scores[:, h : h + 1], positions[:, h : h + 1], seen)
            for h, share in enumerate(shares)
        ]
        return torch.cat(kept, dim=1)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.parse_args()
    torch.manual_seed(0)
    written = []
    for dtype in (torch.float32, torch.bfloat16):
        model, _ = namm.models.load_model(dtype=dtype)
        memory = resolve(DEFAULT_MEMORY)
        tokens = 4096 if dtype == torch.float32 else 1024  # bfloat16 is slow on most CPUs
        ids = torch.randint(0, model.config.vocab_size, (1, tokens))
        with namm.attach(model, memory, Uneven()) as handle:
            model(ids, logits_to_keep=1)
        cache, report = handle.cache, handle.memory()
        sequences = [sequence for layer in cache.layers for sequence in layer.sequences]
        store = sequences[0].store
        kv = 2 * store.keys.shape[1] * store.keys.element_size()
        state = store.state.shape[0] * store.state.element_size() + store.positions.element_size()
        pools = storage_bytes([tensor for sequence in sequences for tensor in sequence.store.tensors()])
        tail, ratio = report.bytes_held - pools, pools / (report.slots * (kv + state))
        counts = [count for layer in report.kept for row in layer for count in row]
        written.append(
            {
                "measure": "slots", "dtype": str(dtype), "tokens": tokens,
                "kept_share": [min(counts) / tokens, max(counts) / tokens], "bytes_held": report.bytes_held,
                "tail_bytes": tail, "bytes_over_kept_slots": round(ratio, 4), "target": 1.10,
                "state_over_key_and_value": round(state / kv, 4), "state_target": 0.15, "n": 1, "seed": 0,
            }
        )  # fmt: skip
        Console().print(
            f"{dtype}: heads keep {min(counts) / tokens:.0%} to {max(counts) / tokens:.0%}; "
            f"bytes held {ratio:.3f} x the bytes of kept slots (target <= 1.10); a slot's state is {state / kv:.1%} of its key and value "
            f"(target <= 15 %); queries held {tail / 1e6:.2f} MB"
        )
    model, _ = namm.models.load_model()
    ids = torch.randint(0, model.config.vocab_size, (1, 8192))
    with namm.attach(model, memory, namm.Budget(fraction=0.25)) as handle:
        model(ids, logits_to_keep=1)
    report = handle.memory()
    peak = report.peak_bytes / report.bytes_full
    written.append(
        {
            "measure": "peak", "dtype": "torch.float32", "tokens": 8192, "peak_bytes": report.peak_bytes,
            "bytes_full": report.bytes_full, "peak_over_full": round(peak, 4), "target": 0.45,
            "held_over_full": round(report.share, 4), "n": 1, "seed": 0,
        }
    )  # fmt: skip
    Console().print(f"8,192 tokens at 25 %: peak {peak:.3f} of a full cache (target <= 0.45), held {report.share:.3f}")
    Console().print(f"rows: {rows.write('bytes', written)}")


if __name__ == "__main__":
    main()
