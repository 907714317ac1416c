"""Evaluation: what a memory is worth, measured so that others can repeat it."""

from namm.evaluation.config import EvaluationConfig
from namm.evaluation.run import Progress, evaluate, write_report

__all__ = ["EvaluationConfig", "Progress", "evaluate", "write_report"]
