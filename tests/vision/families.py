"""Random two-layer models that take images or video, with a prompt for each as their processors would make it."""

from collections.abc import Callable
from functools import cache

import torch
import transformers as tf

from tests.zoo import _sharpened, _small

IMAGE, VIDEO = 95, 96
Inputs = dict[str, torch.Tensor]
_CLIP = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}


def _llava() -> tf.PreTrainedModel:
    config = tf.LlavaConfig(
        text_config=tf.LlamaConfig(**_small()),
        vision_config=tf.CLIPVisionConfig(**_CLIP),
        image_token_index=IMAGE,
        vision_feature_layer=-1,
    )
    return tf.LlavaForConditionalGeneration(config)


def _llava_next() -> tf.PreTrainedModel:
    config = tf.LlavaNextConfig(
        text_config=tf.LlamaConfig(**_small()),
        vision_config=tf.CLIPVisionConfig(**_CLIP),
        image_token_index=IMAGE,
        image_grid_pinpoints=[[28, 28]],
        vision_feature_layer=-1,
    )
    return tf.LlavaNextForConditionalGeneration(config)


def _llava_next_video() -> tf.PreTrainedModel:
    config = tf.LlavaNextVideoConfig(
        text_config=tf.LlamaConfig(**_small()),
        vision_config=tf.CLIPVisionConfig(**_CLIP),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
    )
    return tf.LlavaNextVideoForConditionalGeneration(config)


def _llava_onevision() -> tf.PreTrainedModel:
    config = tf.LlavaOnevisionConfig(
        text_config=tf.Qwen2Config(**_small()),
        vision_config=tf.SiglipVisionConfig(**_CLIP, vision_use_head=False),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=[[28, 28]],
        vision_feature_layer=-1,
    )
    return tf.LlavaOnevisionForConditionalGeneration(config)


def _qwen_vl() -> tf.PreTrainedModel:
    text = _small(rope_scaling={"type": "mrope", "mrope_section": [1, 1, 2], "rope_type": "default"})
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 4,
        "out_hidden_size": 32,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "fullatt_block_indexes": [1],
        "window_size": 56,
    }
    config = tf.Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=93,
        vision_end_token_id=94,
    )
    return tf.Qwen2_5_VLForConditionalGeneration(config)


def _prompt(places: list[int]) -> torch.Tensor:
    """Text, the places of pictures, and text of a hundred tokens behind them."""
    words = torch.randint(3, 90, (104,), generator=torch.Generator().manual_seed(3)).tolist()
    return torch.tensor([[*words[:4], *places, *words[4:]]])


def _image(tokens: int, **more: torch.Tensor) -> Inputs:
    return {"input_ids": _prompt([IMAGE] * tokens), "pixel_values": torch.randn(1, 3, 28, 28), **more}


def _grid_image(tokens: int) -> Inputs:
    """One image in an overview and one tile, as LLaVA-NeXT takes it."""
    return {
        "input_ids": _prompt([IMAGE] * tokens),
        "pixel_values": torch.randn(1, 2, 3, 28, 28),
        "image_sizes": torch.tensor([[28, 28]]),
    }


def _video(tokens: int, frames: int) -> Inputs:
    return {"input_ids": _prompt([VIDEO] * tokens), "pixel_values_videos": torch.randn(1, frames, 3, 28, 28)}


def _qwen(kind: int) -> Inputs:
    grid = torch.tensor([[1, 4, 4]] if kind == IMAGE else [[3, 4, 4]])
    patches = torch.randn(int(grid.prod()), 3 * 2 * 14 * 14)
    ids = _prompt([93, *[kind] * (int(grid.prod()) // 4), 94])
    types = torch.zeros_like(ids).masked_fill(ids == IMAGE, 1).masked_fill(ids == VIDEO, 2)
    names = ("pixel_values", "image_grid_thw") if kind == IMAGE else ("pixel_values_videos", "video_grid_thw")
    return {"input_ids": ids, "mm_token_type_ids": types, names[0]: patches, names[1]: grid}


FAMILIES: dict[str, tuple[Callable[[], tf.PreTrainedModel], Callable[[], Inputs]]] = {
    "llava": (_llava, lambda: _image(4)),
    "llava-next": (_llava_next, lambda: _grid_image(4 + 4 + 2)),
    "llava-next-video": (_llava_next_video, lambda: _video(6, 6)),
    "llava-onevision-image": (_llava_onevision, lambda: _grid_image(4 + 4 + 2)),
    "llava-onevision-video": (_llava_onevision, lambda: _video(6 + 1, 6)),
    "qwen2.5-vl-image": (_qwen_vl, lambda: _qwen(IMAGE)),
    "qwen2.5-vl-video": (_qwen_vl, lambda: _qwen(VIDEO)),
}


@cache
def family(name: str) -> tuple[tf.PreTrainedModel, Inputs]:
    """A random model and a prompt with pictures in it."""
    torch.manual_seed(1)
    make_model, make_inputs = FAMILIES[name]
    return _sharpened(make_model()), make_inputs()
