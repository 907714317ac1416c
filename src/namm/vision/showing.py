"""Clips and videos as a model is given them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from namm.vision.clips import Clip, choose, make_clip
from namm.vision.images import Images
from namm.vision.published import Choice, check_frames
from namm.vision.reading import Inputs, Query, Showing
from namm.vision.small import clip_inputs, text_ids


def clip_showings(images: Images, seconds: int, clips: int, asked: int, seed: int = 0) -> Iterator[Showing]:
    """Made clips for the small model, with `asked` questions about each."""
    for number in range(clips):
        clip = make_clip(images, seconds, (seed, 2, number))
        queries = tuple(
            Query(q.kind, f"{number}: {q.text}", tuple(text_ids(q.text)), text_ids(q.answer)[0])
            for q in choose(clip, asked, (seed, 2, number, 1))
        )
        yield Showing(f"clip {number}", seconds, clip_inputs(clip), queries, partial(thinned, clip))


def thinned(clip: Clip, share: float) -> Inputs:
    """The clip with evenly chosen seconds only, which keep their numbers."""
    count = max(1, int(share * clip.seconds))
    return clip_inputs(clip, evenly(clip.seconds, count))


def evenly(total: int, count: int) -> list[int]:
    """`count` of the numbers below `total`, evenly spread, the first and the last among them."""
    return [int(place) for place in np.linspace(0, total - 1, count).round()]


def choice_showings(
    choices: Sequence[Choice], model: PreTrainedModel, processor: Any, frames: int
) -> Iterator[Showing]:
    """Videos of a published benchmark for a model with its processor; questions about one video share its reading.

    Raises:
        ModelError: the processor's prompt holds no place for a video.
    """
    check_frames(frames)
    for video, of_video in groupby(choices, key=lambda choice: choice.video):
        pictures = read_frames(video, frames)
        prompts = [(choice, _prompt(processor, choice.prompt, pictures)) for choice in of_video]
        cut = _boundary(model, prompts[0][1]["input_ids"][0].tolist())
        before = {
            name: value.to(model.device) for name, value in prompts[0][1].items() if isinstance(value, torch.Tensor)
        }
        before = {
            name: value[:, :cut] if name in ("input_ids", "attention_mask") else value for name, value in before.items()
        }
        before.pop("attention_mask", None)
        queries = tuple(
            Query(choice.task, choice.name, tuple(inputs["input_ids"][0, cut:].tolist()), *_letters(processor, choice))
            for choice, inputs in prompts
        )

        def fewer(share: float, choice: Choice = prompts[0][0], pictures: np.ndarray = pictures) -> Inputs:
            some = pictures[evenly(len(pictures), max(1, int(share * len(pictures))))]
            inputs = _prompt(processor, choice.prompt, some)
            cut = _boundary(model, inputs["input_ids"][0].tolist())
            kept = {
                n: v.to(model.device)
                for n, v in inputs.items()
                if isinstance(v, torch.Tensor) and n != "attention_mask"
            }
            return kept | {"input_ids": kept["input_ids"][:, :cut]}

        yield Showing(str(video), frames, before, queries, fewer)


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
            "a model and processor for videos", f"{type(model).__name__}, whose prompt has no place for one",
            "LLaVA-NeXT-Video, LLaVA-OneVision and Qwen-VL take videos.",
        )  # fmt: skip
    return places[-1] + 1


def _letters(processor: Any, choice: Choice) -> tuple[int, tuple[int, ...]]:
    options = tuple(processor.tokenizer.encode(letter, add_special_tokens=False)[0] for letter in choice.letters)
    if len(set(options)) < len(options):
        raise ModelError(
            "a tokenizer that tells letters apart", f"{choice.letters} as {list(options)}",
            "Use a model that can answer multiple choice.",
        )  # fmt: skip
    return options[choice.answer], options
