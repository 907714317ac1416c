"""Names that come with their first use: torch and transformers take seconds, which `namm --help` need not wait for."""

from __future__ import annotations

import ast
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def names_of(package: str, file: str) -> Callable[[str], Any]:
    """The `__getattr__` of a package, which imports what its `__init__`, `file`, imports for type checkers."""
    imports = [node for node in ast.walk(ast.parse(Path(file).read_bytes())) if isinstance(node, ast.ImportFrom)]
    home = {alias.name: node.module for node in imports if node.module for alias in node.names}

    def find(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return import_module(f"{package}.{name}") if home[name] == package else getattr(import_module(home[name]), name)

    return find
