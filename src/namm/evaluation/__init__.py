"""Evaluation: what memories keep of a model's abilities, measured so that others can repeat it."""

from typing import TYPE_CHECKING

from namm.lazy import names_from

if TYPE_CHECKING:
    from namm.evaluation.config import EvaluationConfig
    from namm.evaluation.run import Progress, evaluate, write_report

__all__ = ["EvaluationConfig", "Progress", "evaluate", "write_report"]

__getattr__ = names_from(__name__, {"config": ["EvaluationConfig"], "run": ["Progress", "evaluate", "write_report"]})
