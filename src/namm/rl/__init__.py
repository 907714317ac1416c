"""Control: a Decision Transformer that acts under a memory."""

from namm.rl.decision import About, Decision, Scale
from namm.rl.rollout import Context, Episode, Growing, Remembered, Window, at_bytes_of, rollout

__all__ = [
    "About", "Context", "Decision", "Episode", "Growing", "Remembered", "Scale", "Window", "at_bytes_of", "rollout",
]  # fmt: skip
