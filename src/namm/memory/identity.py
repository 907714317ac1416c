"""What a saved cache belongs to: one model, and one plan."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import torch
from transformers import PreTrainedModel

from namm.compat import plain_tensors
from namm.memory.plan import Plan
from namm.policies import MemoryPolicy, NAMMPolicy

_CHANGING = {  # keys of a config that say nothing about what a model computes
    "architectures", "bos_token_id", "dtype", "eos_token_id", "output_attentions", "output_hidden_states",
    "pad_token_id", "return_dict", "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip
_SAMPLES = 16  # values of each parameter


def fingerprint(model: PreTrainedModel) -> str:
    """A sha256, in hex, that two models share if they have the same configuration and the same weights.

    It reads a few values of each parameter, not all. Paths, versions and the choice of an attention kernel do not
    matter; the dtype of the weights does.
    """
    known = json.dumps(_lasting(model.config.to_diff_dict()), sort_keys=True, default=str)
    digest = hashlib.sha256(known.encode())
    weights = [
        (name, tensor) for name, tensor in sorted(model.state_dict().items()) if isinstance(tensor, torch.Tensor)
    ]
    for name, tensor in (part for weight in weights for part in plain_tensors(*weight)):
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
        if not tensor.is_meta:
            flat = tensor.detach().reshape(-1)
            few = flat[:: max(1, flat.numel() // _SAMPLES)][:_SAMPLES]
            digest.update(few.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _lasting(config: Any) -> Any:
    if isinstance(config, dict):
        items = ((str(key), value) for key, value in config.items())
        return {key: _lasting(value) for key, value in items if key not in _CHANGING and not key.startswith("_")}
    return [_lasting(part) for part in config] if isinstance(config, (list, tuple)) else config


def describe(plan: Plan) -> str:
    """What a plan does, as text that is the same wherever it does the same."""
    calibrated = "" if plan.policy.calibration is None else f", {plan.policy.calibration!r}"
    return (
        f"{_describe_policy(plan.policy)}{calibrated}, {plan.selection!r}, update_interval={plan.update_interval}, "
        f"last={plan.last}"
    )


def _describe_policy(policy: MemoryPolicy) -> str:
    if isinstance(policy, NAMMPolicy):
        network = policy.network
        digest = hashlib.sha256()
        for tensor in (network.theta, network.mean, network.var):
            digest.update(f"{list(tensor.shape)}".encode() + tensor.cpu().contiguous().numpy().tobytes())
        c = network.config
        kind = f"features={c.features!r}, width={c.width}, rehearsal={float(c.rehearsal)}"
        if c.rehearses != "model":
            kind += f", rehearses={c.rehearses!r}, window={c.window}, rotated={c.rotated!r}" + ", competes" * c.competes
            kind += f", asked={c.asked!r}" * (c.asked != "held")
        return f"{type(policy).__name__}({kind}, sha256={digest.hexdigest()})"
    return repr(policy) if dataclasses.is_dataclass(policy) else f"{policy!r} {vars(policy) or ''}".strip()
