"""Tasks: what a memory is evolved on and measured with."""

from namm.tasks.needle import TASKS, Sample, encode, make_sample
from namm.tasks.text import SPLITS, novel, paragraphs

__all__ = ["SPLITS", "TASKS", "Sample", "encode", "make_sample", "novel", "paragraphs"]
