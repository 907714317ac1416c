"""Runs on the planted problem: small, fast, and with a worker that dies on command."""

import os
import signal
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

import namm
from benchmarks.planted import Planted
from namm.evolution import EvolutionConfig, Item, Outcome
from namm.network import NAMM


def small(*settings: str) -> EvolutionConfig:
    """Two stages, three and four generations long, a fraction of a second each."""
    stages = [
        {"name": "one", "tasks": ["march"], "tokens": [96], "generations": 3},
        {"name": "two", "tasks": ["march", "slow"], "tokens": [96, 128], "generations": 4},
    ]
    return EvolutionConfig(
        memory={"update_interval": 32},
        objective={"budgets": [0.3, 0.5]},
        start={"statistics": 1},
        search={"space": "scoring", "sigma": 0.2, "population": 6, "samples": 3, "pool": 8},
        stages=stages,
        validation={"samples": 2, "every": 2},
    ).changed(*settings)


@dataclass(frozen=True)
class Mortal(Planted):
    """Dies as often as there are files in `deaths`, at the first units it is given."""

    deaths: str = ""

    def measure(self, item: Item, networks: NAMM) -> list[Outcome]:
        for file in Path(self.deaths).glob("*"):
            try:
                file.unlink()
            except FileNotFoundError:  # it killed another worker
                continue
            os.kill(os.getpid(), signal.SIGKILL)
        return super().measure(item, networks)


def mortal(folder: Path, deaths: int) -> partial[Mortal]:
    folder.mkdir()
    for death in range(deaths):
        (folder / str(death)).touch()
    return partial(Mortal, deaths=str(folder))


@dataclass(frozen=True)
class Broken(Planted):
    """Scores everything `score`."""

    score: float = float("nan")

    def measure(self, item: Item, networks: NAMM) -> list[Outcome]:
        return [Outcome(self.score, 1.0, 1.0)] * len(networks.theta)


class ModelLess:
    """What a worker builds that has no model."""

    def __init__(self) -> None:
        raise FileNotFoundError("no weights in /nowhere")


def pid_of(problem: Planted, seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def work(problem: Planted, unit: int) -> int:
    """A worker's way out of each kind."""
    if unit == 100:
        os.kill(os.getpid(), signal.SIGKILL)
    if unit == 200:
        raise namm.ConfigurationError("a unit", unit, "Give another.")
    if unit == 300:
        raise ZeroDivisionError("a bug")
    return unit


def same(one: NAMM, other: NAMM) -> bool:
    return torch.equal(one.theta, other.theta) and torch.equal(one.mean, other.mean)
