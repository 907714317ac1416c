"""Chromium, the pages it opens, and who serves them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.standin import StandIn, serving

PICTURES = Path(__file__).parents[2] / "test-output" / "browser"
_FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.fail("expected Chromium for the browser tests; got none. Run: apt-get install chromium", pytrace=False)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Opens an address in a window of its own; what goes wrong there, and what it fetches elsewhere, fails the test."""
    wrong: list[str] = []
    contexts = []

    def opened(address: str, width: int = 1440, height: int = 900, expected: str = "", **options: Any) -> Any:
        """`expected`: part of console messages that this test provokes."""
        context = chromium.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: _complaint(message, expected) and wrong.append(message.text))
        page.on("request", lambda request: request.url.startswith((address, "data:")) or wrong.append(request.url))
        page.goto(address)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


def _complaint(message: Any, expected: str) -> bool:
    return message.type in ("error", "warning") and not (expected and expected in message.text)


@pytest.fixture
def standin() -> Iterator[StandIn]:
    with serving() as server:
        yield server


@pytest.fixture
def base_url(request: pytest.FixtureRequest) -> str:
    """Where the live page is: `--live-url`, or a stand-in."""
    given = request.config.getoption("--live-url")
    return given or request.getfixturevalue("standin").url


@pytest.fixture
def picture(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Keeps a picture of a page, under the name of the test."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"\W+", "_", request.node.name.removeprefix("test_")).strip("_")

    def taken(page: Any, part: str = "") -> None:
        page.screenshot(path=PICTURES / f"{name}{part and '_' + part}.png")

    return taken
