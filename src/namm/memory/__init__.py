"""Ragged per-head memory inside transformers' own cache and attention interfaces."""

from namm.memory.attach import Handle, attach
from namm.memory.cache import MemoryCache
from namm.memory.ledger import MemoryReport

__all__ = ["Handle", "MemoryCache", "MemoryReport", "attach"]
