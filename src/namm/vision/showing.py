"""Videos as a model is given them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from transformers import PreTrainedModel

from namm.errors import ArtefactError, ModelError, NotFoundError
from namm.packages import package
from namm.vision.published import Choice, check_frames
from namm.vision.reading import Inputs, Listing, Query, Showing


def evenly(total: int, count: int) -> list[int]:
    """`count` of the numbers below `total`, evenly spread, the first and the last among them."""
    return [int(place) for place in np.linspace(0, total - 1, count).round()]


def choice_listings(
    choices: Iterable[Choice], model: PreTrainedModel, processor: Any, frames: int
) -> Iterator[Listing]:
    """Videos of a published benchmark for a model with its processor; questions about one video share its reading.

    Loading one raises:
        ModelError: the processor's prompt holds no place for a video, or its tokenizer no letters.
        ArtefactError: the video cannot be decoded.
    """
    check_frames(frames)
    for video, of_video in groupby(sorted(choices, key=lambda choice: str(choice.video)), key=lambda c: c.video):
        about = tuple(of_video)
        asks = tuple((choice.task, choice.name) for choice in about)
        yield Listing(str(video), frames, asks, partial(_video_showing, about, model, processor, frames))


def _video_showing(choices: tuple[Choice, ...], model: PreTrainedModel, processor: Any, frames: int) -> Showing:
    pictures = read_frames(choices[0].video, frames)
    prompts = [_prompt(processor, choice.prompt, pictures) for choice in choices]
    before, cut = _up_to_video(model, prompts[0])
    queries = tuple(
        Query(choice.task, choice.name, tuple(inputs["input_ids"][0, cut:].tolist()), *_letters(processor, choice))
        for choice, inputs in zip(choices, prompts, strict=True)
    )

    def fewer(share: float) -> Inputs:
        some = pictures[evenly(len(pictures), max(1, int(share * len(pictures))))]
        return _up_to_video(model, _prompt(processor, choices[0].prompt, some))[0]

    return Showing(str(choices[0].video), frames, before, queries, fewer)


def _up_to_video(model: PreTrainedModel, inputs: Any) -> tuple[Inputs, int]:
    """What is read before the question, and how many tokens that are."""
    cut = _boundary(model, inputs["input_ids"][0].tolist())
    tensors = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    length = inputs["input_ids"].shape[1]
    return {
        name: (value[:, :cut] if value.shape[:2] == (1, length) else value).to(model.device)
        for name, value in tensors.items()
        if name != "attention_mask"
    }, cut


def read_frames(video: Path, count: int) -> UInt8[np.ndarray, "frame height width 3"]:
    """`count` frames of a video file, evenly spread.

    Raises:
        NotFoundError: there is no such file, or PyAV is not installed.
        ArtefactError: it is no video that can be decoded.
    """
    av = package("av", "vision")
    if not video.is_file():
        raise NotFoundError("a video file", str(video), "Check the path.")
    try:
        with av.open(str(video)) as container:
            stream = container.streams.video[0]
            total = stream.frames or sum(1 for _ in container.decode(stream))
            container.seek(0)
            wanted = set(evenly(total, count))
            found = [f.to_ndarray(format="rgb24") for i, f in enumerate(container.decode(stream)) if i in wanted]
    except (av.FFmpegError, IndexError) as error:
        raise ArtefactError(
            "a video that can be decoded", f"{video}: {error}", "Check the file, or drop it."
        ) from error
    if not found:
        raise ArtefactError("a video with frames", f"none in {video}", "Check the file, or drop it.")
    return np.stack([found[min(i, len(found) - 1)] for i in range(min(count, len(found)))])


def _prompt(processor: Any, text: str, frames: np.ndarray) -> Any:
    turn = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": text}]}]
    prompt = processor.apply_chat_template(turn, add_generation_prompt=True)
    return processor(text=prompt, videos=[list(frames)], return_tensors="pt")


def _boundary(model: PreTrainedModel, ids: list[int]) -> int:
    """Where the video ends and the question begins."""
    places = [i for i, token in enumerate(ids) if token == getattr(model.config, "video_token_id", None)]
    if not places:
        raise ModelError(
            "a model and processor for videos",
            f"{type(model).__name__}, whose prompt has no place for one",
            "LLaVA-NeXT-Video, LLaVA-OneVision and Qwen-VL take videos.",
        )
    return places[-1] + 1


def _letters(processor: Any, choice: Choice) -> tuple[int, tuple[int, ...]]:
    options = tuple(processor.tokenizer.encode(letter, add_special_tokens=False)[0] for letter in choice.letters)
    if len(set(options)) < len(options):
        raise ModelError(
            "a tokenizer that tells letters apart",
            f"{choice.letters} as {list(options)}",
            "Use a model that can answer multiple choice.",
        )
    return options[choice.answer], options
