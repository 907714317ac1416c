"""Train the small video model: first its eyes, then the whole on clips that grow longer.

A clip is asked many questions at once, each of which sees the clip and itself only, so that one pass over the frames
teaches as much as many. Everything is drawn from the step's number: a run that was stopped goes on as if it had not.

python experiments/video/train.py --help
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from namm.cli.shared import console, one_message, prepare, progress_bar
from namm.files import locked

sys.path.insert(0, str(Path(__file__).parents[2]))  # the root of the repository: `experiments` is found there

from experiments.checkpoints import check_same, read_checkpoint, save_checkpoint
from experiments.video.clips import Clip, Question, choose, make_clip, shaken
from experiments.video.images import CLASSES, SYSTEM, Images, load_images
from experiments.video.small import clip_ids, pixel_values, save_processor, small_model, text_ids

IGNORED = -100
_CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class Stage:
    """`steps` on clips of `seconds`, of which a batch holds `clips`."""

    seconds: int
    steps: int
    clips: int


@dataclass(frozen=True)
class TrainingConfig:
    """A training run; the same values give the same model on the same machine.

    Attributes:
        eyes: steps in which vision tower and projector learn to tell the classes of single frames.
        stages: clips from short to long.
        polish: steps that follow in the manner of the last stage, with half the rate to begin with.
        asked: questions about each clip.
        rate: learning rate at its highest; a cosine takes it down to a twentieth, for the eyes, the stages and the
            polish each.
    """

    eyes: int = 1200
    stages: tuple[Stage, ...] = (Stage(12, 1200, 16), Stage(24, 800, 10), Stage(48, 1200, 6))
    polish: int = 3000
    asked: int = 24
    rate: float = 2e-3
    seed: int = 0
    width: int = 96
    layers: int = 3

    @property
    def steps(self) -> int:
        return sum(steps for steps, _ in self.cycles)

    @property
    def cycles(self) -> tuple[tuple[int, float], ...]:
        """Steps, and the rate at its highest, of eyes, stages and polish."""
        stages = sum(stage.steps for stage in self.stages)
        return (self.eyes, self.rate), (stages, self.rate), (self.polish, self.rate / 2)


@dataclass(frozen=True)
class TrainingProgress:
    """Where the run is. `accuracy` is of answers in validation clips of this stage, or of frames."""

    step: int
    steps: int
    doing: str
    loss: float
    accuracy: float


@dataclass(frozen=True, eq=False)
class Batch:
    """Clips with questions behind them.

    Attributes:
        positions: each question starts where the clip ends.
        mask: True where a token may look.
        gold: the answer at the token before it, `IGNORED` elsewhere.
    """

    pixels: Float[Tensor, "video frame 3 28 28"]
    ids: Int[Tensor, "clip token"]
    positions: Int[Tensor, "clip token"]
    mask: Bool[Tensor, "clip 1 token token"]
    gold: Int[Tensor, "clip token"]


def train(
    config: TrainingConfig,
    images: tuple[Images, Images],
    out: str | Path,
    on_progress: Callable[[TrainingProgress], None] | None = None,
    every: int = 100,
) -> PreTrainedModel:
    """Train, or go on with the run in `out`, which then holds the model as transformers saves it, and its tokenizer.

    Args:
        images: for training and for validation.
        every: steps between two checkpoints.

    Raises:
        ConfigurationError: `out` holds a run of another configuration, or another process trains there.
        ArtefactError: its checkpoint is damaged.
    """
    with locked(Path(out)):
        return _train(config, images, Path(out), on_progress, every)


def _train(
    config: TrainingConfig,
    images: tuple[Images, Images],
    out: Path,
    on_progress: Callable[[TrainingProgress], None] | None,
    every: int,
) -> PreTrainedModel:
    torch.manual_seed(config.seed)
    model = small_model(config.width, config.layers)
    head = nn.Linear(config.width, len(CLASSES))
    optimizer = _optimizer([*model.parameters(), *head.parameters()], config.rate)
    step = _restore(out, config, model, head, optimizer)
    while step < config.steps:
        for group in optimizer.param_groups:
            group["lr"] = _rate(config, step)
        model.model.vision_tower.requires_grad_(step < config.eyes)  # afterwards the eyes have learned to see
        doing, stage = _stage(config, step)
        measure = partial(_answers, model, config, stage) if stage else partial(_frames, model, head)
        model.train()
        loss, _ = measure(images[0], (config.seed, 0, step))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step == config.eyes:
            _calm(model, images[0], (config.seed, 0, step))
            optimizer.state.clear()  # the rest of the model starts here
        if step % every == 0 or step == config.steps:
            _save(out, config, step, model, head, optimizer)
            if on_progress:
                model.eval()
                with torch.no_grad():
                    _, right = measure(images[1], (config.seed, 1, step))
                on_progress(TrainingProgress(step, config.steps, doing, float(loss.detach()), right))
    model.eval()
    model.save_pretrained(out)
    save_processor(out)
    return model


def steps_done(out: Path) -> int:
    """Steps that the run in `out` has saved."""
    saved = read_checkpoint(out / _CHECKPOINT, ("config", "step", "parts"))
    return 0 if saved is None else int(saved["step"])


def make_batch(clips: Sequence[Clip], asked: Sequence[Sequence[Question]]) -> Batch:
    """Clips of one length with `asked` about each of them."""
    rows = [[text_ids(f"{q.text} {q.answer}") for q in questions] for questions in asked]
    before = len(clip_ids(clips[0]))
    size = before + max(sum(map(len, row)) for row in rows)
    ids, positions = torch.zeros(2, len(clips), size, dtype=torch.long)
    gold = torch.full_like(ids, IGNORED)
    mask = torch.zeros(len(clips), 1, size, size, dtype=torch.bool)
    mask[:, 0, :before, :before] = torch.ones(before, before, dtype=torch.bool).tril()
    mask[:, 0, before:, 0] = True  # padding looks somewhere
    positions[:, :before] = torch.arange(before)
    for i, (clip, row) in enumerate(zip(clips, rows, strict=True)):
        ids[i, :before] = torch.tensor(clip_ids(clip))
        start = before
        for words in row:
            stop = start + len(words)
            ids[i, start:stop] = torch.tensor(words)
            positions[i, start:stop] = torch.arange(before, before + len(words))
            mask[i, 0, start:stop, :before] = True
            mask[i, 0, start:stop, start:stop] = torch.ones(len(words), len(words), dtype=torch.bool).tril()
            gold[i, stop - 2] = words[-1]
            start = stop
    return Batch(pixel_values(np.concatenate([clip.frames for clip in clips])), ids, positions, mask, gold)


def _answers(
    model: Any, config: TrainingConfig, stage: Stage, images: Images, seed: tuple[int, ...]
) -> tuple[Tensor, float]:
    """Loss of the answers to questions about fresh clips, and the share that is right."""
    clips = [make_clip(images, stage.seconds, (*seed, i)) for i in range(stage.clips)]
    batch = make_batch(clips, [choose(clip, config.asked, (*seed, i, 1)) for i, clip in enumerate(clips)])
    states = model.model(
        input_ids=batch.ids,
        pixel_values_videos=batch.pixels,
        position_ids=batch.positions,
        attention_mask=batch.mask,
        use_cache=False,
    ).last_hidden_state
    asked = batch.gold != IGNORED
    return _loss(model.lm_head(states[asked]), batch.gold[asked])


@torch.no_grad()
def _calm(model: Any, images: Images, seed: tuple[int, ...]) -> None:
    """Make what the projector writes as large as the embedding of a word, or attention could not write beside it."""
    features, _ = _seen(model, images, seed)
    words = model.get_input_embeddings().weight
    scale = (words.square().mean() / features.square().mean()).sqrt()
    last = model.model.multi_modal_projector.linear_2
    last.weight.mul_(scale)
    last.bias.mul_(scale)


def _frames(model: Any, head: nn.Module, images: Images, seed: tuple[int, ...]) -> tuple[Tensor, float]:
    """Loss of telling what single frames show, and the share that is right."""
    features, labels = _seen(model, images, seed)
    return _loss(head(features.mean(1)), labels)


def _seen(model: Any, images: Images, seed: tuple[int, ...], count: int = 128) -> tuple[Tensor, Tensor]:
    """What the projector makes of single frames, `[frame, token, dim]`, and their labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(len(CLASSES), size=count)
    frames = np.stack([shaken(rng, images.pixels[rng.choice(images.of_class(label))], 1) for label in labels])
    features = model.model.get_video_features(
        pixel_values(frames[:, 0]), vision_feature_layer=-1, vision_feature_select_strategy="full", return_dict=True
    )
    return features.pooler_output[:, :-1], torch.from_numpy(labels)


