"""The report in a browser: its slider, its hostile texts, a phone, the dark and paper."""

import shutil

import pytest

from personality_vector.report.page import write_report
from tests.report.stores import STRENGTHS, Made

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")

HOSTILE = (
    "<script>document.title = 'run'</script></template></blockquote> \"'` &lt;b&gt; \u202egnp.exe "
    f"\x1b[31m {'w' * 400}"
)
SHOWN = HOSTILE.replace("\x1b", "\u241b")
STRENGTH = ".arms > div:nth-child(2) .cell:visible .strength"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Return the address of the report of a comparison whose model says what it should not."""
    labels = ("weights", "<img src=x onerror=alert(1)>")
    folder = tmp_path_factory.mktemp("browser")
    run = Made(folder, labels, reply=HOSTILE, pole="extraversion:high", matched=0.7).write()
    return write_report(run).as_uri()


@pytest.fixture
def opened(browser, address):
    """Return a function that opens the report, and checks that it asks and complains of nothing."""
    wrong: list[str] = []
    contexts = []

    def make(**options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda sent: wrong.append(sent.url) if sent.url != address else None)
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.goto(address)
        return page

    yield make
    for context in contexts:
        context.close()
    assert wrong == []


def test_the_slider_moves_by_keyboard_and_mouse_and_says_where_it_is(opened):
    page = opened(viewport={"width": 1280, "height": 900})
    slider = page.get_by_role("slider", name="Strength")
    slider.focus()
    page.keyboard.press("Home")
    steps = sorted((*STRENGTHS, 0.7))
    for strength in steps:
        assert page.locator(STRENGTH).all_inner_texts() == [f"strength {strength:g}"]
        assert slider.get_attribute("aria-valuetext") == f"every intervention {strength:g}"
        assert page.locator("output").inner_text() == f"every intervention {strength:g}"
        page.keyboard.press("ArrowRight")
    outline = "element => getComputedStyle(element).outlineStyle"
    assert slider.evaluate(outline) == "solid", "the focus can be seen"
    box = slider.bounding_box()
    page.mouse.click(box["x"] + 3, box["y"] + box["height"] / 2)
    assert page.locator(STRENGTH).all_inner_texts() == [f"strength {steps[0]:g}"]
    assert page.locator(".arms > div:first-child .cell:visible").count() == 1, "the base stays"


def test_hostile_text_stays_text(opened):
    page = opened()
    assert page.title() == "Comparison on extraversion:high"
    assert set(page.locator("blockquote").all_text_contents()) == {SHOWN}
    assert page.locator("script").count() == 1
    assert page.locator("img, template").count() == 0
    order = "element => getComputedStyle(element).unicodeBidi"
    assert page.locator("blockquote").first.evaluate(order) == "isolate"


def test_a_phone_scrolls_no_way_but_down_and_reads_light_on_dark(opened):
    page = opened(viewport={"width": 390, "height": 844})
    white, black = "rgb(255, 255, 255)", "rgb(0, 0, 0)"
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        inks = page.evaluate(
            "[getComputedStyle(document.body).backgroundColor, "
            "getComputedStyle(document.querySelector('figure svg')).fill]"
        )
        assert inks == [white, black] if scheme == "light" else inks[1] == white != inks[0]


def test_without_script_every_answer_is_there_and_on_paper_those_of_the_strength(opened):
    silent = opened(java_script_enabled=False)
    assert silent.locator(".cell:visible").count() == 1 + 2 * (len(STRENGTHS) + 1)
    assert not silent.locator(".slider").is_visible()
    page = opened()
    page.emulate_media(media="print")
    assert page.locator(".cell:visible").count() == 3
    assert not page.locator(".slider").is_visible()
