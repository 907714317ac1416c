"""Clips made of real images, and questions about them.

A clip is a row of scenes. A scene shows one piece of clothing for some seconds, every frame of it the same photograph,
shaken and with other noise: redundant on purpose. Between scenes there may be seconds of nothing, of noise or of
stripes, which no question asks for. In a long clip some scenes are long and most are short.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import UInt8

from experiments.video.images import CLASSES, SIZE, Images
from namm.errors import ConfigurationError

FRAMES = 1  # in each second
SHORTEST, LONGEST = 12, 192  # seconds of a clip
_SCENE, _PAUSE = (2, 5), (0, 3)  # seconds in a clip of 16 or less; in longer ones the longest grow with the clip
_SHAKE, _NOISE = 2, 12.0  # pixels, grey levels
KINDS = ("at", "first", "last", "count", "after")


@dataclass(frozen=True)
class Scene:
    """`shows` is seen from second `start` until before `stop`."""

    shows: str
    start: int
    stop: int


@dataclass(frozen=True)
class Question:
    """A question with a one-word answer. `kind` is one of `KINDS`."""

    kind: str
    text: str
    answer: str


@dataclass(frozen=True, eq=False)
class Clip:
    """A clip and all questions that can be asked about it."""

    frames: UInt8[np.ndarray, "second frame 28 28"]
    scenes: tuple[Scene, ...]
    questions: tuple[Question, ...]

    @property
    def seconds(self) -> int:
        return len(self.frames)


def make_clip(images: Images, seconds: int, seed: tuple[int, ...]) -> Clip:
    """The clip of this seed: the same every time.

    Raises:
        ConfigurationError: it is too short or too long to ask about.
    """
    if not SHORTEST <= seconds <= LONGEST:
        raise ConfigurationError(f"clips of {SHORTEST} to {LONGEST} seconds", seconds, "Choose another length.")
    rng = np.random.default_rng(seed)
    frames = np.zeros((seconds, FRAMES, SIZE, SIZE), np.uint8)
    cast = rng.choice(len(CLASSES), size=rng.integers(3, 6), replace=False)  # few, so that some come back
    scenes: list[Scene] = []
    second, scale = 0, max(1.0, seconds / 16)
    while True:
        pause = int(rng.integers(_PAUSE[0], round(_PAUSE[1] * max(1.0, scale / 2)) + 1))
        # many short scenes among few long ones: logarithms are drawn
        length = round(np.exp(rng.uniform(np.log(_SCENE[0] - 0.49), np.log(_SCENE[1] * scale + 0.49))))
        start = second + pause
        if start + length > seconds:
            break
        others = [label for label in cast if not scenes or CLASSES[label] != scenes[-1].shows]
        label = int(rng.choice(others))
        photograph = images.pixels[rng.choice(images.of_class(label))]
        frames[second:start] = _nothing(rng, pause)
        frames[start : start + length] = shaken(rng, photograph, length)
        scenes.append(Scene(CLASSES[label], start, start + length))
        second = start + length
    frames[second:] = _nothing(rng, seconds - second)
    return Clip(frames, tuple(scenes), questions(scenes))


def questions(scenes: list[Scene]) -> tuple[Question, ...]:
    """Everything that can be asked about these scenes."""
    asked = [
        Question("at", f"what is shown at second {second} ?", scene.shows)
        for scene in scenes
        for second in _within(scene)
    ]
    shown = list(dict.fromkeys(scene.shows for scene in scenes))  # by first appearance
    for early, first in enumerate(shown):
        for later in shown[early + 1 :]:
            asked += [
                Question("first", f"which came first , {a} or {b} ?", first)
                for a, b in ((first, later), (later, first))
            ]
    asked.append(Question("last", "what is shown last ?", scenes[-1].shows))
    times = {name: sum(scene.shows == name for scene in scenes) for name in CLASSES}
    asked += [Question("count", f"how many scenes show a {name} ?", str(count)) for name, count in times.items()]
    asked += [
        Question("after", f"what follows the {scene.shows} ?", following.shows)
        for scene, following in pairwise(scenes)
        if times[scene.shows] == 1
    ]
    return tuple(asked)


def choose(clip: Clip, count: int, seed: tuple[int, ...]) -> tuple[Question, ...]:
    """`count` questions about a clip, kinds taking turns, without repetition while there are others."""
    rng = np.random.default_rng(seed)
    piles = [[q for q in clip.questions if q.kind == kind] for kind in rng.permutation(KINDS)]
    piles = [[pile[i] for i in rng.permutation(len(pile))] for pile in piles if pile]
    chosen: list[Question] = []
    while len(chosen) < count and any(piles):
        chosen += [pile.pop() for pile in piles if pile][: count - len(chosen)]
    return tuple(chosen)


def _within(scene: Scene) -> list[int]:
    """A third and two thirds into a scene, so that short scenes are asked for as often as long ones."""
    return [scene.start + (scene.stop - scene.start) * third // 3 for third in (1, 2)]


def shaken(rng: np.random.Generator, photograph: np.ndarray, seconds: int) -> np.ndarray:
    """The photograph in every frame, moved by a few pixels and with fresh noise."""
    out = np.empty((seconds, FRAMES, SIZE, SIZE))
    for second in range(seconds):
        for frame in range(FRAMES):
            moved = np.roll(photograph, tuple(rng.integers(-_SHAKE, _SHAKE + 1, size=2)), axis=(0, 1))
            out[second, frame] = moved * rng.uniform(0.8, 1.0)
    return np.clip(out + rng.normal(0, _NOISE, out.shape), 0, 255).astype(np.uint8)


def _nothing(rng: np.random.Generator, seconds: int) -> np.ndarray:
    """Seconds that show no clothes: dark, noise or stripes."""
    shape = (seconds, FRAMES, SIZE, SIZE)
    kind = rng.integers(3)
    if kind == 0:
        base = np.zeros(shape)
    elif kind == 1:
        base = rng.uniform(0, 255, shape)
    else:
        base = np.broadcast_to(127 + 127 * np.sin(np.arange(SIZE) * rng.uniform(0.3, 1.5) + rng.uniform(0, 6)), shape)
    return np.clip(base + rng.normal(0, _NOISE, shape), 0, 255).astype(np.uint8)
