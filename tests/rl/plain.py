"""The usual rollout of a Decision Transformer, sharing no code with the library's."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import torch

from namm.rl import Decision


@torch.no_grad()
def plain(decision: Decision, env: gym.Env, seed: int) -> tuple[np.ndarray, float]:
    """The usual loop: everything so far, cut to K steps, padded on the left, masked, through the model."""
    about, model = decision.about, decision.model
    k = about.context
    state, _ = env.reset(seed=seed)
    states, returns, total, over = [state], [about.target / about.unit], 0.0, False
    actions: list[np.ndarray] = []
    while not over:
        past = len(states)
        pad = max(0, k - past)
        normal = (np.asarray(states) - about.mean) / about.deviation
        s = torch.tensor(np.pad(normal[-k:], ((pad, 0), (0, 0))), dtype=model.dtype)[None]
        done = np.pad(np.asarray([*actions, np.zeros(env.action_space.shape)])[-k:], ((pad, 0), (0, 0)))
        r = torch.tensor(np.pad(returns[-k:], (pad, 0)), dtype=model.dtype)[None, :, None]
        t = torch.tensor(np.pad(np.arange(past)[-k:], (pad, 0)))[None]
        mask = torch.tensor(np.pad(np.ones(min(k, past)), (pad, 0)), dtype=torch.long)[None]
        a = torch.tensor(done, dtype=model.dtype)[None]
        action = (
            model(states=s, actions=a, returns_to_go=r, timesteps=t, attention_mask=mask).action_preds[0, -1].numpy()
        )
        state, reward, terminated, truncated, _ = env.step(action.astype(env.action_space.dtype))
        total, over = total + reward, terminated or truncated
        states.append(state)
        actions.append(action)
        returns.append(returns[-1] - reward / about.unit)
    return np.asarray(actions), total
