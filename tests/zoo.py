"""Random two-layer models, one for each architecture the library is tested on."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
import transformers as tf
from torch import nn

VOCABULARY = 97
READS_TWICE = str(Path(__file__).parent / "data" / "reads-twice")
"""A memory of an earlier version, which lets the model read each block again."""
_SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None,
}  # fmt: skip


def _small(**more: object) -> dict[str, object]:
    return {**_SMALL, **more}


def _gemma(kind: type, **more: object) -> tf.PreTrainedConfig:
    return kind(**_small(head_dim=8, sliding_window=32, layer_types=["sliding_attention", "full_attention"], **more))


def _moe(**more: object) -> dict[str, object]:
    return _small(moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2, head_dim=8, **more)


CAUSAL: dict[str, Callable[[], tf.PreTrainedConfig]] = {
    "llama": lambda: tf.LlamaConfig(**_small()),
    "mistral": lambda: tf.MistralConfig(**_small(sliding_window=None)),
    "qwen2": lambda: tf.Qwen2Config(**_small()),
    "qwen3": lambda: tf.Qwen3Config(**_small(head_dim=8)),
    "gemma2": lambda: _gemma(tf.Gemma2Config),
    "gemma3": lambda: _gemma(tf.Gemma3TextConfig),
    "phi3": lambda: tf.Phi3Config(**_small(sliding_window=None)),
    "gpt2": lambda: tf.GPT2Config(
        vocab_size=VOCABULARY, n_positions=512, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=None
    ),
    "gpt_neox": lambda: tf.GPTNeoXConfig(**_small()),
    "olmo2": lambda: tf.Olmo2Config(**_small()),
    "qwen3_moe": lambda: tf.Qwen3MoeConfig(**_moe()),
    "mixtral": lambda: tf.MixtralConfig(**_small(num_local_experts=4, num_experts_per_tok=2, sliding_window=None)),
    "starcoder2": lambda: tf.Starcoder2Config(**_small(sliding_window=None)),
    "granite": lambda: tf.GraniteConfig(**_small()),
    "smollm3": lambda: tf.SmolLM3Config(**_small()),
}


@cache
def causal_model(name: str, implementation: str = "sdpa") -> tf.PreTrainedModel:
    """A random causal language model in evaluation mode, float32."""
    torch.manual_seed(1)
    if name == "gemma2":
        implementation = "eager"  # soft-capped logits
    config = CAUSAL[name]()
    model = tf.AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
    return _sharpened(model)


@cache
def video_model() -> tf.PreTrainedModel:
    """A random LLaVA-NeXT-Video model."""
    torch.manual_seed(1)
    vision = tf.CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=28, patch_size=14
    )
    config = tf.LlavaNextVideoConfig(
        text_config=tf.LlamaConfig(**_small()), vision_config=vision, image_token_index=95, video_token_index=96
    )
    return _sharpened(tf.LlavaNextVideoForConditionalGeneration(config))


@cache
def decision_model() -> tf.PreTrainedModel:
    """A random Decision Transformer."""
    torch.manual_seed(1)
    config = tf.DecisionTransformerConfig(
        state_dim=5, act_dim=3, hidden_size=32, n_layer=2, n_head=4, n_positions=512, max_ep_len=256,
    )  # fmt: skip
    return _sharpened(tf.DecisionTransformerModel(config))


def _sharpened(model: nn.Module) -> nn.Module:
    """Random weights attend almost uniformly; larger ones make attention matter."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and "embed" not in name and "wte" not in name and "wpe" not in name:
                parameter.mul_(4)
    return model.eval()


def ids(rows: int, tokens: int, seed: int = 0) -> torch.Tensor:
    """Random token ids without padding or image tokens."""
    return torch.randint(3, 90, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def hybrid() -> tf.PreTrainedModel:
    """A layer of linear attention and a full one."""
    torch.manual_seed(0)
    config = tf.Qwen3NextConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=8,
        linear_value_head_dim=8, layer_types=["linear_attention", "full_attention"], num_experts=2,
        num_experts_per_tok=1, moe_intermediate_size=16, shared_expert_intermediate_size=16, pad_token_id=0,
        eos_token_id=None,
    )  # fmt: skip
    return tf.AutoModelForCausalLM.from_config(config).eval()


def jamba() -> tf.PreTrainedModel:
    """Mamba layers and a full one; reads pieces in another way than the whole."""
    torch.manual_seed(0)
    config = tf.JambaConfig(
        **_small(), mamba_d_state=8, mamba_d_conv=4, mamba_expand=2, mamba_dt_rank=4, attn_layer_period=2,
        attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1, num_experts=2, num_experts_per_tok=1,
        use_mamba_kernels=False,
    )  # fmt: skip
    return _sharpened(tf.AutoModelForCausalLM.from_config(config))


def bamba() -> tf.PreTrainedModel:
    """Mamba-2 layers and a full one; reads pieces in another way than the whole."""
    torch.manual_seed(0)
    config = tf.BambaConfig(
        **_small(), attn_layer_indices=[1], mamba_n_heads=8, mamba_d_head=8, mamba_n_groups=1, mamba_d_state=8,
        mamba_d_conv=4, mamba_expand=2, mamba_chunk_size=16,
    )  # fmt: skip
    return _sharpened(tf.AutoModelForCausalLM.from_config(config))
