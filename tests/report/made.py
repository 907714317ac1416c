"""Made-up rows of an evaluation."""

from __future__ import annotations

import random
from typing import Any

NAMM = "builtin:universal"
HEURISTICS = ("streaming", "h2o", "observed-max", "tova", "snapkv", "knorm")
POLICIES = ("full", "floor", "oracle", "truncated", "random", *HEURISTICS, NAMM)
TASKS = ("passkey", "needle", "variables", "key-value", "multi-hop", "counting", "quotes", "qa/short", "qa/long")


def row(policy: str, nll: float, **more: Any) -> dict[str, Any]:
    """A row that is complete; bytes are a hundred for a full cache, and one moves a slot."""
    budget = more.pop("budget", None if policy in ("full", "floor") else 0.25)
    share = {"full": 1.0, "floor": 0.01}.get(policy, budget if isinstance(budget, float) else 0.3)
    task, sample = more.get("task", "passkey"), more.get("sample", "test/0/0")
    exact = more.get("exact", 0.0)
    made = {
        "task": task,
        "tokens": 1024,
        "sample": sample,
        "split": "test",
        "protocol": "context-first",
        "template": "chat",
        "policy": policy,
        "budget": budget,
        "context_hash": f"context of {task} {sample}",
        "prompt_sha256": f"prompt of {task} {sample}",
        "context_tokens": 1000,
        "prompt_tokens": 1020,
        "nll": nll,
        "exact": exact,
        "metric": "exact",
        "score": exact,
        "prediction": None,
        "slots": round(1000 * share),
        "slots_full": 1000,
        "bytes_held": 100.0 * share,
        "bytes_full": 100.0,
        "bytes_per_slot": 1.0,
        "peak_bytes": 120.0,
        "seconds": 1.5,
        "seed": 0,
        "model": "a model",
        "commit": "abc1234",
        "namm": "0.1.0",
        "torch": "2.13.0",
        "transformers": "5.23.0",
        "dtype": "float32",
        "hardware": "two cores",
    }
    return made | more


def samples(nlls: dict[str, list[float]], **more: Any) -> list[dict[str, Any]]:
    """For each policy, one row for each number."""
    return [
        row(policy, nll, sample=f"test/0/{i}", **more)
        for policy, values in nlls.items()
        for i, nll in enumerate(values)
    ]


def evaluation(count: int = 24, lengths: tuple[int, ...] = (1024, 2048), seed: int = 0) -> list[dict[str, Any]]:
    """An evaluation as it may come out: all policies, three budgets, nine tasks, and the NAMM's own threshold."""
    rng = random.Random(seed)
    quality = dict(zip(POLICIES, (1, 0, 0.93, 0.35, 0.15, 0.3, 0.66, 0.62, 0.58, 0.55, 0.25, 0.7), strict=True))
    rows = []
    for tokens in lengths:
        for task in TASKS:
            loaded = task.startswith("qa/")
            hard = rng.uniform(0.6, 1.4)
            for i in range(count):
                full, span = rng.uniform(0.2, 1.2), rng.uniform(0.05 if loaded else 0.8, 4)
                for policy in POLICIES:
                    own: list[Any] = [0.125, 0.25, 0.5, *(["own"] if policy == NAMM else [])]
                    for budget in [None] if policy in ("full", "floor") else own:
                        share = 0.32 + rng.uniform(-0.08, 0.08) if budget == "own" else budget
                        kept = quality[policy]
                        if budget is not None:
                            kept = (1 - (1 - kept) * hard * (0.35 / share) ** 0.6) + rng.gauss(0, 0.12)
                        exact = float(kept + rng.gauss(0, 0.2) > 0.7)
                        more = {"metric": "f1", "score": min(1.0, max(0.0, kept * 0.6))} if loaded else {"score": exact}
                        if share is not None:
                            more |= {"bytes_held": 100 * share + rng.uniform(-0.4, 0.4), "slots": round(1000 * share)}
                        rows.append(
                            row(
                                policy,
                                full + (1 - kept) * span,
                                task=task,
                                tokens=tokens,
                                sample=f"test/0/{i}",
                                budget=budget,
                                exact=exact,
                                context_hash=f"{task} {tokens} {i // 2}",
                                **more,
                            )
                        )
    return rows
