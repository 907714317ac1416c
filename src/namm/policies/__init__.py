"""Policies: the learned memory and the methods it is compared with, all under one contract.

| name | keeps | source |
| --- | --- | --- |
| full | everything | |
| streaming | first tokens and a sliding window | arXiv 2309.17453 |
| h2o | largest total attention, and a recent half | arXiv 2306.14048 |
| observed-max | largest attention from any one query | |
| tova | what the last query attends to | arXiv 2401.06104 |
| snapkv | what the last 32 queries attend to, pooled | arXiv 2404.14469 |
| knorm | shortest keys | arXiv 2406.11430 |
| kvzip | what a second reading of each block attends to | arXiv 2505.23416 |
| kvzip-whole | the same, decided once for a whole text and all layers, as published; in evaluations | |
| requery | what the layers' own queries attend to when they ask again | |
| requery-calibrated | the same, by what it is worth in each head of the model | |
| random | one random priority per token | |
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from pathlib import Path

from namm.artefact import builtin_memories
from namm.defaults import DEFAULT_MEMORY
from namm.errors import NotFoundError, nearest
from namm.network import NAMM
from namm.policies.base import MemoryPolicy, View
from namm.policies.full import KeepAll
from namm.policies.h2o import H2O
from namm.policies.knorm import KNorm
from namm.policies.kvzip import KVzip, KVzipWhole
from namm.policies.namm import NAMMPolicy
from namm.policies.observed_max import ObservedMax
from namm.policies.random import Random
from namm.policies.requery import CalibratedRequery, Requery
from namm.policies.snapkv import SnapKV
from namm.policies.streaming import StreamingLLM
from namm.policies.tova import TOVA
from namm.selection import Per

__all__ = [
    "BASELINES",
    "DEFAULT_MEMORY",
    "H2O",
    "TOVA",
    "CalibratedRequery",
    "KNorm",
    "KVzip",
    "KVzipWhole",
    "KeepAll",
    "MemoryPolicy",
    "NAMMPolicy",
    "ObservedMax",
    "Random",
    "Requery",
    "SnapKV",
    "StreamingLLM",
    "View",
    "builtin_memories",
    "own_interval",
    "resolve",
    "spent",
]

BASELINES: dict[str, type[MemoryPolicy]] = {
    policy.name: policy
    for policy in (
        KeepAll,
        StreamingLLM,
        H2O,
        ObservedMax,
        TOVA,
        SnapKV,
        KNorm,
        KVzip,
        KVzipWhole,
        Requery,
        CalibratedRequery,
        Random,
    )
}


def own_interval(policy: MemoryPolicy) -> int:
    """The update interval a NAMM was evolved with; 512 for every other policy."""
    return policy.network.config.update_interval if isinstance(policy, NAMMPolicy) else 512


def spent(policy: MemoryPolicy, per: Per) -> MemoryPolicy:
    """The same policy, whose budget is spent by `per` unless it says so itself, see `Budget`."""
    if isinstance(policy, NAMMPolicy):
        return replace(policy, network=replace(policy.network, config=replace(policy.network.config, per=per)))
    other = copy(policy)
    other.per = per
    return other


def resolve(memory: NAMM | MemoryPolicy | str | Path) -> MemoryPolicy:
    """The policy meant by a NAMM, a policy, a baseline's name, `builtin:NAME`, a folder or a hub id.

    Raises:
        NotFoundError: nothing has that name; the message gives the nearest that has.
    """
    if isinstance(memory, MemoryPolicy):
        return memory
    if isinstance(memory, NAMM):
        return NAMMPolicy(memory)
    name = str(memory)
    if name in BASELINES:
        return BASELINES[name]()
    hub_id = name.count("/") == 1 and not name.startswith((".", "/")) and ":" not in name
    if name in builtin_memories() or Path(name).is_dir() or hub_id:
        return NAMMPolicy(NAMM.from_pretrained(name))
    raise NotFoundError(
        "a policy name, builtin memory, folder or hub id (owner/name)",
        repr(name),
        nearest(name, [*BASELINES, *builtin_memories()]),
    )
