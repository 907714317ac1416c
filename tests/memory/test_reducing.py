"""What is taken from attention block by block is what the policy would have made of it."""

import pytest
import torch

from namm.features import feature_set
from namm.memory.reducing import Reduced
from namm.policies import H2O, Requery


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize(
    ("watcher", "channels", "rehearsal"),
    [
        (H2O(), 1, False), (Requery(), 1, True), (feature_set("levelled"), 3, False),
        (feature_set("levelled"), 3, True), (feature_set("rehearsed"), 19, True),
    ],
)  # fmt: skip
def test_state_is_that_of_the_policy_to_the_bit(watcher, channels: int, rehearsal: bool, lanes: int) -> None:
    random = torch.Generator().manual_seed(0)
    state, before = (torch.rand(lanes, channels, 301, generator=random) for _ in range(2))
    before.copy_(state)
    taken = Reduced(state, watcher.reductions(rehearsal), 0)
    shown = state
    for slots in (77, 205, 301):  # a block's slots end at its newest token
        attention = torch.rand(lanes, 128, slots, generator=random) ** 8
        taken(attention)
        method = watcher.rehearse if rehearsal else watcher.observe
        shown = torch.cat([method(shown[..., :slots], attention), shown[..., slots:]], -1)
    assert torch.equal(taken.state(), shown)
    assert torch.equal(state, before), "a copy is worked on"


def test_rows_that_were_given_before_and_slots_of_the_rehearsal_itself_count_for_nothing() -> None:
    attention = torch.rand(1, 5, 9)
    taken = Reduced(torch.zeros(1, 1, 7), H2O().reductions(rehearsal=False), given=2)
    taken(attention)
    assert torch.equal(taken.state()[:, 0], attention[:, 2:, :7].sum(1))


def test_what_is_not_a_number_stays_visible() -> None:
    attention = torch.rand(1, 5, 9)
    attention[0, 3, 4] = torch.nan
    for watcher, rehearsal in ((H2O(), False), (Requery(), True), (feature_set("compact"), False)):
        reductions = watcher.reductions(rehearsal)
        taken = Reduced(torch.zeros(1, len(reductions), 9), reductions, 0)
        taken(attention)
        assert torch.isnan(taken.state()[..., 4]).all()
        assert torch.isfinite(taken.state()[..., :4]).all()
