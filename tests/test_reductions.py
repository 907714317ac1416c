"""What a policy says that it takes from attention is what it takes: kernels compute that and never call it."""

import pytest
import torch

from namm.features import FEATURE_SETS
from namm.kernels import Reduction
from namm.policies import BASELINES, H2O
from namm.policies.base import MemoryPolicy


def reduced(state: torch.Tensor, attention: torch.Tensor, reductions: tuple[Reduction | None, ...]) -> torch.Tensor:
    """State `[head, channel, slot]` after this, by the plain formula."""
    out = state.clone()
    for channel, one in enumerate(reductions):
        if one is None:
            continue
        held = state[:, channel] if one.faint is None else state[:, channel].expm1() * one.faint
        new = held + attention.sum(1) if one.how == "sum" else torch.maximum(held, attention.amax(1))
        out[:, channel] = new if one.faint is None else torch.log1p(new / one.faint)
    return out


@pytest.mark.parametrize("rehearsal", [False, True])
@pytest.mark.parametrize("name", sorted(FEATURE_SETS))
def test_feature_sets(name: str, rehearsal: bool) -> None:
    features = FEATURE_SETS[name]
    reductions = features.reductions(rehearsal)
    state, attention = torch.rand(2, features.channels, 9) * 3, torch.rand(2, 32, 9) / 9
    if not reductions:
        assert not rehearsal
        assert name in ("paper", "log", "extended", "rehearsed")
        return
    assert len(reductions) == features.channels
    observed = features.rehearse(state, attention) if rehearsal else features.observe(state, attention)
    torch.testing.assert_close(observed, reduced(state, attention, reductions), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rehearsal", [False, True])
@pytest.mark.parametrize("name", sorted(BASELINES))
def test_policies(name: str, rehearsal: bool) -> None:
    policy = BASELINES[name]()
    if not (reductions := policy.reductions(rehearsal)):
        return
    state, attention = torch.rand(2, policy.channels, 9), torch.rand(2, 32, 9)
    observed = policy.rehearse(state, attention) if rehearsal else policy.observe(state, attention)
    torch.testing.assert_close(observed, reduced(state, attention, reductions))


def test_a_subclass_that_observes_otherwise_is_shown_rows() -> None:
    class Last(H2O):
        def observe(self, state: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
            return attention[..., -1:, :].clone()

    class Named(H2O):
        pass

    assert Last().reductions(False) == ()
    assert Named().reductions(False) == (Reduction("sum"),)
    assert MemoryPolicy.reductions(H2O(), True) == ()
