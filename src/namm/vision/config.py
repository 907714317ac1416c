"""What is evaluated on video, as one value."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from namm.configuration import Budgets, Lengths, Names
from namm.defaults import DEFAULT_MEMORY
from namm.evaluation import ReadingConfig

_BASELINES = ("streaming", "h2o", "observed-max", "tova", "snapkv", "knorm", "kvzip", "requery", "random")


class VideoConfig(ReadingConfig):
    """One video evaluation, complete."""

    unit: ClassVar[str] = "frames"

    model: str
    """Folder or hub id of a model of videos."""
    policies: tuple[str, ...] = (*_BASELINES, DEFAULT_MEMORY)
    """Policy or memory to compare, by name; the full cache, the first four tokens and fewer frames are besides."""
    budgets: Budgets = (0.5, 0.25, 0.125)
    """Share of the full cache's bytes, the policy's own state included; own: a NAMM's own threshold."""
    tasks: Names = ("longvideobench",)
    """longvideobench or mlvu."""
    tokens: Lengths = (32,)
    """Frames that are shown of each video."""
    samples: int = Field(default=0, ge=0)
    """First questions of the benchmark; 0 for all."""

    def row(self) -> dict[str, Any]:
        """What every row says of it."""
        return {"model": self.model, "update_interval": self.update_interval}
