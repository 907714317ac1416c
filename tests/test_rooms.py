"""The house: modules import each other in one direction, and a room is entered by its `__init__`."""

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
ROOMS = ("evaluation", "evolution", "report", "tasks", "vision")
GUESTS = {"namm.report.memory_page"}  # shares its name with its function


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(file): ast.parse(file.read_text()) for file in (SOURCE / "namm").rglob("*.py")}


def at_once(body: list[ast.stmt]) -> Iterator[ast.ImportFrom]:
    """Imports that a module makes when it is imported, or that a type checker makes; `namm` knows no others."""
    for node in body:
        if isinstance(node, ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If | ast.Try):
            yield from at_once([*node.body, *node.orelse])


def imported(body: list[ast.stmt]) -> set[str]:
    """The modules of `namm` among them."""
    names = {(node.module, alias.name) for node in at_once(body) if node.module for alias in node.names}
    both = {f"{module}.{name}" if f"{module}.{name}" in MODULES else module for module, name in names}
    return both & MODULES.keys()


def test_modules_import_each_other_in_one_direction() -> None:
    graph = {m: imported(tree.body) - {m} for m, tree in MODULES.items()}
    TopologicalSorter(graph).prepare()  # raises for a circle, and names it


def test_a_room_knows_only_those_below_it() -> None:
    (line,) = re.findall(r"\* \*\*One direction\.\*\*(.*?)\.\n", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    floors = [re.findall(r"`(\w+)`", part) for part in line.split(">")]
    floor = {room: number for number, rooms in enumerate(floors) for room in rooms}
    for module, tree in MODULES.items():
        for other in imported(tree.body):
            here, there = (f"{name}.".split(".")[1] for name in (module, other))
            if here != there and {here, there} <= floor.keys() and module != "namm.lm_eval.__main__":  # a command
                assert floor[here] < floor[there], f"{module} imports {other}"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_is_entered_by_its_init(room: str) -> None:
    package = import_module(f"namm.{room}")
    assert package.__all__ == sorted(set(package.__all__), key=lambda n: (not n.isupper(), not n[0].isupper(), n))
    assert all(getattr(package, name) is not None for name in package.__all__)
    others = {name: tree for name, tree in MODULES.items() if not name.startswith(f"namm.{room}")}
    for folder in ("benchmarks", "experiments"):
        others |= {str(file): ast.parse(file.read_text()) for file in (ROOT / folder).rglob("*.py")}
    for name, tree in others.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[:2] == ["namm", room]:
                known = node.module in GUESTS or node.module == f"namm.{room}"
                assert known, f"{name} imports from {node.module}, not from namm.{room}"
