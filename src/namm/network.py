"""The NAMM: a network that scores cached tokens from their attention features (spec 6, 7).

memory = NAMM.from_pretrained("path/or/hub-id")
with namm.attach(model, memory, namm.Budget(fraction=0.25)):
    model.generate(**inputs)
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from namm.errors import ArtefactError, ConfigurationError
from namm.features import FeatureSet, feature_set
from namm.selection import Per, Safeguard

FORMAT_VERSION = 1


@dataclass(frozen=True)
class NAMMConfig:
    """What must be known to rebuild a NAMM from its flat vector.

    Attributes:
        features: name of the feature set; "paper" is the 25 features of the paper (spec 6).
        width: width of the attention head of the scoring network.
        update_interval: tokens between two updates this memory was evolved with.
        per: how a budget is spent unless it says so itself: the same number of tokens in every "head", or those of a
            "layer" or the whole "model" on whichever heads score highest.
        safeguard: part of an even split that every head keeps all the same, see `Budget`.
        rehearses: who asks again, for feature sets that watch rehearsals: the "model", or its "queries" in place.
        rehearsal: part of each block that the model reads again.
        window, rotated, competes, asked: of a rehearsal in place, see `policies.base.Rehearsal`.
        calibrated: whether it was evolved on what a second reading is expected to show, see `namm.calibration`.
        trained_on: free text for the model card: model, tasks, evaluations.
    """

    features: str = "paper"
    width: int = 32
    update_interval: int = 512
    per: Per = "head"
    safeguard: Safeguard = 0.0
    rehearsal: float = 1.0
    rehearses: Literal["model", "queries"] = "model"
    window: int = 512
    rotated: bool | Literal["auto"] = "auto"
    competes: bool = False
    asked: Literal["held", "window"] = "held"
    calibrated: bool = False
    trained_on: str = ""
    format_version: int = FORMAT_VERSION

    @property
    def feature_set(self) -> FeatureSet:
        return feature_set(self.features)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of each parameter tensor, in the order of the flat vector (spec 7)."""
        n, w = self.feature_set.features, self.width
        return {
            "w_qkv": (n, 3 * w),
            "b_qkv": (3 * w,),
            "w_o": (w, 2 * n),
            "b_o": (2 * n,),
            "w_s": (n, 1),
            "b_s": (1,),
        }

    @property
    def size(self) -> int:
        """Length of the flat parameter vector: 4,172 for the paper's features and width."""
        return sum(torch.Size(shape).numel() for shape in self.shapes.values())


