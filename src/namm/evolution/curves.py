"""TensorBoard curves of a run: `tensorboard --logdir OUT`."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from namm.packages import package

_FOLDER = "tensorboard"
_CURVES = {
    "fitness/mean": "mean",
    "fitness/best": "best",
    "kept share": "share",
    "search/sigma": "sigma",
    "speed/evaluations per second": "rate",
    "validation/mean": "validation",
    "validation/best so far": "best_validation",
}


class Curves:
    """Writes each row of the log as points; on opening, those of the `rows` there are, in the place of older files."""

    def __init__(self, out: Path, rows: Iterable[dict[str, Any]]) -> None:
        package("tensorboard", "evolve")
        from torch.utils.tensorboard import SummaryWriter

        shutil.rmtree(out / _FOLDER, ignore_errors=True)  # a killed run may have drawn a generation that is done again
        self._writer = SummaryWriter(str(out / _FOLDER))
        for row in rows:
            self.add(row)

    def add(self, row: dict[str, Any]) -> None:
        for name, key in _CURVES.items():
            if row[key] is not None:
                self._writer.add_scalar(name, row[key], row["generation"], walltime=row["time"])
        self._writer.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
