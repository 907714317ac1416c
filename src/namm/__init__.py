"""A learned memory for any transformer: which cached tokens stay, and which are forgotten.

import namm
model, tokenizer = namm.models.load_model()
with namm.attach(model, "builtin:universal", namm.Budget(fraction=0.25)) as memory:
    model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=20)
    print(memory.memory())
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from namm.version import __version__

if TYPE_CHECKING:
    from namm import models, policies
    from namm.errors import ArtefactError, ConfigurationError, ModelError, NammError, NotFoundError
    from namm.evaluation import evaluate
    from namm.evolution import evolve
    from namm.memory.attach import attach
    from namm.memory.cache import MemoryCache, MemoryReport
    from namm.network import NAMM, NAMMConfig
    from namm.selection import Budget, Threshold

__all__ = [
    "NAMM",
    "ArtefactError",
    "Budget",
    "ConfigurationError",
    "MemoryCache",
    "MemoryReport",
    "ModelError",
    "NAMMConfig",
    "NammError",
    "NotFoundError",
    "Threshold",
    "__version__",
    "attach",
    "evaluate",
    "evolve",
    "models",
    "policies",
]


_HOMES = {
    "errors": ("ArtefactError", "ConfigurationError", "ModelError", "NammError", "NotFoundError"),
    "evaluation": ("evaluate",),
    "evolution": ("evolve",),
    "memory": ("MemoryCache", "MemoryReport", "attach"),
    "network": ("NAMM", "NAMMConfig"),
    "selection": ("Budget", "Threshold"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}
_ROOMS = (*_HOMES, "models", "policies")


def __getattr__(name: str) -> Any:
    """Names come with their first use: torch and transformers take seconds, which `namm --help` need not wait for."""
    if name in _HOME:
        return getattr(import_module(f"namm.{_HOME[name]}"), name)
    if name in _ROOMS:
        return import_module(f"namm.{name}")
    raise AttributeError(f"module 'namm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_ROOMS})
