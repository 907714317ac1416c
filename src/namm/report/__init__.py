"""Pictures of what a memory kept."""

from namm.report.bootstrap import interval, resample
from namm.report.evaluation_page import to_html
from namm.report.figures import class_heatmap, kept_heatmap, save
from namm.report.forgetting import COLUMNS, FEW, Forgetting, by_class, class_table, forgetting_of
from namm.report.markdown import of_forgetting, table, to_markdown
from namm.report.recording import record
from namm.report.rows import Row
from namm.report.samples import embedded_samples
from namm.report.statistics import LEAST_SPAN, kind, summarise
from namm.report.summary import Estimate, Summary, estimate, label, number, share, to_json
from namm.report.token_classes import CLASSES, CODE_SUFFIXES, SPECIAL, Language, classify

__all__ = [
    "CLASSES",
    "CODE_SUFFIXES",
    "COLUMNS",
    "FEW",
    "LEAST_SPAN",
    "SPECIAL",
    "Estimate",
    "Forgetting",
    "Language",
    "Row",
    "Summary",
    "by_class",
    "class_heatmap",
    "class_table",
    "classify",
    "embedded_samples",
    "estimate",
    "forgetting_of",
    "interval",
    "kept_heatmap",
    "kind",
    "label",
    "number",
    "of_forgetting",
    "record",
    "resample",
    "save",
    "share",
    "summarise",
    "table",
    "to_html",
    "to_json",
    "to_markdown",
]
