"""What the documentation shows works when typed."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "docs/how-it-works.md", "docs/evolve.md", "docs/evaluate.md", "docs/inspect.md"]
MORE = ["docs/lm-evaluation-harness.md", "docs/transfer.md", "docs/vision.md", "docs/control.md"]
SERVING = ["docs/serve.md", "docs/serve-replicas.md"]
LINKED = [*PAGES, *MORE, *SERVING, "CONTRIBUTING.md", "CHANGELOG.md"]


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
