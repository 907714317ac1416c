"""Kernel launches and waits for the device that a memory costs on CUDA, counted on fake tensors: no GPU is needed.

    python benchmarks/launches.py [--json] [--backend torch]

A layer of Llama 3 8B in bfloat16 reads 1,024 tokens; then a piece of 512 that ends in an update is counted, and 64 single
tokens after it (their mean, and the most). Every ATen operation that is no view counts as one launch, a copy to the device
as well, and so does every Triton kernel, all of which are run by `fused.launch`: it is replaced by a count, and nothing is
compiled or run. (Some operations of torch are several kernels, a sort above all; a Triton kernel is one.) What the model
itself launches for a layer's cache is taken away: two copies and one attention.

What an update keeps cannot be known without numbers, so when the host reads it, it is told: equal numbers for all heads, or
ragged ones. A read in the call in which the numbers were made is a wait; one in a later call, of a copy that was sent to the
host meanwhile, waits only if the device is a whole call behind: such are counted apart, as late reads.
"""

from __future__ import annotations

import argparse
import collections
import json
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import namm
from namm.calibration import Calibration
from namm.kernels import cuda, fused
from namm.memory import updates
from namm.memory.cache import make_plan
from namm.memory.later import Later
from namm.memory.plan import Scaling
from namm.memory.rotation import Rotation
from namm.memory.sequence import Meter, Sequence
from namm.memory.steps import read
from namm.policies import NAMMPolicy, resolve

KV_HEADS, GROUP, DIM, PIECE, DECODED, SHARE = 8, 4, 128, 512, 64, 0.25
OWN = 3  # launches of the model's own cache and attention
DEVICE = torch.device("cuda:0")
MEMORIES = ("builtin:universal", "requery", "h2o")
CALIBRATED = tuple(f"{memory}, calibrated" for memory in ("builtin:universal", "requery-calibrated"))
VIEWS = {
    "view", "_unsafe_view", "slice", "select", "transpose", "t", "expand", "unsqueeze", "squeeze", "permute", "as_strided",
    "alias", "detach", "split", "split_with_sizes", "unbind", "narrow", "_reshape_alias", "diagonal", "unfold", "lift_fresh",
    "chunk", "empty", "new_empty", "empty_strided", "new_empty_strided", "empty_like",
}  # fmt: skip
NAMED = {
    torch.Tensor.float: torch.float32, torch.Tensor.double: torch.float64, torch.Tensor.long: torch.int64,
    torch.Tensor.half: torch.float16,
}  # fmt: skip
WAITS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique"}


