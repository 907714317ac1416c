"""Ragged per-head memory inside transformers' own cache and attention interfaces."""

from namm.memory.attach import Handle, attach
from namm.memory.cache import MemoryCache, MemoryReport

__all__ = ["Handle", "MemoryCache", "MemoryReport", "attach"]
