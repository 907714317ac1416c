"""Search spaces: which numbers of a NAMM evolution changes, and in what units.

Each is an affine map from points to parameters, `theta = origin + basis @ point`, so that the point 0 is the origin to
the bit. A coordinate's unit is the size of the parameters it moves: where the origin has weights, the root of the mean
square of their matrix, so that one sigma suits a matrix of large and a matrix of small numbers; else 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from namm.errors import ConfigurationError, nearest
from namm.network import NAMM

SPACES = ("all", "scoring", "head", "gains", "low-rank", "random")
_LAYERS = (("w_qkv", "b_qkv"), ("w_o", "b_o"), ("w_s", "b_s"))


@dataclass(frozen=True, eq=False)
class _Space:
    """A search space of `dimensions` around `origin`.

    Attributes:
        origin: `[parameter]`, float32.
        scale: of each coordinate or, with a dense `basis`, contained in it.
        moved: parameters that the coordinates move one to one, in their order.
        basis: `[parameter, dense dimension]` of coordinates that move many parameters; they come first.
    """

    origin: np.ndarray
    moved: np.ndarray
    scale: np.ndarray
    basis: np.ndarray | None = None

    @property
    def dense(self) -> int:
        return 0 if self.basis is None else self.basis.shape[1]

    @property
    def dimensions(self) -> int:
        return self.dense + len(self.moved)

    def theta(self, points: np.ndarray) -> Float[Tensor, "candidate parameter"]:
        """The parameters at `points`, `[candidate, dimension]`."""
        # numpy in float64: its result depends on no torch setting, so that all executors see the same candidates
        change = np.zeros((len(points), len(self.origin)))
        if self.basis is not None:
            change += points[:, : self.dense] @ self.basis.T
        change[:, self.moved] += points[:, self.dense :] * self.scale
        return torch.from_numpy((self.origin + change).astype(np.float32))


def make_space(
    name: str, origin: NAMM, rank: int = 4, directions: int = 64, seed: int = 0, scaled: bool = True
) -> _Space:
    """The search space called `name` around the memory `origin`, whatever its features and width.

    Args:
        name: "all": every parameter. "scoring": the scoring layer `w_s`, `b_s`. "head": the scoring layer and every
            bias. "gains": a factor for each feature where the network's attention reads it, and the scoring layer.
            "low-rank": a change of rank `rank` to each matrix, with the scoring layer. "random": `directions` random
            directions through all parameters.
        seed: of the directions that "low-rank" and "random" draw.
        scaled: measure coordinates in units of the origin's weights, see above.

    Raises:
        ConfigurationError: no such space, or "gains" around a network that reads nothing.
    """
    if name not in SPACES:
        raise ConfigurationError("a search space", repr(name), nearest(name, SPACES))
    place = _places(origin)
    theta = origin.theta.double().numpy()
    units = _units(origin) if scaled else dict.fromkeys(origin.config.shapes, 1.0)
    unit = np.concatenate([np.full(place[n].stop - place[n].start, units[n]) for n in place])
    rng = np.random.default_rng(seed)
    score = _indices(place, "w_s", "b_s")
    basis = None
    if name == "all":
        moved = np.arange(len(theta))
    elif name == "scoring":
        moved = score
    elif name == "head":
        moved = _indices(place, "b_qkv", "b_o", "w_s", "b_s")
    elif name == "gains":
        moved, basis = score, _gains(origin, theta, place)
    elif name == "low-rank":
        moved, basis = score, _low_rank(origin, place, units, rank, rng)
    else:
        moved = np.arange(0)
        # entries of a change at a point of standard normals have the parameter's unit as standard deviation
        basis = rng.standard_normal((len(theta), directions)) * unit[:, None] / np.sqrt(directions)
    return _Space(origin.theta.numpy(), moved, unit[moved], basis)


def _places(origin: NAMM) -> dict[str, slice]:
    """Where each parameter tensor lies in the flat vector."""
    places, start = {}, 0
    for name, shape in origin.config.shapes.items():
        size = torch.Size(shape).numel()
        places[name] = slice(start, start + size)
        start += size
    return places


def _indices(place: dict[str, slice], *names: str) -> np.ndarray:
    return np.concatenate([np.arange(place[n].start, place[n].stop) for n in names])


def _units(origin: NAMM) -> dict[str, float]:
    """The unit of each tensor: a bias is measured by the weights beside it, since it may be zero by accident."""
    tensors, units = origin.tensors(), {}
    for weight, bias in _LAYERS:
        rms = float(tensors[weight].double().square().mean().sqrt())
        units[weight] = units[bias] = rms if rms > 0 else 1.0
    return units


def _gains(origin: NAMM, theta: np.ndarray, place: dict[str, slice]) -> np.ndarray:
    rows, columns = origin.config.shapes["w_qkv"]
    weights = theta[place["w_qkv"]].reshape(rows, columns)
    if not weights.any():
        raise ConfigurationError(
            'a start with weights for the space "gains"',
            "zeros, which a factor leaves zero",
            'Start warm or at a memory, or use the space "scoring".',
        )
    basis = np.zeros((len(theta), rows))
    for row in range(rows):
        first = place["w_qkv"].start + row * columns
        basis[first : first + columns, row] = weights[row]
    return basis


def _low_rank(
    origin: NAMM, place: dict[str, slice], units: dict[str, float], rank: int, rng: np.random.Generator
) -> np.ndarray:
    """A change `A @ B` of each matrix: B is drawn once, A is searched, which keeps the map affine."""
    blocks = []
    for name in ("w_qkv", "w_o"):
        rows, columns = origin.config.shapes[name]
        drawn = rng.standard_normal((rank, columns)) * units[name] / np.sqrt(rank)
        block = np.zeros((len(origin.theta), rows * rank))
        for row in range(rows):
            first = place[name].start + row * columns
            block[first : first + columns, row * rank : (row + 1) * rank] = drawn.T
        blocks.append(block)
    return np.concatenate(blocks, axis=1)
