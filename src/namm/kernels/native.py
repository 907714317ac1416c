"""Compile, load and call `native.c`.

The C compiler named by `CC` (or `cc`) builds the library once for each machine, source and torch version into the
user's cache folder. Without a compiler the torch back end serves instead, which the log and the row files of
`make bench` report.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import math
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from platformdirs import user_cache_path
from torch import Tensor

from namm.compat import cpu_capabilities
from namm.errors import ConfigurationError
from namm.files import sync_folder, sync_tree
from namm.kernels.lanes import Lanes
from namm.spectrogram import BINS, GAMMA, HOP, N_FFT, frame_weights

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("native.c")


class _Tables(ctypes.Structure):
    _fields_ = [("cosine", ctypes.c_float * 32), ("sine", ctypes.c_float * 32), ("window", ctypes.c_float * 32)]


def _tables() -> _Tables:
    tables = _Tables()
    for t in range(N_FFT):
        tables.cosine[t] = math.cos(2 * math.pi * t / N_FFT)
        tables.sine[t] = math.sin(2 * math.pi * t / N_FFT)
        tables.window[t] = 0.5 - 0.5 * math.cos(2 * math.pi * t / N_FFT)
    return tables


_TABLES = _tables()


def _compile(compiler: str) -> Path:
    """Build the library unless this machine has it; returns its path."""
    openmp = sorted(Path(torch.__file__).parent.glob("lib/libgomp*.so*"))  # share torch's thread pool
    flags = ["-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC"]
    flags += ["-fopenmp"] if openmp else []
    key = "\n".join([SOURCE.read_text(), *flags, platform.node(), platform.machine(), torch.__version__, compiler])
    target = user_cache_path("namm") / f"kernels-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        compiled, linked = Path(folder, "native.o"), Path(folder, "native.so")
        compile_flags = [f for f in flags if f != "-shared"]
        link = [compiler, "-shared", str(compiled), *map(str, openmp), "-lm", "-o", str(linked)]
        for command in ([compiler, *compile_flags, "-c", str(SOURCE), "-o", str(compiled)], link):
            subprocess.run(command, check=True, capture_output=True, text=True)
        sync_tree(Path(folder))
        os.replace(linked, target)
        sync_folder(target.parent)
    return target


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled library; None where `NAMM_KERNELS` or the lack of a compiler leaves the work to torch."""
    wish = os.environ.get("NAMM_KERNELS", "auto")
    if wish not in ("auto", "torch", "native"):
        raise ConfigurationError("NAMM_KERNELS=auto, torch or native", repr(wish), "Unset it for the fastest there is.")
    if wish == "torch":
        return None
    compiler = shutil.which(os.environ.get("CC", "cc"))
    try:
        if compiler is None:
            raise FileNotFoundError("no C compiler on the PATH (CC or cc)")
        loaded = ctypes.CDLL(str(_compile(compiler)))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = error.stderr if isinstance(error, subprocess.CalledProcessError) else error
        if wish == "native":
            way_out = "Install a C compiler, or unset NAMM_KERNELS to run on torch alone."
            raise ConfigurationError("a compiled library for NAMM_KERNELS=native", reason, way_out) from error
        logger.warning("observation runs on torch alone, about 1.5 times slower: %s", reason)
        return None
    return loaded


def serves(tensor: Tensor, *more: torch.dtype) -> bool:
    """Whether this back end computes on `tensor`, which is float32 or of one of these types."""
    return tensor.device.type == "cpu" and tensor.dtype in (torch.float32, *more) and library() is not None


@lru_cache(maxsize=1)
def multiplies_half() -> bool:
    """Whether products of bfloat16 matrices are faster than those of float32 here."""
    return library() is not None and bool(cpu_capabilities().get("avx512_bf16"))


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _long(*values: int) -> list[ctypes.c_int64]:
    return [ctypes.c_int64(value) for value in values]


