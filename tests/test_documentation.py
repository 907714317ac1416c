"""What the documentation shows works when typed."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.version import Version

from namm import compat

ROOT = Path(__file__).parents[1]
PAGES = [
    "README.md",
    "docs/use.md",
    "docs/which-memory.md",
    "docs/how-it-works.md",
    "docs/evolve.md",
    "docs/evaluate.md",
    "docs/inspect.md",
]
MORE = ["docs/lm-evaluation-harness.md", "docs/kvpress.md", "docs/walk-through.md", "docs/vision.md", "docs/control.md"]
SERVING = ["docs/serve.md", "docs/serve-replicas.md"]
EXPERIMENTS = ["experiments/control/README.md", "experiments/video/README.md"]
LINKED = [*PAGES, *MORE, *SERVING, *EXPERIMENTS, "CONTRIBUTING.md", "CHANGELOG.md"]


@pytest.mark.model
@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_run(page: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    namespace: dict[str, object] = {"__name__": "documentation"}
    for block in blocks:
        exec(compile(block, page, "exec"), namespace)


@pytest.mark.parametrize("page", LINKED)
def test_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text())
    for link in links:
        assert (ROOT / page).parent.joinpath(link).exists(), link


def test_the_oldest_versions_are_those_that_are_promised() -> None:
    """What `make test-oldest` installs is the lower bound of every package that it installs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(one for name in ("demo", "serve", "eval", "evolve") for one in extras[name])]
    bounds = {}
    for requirement in wanted:
        name, _, bound = requirement.partition(">=")
        bounds[name.replace("_", "-")] = bound.split(",")[0]
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    pins = dict(line.replace("_", "-").split("==") for line in lines if "==" in line)
    assert pins.keys() == bounds.keys()
    assert all(Version(pins[name]) == Version(bound) for name, bound in bounds.items())


def test_the_versions_that_were_tried_are_those_that_pip_may_pick() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (bound,) = (one for one in project["dependencies"] if one.startswith("transformers"))
    oldest, newest = compat.TESTED
    assert bound == f"transformers>={oldest[0]}.{oldest[1]},<{newest[0]}.{newest[1] + 1}"
    pinned = re.search(r"^transformers==(\d+)\.(\d+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert tuple(map(int, pinned.groups())) == newest
