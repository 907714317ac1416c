"""Videos as the random LLaVA-NeXT-Video of `families` is shown them: four words, then a token for each frame."""

from __future__ import annotations

import torch

from namm.vision.reading import Inputs, Listing, Query, Showing
from namm.vision.showing import evenly
from tests.vision.families import VIDEO

WORDS = 4


def listing(frames: int, asked: int = 2, number: int = 0) -> Listing:
    """Video `number` of so many frames, and `asked` questions about it."""
    name = f"video {number}"
    pixels = torch.randn(1, frames, 3, 28, 28, generator=torch.Generator().manual_seed(number))

    def shown(which: list[int]) -> Inputs:
        ids = torch.tensor([[*range(5, 5 + WORDS), *[VIDEO] * len(which)]])
        return {"input_ids": ids, "pixel_values_videos": pixels[:, which]}

    def thinned(share: float) -> Inputs:
        return shown(evenly(frames, max(1, int(share * frames))))

    queries = tuple(Query("last", f"{number}: {i}", (30 + i, 31, 32), answer=40 + i) for i in range(asked))
    showing = Showing(name, frames, shown(list(range(frames))), queries, thinned)
    return Listing(name, frames, tuple((query.kind, query.name) for query in queries), lambda: showing)
