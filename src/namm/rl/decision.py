"""A Decision Transformer with what it needs to act: the scale of its numbers and the return it is asked for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DecisionTransformerModel

from namm.errors import ArtefactError, NotFoundError
from namm.files import sync_tree
from namm.json_files import read_json, write_json
from namm.models import UNREADABLE

TOKENS = 3  # of a step: return to go, state, action
FILE = "decision.json"


@dataclass(frozen=True)
class Scale:
    """What counts as 0 and as 100; `source` says who measured that."""

    random: float
    expert: float
    source: str

    def normalised(self, total: float) -> float:
        """A return as D4RL reports it: 0 for random actions, 100 for the expert."""
        return 100 * (total - self.random) / (self.expert - self.random)


@dataclass(frozen=True)
class About:
    """What a Decision Transformer learned from, and how its numbers are scaled.

    Attributes:
        context: steps of its training windows, K in the paper.
        target: the return it is asked for, the largest of its data.
        unit: returns to go are divided by it.
        mean, deviation: of the states in its data, which are standardised by them.
        scale: what returns are reported on.
        seed: of the training.
    """

    env_id: str
    data: str
    episodes: int
    steps: int
    data_return: float
    context: int
    target: float
    unit: float
    mean: list[float]
    deviation: list[float]
    scale: Scale
    seed: int = 0
    updates: int = 0
    loss: float | None = None

    @property
    def name(self) -> str:
        """Of the model in rows: its data, and which of several trainings it is."""
        return f"{self.data}, seed {self.seed}" if self.seed else self.data


class Decision:
    """A model and its `About`: numbers of an environment in, actions out."""

    def __init__(self, model: DecisionTransformerModel, about: About) -> None:
        self.model, self.about = model.eval(), about

    def standardised(self, states: np.ndarray) -> Float[Tensor, "*lead state"]:
        """States of the environment as the model reads them."""
        mean, deviation = (torch.tensor(x, dtype=self.model.dtype) for x in (self.about.mean, self.about.deviation))
        return (torch.as_tensor(states, dtype=self.model.dtype) - mean) / deviation

    def embed(
        self,
        states: Float[Tensor, "batch state"],
        returns: Float[Tensor, " batch"],
        step: int,
        before: Float[Tensor, "batch action"] | None,
    ) -> Float[Tensor, "batch token dim"]:
        """The new tokens of one step: the action before it (none at the first), the return to go and the state.

        As `DecisionTransformerModel.forward` embeds them.
        """
        model = self.model
        now = model.embed_timestep(self._times(step, step + 1, len(states)))[:, 0]
        tokens = [model.embed_return(returns[:, None]) + now, model.embed_state(states) + now]
        if before is not None:
            then = model.embed_timestep(self._times(step - 1, step, len(states)))[:, 0]
            tokens.insert(0, model.embed_action(before) + then)
        return model.embed_ln(torch.stack(tokens, dim=1))

    def recompute(
        self,
        states: Float[Tensor, "batch step state"],
        actions: Float[Tensor, "batch step action"],
        returns: Float[Tensor, "batch step"],
        step: int,
    ) -> Float[Tensor, "batch action"]:
        """The action at `step` from a window that ends there, by the model's own forward pass."""
        out = self.model(
            states=states, actions=actions, returns_to_go=returns[..., None],
            timesteps=self._times(step + 1 - states.shape[1], step + 1, len(states)),
            attention_mask=torch.ones(states.shape[:2], dtype=torch.long),
        )  # fmt: skip
        return out.action_preds[:, -1]

    def _times(self, start: int, stop: int, rows: int) -> Int[Tensor, "batch step"]:
        return torch.arange(start, stop).clamp(max=self.model.config.max_ep_len - 1).expand(rows, -1)

    def save(self, folder: Path) -> None:
        """Write model and `decision.json`."""
        self.model.save_pretrained(folder)
        sync_tree(folder)
        write_json(folder / FILE, dataclasses.asdict(self.about))  # last: it says that the model is there

    @classmethod
    def load(cls, folder: str | Path) -> Decision:
        """What `save` wrote.

        Raises:
            NotFoundError: there is no Decision Transformer of ours in that folder.
            ArtefactError: there is, and it is damaged.
        """
        file = Path(folder) / FILE
        if not file.exists():
            raise NotFoundError("a folder with a Decision Transformer", folder, "Give one that `Decision.save` wrote.")
        try:
            saved = read_json(file, "Train it again.")
            about = About(**saved | {"scale": Scale(**saved["scale"])})
            model = DecisionTransformerModel.from_pretrained(folder)
        except (ArtefactError, *UNREADABLE) as error:
            raise ArtefactError("a readable Decision Transformer", f"{folder}: {error}", "Train it again.") from error
        return cls(model, about)
