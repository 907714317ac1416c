"""The live page beside a server, clicked through in Chromium: a stand-in, or the server of `--live-url`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.browser.standin import StandIn
from tests.browser.test_recorded_page import settle

pytestmark = pytest.mark.browser

LONG = "The harbour lay still, and nobody spoke of the letter that had come from Bath that morning. " * 30
Open, Picture = Callable[..., Any], Callable[..., None]


def ready(page: Any) -> Any:
    page.wait_for_function("document.getElementById('left').options.length > 0")
    page.locator("#longest").evaluate("(field) => { field.value = 24; }")
    return page


def send(page: Any, text: str) -> None:
    page.fill("#message", text)
    page.click("#send")


def finished(page: Any, answers: int = 1) -> None:
    """Wait until so many answers are there, all complete."""
    page.wait_for_function(
        f"document.querySelectorAll('.answer').length === {answers} && !document.querySelector('.answer.working')",
        timeout=120_000,
    )
    settle(page)


def shades(page: Any, panel: int = 0) -> int:
    """Tokens that not every head holds."""
    box = page.locator(".panel").nth(panel).locator(".text")
    return int(box.evaluate("(text) => text.querySelectorAll('span:not(.k16):not(.u)').length"))


def test_tokens_fade_while_it_reads(open_page: Open, base_url: str, picture: Picture) -> None:
    page = ready(open_page(base_url))
    picture(page, "empty")
    send(page, LONG)
    page.wait_for_function("document.querySelectorAll('.text span:not(.k16):not(.u)').length > 20", timeout=120_000)
    early = shades(page)
    assert page.locator(".text .u").count() > 0 or page.locator(".answer.working").count() == 0
    picture(page, "reading")
    finished(page)
    assert shades(page) >= early
    assert page.locator(".answer .said").inner_text().strip()
    assert "of a full cache" in page.locator(".answer .status").inner_text()
    assert page.locator("#slider").input_value() == page.locator("#slider").get_attribute("max")
    picture(page, "answered")


def test_the_slider_stays_where_it_was_put(open_page: Open, base_url: str) -> None:
    page = ready(open_page(base_url))
    send(page, LONG)
    finished(page)
    page.locator("#slider").fill("1")
    settle(page)
    shown = page.locator("#when").inner_text()
    assert "update 1 of" in shown
    send(page, "And then?")
    finished(page, 2)
    assert page.locator("#slider").input_value() == "1"
    page.click("#now")
    settle(page)
    assert page.locator("#when").inner_text() != shown


def test_a_second_turn_goes_on(open_page: Open, base_url: str) -> None:
    page = ready(open_page(base_url))
    send(page, LONG)
    finished(page)
    updates = page.evaluate("panels[0].trace.updates.length")
    assert updates > 0
    send(page, "And then?")
    finished(page, 2)
    assert page.evaluate("panels[0].trace.about.continues") > 0
    assert page.evaluate("panels[0].trace.updates.length") >= updates
    assert "of them before" in page.locator(".answer .status").last.inner_text()
    page.click("#fresh")
    settle(page)
    assert page.locator(".answer").count() == 0
    assert page.evaluate("panels[0].trace.tokens.length") == 0


def test_two_memories_side_by_side(open_page: Open, base_url: str, picture: Picture) -> None:
    page = ready(open_page(base_url))
    page.select_option("#right", index=2)
    send(page, LONG)
    finished(page, 2)
    assert page.locator(".panel").count() == 2
    assert page.locator(".answer h3").count() == 2
    assert shades(page, 0) != shades(page, 1)
    page.locator('.panel:nth-child(1) [data-i="60"]').hover()
    page.locator("#card").wait_for()
    assert page.locator("#card canvas").count() == 2
    picture(page)
    page.select_option("#right", index=0)
    settle(page)
    assert page.locator(".panel").count() == 1


def test_long_texts_are_attached(open_page: Open, base_url: str, tmp_path: Any) -> None:
    page = ready(open_page(base_url))
    page.evaluate(
        """(text) => {
          const data = new DataTransfer();
          data.setData('text', text);
          const event = new ClipboardEvent('paste', { clipboardData: data, bubbles: true, cancelable: true });
          document.getElementById('message').dispatchEvent(event);
        }""",
        LONG,
    )
    assert "pasted text" in page.locator("#attached").inner_text()
    file = tmp_path / "chapter.txt"
    file.write_text("A short chapter.")
    page.set_input_files("#file", file)
    page.locator("#attached .chip").nth(1).wait_for()
    page.get_by_label("Take pasted text away").click()
    send(page, "What is it about?")
    finished(page)
    assert "chapter.txt" in page.locator(".asked summary").inner_text()
    assert page.evaluate("panels[0].messages[0].content") == "A short chapter.\n\nWhat is it about?"


def test_by_keyboard_alone(open_page: Open, base_url: str) -> None:
    page = ready(open_page(base_url))
    page.focus("#message")
    page.keyboard.type("Good day. ")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("How are you?")
    page.keyboard.press("Enter")
    finished(page)
    assert page.evaluate("panels[0].messages[0].content") == "Good day. \nHow are you?"
    assert page.evaluate("document.activeElement.id") == "message"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone(open_page: Open, base_url: str, picture: Picture, scheme: str) -> None:
    page = ready(open_page(base_url, 390, 844, has_touch=True, is_mobile=True, color_scheme=scheme))
    send(page, LONG)
    finished(page)
    picture(page, "chat")
    page.locator(".views button").nth(1).tap()
    settle(page)
    assert page.locator("#panels").is_visible()
    assert page.locator("#chat").is_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    picture(page, "memory")


def test_dark(open_page: Open, base_url: str, picture: Picture) -> None:
    page = ready(open_page(base_url, color_scheme="dark"))
    send(page, LONG)
    finished(page)
    page.locator('.text [data-i="40"]').hover()
    picture(page)


# -- what only a stand-in does at will ---------------------------------------------------------------------------------


def test_the_example(open_page: Open, standin: StandIn) -> None:
    page = ready(open_page(standin.url))
    page.click("#example")
    assert "novel" in page.locator("#attached").inner_text()
    page.keyboard.press("Enter")  # the focus is on Send
    finished(page)
    content = standin.requests[0]["messages"][0]["content"]
    assert content.endswith("folly. \n\nWhich times were they?")
    assert standin.requests[0]["namm"] == {"watch": True}


def test_stopping(open_page: Open, standin: StandIn) -> None:
    standin.pause = 0.1
    page = ready(open_page(standin.url))
    send(page, LONG)
    page.wait_for_function("document.querySelectorAll('.text span').length > 0")
    page.click("#stop")
    finished(page)
    assert "stopped" in page.locator(".status").inner_text()
    assert page.locator(".error").count() == 0
    assert page.locator("#message").input_value() == LONG
    standin.pause = 0.01
    page.click("#send")
    finished(page, 2)
    assert len(standin.requests[-1]["messages"]) == 1


def test_errors_are_told(open_page: Open, standin: StandIn) -> None:
    page = ready(open_page(standin.url, expected="400 (Bad Request)"))
    send(page, "naïve")
    page.locator(".error").wait_for()
    assert page.locator(".error").inner_text() == "The stand-in reads ASCII only."
    standin.fails = "Too many tokens."
    send(page, LONG)
    page.locator(".error").nth(1).wait_for()
    assert page.locator(".error").nth(1).inner_text() == "Too many tokens."


def test_a_server_that_is_gone(open_page: Open, standin: StandIn) -> None:
    page = ready(open_page(standin.url, expected="ERR_CONNECTION_REFUSED"))
    standin.shutdown()
    standin.server_close()
    send(page, "Are you there?")
    page.locator(".error").wait_for()
    assert "cannot be reached" in page.locator(".error").inner_text()


def test_a_server_with_a_key(open_page: Open, standin: StandIn, picture: Picture) -> None:
    standin.key = "secret"
    page = open_page(standin.url, expected="401 (Unauthorized)")
    page.locator("#key").wait_for()
    picture(page)
    page.fill("#key-value", "wrong")
    page.keyboard.press("Enter")
    page.wait_for_function("document.getElementById('key-note').textContent.includes('not accepted')")
    page.fill("#key-value", "secret")
    page.keyboard.press("Enter")
    ready(page)
    send(page, "Thank you.")
    finished(page)
    assert page.evaluate("sessionStorage.getItem('namm-key')") == "secret"
