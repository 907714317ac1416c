"""A learned memory for any transformer: which cached tokens stay, and which are forgotten.

import namm
model, tokenizer = namm.models.load_model()
with namm.attach(model, "builtin:smollm2-135m-instruct", namm.Budget(fraction=0.25)) as memory:
    model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=20)
    print(memory.memory())
"""

from namm import policies
from namm.errors import ArtefactError, ConfigurationError, ModelError, NammError, NotFoundError
from namm.memory import MemoryCache, MemoryReport, attach
from namm.network import NAMM, NAMMConfig
from namm.selection import Budget, Threshold

__version__ = "0.1.0"

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
    "attach",
    "policies",
]
