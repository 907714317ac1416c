"""What all replicas say together: their health, their conversations, their metrics."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_UP = "namm_replica_up"


def health(told: Mapping[int, bytes], replicas: int) -> dict[str, Any]:
    """The sums of what the live ones count, by their bodies of `/health`, and the greatest age of a step."""
    known = [json.loads(body) for body in told.values()]
    names = sorted({name for one in known for name in one} - {"status"})
    together = {name: max if name == "step_age_seconds" else sum for name in names}
    counts = {name: made(one.get(name, 0) for one in known) for name, made in together.items()}
    status = "ok" if any(one["status"] == "ok" for one in known) else "unavailable"
    return {"status": status, "replicas": replicas, "live": len(known), **counts}


def lists(told: Mapping[int, bytes]) -> dict[str, Any]:
    """One list of all, oldest first."""
    every = [entry for body in told.values() for entry in json.loads(body)["data"]]
    return {"object": "list", "data": sorted(every, key=lambda entry: entry["created"])}


def metrics(told: Mapping[int, bytes], replicas: int) -> str:
    """Prometheus' text format: each sample with the label `replica`, all samples of a name together."""
    families: dict[str, tuple[list[str], list[str]]] = {}
    for number, body in told.items():
        name = ""
        for line in body.decode().splitlines():
            if line.startswith("# HELP "):
                name = line.split()[2]
            heading, samples = families.setdefault(name, ([], []))
            if not line.startswith("#"):
                samples.append(_labelled(line, number))
            elif line not in heading:
                heading.append(line)
    up = [f'{_UP}{{replica="{number}"}} {int(number in told)}' for number in range(replicas)]
    families[_UP] = ([f"# HELP {_UP} Whether a replica answers", f"# TYPE {_UP} gauge"], up)
    lines = [line for heading, samples in families.values() for line in (*heading, *samples)]
    return "\n".join(lines) + "\n"


def _labelled(sample: str, replica: int) -> str:
    """`name{a="b"} 1` -> `name{replica="0",a="b"} 1`; no value of a label here holds a space or a brace."""
    name, _, value = sample.rpartition(" ")
    name, _, labels = name.partition("{")
    return f'{name}{{replica="{replica}"' + (f",{labels}" if labels else "}") + f" {value}"