@dataclass(frozen=True, eq=False)
class NAMM:
    """A Neural Attention Memory Model: parameters and normalisation statistics, frozen.

    `theta` is one flat vector `[parameter]`, or one per candidate, `[candidate, parameter]`: row `b` of a batch is then
    scored with `theta[b]`. `mean` and `var` are `[signal]`. Shapes and values are checked here, with clear errors.
    """

    config: NAMMConfig
    theta: Tensor
    mean: Tensor
    var: Tensor
    _on_device: dict[torch.device, NAMM] = field(default_factory=dict, repr=False, init=False)

    def __post_init__(self) -> None:
        signals = self.feature_set.signals
        _check_tensor("parameters", self.theta, (*self.theta.shape[:-1], self.config.size))
        if self.theta.ndim > 2:
            raise ArtefactError(
                "parameters of shape [parameter] or [candidate, parameter]", tuple(self.theta.shape),
                "Flatten the candidates into one axis.",
            )  # fmt: skip
        _check_tensor("normalisation mean", self.mean, (signals,))
        _check_tensor("normalisation variance", self.var, (signals,))
        if bool((self.var < 0).any()):
            raise ArtefactError("variances >= 0", "a negative variance", "Save the memory again from its source.")
        _ = self.scale  # made with the memory, which holds nothing that comes later

    @property
    def feature_set(self) -> FeatureSet:
        return self.config.feature_set

    @cached_property
    def mixes(self) -> bool:
        """Whether tokens are scored by other tokens too. An output layer of zeros leaves a linear score of each."""
        p = self.tensors()
        return bool(p["w_o"].any()) or bool(p["b_o"].any())

    @cached_property
    def scale(self) -> Tensor:
        """What signals are multiplied by when their mean is taken away."""
        return self.var.sqrt().clamp(min=1e-7).reciprocal()

    # -- construction ------------------------------------------------------------------------------------------

    @classmethod
    def from_vector(
        cls,
        theta: Tensor,
        mean: Tensor | None = None,
        var: Tensor | None = None,
        config: NAMMConfig | None = None,
    ) -> NAMM:
        """A NAMM from its flat vector (spec 7), or one candidate per row of a matrix.

        Args:
            theta: `[parameter]` or `[candidate, parameter]`, float32.
            mean, var: normalisation statistics per signal; 0 and 1 if left out.
            config: the paper's configuration if left out.
        """
        config = config or NAMMConfig()
        signals = config.feature_set.signals
        mean = torch.zeros(signals) if mean is None else mean
        var = torch.ones(signals) if var is None else var
        return cls(config, *(torch.as_tensor(t).detach().float().clone() for t in (theta, mean, var)))

    @classmethod
    def zeros(cls, config: NAMMConfig | None = None) -> NAMM:
        """The paper's starting point: every score is exactly 0, so `Threshold(0.0)` forgets nothing."""
        config = config or NAMMConfig()
        return cls.from_vector(torch.zeros(config.size), config=config)

    def vector(self) -> Float[Tensor, "*candidate parameter"]:
        """The flat parameter vector, a copy."""
        return self.theta.clone()

    def tensors(self) -> dict[str, Tensor]:
        """The parameters by name (spec 7), views of the flat vector."""
        named, start = {}, 0
        for name, shape in self.config.shapes.items():
            size = torch.Size(shape).numel()
            named[name] = self.theta[..., start : start + size].reshape(*self.theta.shape[:-1], *shape)
            start += size
        return named

    def with_statistics(self, mean: Tensor, var: Tensor) -> NAMM:
        return replace(self, mean=mean.float().clone(), var=var.float().clone())

    def to(self, device: torch.device) -> NAMM:
        """The same memory on `device`, made once for each device."""
        if self.theta.device == device:
            return self
        if device not in self._on_device:
            moved = (t.to(device) for t in (self.theta, self.mean, self.var))
            self._on_device[device] = NAMM(self.config, *moved)
        return self._on_device[device]

    # -- computation -------------------------------------------------------------------------------------------

    def features(
        self,
        state: Float[Tensor, "*lead channel slot"],
        age: Int[Tensor, "*lead slot"] | None,
        held: Bool[Tensor, "*lead slot"] | None = None,
    ) -> Float[Tensor, "*lead slot feature"]:
        """Token features from the observed state and the tokens' age (spec 5, 6).

        Args:
            age: may be None where the feature set reads none.
            held: False for empty slots; None if there are none.
        """
        normalised = (self.feature_set.read(state, held) - self.mean) * self.scale
        return self.feature_set.assemble(normalised, age)

    def scores(
        self,
        features: Float[Tensor, "batch kv_head slot feature"],
        valid: Bool[Tensor, "batch kv_head slot"] | None = None,
        rows: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch kv_head slot"]:
        """One score per token: >= 0 wants to stay (spec 7).

        Each token attends to itself and to newer ones. Slots are ordered oldest first, so meaningless slots at
        the old end of a head change no other score and need no mask.

        Args:
            valid: False for tokens that nobody may attend to (padding inside the sequence).
            rows: for a population, the candidate that scores each row.
        """
        p = self.tensors()
        if self.theta.ndim == 2:
            chosen = rows if rows is not None else torch.arange(len(features), device=features.device)
            if int(chosen.max()) >= len(self.theta):
                raise ConfigurationError(
                    f"at most {len(self.theta)} rows, one for each candidate",
                    f"row {int(chosen.max())}",
                    "Use as many candidates as the batch has rows.",
                )
            p = {name: value[chosen, None] for name, value in p.items()}
            p = {name: value.unsqueeze(-2) if name.startswith("b_") else value for name, value in p.items()}
        if not self.mixes:
            return (features @ p["w_s"] + p["b_s"]).squeeze(-1)
        q, k, v = (features @ p["w_qkv"] + p["b_qkv"]).split(self.config.width, dim=-1)
        if valid is None:
            # newest first turns "attend to newer" into an ordinary causal mask
            q, k, v = (t.flip(-2) for t in (q, k, v))
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).flip(-2)
        else:
            slots = features.shape[-2]
            newer = torch.ones(slots, slots, dtype=torch.bool, device=features.device).triu()
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=newer & valid.unsqueeze(-2))
        residual, gain = (mixed @ p["w_o"] + p["b_o"]).chunk(2, dim=-1)
        return ((features * (1 + gain) + residual) @ p["w_s"] + p["b_s"]).squeeze(-1)

    # -- artefact ----------------------------------------------------------------------------------------------

    def save_pretrained(self, path: str | Path) -> Path:
        """Write `config.json`, `model.safetensors` and a model card to the folder `path`."""
        from namm.artefact import save

        return save(self, Path(path))

    @classmethod
    def from_pretrained(cls, path_or_id: str | Path, revision: str | None = None) -> NAMM:
        """Read a memory: a folder, `builtin:NAME`, or from the hub by its id.

        Raises:
            NotFoundError: there is no such folder, name or id.
            ArtefactError: the files are truncated, altered, or of a layout this version does not know.
        """
        from namm.artefact import load

        return load(path_or_id, revision)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the saved files to the hub repository `repo_id`; returns its address."""
        from namm.artefact import push

        return push(self, repo_id, **options)


def _check_tensor(what: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ArtefactError(
            f"{what} of shape {list(shape)}",
            f"shape {list(tensor.shape)}",
            "The configuration and the parameters must come from the same memory.",
        )
    if not bool(torch.isfinite(tensor).all()):
        raise ArtefactError(f"finite {what}", "NaN or infinity", "Take an earlier checkpoint of the run.")
