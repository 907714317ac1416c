"""Pictures of what a memory kept."""

from namm.report.heatmap import kept_heatmap

__all__ = ["kept_heatmap"]