class Count(TorchDispatchMode):
    """Launches by name, and waits."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: collections.Counter[str] = collections.Counter()
        self.waits = self.late = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.__name__.partition(".")[0]
        there = [t for t in tree_leaves((out, args)) if isinstance(t, torch.Tensor) and t.device.type == "cuda"]
        made = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        if there:
            self.waits += name in WAITS
            if name not in VIEWS and (name in WAITS or any(t.numel() for t in made)):
                self.launches[name] += 1
        return out

    def launch(self, kernel: str, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        """In place of `fused.launch`."""
        if all(grid):
            self.launches[f"triton {kernel}"] += 1


class Unguarded(TorchFunctionMode):
    """Indexing, copies and casts without the guard of a device that is not there, which fake tensors do not need."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        replaced: dict[Any, Any] = {
            torch.Tensor.__getitem__: self._get,
            torch.Tensor.__setitem__: self._set,
            torch.Tensor.__invert__: torch.ops.aten.bitwise_not.default,
            torch.Tensor.copy_: torch.ops.aten.copy_.default,
            torch.Tensor.contiguous: self._contiguous,
        }
        if func in replaced:
            return replaced[func](*args)
        if func in (torch.Tensor.to, *NAMED):
            return self._cast(args[0], [NAMED.get(func), *args[1:], *(kwargs or {}).values()])
        return func(*args, **(kwargs or {}))

    def _get(self, tensor: torch.Tensor, key: Any) -> torch.Tensor:
        view, index = self._sliced(tensor, key)
        return view if index is None else torch.ops.aten.index.Tensor(view, index)

    def _set(self, tensor: torch.Tensor, key: Any, value: Any) -> None:
        view, index = self._sliced(tensor, key)
        if not isinstance(value, torch.Tensor):
            view.fill_(value)
        elif index is None:
            torch.ops.aten.copy_.default(view, value)
        else:
            torch.ops.aten.index_put_.default(view, index, value)

    @staticmethod
    def _contiguous(tensor: torch.Tensor) -> torch.Tensor:
        whole = torch.contiguous_format
        return tensor if tensor.is_contiguous() else torch.ops.aten.clone.default(tensor, memory_format=whole)

    @staticmethod
    def _cast(tensor: torch.Tensor, wanted: list[Any]) -> torch.Tensor:
        device = next((torch.device(w) for w in wanted if isinstance(w, (str, torch.device))), tensor.device)
        dtype = next((w for w in wanted if isinstance(w, torch.dtype)), tensor.dtype)
        same = (device, dtype) == (tensor.device, tensor.dtype)
        return tensor if same else torch.ops.aten._to_copy.default(tensor, dtype=dtype, device=device)

    @staticmethod
    def _sliced(tensor: torch.Tensor, key: Any) -> tuple[torch.Tensor, list[torch.Tensor | None] | None]:
        """The view that slices and numbers make, and the tensors that index what is left."""
        keys = list(key) if isinstance(key, tuple) else [key]
        if Ellipsis in [k for k in keys if not isinstance(k, torch.Tensor)]:
            at = next(i for i, k in enumerate(keys) if k is Ellipsis)
            wanted = sum(k is not None for k in keys) - 1
            keys[at : at + 1] = [slice(None)] * (tensor.ndim - wanted)
        index: list[torch.Tensor | None] = []
        for k in keys:
            axis = len(index)
            if isinstance(k, slice):
                if k != slice(None):
                    start, stop, stride = k.indices(tensor.shape[axis])
                    tensor = torch.ops.aten.slice.Tensor(tensor, axis, start, max(start, stop), stride)
                index.append(None)
            elif k is None:
                tensor = tensor.unsqueeze(axis)
                index.append(None)
            elif isinstance(k, torch.Tensor):
                index.append(k)
            else:
                tensor = tensor.select(axis, k)
        return tensor, index if any(k is not None for k in index) else None


