"""What a memory costs on CUDA, counted on fake tensors: a rise is a change of `benchmarks/launches.py`'s numbers."""

import pytest

from benchmarks.launches import MEMORIES, measured

UPDATE = {"builtin:universal": (149, 202), "requery": (82, 118), "h2o": (64, 91)}  # equal and ragged heads; wanted: 45
TOKEN = 5  # launches of a decoded token, and of a hop's part of it


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("ragged", [False, True])
def test_launches_do_not_grow_with_rows_and_nothing_waits(memory: str, ragged: bool) -> None:
    one, eight = (measured(memory, rows, ragged) for rows in (1, 8))
    assert one["update_launches"] <= UPDATE[memory][ragged]
    assert one["token_launches"] <= TOKEN
    for name in ("update_launches", "token_launches"):
        assert eight[name] <= 1.1 * one[name]
    for found in (one, eight):
        assert found["token_waits"] == 0
        assert found["update_waits"] <= 1  # the counts that stay
