"""The page stands alone, is well formed, and says what each number is."""

import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from namm.report.evaluation_page import COLUMNS, to_html
from namm.report.figures import COLOURS
from namm.report.score_figures import Chart, Curve, Look, Point, drawn
from namm.report.statistics import summarise
from tests.report.made import NAMM, evaluation, row, samples

ALONE = {"meta", "br"}
LOOK = Look(COLOURS["line-0"], "o")


class Page(HTMLParser):
    """Checks that elements are closed in order, and gathers ids, links, headings and table shapes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.sources: list[str] = []
        self.shapes: list[list[int]] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found["href"]] if "href" in found else []
        self.sources += [found["src"]] if "src" in found else []
        if tag not in ALONE:
            self.open.append(tag)
        if tag == "table":
            self.shapes.append([])
        if tag == "tr":
            self.shapes[-1].append(0)
        if tag in ("td", "th"):
            self.shapes[-1][-1] += 1

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def page() -> str:
    config = {"config": {"model": "m", "tasks": ["<all>"]}, "memories": {NAMM: {"sha256": "0"}}}
    return to_html(summarise(evaluation(4), config), "A model & its <memory>")


def test_the_page_is_well_formed_and_stands_alone(page: str) -> None:
    found = Page(page)
    assert len(found.ids) == len(set(found.ids))
    assert all(link[0] == "#" and link[1:] in found.ids for link in found.links)
    assert not found.sources
    assert "<script" not in page
    assert "url(" not in page
    assert "http" not in page
    assert all(len(set(shape)) == 1 for shape in found.shapes)
    assert "A model & its <memory>" in found.text
    assert "<all>" in found.text


def test_the_page_fits_a_phone_and_the_dark(page: str) -> None:
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    assert "prefers-color-scheme: dark" in page
    assert page.count("<table") == page.count('<div class="box"')
    assert f"var(--learned-0, {COLOURS['learned-0']})" in page
    assert re.search(r"prefers-color-scheme: dark\) \{\s*:root \{[^}]*--learned-0: #[0-9a-f]{6};", page)


def test_every_column_is_explained(page: str) -> None:
    found = Page(page)
    for key, (name, about) in COLUMNS.items():
        assert f"c-{key}" in found.ids
        assert name in found.text
        assert about in found.text
    for words in ("How to read this", "95 % interval", "Configuration and versions", "abc1234", "two cores"):
        assert words in found.text


def test_every_policy_is_in_every_overall_chart(page: str) -> None:
    chart = page[page.index("<svg") : page.index("</svg>")]
    assert chart.startswith('<svg viewBox="0 0 900 400" role="img"')
    for name in ("full cache", "oracle", "h2o", "random", "truncated prompt", "streaming (recency)", "NAMM universal"):
        assert f">{name}" in chart
    assert "own</text>" in chart
    assert page.count('class="wide"') == page.count('class="narrow"') == 4


def test_refusals_and_gaps_are_shown() -> None:
    rows = samples({"full": [1.0, 1.0], "h2o": [2.0, 2.0], NAMM: [1.5]})
    rows += samples({"tova": [2.0, 2.0]}, bytes_held=40.0)
    text = Page(to_html(summarise(rows), "t")).text
    assert "bytes differ" in text
    assert "1 missing" in text
    assert "no floor rows" in text
    assert "Exact replies over bytes" in text  # nothing can be normalised
    assert "Normalised score over bytes" not in text


@pytest.mark.parametrize("rows", [[row("full", 1.0)], [row("h2o", 1.0)], [row(NAMM, 1.0, budget="own")]])
def test_a_page_of_one_row(rows: list[dict]) -> None:
    Page(to_html(summarise(rows), "t"))


def test_names_are_escaped() -> None:
    rows = [row(policy, nll, task="<b>&") for policy, nll in (("full", 1.0), ("floor", 3.0), ("<i>/x", 2.0))]
    found = Page(to_html(summarise(rows), "t"))
    assert "<b>&" in found.text
    assert "NAMM <i>/x" in found.text


def test_names_are_no_formulas() -> None:
    rows = [row(policy, nll, task="$x^2$") for policy, nll in (("full", 1.0), ("floor", 3.0), ("a/$y_1$", 2.0))]
    page = to_html(summarise(rows), "t")
    chart = page[page.index("<svg") : page.index("</svg>")]
    assert ">NAMM a/$y_1$<" in chart


def test_points_beyond_the_edge_are_arrows_with_their_value() -> None:
    points = (Point(0.25, -3.0, -3.5, -2.5), Point(0.5, 0.5))
    chart = Chart("t", (Curve("h2o", LOOK, points),), (("full", LOOK, 1.0),), (0.25, 0.5), -0.5, 1.5)
    figure = drawn(chart, 360, 250, False, "a")
    found = re.findall(r'<defs><path id="(.*?)" d="(.*?)"', figure)
    arrows = [name for name, outline in found if outline.count("L") > 5 and "C" not in outline]
    assert len(arrows) == 1
    assert figure.count(f'href="#{arrows[0]}"') == 1
    assert "<title>h2o, 25 % of the bytes: -3.00 [-3.50, -2.50]</title>" in figure
    assert "<title>h2o</title>" in figure


def test_labels_do_not_overlap() -> None:
    curves = tuple(Curve(f"p{i}", LOOK, (Point(0.5, 0.5),)) for i in range(12))
    figure = drawn(Chart("t", curves, (), (0.5,), 0.0, 1.0), 900, 400, True, "a")
    places = sorted(float(y) for y in re.findall(r'<text [^>]*? y="([\d.]+)"[^>]*>p\d+<', figure))
    assert len(places) == 12
    assert min(b - a for a, b in pairwise(places)) >= 14.9
