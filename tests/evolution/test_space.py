"""Search spaces: affine, around the origin to the bit, sized to the network."""

import numpy as np
import pytest
import torch

import namm
from namm.evolution.space import SPACES, make_space
from namm.network import NAMMConfig

CONFIGS = [NAMMConfig(), NAMMConfig(features="extended", width=8)]


def origin(config: NAMMConfig) -> namm.NAMM:
    generator = torch.Generator().manual_seed(3)
    return namm.NAMM.from_vector(torch.randn(config.size, generator=generator) * 0.1, config=config)


@pytest.mark.parametrize("config", CONFIGS, ids=["paper", "extended"])
@pytest.mark.parametrize("name", SPACES)
def test_the_point_zero_is_the_origin_and_the_map_is_affine(name: str, config: NAMMConfig) -> None:
    base = origin(config)
    space = make_space(name, base, rank=2, directions=6, seed=1)
    zero = np.zeros((1, space.dimensions))
    assert torch.equal(space.theta(zero)[0], base.theta)
    a, b = np.random.default_rng(0).standard_normal((2, 1, space.dimensions))
    moved = [space.theta(p).double() - base.theta.double() for p in (a, b, a + 2 * b)]
    torch.testing.assert_close(moved[2], moved[0] + 2 * moved[1], atol=1e-5, rtol=1e-5)
    assert bool((moved[0] != 0).any())
    again = make_space(name, base, rank=2, directions=6, seed=1)
    assert torch.equal(again.theta(a), space.theta(a))


def test_dimensions() -> None:
    base = origin(NAMMConfig())
    sizes = {name: make_space(name, base, rank=4, directions=64).dimensions for name in SPACES}
    assert sizes == {"all": 4172, "scoring": 26, "head": 172, "gains": 51, "low-rank": 254, "random": 64}


def test_only_what_is_named_moves() -> None:
    base = origin(NAMMConfig())

    def one(name: str) -> torch.Tensor:
        space = make_space(name, base)
        return space.theta(np.ones((1, space.dimensions)))[0]

    assert torch.equal(one("scoring")[:-26], base.theta[:-26])
    moved = namm.NAMM.from_vector(one("head")).tensors()
    assert torch.equal(moved["w_qkv"], base.tensors()["w_qkv"])
    assert torch.equal(moved["w_o"], base.tensors()["w_o"])
    gains = namm.NAMM.from_vector(one("gains")).tensors()
    torch.testing.assert_close(gains["w_qkv"], 2 * base.tensors()["w_qkv"])  # each factor is 1 + 1
    assert torch.equal(gains["w_o"], base.tensors()["w_o"])
    changed = namm.NAMM.from_vector(one("low-rank")).tensors()["w_qkv"] - base.tensors()["w_qkv"]
    assert int(torch.linalg.matrix_rank(changed, rtol=1e-4)) <= 4


@pytest.mark.parametrize("name", ["all", "low-rank", "random"])
def test_a_coordinate_is_measured_in_units_of_the_weights(name: str) -> None:
    theta = origin(NAMMConfig()).theta.clone()
    theta[:2400] *= 10  # w_qkv
    base = namm.NAMM.from_vector(theta)
    space = make_space(name, base, directions=300)
    points = np.random.default_rng(0).standard_normal((50, space.dimensions))
    change = space.theta(points) - base.theta
    spread = [float(change[:, a:b].std()) for a, b in ((0, 2400), (2496, 4096))]
    assert spread == pytest.approx([1.0, 0.1], rel=0.15)
    plain = make_space("all", base, scaled=False).theta(np.ones((1, 4172)))[0] - base.theta
    torch.testing.assert_close(plain, torch.ones(4172), atol=1e-5, rtol=0)


def test_from_zero_a_unit_is_one_also_beside_a_bias() -> None:
    base = namm.NAMM.zeros()
    theta = base.vector()
    theta[-1] = 0.01
    space = make_space("all", namm.NAMM.from_vector(theta))
    np.testing.assert_array_equal(space.scale, np.ones(4172))


def test_mistakes() -> None:
    with pytest.raises(namm.ConfigurationError, match="Did you mean 'scoring'"):
        make_space("score", namm.NAMM.zeros())
    with pytest.raises(namm.ConfigurationError, match="Start warm"):
        make_space("gains", namm.NAMM.zeros())
