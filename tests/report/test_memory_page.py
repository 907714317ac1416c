"""The memory page as a file: what is embedded, and that it needs nothing else. Browser tests click through it."""

import json
import re
from html.parser import HTMLParser
from importlib.resources import files

import pytest

import namm
from namm.report.forgetting import Forgetting, by_class, forgetting_of
from namm.report.memory_page import memory_page
from namm.report.recording import record
from namm.report.token_classes import CLASSES
from namm.trace import Event
from tests.report.test_trace import character_tokenizer
from tests.zoo import causal_model

NASTY = "</script><script>alert(1)</script> <!-- & \u2028 {{ data }} {% raw %} " * 2


def recorded(text: str = NASTY) -> list[Event]:
    return record(causal_model("llama"), character_tokenizer(), text, "h2o", namm.Budget(fraction=0.25), 32)


class Tags(HTMLParser):
    """Every tag with its attributes, and the text of every script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            self.scripts[-1] += data


def test_what_was_recorded_is_embedded() -> None:
    recordings = [{"title": "a", "traces": [recorded(), recorded()], "language": "prose"}]
    data, code = Tags(memory_page(recordings)).scripts
    assert json.loads(data) == {"live": None, "recordings": recordings, "layer": None, "classes": list(CLASSES)}
    assert "class Trace" in code
    assert "alert(1)" not in code


def test_text_and_titles_are_no_markup() -> None:
    page = memory_page([{"title": "<i>title</i>", "traces": [recorded()]}])
    assert len(Tags(page).scripts) == 2
    assert "<script>alert" not in page
    assert "<i>title" not in page
    assert "&lt;i&gt;title" in page


def test_it_needs_nothing_else() -> None:
    page = memory_page([{"title": "a", "traces": [recorded("times " * 12)]}])
    links = [value for _, attrs in Tags(page).tags for name, value in attrs.items() if name in ("src", "href")]
    assert links == ["data:,"]  # no icon, which browsers would ask the server for
    assert not re.search(r"(?i)https?:|//\w+\.\w|@import|url\(", page)


def test_a_live_page_embeds_no_recording() -> None:
    data, _ = Tags(memory_page(live={"example": {"text": NASTY, "question": "What?"}})).scripts
    assert json.loads(data) == {"live": {"example": {"text": NASTY, "question": "What?"}}, "recordings": []}
    assert 'class="app live"' in memory_page(live={})
    assert 'class="app recorded"' in memory_page([{"title": "a", "traces": [recorded()]}])


def test_every_asset_is_in_the_page() -> None:
    page = memory_page(live={})
    for file in (files("namm.report") / "templates").iterdir():
        if file.name.endswith((".js", ".css")):
            assert file.read_text(encoding="utf-8") in page


# -- what is kept of each class ----------------------------------------------------------------------------------------


def inspected(texts: dict[str, str], layer: int | None = None) -> tuple[str, dict[str, Forgetting]]:
    """The page of some texts with their classes, and what was kept of each text."""
    model, tokenizer = causal_model("llama"), character_tokenizer()
    budget = namm.Budget(fraction=0.25)
    runs = {title: forgetting_of(model, tokenizer, text, "h2o", budget, 32) for title, text in texts.items()}
    recordings = [
        {"title": title, "traces": [run.events], "classes": list(run.classes.names)} for title, run in runs.items()
    ]
    return memory_page(recordings, runs=runs, layer=layer), runs


def test_the_page_holds_the_whole_text_and_what_was_kept_of_it() -> None:
    page, runs = inspected({"<i>title</i>": NASTY})
    (recording,) = json.loads(Tags(page).scripts[0])["recordings"]
    start = recording["traces"][0][0]
    assert len(start["tokens"]) == len(recording["classes"]) == len(runs["<i>title</i>"].spans)
    assert recording["classes"] == list(runs["<i>title</i>"].classes.names)
    assert len(Tags(page).scripts) == 2
    assert "<script>alert" not in page
    assert "<i>title" not in page


def test_with_its_figure_it_needs_nothing_else() -> None:
    page, _ = inspected({"a": "times " * 12, "$x^2$ </svg>": "import os\n" * 8})
    links = [value for _, attrs in Tags(page).tags for name, value in attrs.items() if name in ("src", "href")]
    assert all(link and (link.startswith(("data:", "#layers-"))) for link in links)
    assert not re.search(r"(?i)https?:|@import|url\(", page)
    ids = [attrs["id"] for _, attrs in Tags(page).tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert page.count("</svg>") == 2  # the curve of a memory, and the figure
    assert "$x^2$ &lt;/svg&gt;: " in page[page.index('aria-label="what was kept') :]


def test_several_texts_are_compared() -> None:
    assert "Does it adapt" not in inspected({"prose": "It was the best of times. " * 4})[0]
    page, runs = inspected({"prose": "It was the best of times. " * 4, "code": "import os\nx = 1\n" * 5}, layer=1)
    comparison = page[page.index("Does it adapt") : page.index("Layer by layer")]
    assert comparison.index(">prose<") < comparison.index(">code<")
    assert "in layer 1" in comparison
    rows = dict(re.findall(r'<th scope="row">(.*?)</th>(.*?)</tr>', comparison, re.DOTALL))
    of_texts = [{row.name: row for row in by_class(run, layer=1)} for run in runs.values()]
    assert list(rows) == [name for name in CLASSES if any(name in found for found in of_texts)]
    for name, cells in rows.items():
        shown = re.findall(r"<td[^>]*>\s*(.*?)\s*(?:<small>.*?)?</td>", cells, re.DOTALL)
        ratios = [found[name].ratio_among_neighbours if name in found else None for found in of_texts]
        assert [text.rstrip("*") for text in shown] == ["&ndash;" if r is None else f"{r:.2f}" for r in ratios]


def test_the_page_opens_on_a_layer() -> None:
    page, _ = inspected({"a": "times " * 12}, layer=1)
    assert json.loads(Tags(page).scripts[0])["layer"] == 1


def test_pages_of_nothing_are_refused() -> None:
    with pytest.raises(namm.ConfigurationError, match="recordings or a live page; got neither"):
        memory_page()
    with pytest.raises(namm.ConfigurationError, match="one or two memories of 'a'; got 3"):
        memory_page([{"title": "a", "traces": [recorded()] * 3}])
