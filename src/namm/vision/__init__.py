"""Models that look: what a memory keeps of each frame, and what memories are worth on video."""

from namm.vision.layout import Part, PartReport, kept, layout

__all__ = ["Part", "PartReport", "kept", "layout"]