def _loss(logits: Tensor, gold: Tensor) -> tuple[Tensor, float]:
    return cross_entropy(logits, gold), float((logits.argmax(-1) == gold).float().mean())


def _stage(config: TrainingConfig, step: int) -> tuple[str, Stage | None]:
    """What is learned at a step; None: to see."""
    if step < config.eyes:
        return "single frames", None
    step -= config.eyes
    stage = config.stages[-1]
    for before in config.stages:
        if step < before.steps:
            stage = before
            break
        step -= before.steps
    return f"clips of {stage.seconds} s", stage


def _rate(config: TrainingConfig, step: int) -> float:
    """Up in a hundred steps, and down by a cosine, in each cycle."""
    cycles = iter(config.cycles)
    steps, highest = next(cycles)
    while step >= steps:
        step -= steps
        steps, highest = next(cycles)
    return highest * min(1.0, (step + 1) / 100) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def _optimizer(parameters: Iterable[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01, betas=(0.9, 0.98))


def _restore(out: Path, config: TrainingConfig, *parts: Any) -> int:
    """Load the checkpoint in `out`, if there is one; returns the steps that are done."""
    saved = read_checkpoint(out / _CHECKPOINT, ("config", "step", "parts"))
    if saved is None:
        return 0
    check_same(out, json.loads(saved["config"]), json.loads(json.dumps(asdict(config))))
    for part, state in zip(parts, saved["parts"], strict=True):
        part.load_state_dict(state)
    return int(saved["step"])


def _save(out: Path, config: TrainingConfig, step: int, *parts: Any) -> None:
    state = {"config": json.dumps(asdict(config)), "step": step, "parts": [part.state_dict() for part in parts]}
    save_checkpoint(out / _CHECKPOINT, state)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Folder of the model, and of checkpoints until it is done.")],
    images: Annotated[
        Path, typer.Option(help="Folder of the Fashion-MNIST files (Debian: apt install dataset-fashion-mnist).")
    ] = SYSTEM,
    seed: Annotated[int, typer.Option(help="The same seed gives the same model on the same machine.")] = 0,
    threads: Annotated[int, typer.Option(help="Torch threads; 0 for torch's own choice.")] = 0,
) -> None:
    """Train the small video model, in about half an hour. Stopped, the same command goes on."""
    prepare(threads)
    config = TrainingConfig(seed=seed)
    with progress_bar() as bar:
        line = bar.add_task("starting", total=config.steps, completed=steps_done(out))

        def show(p: TrainingProgress) -> None:
            told = f"{p.doing}: {p.accuracy:.2f} right, loss {p.loss:.2f}"
            bar.update(line, completed=p.step, description=told)
            if not console.is_terminal:
                console.print(f"{p.step:,} of {p.steps:,} steps, {told}", highlight=False)

        train(config, (load_images("train", images), load_images("validation", images)), out, show)
    console.print(f"The model: {out}", soft_wrap=True)


if __name__ == "__main__":
    with one_message():
        app()
