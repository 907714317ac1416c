"""Pictures of what a memory kept."""

from namm.report.figures import kept_heatmap

__all__ = ["kept_heatmap"]
