"""Numbers on their way from the device: nobody waits for them before somebody asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor


@runtime_checkable
class _Arrival(Protocol):
    """As `torch.cuda.Event`."""

    def query(self) -> bool:
        """Whether it is over."""
        ...

    def synchronize(self) -> None:
        """Wait until it is."""
        ...


@dataclass(frozen=True)
class Later:
    """Numbers that are copied to the host while the device goes on.

    Attributes:
        arrived: when they have; None if they are here.
    """

    numbers: Int[Tensor, " number"]
    arrived: _Arrival | None = None

    @property
    def here(self) -> bool:
        """Whether reading them waits for nothing."""
        return self.arrived is None or self.arrived.query()

    def read(self) -> list[int]:
        """The numbers; waits until they are here."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.numbers.tolist()


def sent(numbers: Int[Tensor, " number"]) -> Later:
    """These numbers, sent to the host."""
    if numbers.device.type != "cuda":
        return Later(numbers)
    host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
    host.copy_(numbers, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(numbers.device))
    return Later(host, arrived)
