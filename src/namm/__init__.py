"""A learned memory for any transformer: which cached tokens stay, and which are forgotten.

import namm
model, tokenizer = namm.models.load_model()
memory = namm.calibrated("builtin:universal", model, tokenizer)
with namm.attach(model, memory, namm.Budget(fraction=0.25)) as held:
    model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=20)
    print(held.memory())
"""

from typing import TYPE_CHECKING

from namm.lazy import names_of
from namm.version import __version__

if TYPE_CHECKING:
    from namm import models, policies
    from namm.calibrating import calibrate, calibrated
    from namm.calibration import Calibration
    from namm.errors import ArtefactError, ConfigurationError, ModelError, NammError, NotFoundError
    from namm.evaluation import evaluate
    from namm.evolution import evolve
    from namm.memory.attach import attach
    from namm.memory.cache import MemoryCache
    from namm.memory.ledger import MemoryReport
    from namm.network import NAMM, NAMMConfig
    from namm.selection import Budget, Threshold

__all__ = [
    "NAMM",
    "ArtefactError",
    "Budget",
    "Calibration",
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
    "calibrate",
    "calibrated",
    "evaluate",
    "evolve",
    "models",
    "policies",
]

__getattr__ = names_of(__name__, __file__)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
