"""Queries that a row holds on to: its last ones, and those that wait to ask in place.

Rows that read together hold shares of the same tensors, and queries that come one by one are joined only when somebody
looks at them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


class Queries:
    """The queries of one row, oldest first, and the log-sum-exp of the first of them.

    Attributes:
        count: how many queries.
        known: of how many of them the log-sum-exp is known.
    """

    def __init__(self, heads: int) -> None:
        self.heads = heads
        self._parts: list[tuple[Tensor, int]] = []  # of several rows, and the place of this one among them
        self._sums: tuple[Tensor, int] | None = None
        self.count = self.known = 0

    def add(self, query: Float[Tensor, "lane group query dim"], place: int) -> None:
        """Newer queries, those of the row at this place, whose log-sum-exp is not known yet."""
        self._parts.append((query, place))
        self.count += query.shape[2]

    def clear(self) -> None:
        self._parts, self._sums, self.count, self.known = [], None, 0, 0

    def _set(self, query: Tensor, sums: Tensor, place: int) -> None:
        self._parts, self._sums = [(query, place)], (sums, place)
        self.count, self.known = query.shape[2], sums.shape[2]

    def clone(self) -> Queries:
        twin = Queries(self.heads)
        if self.count:
            query, sums = joined([self])
            twin._set(query.clone(), sums.clone(), 0)
        return twin

    def tensors(self) -> list[Tensor]:
        return [tensor for tensor, _ in (*self._parts, *([self._sums] if self._sums else []))]

    def nbytes(self) -> int:
        """Bytes of this row's share."""
        return sum(tensor.nbytes // len(tensor) for tensor in self.tensors() if len(tensor)) * self.heads


def joined(
    rows: Sequence[Queries],
) -> tuple[Float[Tensor, "lane group query dim"], Float[Tensor, "lane group known"]]:
    """What these rows hold, of each equally much and something, and their log-sum-exp as far as it is known."""
    sizes = [[part.shape[2] for part, _ in q._parts] for q in rows]
    if any(mine != sizes[0] for mine in sizes):  # they came in other pieces
        for one in rows:
            joined([one])
    parts = [_together([q._parts[i] for q in rows], rows[0].heads) for i in range(len(rows[0]._parts))]
    query = parts[0] if len(parts) == 1 else torch.cat(parts, 2)
    if rows[0]._sums is None:
        sums = torch.empty(*query.shape[:2], 0, device=query.device)
    else:
        sums = _together([q._sums for q in rows if q._sums is not None], rows[0].heads)
    hold(rows, query, sums)
    return query, sums


def hold(
    rows: Sequence[Queries], query: Float[Tensor, "lane group query dim"], sums: Float[Tensor, "lane group known"]
) -> None:
    """These rows hold shares of these, and nothing else."""
    for place, one in enumerate(rows):
        one._set(query, sums, place)


def _together(shares: list[tuple[Tensor, int]], heads: int) -> Tensor:
    """The shares of several rows; the tensor itself if they are all of it."""
    first = shares[0][0]
    if len(first) == len(shares) * heads and all(t is first and i == at for at, (t, i) in enumerate(shares)):
        return first
    return torch.cat([tensor[place * heads : (place + 1) * heads] for tensor, place in shares])
