"""Evaluation: what memories keep of a model's abilities, measured so that others can repeat it."""

from typing import TYPE_CHECKING

from namm.lazy import names_of

if TYPE_CHECKING:
    from namm.evaluation.config import EvaluationConfig, ReadingConfig
    from namm.evaluation.folder import check_folder, open_folder
    from namm.evaluation.identity import identity_of
    from namm.evaluation.oracle import foresee
    from namm.evaluation.reader import (
        Method,
        Reader,
        TextGroup,
        alignment,
        check_bytes,
        methods,
        plan_for,
        text_before,
    )
    from namm.evaluation.rows import commit, hardware, provenance, read_rows
    from namm.evaluation.run import Progress, evaluate, write_report

__all__ = [
    "EvaluationConfig",
    "Method",
    "Progress",
    "Reader",
    "ReadingConfig",
    "TextGroup",
    "alignment",
    "check_bytes",
    "check_folder",
    "commit",
    "evaluate",
    "foresee",
    "hardware",
    "identity_of",
    "methods",
    "open_folder",
    "plan_for",
    "provenance",
    "read_rows",
    "text_before",
    "write_report",
]

__getattr__ = names_of(__name__, __file__)
