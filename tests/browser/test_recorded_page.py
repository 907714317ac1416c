"""The self-contained page, clicked through in Chromium."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import namm
from namm.report.forgetting import Forgetting, by_class, forgetting_of
from namm.report.memory_page import Recording, memory_page
from namm.report.recording import record
from namm.trace import Event, unpacked
from tests.report.test_trace import character_tokenizer
from tests.zoo import causal_model

pytestmark = pytest.mark.browser

TEXT = "It was the best of times, it was the worst of times;\nit was the age of </script> wisdom. " * 4
INTERVAL = 64


def recorded(memory: str, text: str = TEXT) -> list[Event]:
    return record(causal_model("llama"), character_tokenizer(), text, memory, namm.Budget(fraction=0.25), INTERVAL)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    recordings: list[Recording] = [
        {"title": "times", "traces": [recorded("h2o"), recorded("streaming")]},
        {"title": "other times", "traces": [recorded("h2o", TEXT.upper())]},
    ]
    file = tmp_path_factory.mktemp("page") / "memory.html"
    file.write_text(memory_page(recordings), encoding="utf-8")
    return file.as_uri()


def held(memory: str, update: int, token: int) -> int:
    """Heads that hold a token after an update, counted from 1."""
    events = [event for event in recorded(memory) if event["type"] == "update"]
    return int(unpacked(events[update - 1]["held"], 2, 2, events[update - 1]["seen"])[:, :, token].sum())


def level(page: Any, token: int, panel: int = 0) -> str:
    classes = page.locator(".panel").nth(panel).locator(f'[data-i="{token}"]').get_attribute("class")
    return str(classes).split()[0]


def set_time(page: Any, place: int) -> None:
    page.locator("#slider").fill(str(place))
    settle(page)


def settle(page: Any) -> None:
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def test_shades_are_what_is_held(open_page: Callable[..., Any], address: str, picture: Callable[..., None]) -> None:
    page = open_page(address)
    for update in (1, 3):
        set_time(page, update)
        for panel, memory in enumerate(("h2o", "streaming")):
            for token in range(0, INTERVAL, 7):
                assert level(page, token, panel) == f"k{4 * held(memory, update, token)}"
    set_time(page, 1)
    assert level(page, INTERVAL) == "u"
    assert f"64 of {len(TEXT)} tokens read, update 1 of 5" in page.locator("#when").inner_text()
    set_time(page, 0)
    assert level(page, 0) == "u"
    page.click("#now")
    settle(page)
    assert page.locator(".panel").first.locator(".text").inner_text().replace("↵", "").count("best of times") == 4
    picture(page)


def test_heads_narrow_the_text(open_page: Callable[..., Any], address: str) -> None:
    page = open_page(address)
    set_time(page, 3)
    events = [event for event in recorded("h2o") if event["type"] == "update"]
    kept = unpacked(events[2]["held"], 2, 2, 3 * INTERVAL)
    cells = page.locator(".panel").first.locator(".grid [data-cell]")
    first = cells.nth(2)  # rows are heads: layer 0 and 1 of head 0, then of head 1
    first.click()
    settle(page)
    assert [level(page, i) for i in range(40)] == [f"k{16 * kept[0, 1, i]}" for i in range(40)]
    assert "1 of 4 heads" in page.locator(".heads-note").first.inner_text()
    page.get_by_title("layer 1", exact=True).first.click()
    settle(page)
    assert "3 of 4 heads" in page.locator(".heads-note").first.inner_text()
    page.get_by_role("button", name="All heads", exact=True).first.click()
    settle(page)
    assert "All heads" in page.locator(".heads-note").first.inner_text()


def test_a_token_tells_its_fate(open_page: Callable[..., Any], address: str, picture: Callable[..., None]) -> None:
    page = open_page(address)
    page.hover('.panel:nth-child(1) [data-i="30"]')
    card = page.locator("#card")
    card.wait_for()
    last = held("h2o", 5, 30)
    assert f"held by {last} of 4 heads" in card.inner_text()
    assert card.locator("canvas").count() == 2  # the other memory read the same token
    assert page.locator(".chosen").count() == 2
    picture(page)
    page.hover("h1")
    assert card.is_hidden()


def test_other_texts(open_page: Callable[..., Any], address: str) -> None:
    page = open_page(address)
    page.select_option("#text", label="other times")
    settle(page)
    assert page.locator(".panel").count() == 1
    assert "IT WAS THE BEST" in page.locator(".text").inner_text()
    page.select_option("#text", label="times")
    settle(page)
    assert page.locator(".panel").count() == 2


def test_it_plays(open_page: Callable[..., Any], address: str) -> None:
    page = open_page(address, reduced_motion="reduce")
    page.click("#play")
    page.wait_for_function("document.getElementById('slider').value === '2'")
    assert page.locator("#play").inner_text() == "Pause"
    page.click("#play")
    assert page.locator("#play").inner_text() == "Play"
    moving = page.evaluate("getComputedStyle(document.querySelector('.text span')).transitionDuration")
    assert moving in ("0s", "")


def test_by_keyboard_alone(open_page: Callable[..., Any], address: str, picture: Callable[..., None]) -> None:
    page = open_page(address)

    def focus(selector: str) -> None:
        for _ in range(20):
            page.keyboard.press("Tab")
            if page.evaluate("(s) => document.activeElement.matches(s)", selector):
                return
        raise AssertionError(f"{selector} cannot be reached")

    focus("#slider")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    settle(page)
    assert "update 1 of" in page.locator("#when").inner_text()
    focus(".grid button")
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    settle(page)
    assert page.locator('.panel:nth-child(1) .grid [aria-pressed="true"]').count() == 1
    focus(".text")
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowDown", "ArrowUp"):
        page.keyboard.press(key)
    assert page.locator("#card").is_visible()
    assert "position 2" in page.locator("#said").inner_text()
    picture(page)
    page.keyboard.press("Escape")
    assert page.locator("#card").is_hidden()


def test_dark(open_page: Callable[..., Any], address: str, picture: Callable[..., None]) -> None:
    page = open_page(address, color_scheme="dark")
    page.hover('.panel:nth-child(2) [data-i="100"]')
    picture(page)
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert all(int(part) < 60 for part in paper.removeprefix("rgb(").removesuffix(")").split(","))


@pytest.mark.parametrize("width", [320, 390])
def test_phone(open_page: Callable[..., Any], address: str, picture: Callable[..., None], width: int) -> None:
    page = open_page(address, width, 844, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    picture(page)
    token = page.locator('.panel:nth-child(1) [data-i="20"]')
    token.scroll_into_view_if_needed()
    token.tap()
    box = page.locator("#card").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    picture(page, "card")
    token.tap()
    assert page.locator("#card").is_hidden()


# -- what is kept of each class ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs() -> dict[str, Forgetting]:
    texts = {"prose": TEXT, "code": "import os\n\ndef area(r):\n    return 3.14 * r  # a circle\n\n" * 5}
    budget, tokenizer = namm.Budget(fraction=0.25), character_tokenizer()
    return {
        title: forgetting_of(causal_model("llama"), tokenizer, text, "h2o", budget, INTERVAL)
        for title, text in texts.items()
    }


def inspected(folder: Path, runs: dict[str, Forgetting], layer: int | None = None) -> str:
    recordings: list[Recording] = [
        {"title": title, "traces": [run.events], "language": run.classes.language, "classes": list(run.classes.names)}
        for title, run in runs.items()
    ]
    file = folder / "inspect.html"
    file.write_text(memory_page(recordings, runs=runs, layer=layer), encoding="utf-8")
    return file.as_uri()


def shown(page: Any) -> list[list[str]]:
    rows = page.locator(".panel .classes tbody tr")
    return [row.locator("th, td").all_inner_texts() for row in rows.all()]


def expected(run: Forgetting, layer: int | None = None) -> list[list[str]]:
    def words(ratio: float) -> str:
        return "\u2013" if math.isnan(ratio) else f"{ratio:.2f}"

    return [
        [row.name + "*" * (row.tokens < 20), str(row.tokens), f"{row.share:.0%}", words(row.ratio),
         words(row.ratio_among_neighbours)]
        for row in by_class(run, layer=layer)
    ]  # fmt: skip


def agree(found: list[list[str]], wanted: list[list[str]]) -> bool:
    """Shares within a per cent: the page and Python round halves to another side."""
    return len(found) == len(wanted) and all(
        (a[0], a[1]) == (b[0], b[1])
        and abs(float(a[2].rstrip(" %")) - float(b[2].rstrip("%"))) <= 1
        and all(x == y or abs(float(x) - float(y)) < 0.011 for x, y in zip(a[3:], b[3:], strict=True))
        for a, b in zip(found, wanted, strict=True)
    )


def test_classes_follow_text_heads_and_time(
    open_page: Callable[..., Any], tmp_path: Path, runs: dict[str, Forgetting], picture: Callable[..., None]
) -> None:
    page = open_page(inspected(tmp_path, runs))
    assert agree(shown(page), expected(runs["prose"])), shown(page)
    page.get_by_title("layer 1", exact=True).click()
    settle(page)
    assert agree(shown(page), expected(runs["prose"], 1)), shown(page)
    page.get_by_role("button", name="All heads", exact=True).click()
    page.select_option("#text", label="code")
    settle(page)
    assert agree(shown(page), expected(runs["code"])), shown(page)
    page.hover('[data-i="0"]')
    assert "keywords, position 0" in page.locator("#card").inner_text()
    picture(page)
    set_time(page, 1)
    assert sum(int(row[1]) for row in shown(page)) == INTERVAL
    set_time(page, 0)
    assert shown(page) == []


def test_it_opens_on_a_layer(open_page: Callable[..., Any], tmp_path: Path, runs: dict[str, Forgetting]) -> None:
    page = open_page(inspected(tmp_path, runs, layer=1))
    settle(page)
    assert agree(shown(page), expected(runs["prose"], 1)), shown(page)
    pressed = page.locator('.grid [data-cell][aria-pressed="true"]')
    assert [button.get_attribute("data-cell") for button in pressed.all()] == ["2", "3"]
    chosen = [f"k{round(16 * share)}" for share in runs["prose"].kept[1][:40].tolist()]
    assert [level(page, i) for i in range(40)] == chosen


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (1440, "dark"), (390, "light")])
def test_texts_are_compared(
    open_page: Callable[..., Any],
    tmp_path: Path,
    runs: dict[str, Forgetting],
    picture: Callable[..., None],
    width: int,
    scheme: str,
) -> None:
    page = open_page(inspected(tmp_path, runs), width, 844, color_scheme=scheme)
    page.click("#open-classes")
    dialog = page.locator("#classes")
    assert "Does it adapt to what it reads?" in dialog.inner_text()
    box = dialog.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    picture(page)
    ink = page.evaluate("getComputedStyle(document.body).color")
    assert page.evaluate("getComputedStyle(document.querySelector('#classes svg text')).fill") == ink
    dialog.locator("svg").scroll_into_view_if_needed()
    picture(page, "figure")
    page.keyboard.press("Escape")
    assert dialog.is_hidden()


# -- histories, and many tokens ----------------------------------------------------------------------------------------


def test_a_text_that_goes_on_keeps_its_history(open_page: Callable[..., Any], address: str) -> None:
    page = open_page(address)
    found = page.evaluate("""() => {
      const trace = new Trace(), bytes = { bytes_held: 1, bytes_full: 2 };
      const start = { type: 'start', memory: 'm', layers: [0], heads: 1, bytes_per_token: 1, continues: 0, held: null };
      trace.feed({ ...start, tokens: ['a', 'b', 'c', 'd'] });
      trace.feed({ type: 'update', seen: 2, held: btoa('\\x40'), ...bytes });  // b
      trace.feed({ type: 'update', seen: 4, held: btoa('\\x10'), ...bytes });  // d
      const before = [0, 1, 2, 3].map((token) => trace.fate(token)[0]);
      trace.feed({ ...start, tokens: ['a', 'b', 'x'], continues: 2, held: btoa('\\x40') });  // from the first update on
      const after = [0, 1, 2].map((token) => trace.fate(token)[0]);
      trace.feed({ ...start, tokens: ['y', 'z'], continues: 2, held: btoa('\\x40') });  // another text, read elsewhere
      return [before, after, [0, 1].map((token) => trace.fate(token)[0]), trace.updates];
    }""")
    assert found == [[1, 2, 2, 0], [1, 0, 0], [1, 0], [{"seen": 2, "earlier": True}]]


def test_many_tokens_are_fast(open_page: Callable[..., Any], tmp_path: Path) -> None:
    """8,000 tokens and 90 heads: a move of the slider takes less than the blink of an eye, on a slow machine too."""
    import numpy as np

    from namm.trace import packed

    layers, heads, tokens, interval = 30, 3, 8000, 500
    chance, kept, events = np.random.default_rng(0), np.zeros((layers, heads, 0), dtype=bool), []
    for seen in range(interval, tokens + 1, interval):
        kept = np.concatenate([kept, np.ones((layers, heads, interval), dtype=bool)], axis=-1)
        kept &= chance.random(kept.shape) < 0.8
        sizes = {"bytes_held": int(kept.sum()), "bytes_full": layers * heads * seen}
        events.append({"type": "update", "seen": seen, "held": packed(kept), **sizes})
    start = {
        "type": "start", "model": "m", "memory": "random", "rule": "", "layers": list(range(layers)), "heads": heads,
        "bytes_per_token": layers * heads, "interval": interval, "tokens": ["word "] * tokens, "continues": 0,
        "held": None,
    }  # fmt: skip
    file = tmp_path / "large.html"
    file.write_text(memory_page([{"title": "large", "traces": [[start, *events]]}]), encoding="utf-8")
    page = open_page(file.as_uri())
    settle(page)
    took = page.evaluate("""() => [3, 12, 7, 15, 1].map((place) => {
      const started = performance.now();
      timeline.go(place);
      paintPage();
      document.body.offsetHeight;
      return performance.now() - started;
    })""")
    assert sorted(took)[2] < 250, took
