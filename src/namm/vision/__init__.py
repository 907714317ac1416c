"""Models that look: what a memory keeps of each frame, and how memories compare on video."""

from typing import TYPE_CHECKING

from namm.lazy import names_from

if TYPE_CHECKING:
    from namm.vision.config import VideoConfig
    from namm.vision.parts import Part, PartReport, kept, layout

__all__ = ["Part", "PartReport", "VideoConfig", "kept", "layout"]

__getattr__ = names_from(__name__, {"config": ["VideoConfig"], "parts": ["Part", "PartReport", "kept", "layout"]})