def softmax_and_mean(logits: Tensor, causal_from: int, mean: Tensor, lse: Tensor, rival: Tensor | None = None) -> None:
    """As `blockwise.softmax_and_mean`. `logits` and `rival` are contiguous; rows of `mean` and `lse` are."""
    heads, group, queries, slots = logits.shape
    assert all(tensor.is_contiguous() for tensor in (logits, rival) if tensor is not None)
    assert (*mean.stride()[1:], lse.stride(2)) == (slots, 1, 1)
    lib = library()
    assert lib is not None
    lib.softmax_and_mean(
        _pointer(logits),
        *_long(heads, group, queries, slots, causal_from),
        _pointer(mean),
        *_long(mean.stride(0)),
        _pointer(lse),
        *_long(lse.stride(0), lse.stride(1)),
        None if rival is None else _pointer(rival),
        ctypes.c_int(torch.get_num_threads()),
    )


def softmax_and_mean_half(
    tiles: Tensor, scale: float, causal_from: int, mean: Tensor, lse: Tensor, rival: Tensor | None = None
) -> None:
    """The same of bfloat16 logits `[head, tile, group * query, slot]` that are to be scaled, see `blockwise`."""
    heads, group, queries = lse.shape
    slots = mean.shape[2]
    assert all(tensor.is_contiguous() for tensor in (tiles, rival) if tensor is not None)
    assert (*mean.stride()[1:], lse.stride(2)) == (slots, 1, 1)
    lib, threads = library(), torch.get_num_threads()
    assert lib is not None
    scratch = torch.empty(threads, slots)
    lib.softmax_and_mean_half(
        _pointer(tiles),
        *_long(tiles.shape[3], heads, group, queries, slots, causal_from),
        ctypes.c_float(scale),
        _pointer(mean),
        *_long(mean.stride(0)),
        _pointer(lse),
        *_long(lse.stride(0), lse.stride(1)),
        None if rival is None else _pointer(rival),
        _pointer(scratch),
        ctypes.c_int(threads),
    )


def attend_one(query: Tensor, pools: Sequence[Lanes], scale: float) -> Tensor:
    """As `blockwise.attend_one`, for float32 and bfloat16."""
    heads, group, dim = query.shape
    value_dim = pools[0].values.shape[1]
    lib = library()
    assert lib is not None
    assert all(t.is_contiguous() for lanes in pools for t in (lanes.keys, lanes.values))
    counts = [count for lanes in pools for count in lanes.counts]
    longest = max(counts)
    asked, out = query.float().contiguous(), torch.empty(heads, group, value_dim)
    weight = torch.empty(heads, group, longest)
    whole = ctypes.c_int64 * heads
    lib.attend_one(
        whole(*(address for lanes in pools for address in _addresses(lanes.keys, lanes.starts))),
        whole(*(address for lanes in pools for address in _addresses(lanes.values, lanes.starts))),
        whole(*counts),
        *_long(heads, group, dim, value_dim),
        _pointer(asked),
        ctypes.c_float(scale),
        _pointer(out),
        _pointer(weight),
        *_long(longest),
        ctypes.c_int(query.dtype == torch.bfloat16),
        ctypes.c_int(torch.get_num_threads()),
    )
    return out.to(query.dtype)


def _addresses(pool: Tensor, slots: list[int]) -> list[int]:
    """Where these slots begin in memory."""
    base, step = pool.data_ptr(), pool.shape[1] * pool.element_size()
    return [base + slot * step for slot in slots]


def observe_spectrogram(state: Tensor, attention: Tensor) -> Tensor:
    """As `kernels.observe_spectrogram`, for `[head, ...]` tensors; returns a new state."""
    heads, queries, slots = attention.shape
    frames = queries // HOP - 1
    state = state if state.stride(-1) == 1 else state.contiguous()
    attention = attention if attention.stride()[1:] == (slots, 1) else attention.contiguous()
    following = torch.empty(heads, BINS, slots)
    weights = frame_weights(frames, attention.device)
    lib = library()
    assert lib is not None
    lib.spectrogram(
        _pointer(state),
        *_long(state.stride(0), state.stride(1)),
        _pointer(following),
        _pointer(attention),
        *_long(attention.stride(0), heads, frames, slots),
        _pointer(weights),
        ctypes.c_float(GAMMA ** (HOP * frames)),
        ctypes.byref(_TABLES),
        ctypes.c_int(torch.get_num_threads()),
    )
    return following
