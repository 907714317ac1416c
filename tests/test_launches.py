"""What a memory costs on CUDA, counted on fake tensors: a rise is a change of `benchmarks/launches.py`'s numbers."""

import pytest

import namm
from benchmarks.launches import CALIBRATED, MEMORIES, measured

MOST = 45  # launches of an update by Triton's kernels, ragged heads or equal
UPDATE = {  # equal and ragged heads
    "triton": {
        "builtin:universal": (31, 39), "requery": (15, 18), "h2o": (16, 16),
        "builtin:universal, calibrated": (37, 45), "requery-calibrated, calibrated": (16, 19),
    },
    "torch": {
        "builtin:universal": (109, 150), "requery": (68, 96), "h2o": (51, 78),
        "builtin:universal, calibrated": (121, 162), "requery-calibrated, calibrated": (75, 103),
    },
}  # fmt: skip
TOKEN = 5  # launches of a decoded token, and of a hop's part of it


@pytest.mark.parametrize("memory", MEMORIES + CALIBRATED)
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_launches_do_not_grow_with_rows_and_nothing_waits(memory: str, ragged: bool, backend: str) -> None:
    one, eight = (measured(memory, rows, ragged, backend) for rows in (1, 8))
    assert one["update_launches"] <= UPDATE[backend][memory][ragged]
    assert backend == "torch" or one["update_launches"] <= MOST
    assert one["token_launches"] <= TOKEN
    for name in ("update_launches", "token_launches"):
        assert eight[name] <= 1.1 * one[name]
    for found in (one, eight):
        assert found["token_waits"] == 0
        assert found["update_waits"] <= (backend == "torch")  # there the counts that stay
        assert found["late_reads"] <= 1


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_scores_that_decide_how_many_stay_are_waited_for_once(backend: str) -> None:
    for rows in (1, 8):
        found = measured("builtin:universal", rows, True, backend, namm.Threshold(0.0))
        assert found["update_waits"] == 1
        assert found["token_waits"] == found["late_reads"] == 0
        assert backend == "torch" or found["update_launches"] <= MOST
