"""Tasks: what a memory is evolved on and measured with."""

from namm.tasks.base import Encoded, Request, Sample, Task, encode
from namm.tasks.embedded import TASKS as EMBEDDED
from namm.tasks.embedded import make_sample
from namm.tasks.longbench import KINDS as LONGBENCH_KINDS
from namm.tasks.longbench_prompts import PROMPTS as LONGBENCH_PROMPTS
from namm.tasks.metrics import metric
from namm.tasks.registry import SUITES, find_tasks, sources
from namm.tasks.text import SPLITS, code, novel, paragraphs, passage

__all__ = [
    "EMBEDDED",
    "LONGBENCH_KINDS",
    "LONGBENCH_PROMPTS",
    "SPLITS",
    "SUITES",
    "Encoded",
    "Request",
    "Sample",
    "Task",
    "code",
    "encode",
    "find_tasks",
    "make_sample",
    "metric",
    "novel",
    "paragraphs",
    "passage",
    "sources",
]
