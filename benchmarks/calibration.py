"""How much of what KVzip would keep is kept by who asks in place, before and after a model is calibrated.

    python benchmarks/calibration.py MODEL [MODEL ...]

Texts of the validation split, 1,024 tokens, two of prose and two of code, nothing forgotten while they are read. Of the
tokens with the largest attention from a second reading, over all heads of all layers, this is the part that is also among as
many with the largest attention in place: as it is, and as it is expected to be by calibrations from one, two and six texts.
"""

from __future__ import annotations

import argparse
import random
from typing import Any

import torch
from rows import write
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from namm import calibrating
from namm.calibration import Calibration
from namm.models import load_model
from namm.policies import KVzip, Requery
from namm.tasks import code, passage

SHARES = (0.25, 0.125, 0.0625)
Scores = tuple[dict[int, Tensor], dict[int, Tensor]]


def texts(tokenizer: PreTrainedTokenizerBase, split: str, count: int) -> list[list[int]]:
    """Prose and code in turn."""
    drawn = ("".join((passage, code)[i % 2](split, 1536, tokenizer, random.Random(i // 2))) for i in range(count))
    return [tokenizer.encode(text, add_special_tokens=False)[: calibrating.TOKENS] for text in drawn]


def together(scores: dict[int, Tensor]) -> Tensor:
    return torch.cat([one.flatten() for one in scores.values()])


def agreement(found: Tensor, wanted: Tensor, share: float) -> float:
    """Part of the best of `wanted` that is among as many of the best of `found`."""
    count = int(share * len(wanted))
    best = torch.zeros(len(wanted), dtype=torch.bool)
    best[wanted.topk(count).indices] = True
    return best[found.topk(count).indices].float().mean().item()


def read(model: PreTrainedModel, ids: list[list[int]]) -> list[Scores]:
    """For each text what was asked in place and what was read again."""
    given = [torch.tensor([text], device=model.device) for text in ids]
    asked, again = ([calibrating._largest(model, policy, one) for one in given] for policy in (Requery(), KVzip()))
    return list(zip(asked, again, strict=True))


def fitted(found: list[Scores]) -> Calibration:
    asked, again = ({i: torch.cat([text[part][i] for text in found], -1) for i in found[0][part]} for part in (0, 1))
    return Calibration.fitted(asked, again, "")


def measure(name: str) -> list[dict[str, Any]]:
    model, tokenizer = load_model(name, torch.bfloat16)
    learned, unseen = (read(model, texts(tokenizer, split, n)) for split, n in (("train", 6), ("validation", 4)))
    rows = []
    for count in (0, 1, 2, 6):
        calibration = fitted(learned[:count]) if count else None
        found = [asked if calibration is None else expected(calibration, asked) for asked, _ in unseen]
        for share in SHARES:
            parts = [
                agreement(together(f), together(again), share) for f, (_, again) in zip(found, unseen, strict=True)
            ]
            mean = round(sum(parts) / len(parts), 3)
            rows.append({"model": name.rpartition("/")[2], "texts": count, "share": share, "agreement": mean})
            print(rows[-1])
    return rows


def expected(calibration: Calibration, asked: dict[int, Tensor]) -> dict[int, Tensor]:
    return {i: calibration.expected(one[None], i, torch.arange(len(one)))[0] for i, one in asked.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="+", help="a name, folder, GGUF file or hub id; earlier rows are replaced")
    torch.set_grad_enabled(False)
    print(write("calibration", [row for name in parser.parse_args().model for row in measure(name)]))
