"""A small environment with episodes of different lengths, and a random Decision Transformer for it."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import torch
from transformers import DecisionTransformerConfig, DecisionTransformerModel

from namm.rl import About, Decision, Scale

LIMIT = 40
STATE, ACTION = 4, 2


class Toy(gym.Env):
    """A state that turns and is pushed; an episode ends when it leaves a ball. Mild: rounding does not grow."""

    def __init__(self, radius: float = 1e9) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (STATE,), np.float64)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (ACTION,), np.float32)
        self.radius = radius
        self.turn = 0.9 * np.linalg.qr(np.random.default_rng(0).normal(size=(STATE, STATE)))[0]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = 0.2 * self.np_random.normal(size=STATE)
        return self.state.copy(), {}

    def step(self, action):
        push = 0.3 * np.pad(action, (0, STATE - ACTION)) + 0.2 * self.np_random.normal(size=STATE)
        self.state = self.turn @ self.state + push
        over = bool(np.linalg.norm(self.state) > self.radius)
        return self.state.copy(), float(1 - action @ action), over, False, {}


def register() -> None:
    for name, options in (("Toy-v0", {}), ("Ends-v0", {"radius": 0.0}), ("Falls-v0", {"radius": 1.0})):
        if name not in gym.registry:
            gym.register(name, entry_point="tests.rl.toy:Toy", max_episode_steps=LIMIT, kwargs=options)
    if "Endless-v0" not in gym.registry:
        gym.register("Endless-v0", entry_point="tests.rl.toy:Toy")


register()


def toy_decision(context: int = 5, heads: int = 2, dtype: torch.dtype = torch.float32) -> Decision:
    """Random, with weights that make attention matter."""
    torch.manual_seed(3)
    config = DecisionTransformerConfig(
        state_dim=STATE, act_dim=ACTION, hidden_size=32, n_layer=2, n_head=heads, max_ep_len=LIMIT, n_positions=1,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = DecisionTransformerModel(config)
    with torch.no_grad():
        for name, parameter in model.encoder.named_parameters():
            if parameter.ndim >= 2 and "w" not in name.split(".")[-2][:1]:
                parameter.mul_(8)
    about = About(
        env_id="Toy-v0", data="toy/random-v0", episodes=3, steps=90, data_return=1.0, context=context, target=30.0,
        unit=30.0, mean=[0.1] * STATE, deviation=[1.5] * STATE, scale=Scale(-10.0, 40.0, "the tests"),
    )  # fmt: skip
    return Decision(model.to(dtype), about)
