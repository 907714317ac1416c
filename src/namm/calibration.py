"""What attention in place is worth, head by head: a model's calibration, made once and kept.

    memory = namm.calibrated("builtin:universal", model, tokenizer)
    with namm.attach(model, memory, namm.Budget(fraction=0.25)):
        model.generate(**inputs)

When a layer's own queries ask in place, some heads say what a second reading would say, and others are loud and mean
little. Where heads compete for the same slots that decides who wins. So a model reads a few texts once with its queries
asking in place, and once more as KVzip does, and for each head it is noted how much attention a second reading paid to
tokens that were given so much in place: a monotone curve through `EDGES`' means. From then on one reading is enough.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from namm import files
from namm.errors import ArtefactError, ConfigurationError
from namm.kernels import fused

FAINTEST = 1e-5  # attention below this is as good as none
EDGES = (0.0, 0.25, 0.5, 0.7, 0.8, 0.88, 0.93, 0.96, 0.98, 0.99, 1.0)  # of the ranks that are averaged together
_SLOPES = (0.05, 10.0)  # of a curve, in logarithms: flatter or steeper, rounding would decide between tokens
_AGAIN = "Delete it, and make it again: namm.calibrate(model, tokenizer)."


@dataclass(frozen=True, eq=False)
class Calibration:
    """For each layer and kv head, the attention that a second reading is expected to pay, from that in place.

    Attributes:
        curves: for the index of each layer with a memory, logarithms of attention: in place, and of a second reading.
        model: the fingerprint of the model that it is of.
    """

    curves: Mapping[int, Float[Tensor, "2 kv_head knot"]]
    model: str
    _on_device: dict[torch.device, Mapping[int, tuple[Tensor, Tensor, Tensor]]] = field(
        default_factory=dict, repr=False, init=False
    )

    @classmethod
    def fitted(
        cls,
        asked: Mapping[int, Float[Tensor, "kv_head token"]],
        read: Mapping[int, Float[Tensor, "kv_head token"]],
        model: str,
    ) -> Calibration:
        """From the largest attention to the same tokens, of queries in place and of a second reading's."""
        return cls({layer: _curve(asked[layer], read[layer]) for layer in asked}, model)

    def expected(
        self, attention: Float[Tensor, "batch kv_head slot"], layer: int, heads: Int[Tensor, " kv_head"]
    ) -> Float[Tensor, "batch kv_head slot"]:
        """The largest attention that a second reading is expected to pay, from the largest in place.

        Raises:
            ConfigurationError: the calibration has no such layer or head: it is of another model.
        """
        curves = self.curves.get(layer)
        if curves is None or attention.shape[1] > curves.shape[1]:
            raise ConfigurationError(
                f"a calibration of this model, with {attention.shape[1]} heads in layer {layer}",
                f"one with layers {list(self.curves)}" if curves is None else f"{curves.shape[1]} heads",
                "Calibrate this one: namm.calibrate(model, tokenizer).",
            )  # fmt: skip
        places, bends, start = self._at(attention.device)[layer]
        if attention.shape[1] < curves.shape[1]:
            places, bends, start = places[heads], bends[heads], start[heads]
        if fused.capable(attention.device):
            return fused.bend(attention, places, bends, start)
        turned = (attention.log().unsqueeze(-1) - places.unsqueeze(1)).clamp_(min=0).mul_(bends.unsqueeze(1))
        return turned.sum(-1).add_(start).exp_()

    def _at(self, device: torch.device) -> Mapping[int, tuple[Tensor, Tensor, Tensor]]:
        if device not in self._on_device:
            hinges = {layer: _hinges(curve) for layer, curve in self.curves.items()}
            self._on_device[device] = {
                layer: (places.to(device), bends.to(device), start.to(device))
                for layer, (places, bends, start) in hinges.items()
            }
        return self._on_device[device]

    @property
    def digest(self) -> str:
        """A sha256, in hex, of all that it says."""
        return hashlib.sha256(self._bytes()).hexdigest()

    def _bytes(self) -> bytes:
        tensors = {str(layer): curve.cpu().contiguous() for layer, curve in self.curves.items()}
        return tensors_to_bytes(tensors, {"model": self.model})

    def save(self, file: str | Path) -> Path:
        """Write it to a `.safetensors` file, whose folder must be there."""
        files.write(Path(file), self._bytes())
        return Path(file)

    @classmethod
    def load(cls, file: str | Path) -> Calibration:
        """Read what `save` wrote.

        Raises:
            NotFoundError: there is no such file.
            ArtefactError: it is damaged, or something else.
        """
        file = Path(file)
        files.read(file, "Make it with namm.calibrate(model, tokenizer), and save it.")  # says what is missing
        try:
            with safe_open(file, "pt") as opened:
                curves = {int(name): opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
                model = (opened.metadata() or {}).get("model", "")
        except (SafetensorError, ValueError) as error:
            raise ArtefactError(f"a calibration in {file}", error, _AGAIN) from error
        if not (model and curves and all(map(_sound, curves.values()))):
            raise ArtefactError(f"a calibration in {file}", "another content", _AGAIN)
        return cls(dict(sorted(curves.items())), model)

    def __repr__(self) -> str:
        return f"Calibration({self.digest[:12]})"


def _hinges(
    curve: Float[Tensor, "2 kv_head knot"],
) -> tuple[Float[Tensor, "kv_head hinge"], Float[Tensor, "kv_head hinge"], Float[Tensor, "kv_head 1"]]:
    """Places p, bends b and a start of a curve, so that y = start + sum_i b_i max(0, x - p_i): few operations a token.

    Beyond the knots, and down to `FAINTEST`, both attentions grow alike.
    """
    x, y = curve
    faintest = torch.full_like(x[:, :1], math.log(FAINTEST))
    flat, alike = torch.zeros_like(faintest), torch.ones_like(faintest)
    slopes = torch.cat([flat, alike, y.diff() / x.diff().clamp(min=1e-6), alike], -1)
    return torch.cat([faintest, x], -1), slopes.diff(), y[:, :1] + faintest - x[:, :1]


def _sound(curve: Tensor) -> bool:
    return curve.ndim == 3 and len(curve) == 2 and curve.dtype == torch.float32 and bool(curve.isfinite().all())


def _curve(
    asked: Float[Tensor, "kv_head token"], read: Float[Tensor, "kv_head token"]
) -> Float[Tensor, "2 kv_head knot"]:
    """Means over tokens of neighbouring rank, rising in both."""
    x, order = asked.clamp(min=FAINTEST).sort(dim=-1, stable=True)
    y = read.clamp(min=FAINTEST).gather(-1, order)
    cuts = [round(edge * x.shape[-1]) for edge in EDGES]
    parts = [slice(start, max(stop, start + 1)) for start, stop in pairwise(cuts)]
    places = torch.stack([x[:, part].log().mean(-1) for part in parts], -1)
    means = torch.stack([y[:, part].mean(-1).log() for part in parts], -1)
    runs, rises = places.diff(dim=-1), means.cummax(-1).values.diff(dim=-1)
    rises = rises.maximum(_SLOPES[0] * runs).minimum(_SLOPES[1] * runs)
    return torch.stack([places, torch.cat([means[:, :1], means[:, :1] + rises.cumsum(-1)], -1)])
