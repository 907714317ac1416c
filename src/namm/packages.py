"""Packages that only some parts need."""

from __future__ import annotations

import importlib
from types import ModuleType

from namm.errors import NotFoundError


def package(name: str, extra: str = "eval") -> ModuleType:
    """The optional package `name`, imported where it is used.

    Raises:
        NotFoundError: it is not installed; names the extra that brings it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        way_out = f"Run: pip install 'namm[{extra}]'"
        raise NotFoundError(f"the package {name}", f"no module {error.name}", way_out) from error
