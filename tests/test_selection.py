"""Selections: exact counts, the newest token, order of equals, protection."""

import math

import pytest
import torch

from namm import Budget, ConfigurationError, Threshold
from namm.selection import Per

inf = float("inf")


def select(
    selection: object, scores: list[list[float]], positions: list[list[int]] | None = None, seen: int = 0
) -> list:
    tensor = torch.tensor([scores])
    places = torch.tensor([positions]) if positions else torch.arange(tensor.shape[-1]).expand_as(tensor)
    kept = selection.select(tensor, places, seen or tensor.shape[-1])
    return [head.nonzero().flatten().tolist() for head in kept[0]]


def test_threshold_keeps_what_reaches_it_and_the_newest() -> None:
    assert select(Threshold(0.0), [[0.0, -1.0, 2.0, -5.0], [-1.0, -1.0, -1.0, -1.0]]) == [[0, 2, 3], [3]]
    assert select(Threshold(1.5), [[0.0, -1.0, 2.0, -5.0]]) == [[2, 3]]


def test_fill_heads_raises_every_head_to_the_largest() -> None:
    scores = [[0.0, 1.0, 2.0, -5.0], [-3.0, -1.0, -2.0, -9.0]]
    assert select(Threshold(0.0, fill_heads=True), scores) == [[0, 1, 2, 3], [0, 1, 2, 3]]
    scores = [[-4.0, -1.0, 2.0, -5.0], [-3.0, -1.0, -2.0, -9.0]]
    assert select(Threshold(0.0, fill_heads=True), scores) == [[2, 3], [1, 3]]


def test_fill_up_is_decided_in_each_row_alone() -> None:
    scores = torch.tensor([[[1.0, 1.0, 1.0, 1.0], [-1.0, -1.0, -1.0, -1.0]], [[-1.0, 1.0, -2.0, -1.0]] * 2])
    kept = Threshold(0.0, fill_heads=True).select(scores, torch.arange(4).expand_as(scores), 4)
    assert kept.sum(-1).tolist() == [[4, 4], [2, 2]]


@pytest.mark.parametrize(
    ("fraction", "seen", "count"), [(0.25, 512, 128), (0.29, 100, 29), (0.001, 64, 1), (1.0, 64, 64)]
)
def test_fractions_of_the_tokens_seen(fraction: float, seen: int, count: int) -> None:
    kept = Budget(fraction=fraction).select(torch.randn(2, 3, 64), torch.arange(64).expand(2, 3, 64), seen)
    assert kept.sum(-1).unique().tolist() == [min(count, 64)]


def test_budgets_keep_the_best_and_the_newest() -> None:
    assert select(Budget(tokens=2), [[5.0, 9.0, 7.0, -1.0]]) == [[1, 3]]
    assert select(Budget(tokens=9), [[5.0, 9.0, 7.0, -1.0]]) == [[0, 1, 2, 3]]


def test_of_equal_scores_the_newest_stay() -> None:
    assert select(Budget(tokens=2), [[1.0, 1.0, 1.0, 1.0]]) == [[2, 3]]


def test_protected_tokens_are_inside_the_budget() -> None:
    scores = [[0.0, 0.0, 9.0, 8.0, 0.0, 0.0]]
    assert select(Budget(tokens=4, sinks=1, recent=2), scores) == [[0, 2, 4, 5]]
    assert select(Budget(fraction=0.5, sinks=2, recent=2), scores) == [[0, 1, 5]]


def test_a_layer_spends_its_budget_where_scores_are_high() -> None:
    scores = [[9.0, 8.0, 7.0, 6.0], [1.0, 2.0, 3.0, 0.0]]
    assert select(Budget(tokens=2, per="layer"), scores) == [[0, 1, 3], [3]]


