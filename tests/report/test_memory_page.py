"""The memory page as a file: what is embedded, and that it needs nothing else. Browser tests click through it."""

import json
import re
from html.parser import HTMLParser
from importlib.resources import files

import pytest

import namm
from namm.report.memory_page import memory_page
from namm.report.trace import Event, record
from tests.report.test_trace import character_tokenizer
from tests.zoo import causal_model

NASTY = "</script><script>alert(1)</script> <!-- & \u2028 $data ${data} " * 2


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
    assert json.loads(data) == {"live": None, "recordings": recordings}
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
    assert 'class="live"' in memory_page(live={})
    assert 'class="recorded"' in memory_page([{"title": "a", "traces": [recorded()]}])


def test_every_asset_is_in_the_page() -> None:
    page = memory_page(live={})
    for file in (files("namm.report") / "page").iterdir():
        if file.name.endswith((".js", ".css")):
            assert file.read_text(encoding="utf-8") in page


def test_pages_of_nothing_are_refused() -> None:
    with pytest.raises(namm.ConfigurationError, match="recordings or a live page; got neither"):
        memory_page()
    with pytest.raises(namm.ConfigurationError, match="one or two memories of 'a'; got 3"):
        memory_page([{"title": "a", "traces": [recorded()] * 3}])
