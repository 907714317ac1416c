"""A learned memory for any transformer: which cached tokens stay, and which are forgotten.

import namm
model, tokenizer = namm.models.load_model()
with namm.attach(model, "builtin:universal", namm.Budget(fraction=0.25)) as memory:
    model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=20)
    print(memory.memory())
"""

from typing import TYPE_CHECKING, Any

from namm import models, policies
from namm.errors import ArtefactError, ConfigurationError, ModelError, NammError, NotFoundError
from namm.memory import MemoryCache, MemoryReport, attach
from namm.network import NAMM, NAMMConfig
from namm.selection import Budget, Threshold
from namm.version import __version__

if TYPE_CHECKING:
    from namm.evaluation import evaluate
    from namm.evolution import evolve

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


def __getattr__(name: str) -> Any:
    if name == "evolve":  # needs the extra `evolve`, which nothing else does
        from namm.evolution import evolve

        return evolve
    if name == "evaluate":
        from namm.evaluation import evaluate

        return evaluate
    raise AttributeError(f"module 'namm' has no attribute {name!r}")