@dataclass
class Told:
    """What the host is told that an update keeps."""

    ragged: bool
    seen: int = 0
    count: Count | None = None

    lanes: int = 0

    def numbers(self, numbers: torch.Tensor) -> list[int]:
        """In place of `updates.read_numbers`, which waits."""
        if self.count is not None:
            self.count.waits += 1
            self.count.launches["copy to the host"] += 1
        return self._said(numbers)

    def sent(self, numbers: torch.Tensor) -> _Sent:
        """In place of `updates.sent`, which does not."""
        if self.count is not None:
            self.count.launches["copy to the host"] += 1
        return _Sent(numbers, told=self, call=self.count, said=self._said(numbers))

    def _said(self, numbers: torch.Tensor) -> list[int]:
        each = int(SHARE * self.seen)
        spread = (-3, -1, 1, 3) if self.ragged else (0,)
        stay = [each + each // 8 * spread[lane % len(spread)] for lane in range(self.lanes)]
        return [*stay, *[0] * (len(numbers) - self.lanes)]

    def launch(self, *arguments: Any, **constants: Any) -> None:
        if self.count is not None:
            self.count.launch(*arguments, **constants)


def put(network: namm.NAMM, device: torch.device = DEVICE) -> None:
    """Put a NAMM onto a device that is not there."""
    moved = copy(network)
    for name in ("theta", "mean", "var"):
        object.__setattr__(moved, name, torch.empty_like(getattr(network, name), device=device))
    moved.__dict__["mixes"] = network.mixes
    moved.__dict__["scale"] = torch.empty_like(network.var, device=device)
    network._on_device[device] = moved


@dataclass(frozen=True, kw_only=True)
class _Sent(Later):
    """Numbers that arrive when the call is over in which they were sent."""

    told: Told
    call: Count | None
    said: list[int]

    @property
    def here(self) -> bool:
        return self.told.count is not self.call

    def read(self) -> list[int]:
        if (count := self.told.count) is not None:
            count.waits += count is self.call
            count.late += count is not self.call
        return self.said


@contextmanager
def pretended(told: Told, triton: bool) -> Iterator[None]:
    """A card of capability 8.0, with or without Triton, and a host that is told what it would read."""
    with (
        mock.patch.object(cuda, "capable", return_value=True),
        mock.patch.object(fused, "capable", return_value=triton),
        mock.patch.object(fused, "launch", told.launch),
        mock.patch.object(updates, "read_numbers", told.numbers),
        mock.patch.object(updates, "sent", told.sent),
        FakeTensorMode(allow_non_fake_inputs=True),
        Unguarded(),
    ):
        yield


@torch.no_grad()
def measured(
    memory: str, rows: int, ragged: bool, backend: str = "triton", selection: namm.Budget | namm.Threshold | None = None
) -> dict[str, Any]:
    """Launches and waits for a layer of `rows` rows, with Triton or with "torch" alone."""
    name, _, calibrated = memory.partition(", ")
    policy = resolve(name)
    if isinstance(policy, NAMMPolicy):
        _ = policy.network.mixes
    budget = namm.Budget(fraction=SHARE, per="layer" if ragged else "head")
    if calibrated:
        knots = torch.arange(10.0).expand(2, KV_HEADS, -1)
        calibration = Calibration({0: knots}, "print")
        policy = policy.calibrated(calibration)
    plan = make_plan(policy, budget if selection is None else selection, PIECE)
    told = Told(ragged, lanes=rows * KV_HEADS)
    cuda._ends.cache_clear()
    with pretended(told, backend == "triton"):
        if isinstance(policy, NAMMPolicy):
            put(policy.network)
        if calibrated:
            calibration._at(DEVICE)  # brought there once
        scaling = Scaling(DIM**-0.5, rotation=Rotation(torch.empty(DIM // 2), interleaved=False))
        meter = Meter()
        sequences = [Sequence(plan, row, 0, meter) for row in range(rows)]

        def step(tokens: int) -> Count:
            told.seen = sequences[0].seen + tokens
            heads = (KV_HEADS * GROUP, KV_HEADS, KV_HEADS)
            q, k, v = (torch.empty(rows, n, tokens, DIM, dtype=torch.bfloat16, device=DEVICE) for n in heads)
            with Count() as count:
                told.count = count
                read(sequences, q, k, v, scaling)
            told.count = None
            return count

        step(2 * PIECE)
        update = step(PIECE)
        late = step(1)
        tokens = [step(1) for _ in range(DECODED)]
    cuda._ends.cache_clear()
    if isinstance(policy, NAMMPolicy):
        policy.network._on_device.clear()
    launches = [sum(count.launches.values()) - OWN for count in tokens]
    return {
        "memory": memory, "backend": backend, "rows": rows, "heads": "ragged" if ragged else "equal",
        "update_launches": sum(update.launches.values()) - OWN, "update_waits": update.waits,
        "late_reads": late.late,
        "token_launches": round(sum(launches) / DECODED, 2), "token_launches_at_most": max(launches),
        "token_waits": sum(count.waits for count in tokens),
        "update_by_name": dict(update.launches.most_common()),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print rows as JSON")
    parser.add_argument("--backend", choices=("triton", "torch"), default="triton", help="what observes and compacts")
    options = parser.parse_args()
    found = [
        measured(memory, rows, ragged, options.backend)
        for memory in MEMORIES + CALIBRATED
        for ragged in (False, True)
        for rows in (1, 8)
    ]
    if options.json:
        print(json.dumps(found, indent=1))
        return
    table = Table(title=f"launches and waits of a layer beyond the model's own, by {options.backend}", box=None)
    for heading in ("memory", "heads", "rows", "update", "waits", "late", "token", "at most", "waits"):
        table.add_column(heading, justify="left" if heading in ("memory", "heads") else "right")
    for row in found:
        names = ("memory", "heads", "rows", "update_launches", "update_waits", "late_reads", "token_launches")
        table.add_row(*(str(row[name]) for name in (*names, "token_launches_at_most", "token_waits")))
    Console().print(table)


if __name__ == "__main__":
    main()
