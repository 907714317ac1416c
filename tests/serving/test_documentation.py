"""The example of docs/serve.md, typed against a server of the tiny model."""

import re
from pathlib import Path

from tests.serving.conftest import Serve
from tests.serving.test_answers import LONG

PAGE = Path(__file__).parents[2] / "docs" / "serve.md"


def test_the_example_runs(serve: Serve, tmp_path: Path, monkeypatch, capsys) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "chapter.txt").write_text(LONG)
    monkeypatch.chdir(tmp_path)
    block = block.replace("http://127.0.0.1:8000", serve().url).replace("smollm2-135m-instruct", "tiny")
    exec(compile(block, str(PAGE), "exec"), {})
    cached, usage = capsys.readouterr().out.splitlines()
    assert int(cached) > 300
    assert "kept_tokens" in usage