@pytest.mark.parametrize("per", ["layer", "model"])
def test_a_safeguard_leaves_every_head_a_part_of_an_even_split(per: Per) -> None:
    scores = [[9.0, 8.0, 7.0, 6.0, 5.0, 4.0], [1.0, 3.0, 2.0, 0.0, 0.0, 0.0]]
    assert select(Budget(tokens=4, per=per), scores) == [[0, 1, 2, 3, 4, 5], [1, 5]]
    assert select(Budget(tokens=4, per=per, safeguard=0.75), scores) == [[0, 1, 2, 3, 5], [1, 2, 5]]
    assert select(Budget(tokens=4, per=per, safeguard=1.0), scores) == [[0, 1, 2, 5], [0, 1, 2, 5]]
    scores, positions = [[9.0, 9.0, 9.0, 2.0], [4.0, 3.0, 2.0, 1.0]], [[-1, -1, 6, 7], [1, 3, 5, 7]]
    guarded = Budget(tokens=2, per=per, safeguard=1.0)
    assert select(guarded, scores, positions, 8) == [[2, 3], [0, 3]]  # a head keeps what it holds, if that is less


@pytest.mark.parametrize(("heads", "share"), [(1, 1.0), (3, 0.577), (16, 0.25), (48, 0.2), (90, 0.2)])
def test_few_heads_are_guarded_more_than_many(heads: int, share: float) -> None:
    scores = torch.rand(1, heads, 400)
    scores[:, 0] -= 2.0  # a head whose scores are low throughout
    positions = torch.arange(400).expand_as(scores)
    kept = Budget(tokens=100, per="model", safeguard="auto").select(scores, positions, 400)
    assert int(kept[0, 0].sum()) == (100 if heads == 1 else math.floor(share * 100))
    assert int(kept.sum()) == 100 * heads


def test_a_safeguard_that_is_no_share_is_refused() -> None:
    for wrong in (-0.1, 1.1, True, math.nan):
        with pytest.raises(ConfigurationError, match="a safeguard in"):
            Budget(tokens=8, safeguard=wrong)


@pytest.mark.parametrize("protected", [{"sinks": 2}, {"recent": 2}, {"sinks": 1, "recent": 2}])
def test_a_safeguard_and_protected_tokens_share_the_budget(protected: dict[str, int]) -> None:
    scores = torch.randn(2, 6, 40, generator=torch.Generator().manual_seed(0))
    budget = Budget(tokens=8, per="model", safeguard=0.5, **protected)
    kept = budget.select(scores, torch.arange(40).expand_as(scores), 40)
    assert kept.sum((1, 2)).tolist() == [48, 48]
    assert int(kept.sum(-1).min()) >= 4
    assert bool(kept[..., : protected.get("sinks", 0)].all())
    assert bool(kept[..., 40 - protected.get("recent", 1) :].all())


def test_a_budget_says_its_safeguard_only_where_it_has_one() -> None:
    """Caches that were saved before there was one name their budget as it was called then."""
    before = "Budget(tokens=None, fraction=0.25, per='layer', sinks=0, recent=0)"
    assert repr(Budget(fraction=0.25, per="layer")) == repr(Budget(fraction=0.25, per="layer", safeguard=0.0)) == before
    assert repr(Budget(tokens=8, safeguard=0.2)).endswith("safeguard=0.2)")


def test_empty_slots_are_never_kept() -> None:
    scores, positions = [[9.0, 9.0, 1.0, 2.0], [4.0, 3.0, 2.0, 1.0]], [[-1, -1, 6, 7], [1, 3, 5, 7]]
    assert select(Budget(tokens=3), scores, positions, 8) == [[2, 3], [0, 1, 3]]
    assert select(Threshold(0.0), scores, positions, 8) == [[2, 3], [0, 1, 2, 3]]
    assert select(Threshold(0.0, fill_heads=True), scores, positions, 8) == [[2, 3], [0, 1, 2, 3]]
    assert select(Budget(tokens=2, per="layer"), scores, positions, 8) == [[3], [0, 1, 3]]
