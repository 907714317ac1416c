"""Fixtures: random two-layer models of many architectures. Shapes in annotations are enforced while testing."""

from importlib import import_module
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

from tests import checker  # noqa: F401  (the hook looks it up by name)

with install_import_hook(["namm", "experiments", "benchmarks"], "tests.checker.check"):
    for room in ("memory", "models", "network", "policies"):  # `import namm` alone brings none of them
        import_module(f"namm.{room}")

import torch

GOLDEN = Path(__file__).parent / "conformance" / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", default=str(GOLDEN), help="folder of vectors in the golden format")
    parser.addoption("--live-url", default="", help="server whose page the browser tests open; a stand-in if left out")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
