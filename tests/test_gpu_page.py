"""What `benchmarks/gpu.py` decides and writes; what it measures needs a card."""

import math

import pytest
import torch

from benchmarks import gpu
from namm.kernels import fused

CARD = {
    "card": "A Card", "capability": "9.0", "cuda": "13.0", "driver": "600", "triton": "3.9.0", "bandwidth": 3.2e12,
    "flops": 8e14,
}  # fmt: skip


def test_without_a_card_it_says_so_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"measures a CUDA device.*sees none here.*launches.py"):
        gpu.device_here()


def test_a_card_without_triton_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(fused, "capable", lambda device: False)
    with pytest.raises(SystemExit, match="do not serve here"):
        gpu.device_here()


@pytest.mark.parametrize(
    ("name", "value", "met"),
    [
        ("decode attention", 0.7, True), ("decode attention", 0.69, False), ("observe", 1.5, True),
        ("observe", 1.51, False), ("decode, 16 rows", 0.6, False), ("waits while decoding", 0, True),
        ("waits while decoding", 1, False), ("agreement", math.nan, False), ("graph", 0.0, False),
    ],
)  # fmt: skip
def test_gates(name: str, value: float, met: bool) -> None:
    row = gpu.gate(name, "a case", value)
    assert row["met"] is met
    assert (row["better"], row["limit"]) == gpu.LIMITS[name][:2]


def test_the_page_names_the_card_and_what_was_missed() -> None:
    page = gpu.page([CARD, gpu.gate("observe", "1 row", 1.2), gpu.gate("decode attention", "16 rows", 0.5)])
    assert "## A Card" in page
    assert "3,200 GB/s" in page
    assert "1 of 2 gates met" in page
    assert page.count("**missed**") == 1


def test_skewed_lanes_hold_as_many_in_the_mean() -> None:
    counts = gpu.counts_of(8, 2000, skewed=True)
    assert sum(counts) == 8 * 2000
    assert max(counts) == 4 * min(counts)
    assert gpu.counts_of(3, 50, skewed=False) == [50, 50, 50]


def test_lanes_and_the_formula_they_are_held_against() -> None:
    lanes = gpu.pool_of([5, 9], torch.float32, torch.device("cpu"), dim=4, channels=2)
    assert lanes.positions is not None
    assert lanes.positions.tolist() == [4, 5, 6, 7, 8, *range(9), -1]
    total, largest = gpu.expected(torch.randn(2, 3, 2, 4), lanes, 0.5, None)
    torch.testing.assert_close(total[:5].sum(), torch.tensor(2.0))  # two queries, all of whose attention is somewhere
    assert bool((largest <= total + 1e-6).all())


@pytest.mark.gpu
def test_kernels_compute_on_a_card_what_they_compute_under_an_interpreter() -> None:
    device = gpu.device_here()
    missed = [row for row in gpu.agreement(device) + gpu.moves(device) if not row["met"]]
    assert not missed


@pytest.mark.parametrize("wrong", [["--layers", "0"], ["--tokens", "100"]])
def test_options(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.options_of(["--quick"]).quick
    with pytest.raises(SystemExit):
        gpu.options_of(wrong)
    assert "at least one layer" in capsys.readouterr().err
