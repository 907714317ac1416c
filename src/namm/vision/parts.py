"""Which tokens of a prompt are text and which are pictures, and what a memory kept of each.

parts = layout(model.config, inputs)
with namm.attach(model, "builtin:universal", namm.Budget(fraction=0.25)) as memory:
    model.generate(**inputs)
    print(kept(memory.cache, parts))
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedConfig

from namm.errors import ConfigurationError
from namm.memory.cache import MemoryCache
from namm.memory.layer import layers_of

TEXT, IMAGE, FRAME = "text", "image", "frame"


@dataclass(frozen=True)
class PromptPart:
    """Tokens `start` to `stop` of a prompt, the latter not included.

    Attributes:
        kind: "text", "image" or "frame".
        number: of the image in the prompt, or of the frame over all its videos, from 0;
            of texts, from 0. A frame is what the model counts as one, which for Qwen-VL is a pair of frames.
    """

    kind: str
    number: int
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class PartReport:
    """What a memory holds of each part of a prompt.

    Attributes:
        share: slots held over slots of a full cache, for each part, over all layers and heads; or, in `by_layer`,
            for each layer that has a memory.
    """

    parts: tuple[PromptPart, ...]
    share: Float[np.ndarray, " part"]
    by_layer: Float[np.ndarray, "layer part"]

    def of(self, kind: str) -> Float[np.ndarray, " part"]:
        """Shares of the parts of one kind, in their order."""
        return self.share[[part.kind == kind for part in self.parts]]

    def overall(self, kind: str) -> float | None:
        """Share held of all tokens of one kind; None if there are none."""
        sizes = np.array([part.stop - part.start if part.kind == kind else 0 for part in self.parts])
        return float((self.share * sizes).sum() / sizes.sum()) if sizes.sum() else None

    def __str__(self) -> str:
        lines = []
        for kind in (TEXT, IMAGE, FRAME):
            shares, whole = self.of(kind), self.overall(kind)
            if whole is None:
                continue
            tokens = sum(part.stop - part.start for part in self.parts if part.kind == kind)
            each = "" if kind == TEXT else f"; each: {' '.join(f'{share:.0%}' for share in shares)}"
            lines.append(f"{kind}: {whole:.0%} of {tokens} tokens kept{each}")
        return "\n".join(lines)


def layout(config: PreTrainedConfig, inputs: Mapping[str, Tensor]) -> tuple[PromptPart, ...]:
    """The parts of a prompt of one row, as a processor made it.

    Args:
        config: of a model with `image_token_id` or `video_token_id`, such as LLaVA, LLaVA-NeXT-Video, LLaVA-OneVision
            or Qwen-VL.
        inputs: `input_ids` `[1, token]` with the pixel values beside it.

    Raises:
        ConfigurationError: pictures without tokens in the prompt, tokens without pictures, or several rows.
    """
    ids = inputs["input_ids"]
    if ids.ndim != 2 or ids.shape[0] != 1:
        raise ConfigurationError("one prompt: input_ids of shape [1, tokens]", list(ids.shape), "Give each row alone.")
    image, video = (getattr(config, f"{kind}_token_id", None) for kind in ("image", "video"))
    kinds = [IMAGE if token == image else FRAME if token == video else TEXT for token in ids[0].tolist()]
    runs, start = [], 0
    for kind, group in groupby(kinds):
        length = len(list(group))
        runs.append((kind, start, start + length))
        start += length
    _check_there("image", sum(kind == IMAGE for kind, _, _ in runs), inputs.get("pixel_values"))
    frames = _frames_of_runs(inputs, sum(kind == FRAME for kind, _, _ in runs))
    return tuple(_parts(runs, frames))


def kept(cache: MemoryCache, parts: tuple[PromptPart, ...], row: int = 0) -> PartReport:
    """What is held of each part after the prompt was read, in the row whose prompt it is."""
    edges = np.array([part.start for part in parts] + [parts[-1].stop])
    by_layer = []
    for layer in layers_of(cache):
        heads = [np.searchsorted(head, edges) for head in cache.kept_positions(layer.index)[row]]
        by_layer.append(np.mean([np.diff(places) for places in heads], axis=0) / np.diff(edges))
    return PartReport(parts, np.mean(by_layer, axis=0), np.array(by_layer))


def _frames_of_runs(inputs: Mapping[str, Tensor], runs: int) -> list[int]:
    """How many frames each run of video tokens holds: those of a video, or one, where text stands between frames."""
    pixels = inputs.get("pixel_values_videos")
    _check_there("video", runs, pixels)
    if pixels is None:
        return []
    grid = inputs.get("video_grid_thw")  # Qwen-VL: frames, height and width in patches
    frames = [pixels.shape[1]] * pixels.shape[0] if grid is None else [int(count) for count in grid[:, 0]]
    if runs not in (len(frames), sum(frames)):
        raise ConfigurationError(
            f"a place in the prompt for each of {len(frames)} videos",
            f"{runs}",
            "Make the prompt with the model's processor and its <video> token.",
        )
    return frames if runs == len(frames) else [1] * runs


def _check_there(what: str, places: int, pixels: Tensor | None) -> None:
    if (places > 0) != (pixels is not None):
        raise ConfigurationError(
            f"tokens of each {what} in the prompt, and each {what} beside it",
            f"{places} places in the prompt, and {'no ' if pixels is None else ''}pixel values",
            f"Make the prompt with the model's processor and its <{what}> token.",
        )


def _parts(runs: list[tuple[str, int, int]], frames: list[int]) -> Iterator[PromptPart]:
    """Runs of tokens, those of videos cut into frames; what ends a video, such as a line break, is its last frame's."""
    count = dict.fromkeys((TEXT, IMAGE, FRAME), 0)
    of_run = iter(frames)
    for kind, start, stop in runs:
        pieces = next(of_run) if kind == FRAME else 1
        size = (stop - start) // pieces
        for i in range(pieces):
            yield PromptPart(kind, count[kind], start + i * size, stop if i == pieces - 1 else start + (i + 1) * size)
            count[kind] += 1
