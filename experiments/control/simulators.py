"""Environments by name, and the scale on which their returns are compared."""

from __future__ import annotations

from typing import Any

import gymnasium

from namm.errors import ConfigurationError, NotFoundError, nearest
from namm.rl import Scale

# https://github.com/Farama-Foundation/D4RL, infos.py; measured on the -v2 environments, which had older simulators
D4RL = {
    "Hopper": Scale(-20.272305, 3234.3, "D4RL"),
    "HalfCheetah": Scale(-280.178953, 12135.0, "D4RL"),
    "Walker2d": Scale(1.629008, 4592.3, "D4RL"),
}


def scale_of(env_id: str) -> Scale | None:
    """D4RL's scale of an environment, if it has one."""
    return D4RL.get(env_id.rpartition("-v")[0])


def make(env_id: str, **options: Any) -> Any:
    """The environment `env_id` of Gymnasium, with observations and actions in one vector each.

    Raises:
        NotFoundError: no environment has that name, or its simulator is not installed.
        ConfigurationError: its observations or actions are no vectors.
    """
    try:
        env = gymnasium.make(env_id, **options)
    except gymnasium.error.DependencyNotInstalled as error:
        raise NotFoundError(f"the simulator of {env_id}", error, "Run: pip install 'gymnasium[mujoco]'") from error
    except gymnasium.error.Error as error:
        raise NotFoundError("an environment of Gymnasium", env_id, nearest(env_id, gymnasium.registry)) from error
    if env.spec is not None and env.spec.id != env_id:  # a name without a version is filled up, with another each year
        raise NotFoundError("the full name of an environment", env_id, f"Did you mean {env.spec.id}?")
    spaces = (env.observation_space, env.action_space)
    if not all(isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1 for space in spaces):
        raise ConfigurationError(
            "an environment whose observations and actions are vectors of real numbers",
            f"{env_id} with {spaces[0]} and {spaces[1]}",
            "Hopper-v5, HalfCheetah-v5 and Walker2d-v5 are such.",
        )
    return env
