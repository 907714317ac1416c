"""`pytest tests/conformance --golden DIR` replays every npz file of DIR."""

from pathlib import Path

import pytest


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "vectors" in metafunc.fixturenames:
        folder = Path(metafunc.config.getoption("--golden"))
        files = sorted(folder.glob("*.npz"))
        if not files:
            raise pytest.UsageError(f"no npz files in {folder}")
        metafunc.parametrize("vectors", files, ids=[f.stem for f in files])
