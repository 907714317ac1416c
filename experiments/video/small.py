"""A small video language model of the LLaVA-OneVision architecture, for clips of `experiments.video.clips`.

SigLIP tower, projector and pooling, a Llama-like decoder: every part is transformers' own, only small. A second of
video is written as its number and its frames, `17 <video>`, as recent video models write time stamps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

from experiments.video.clips import FRAMES, LONGEST, Clip
from experiments.video.images import CLASSES, SIZE
from namm.errors import ArtefactError, NotFoundError
from namm.json_files import write_json
from namm.models import UNREADABLE

PATCH = 7
VIDEO = "<video>"
_SPECIAL = ("<pad>", "<s>", "</s>", "<image>", VIDEO)
_WORDS = (
    "what",
    "is",
    "shown",
    "at",
    "second",
    "?",
    "which",
    "came",
    "first",
    ",",
    "or",
    "last",
    "how",
    "many",
    "scenes",
    "show",
    "a",
    "follows",
    "the",
)


def small_model(width: int = 96, layers: int = 3) -> LlavaOnevisionForConditionalGeneration:
    """The model with fresh weights, from torch's random state."""
    size = len(vocabulary())
    vision = SiglipVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    text = LlamaConfig(
        vocab_size=size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=_SPECIAL.index("<image>"),
        video_token_index=_SPECIAL.index(VIDEO),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_grid_pinpoints=[[SIZE, SIZE]],
        tie_word_embeddings=True,
    )
    return LlavaOnevisionForConditionalGeneration(config)


def load_small(folder: str | Path) -> LlavaOnevisionForConditionalGeneration:
    """The trained model in `folder`, in evaluation mode.

    Raises:
        NotFoundError: there is none.
        ArtefactError: it is damaged, or its words are not those of this version.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file() or not (folder / "model.safetensors").is_file():
        raise NotFoundError(
            "a folder with the small video model",
            str(folder),
            f"Train it: python experiments/video/train.py --out {folder}",
        )
    try:
        model = LlavaOnevisionForConditionalGeneration.from_pretrained(folder).eval()
    except UNREADABLE as error:
        raise ArtefactError("a readable video model", f"{folder}: {error}", "Train it again.") from error
    if model.config.text_config.vocab_size != len(vocabulary()):
        raise ArtefactError(
            f"a model of {len(vocabulary())} words",
            f"{model.config.text_config.vocab_size} in {folder}",
            "Train it again with this version: experiments/video/train.py.",
        )
    return model


def small_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word: the numbers of seconds, the classes, and the words of the questions."""
    words = Tokenizer(models.WordLevel(vocabulary(), unk_token=_SPECIAL[0]))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<pad>",
        extra_special_tokens={"image_token": "<image>", "video_token": VIDEO},
        clean_up_tokenization_spaces=False,
    )


def save_processor(folder: Path) -> None:
    """Write what `AutoProcessor` loads; that needs torchvision, as for any video model."""
    small_tokenizer().save_pretrained(folder)
    size = {"height": SIZE, "width": SIZE}
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": size}
    images = {"image_processor_type": "LlavaOnevisionImageProcessor", "image_grid_pinpoints": [[SIZE, SIZE]], **half}
    settings = {
        "processor_class": "LlavaOnevisionProcessor",
        "image_processor": images,
        "video_processor": {"video_processor_type": "LlavaOnevisionVideoProcessor", **half},
        "num_image_tokens": (SIZE // PATCH) ** 2,
        "vision_feature_select_strategy": "full",
    }
    write_json(folder / "processor_config.json", settings, indent=2)


@cache
def vocabulary() -> dict[str, int]:
    """Word to id."""
    words = [*_SPECIAL, *CLASSES, *_WORDS, *map(str, range(LONGEST))]
    return {word: i for i, word in enumerate(words)}


def tokens_of_frame() -> int:
    """Tokens of one frame, after pooling two by two."""
    return math.ceil(SIZE // PATCH / 2) ** 2


def clip_ids(clip: Clip, shown: Sequence[int] | None = None) -> list[int]:
    """The prompt of a clip, up to the question: for each second its number, its frames' tokens and a line break.

    Args:
        shown: seconds of the clip that are shown; all if left out.
    """
    ids = vocabulary()
    video = [ids[VIDEO]] * (FRAMES * tokens_of_frame() + 1)
    seconds = range(clip.seconds) if shown is None else shown
    return [ids["<s>"], *(token for second in seconds for token in (ids[str(second)], *video))]


def text_ids(text: str) -> list[int]:
    """The words of a question or an answer."""
    ids = vocabulary()
    return [ids[word] for word in text.split()]


def pixel_values(frames: UInt8[np.ndarray, "second frame 28 28"]) -> Float[Tensor, "second frame 3 28 28"]:
    """Grey frames, in [-1, 1] and three colours, as the model takes them."""
    grey = torch.from_numpy(frames).float() / 127.5 - 1
    return grey[:, :, None].expand(-1, -1, 3, -1, -1)


def clip_inputs(clip: Clip, shown: Sequence[int] | None = None) -> dict[str, Tensor]:
    """What `model(...)` and `model.generate(...)` take for one clip, up to the question; see `clip_ids`."""
    frames = clip.frames if shown is None else clip.frames[list(shown)]
    return {"input_ids": torch.tensor([clip_ids(clip, shown)]), "pixel_values_videos": pixel_values(frames)}
