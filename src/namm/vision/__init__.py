"""Models that look: what a memory keeps of each frame, and how memories compare on video."""

from typing import TYPE_CHECKING

from namm.lazy import names_of

if TYPE_CHECKING:
    from namm.vision.config import VideoConfig
    from namm.vision.evaluation import evaluate_video
    from namm.vision.parts import FRAME, PartReport, PromptPart, kept, layout
    from namm.vision.published import load_choices
    from namm.vision.reading import Inputs, Listing, Query, Showing
    from namm.vision.showing import choice_listings, evenly
    from namm.vision.summary import tables, to_markdown

__all__ = [
    "FRAME",
    "Inputs",
    "Listing",
    "PartReport",
    "PromptPart",
    "Query",
    "Showing",
    "VideoConfig",
    "choice_listings",
    "evaluate_video",
    "evenly",
    "kept",
    "layout",
    "load_choices",
    "tables",
    "to_markdown",
]

__getattr__ = names_of(__name__, __file__)
