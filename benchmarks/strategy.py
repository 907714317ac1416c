"""What the search itself costs: ask and tell of each variant of CMA-ES, and replaying a run to resume it.

python benchmarks/strategy.py [--dimensions 26 254 4172] [--generations 8]
"""

import argparse
import statistics
import time
from typing import Any

import numpy as np
import rows

from namm.evolution import VARIANTS, Strategy


def measure(variant: str, dimensions: int, population: int, generations: int) -> dict[str, Any]:
    """Seconds of each generation's ask and tell on a sphere function."""
    began = time.perf_counter()
    strategy = Strategy(variant, dimensions, 0.065, population, seed=0)
    built = time.perf_counter() - began
    seconds = []
    for _ in range(generations):
        began = time.perf_counter()
        candidates = strategy.ask()
        asked = time.perf_counter()
        fitness = -np.square(candidates - 0.3).sum(1)
        told = time.perf_counter()
        strategy.tell(candidates, fitness)
        seconds.append(asked - began + time.perf_counter() - told)
    return {
        "variant": variant,
        "dimensions": dimensions,
        "population": population,
        "generations": generations,
        "build_seconds": built,
        "median_seconds": statistics.median(seconds),
        "mean_seconds": statistics.fmean(seconds),
        "worst_seconds": max(seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[26, 254, 4172])
    parser.add_argument("--population", type=int, default=32)
    parser.add_argument("--generations", type=int, default=40, help="the full covariance is decomposed each 26 or so")
    given = parser.parse_args()
    results = [measure(v, d, given.population, given.generations) for d in given.dimensions for v in VARIANTS]
    for row in results:
        print(
            "{variant:9} {dimensions:5}  median {median_seconds:.4f}  mean {mean_seconds:.4f}  worst {worst_seconds:.2f} s".format(
                **row
            )
        )
    rows.write("strategy", results)


if __name__ == "__main__":
    main()
