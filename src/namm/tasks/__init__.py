"""Tasks: what a memory is evolved on and measured with."""

from namm.tasks.base import Encoded, Request, Sample, Task, encode
from namm.tasks.embedded import make_sample
from namm.tasks.text import SPLITS, novel, paragraphs

__all__ = ["SPLITS", "Encoded", "Request", "Sample", "Task", "encode", "make_sample", "novel", "paragraphs"]
