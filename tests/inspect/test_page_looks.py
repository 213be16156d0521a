"""The inspection page in a real browser: contrast, names of controls, and room at any width."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from tests.inspect.browser import Browser
from tests.inspect.pages import residual_page, small_page

# Roles, as Chromium calls them, that are of no use without a name.
CONTROLS = frozenset(
    {
        "application", "button", "checkbox", "combobox", "complementary", "dialog", "image", "img",
        "link", "radio", "region", "searchbox", "slider", "splitter", "tab", "table", "tablist",
        "tabpanel", "textbox",
    }
)  # fmt: skip


def states(browser: Browser) -> Iterator[str]:
    """The page with everything on it that has text, one after the other."""
    yield "overview"
    browser.click("#legend summary")
    browser.find("#search").send_keys("second", Keys.ENTER)
    browser.wait_for_text("#found", "1 of 3")
    browser.wait(lambda: len(browser.all(".firing")) == 3)
    yield "search and legend"
    browser.click("#layers tbody tr:nth-child(2) button")
    browser.wait(lambda: len(browser.all(".firing")) == 3)
    browser.click(".firing summary")
    ActionChains(browser.driver, duration=0).move_to_element(browser.node("norm")).perform()
    yield "a layer, and a pointer over a node"
    for tab, words in (("nodes", "Conv2d"), ("text", "%second"), ("diff", "+%mask")):
        browser.click(f"#tab-{tab}")
        browser.wait_for_text(f"#view-{tab}", words)
        yield tab
    browser.click("#keys-open")
    yield "keys"
    browser.press(Keys.ESCAPE)


def is_dark(browser: Browser, name: str) -> bool:
    """Whether a colour of the page's body is nearer to black than to white."""
    colour = browser.run("return getComputedStyle(document.body)[arguments[0]]", name)
    return sum(map(int, colour[4:-1].split(", "))) < 3 * 128


@pytest.mark.parametrize("dark", [False, True])
def test_texts_and_lines_stand_out_in_both_themes(browser: Browser, dark: bool) -> None:
    browser.open(small_page(), dark=dark)
    assert is_dark(browser, "backgroundColor") == dark
    for state in states(browser):
        texts = browser.check("faintTexts")
        assert texts["seen"] > 40
        assert texts["faint"] == [], state
    browser.click("#tab-graph")
    shapes = browser.check("faintShapes")
    assert shapes["seen"] >= 15
    assert shapes["faint"] == []


@pytest.mark.parametrize("dark", [False, True])
def test_all_colours_of_mask_groups_stand_out(browser: Browser, dark: bool) -> None:
    browser.open(residual_page(4, 2), dark=dark)
    shapes = browser.check("faintShapes")
    assert shapes["seen"] > 100
    assert shapes["faint"] == []
    assert browser.check("faintTexts")["faint"] == []


def test_a_contrast_that_is_too_low_is_found(browser: Browser) -> None:
    browser.open(small_page())
    browser.run("document.querySelector('h1').style.color = '#999'")
    assert [text for _, text, _ in browser.check("faintTexts")["faint"]] == ["A small network"]


def test_the_button_changes_the_theme(browser: Browser) -> None:
    browser.open(small_page())
    for dark in (True, False):
        browser.click("#theme")
        assert browser.find("#theme").get_attribute("aria-pressed") == str(dark).lower()
        assert is_dark(browser, "backgroundColor") == dark
        assert is_dark(browser, "color") != dark


def test_controls_have_names_and_references_lead_somewhere(browser: Browser) -> None:
    browser.open(small_page())
    for state in states(browser):
        nodes = browser.command("Accessibility.getFullAXTree")["nodes"]
        shown = [node for node in nodes if not node["ignored"]]
        unnamed = [
            node["role"]["value"]
            for node in shown
            if node["role"]["value"] in CONTROLS and not node.get("name", {}).get("value")
        ]
        assert unnamed == [], state
        assert browser.check("faults") == [], state
        if state != "keys":  # a dialog hides everything else
            roles = {node["role"]["value"] for node in shown}
            assert {"banner", "main", "complementary", "search", "region", "status"} <= roles


@pytest.mark.parametrize("size", [(1400, 900), (900, 1000), (400, 800)])
def test_nothing_overlaps_or_overflows_at_any_width(
    browser: Browser, size: tuple[int, int]
) -> None:
    width = "return document.documentElement.scrollWidth"
    browser.open(replace(small_page(), title="A network with a long name " * 3), size=size)
    assert browser.run(width) <= size[0]
    assert browser.check("crowdedBoxes") == []
    areas = [browser.find(s).rect for s in (".top", ".bar", "#stage-note", ".views", "#layers")]
    for above, below in pairwise(areas):
        assert above["y"] + above["height"] <= below["y"] + 1
    assert all(area["height"] > 20 for area in areas)
    assert browser.height("#view-graph") > 200
    browser.run("document.querySelectorAll('#layers tbody button')[1].click()")
    browser.wait(lambda: len(browser.all(".firing")) == 3)
    details = browser.find("#details")
    assert details.is_displayed()
    assert browser.run("return arguments[0].scrollWidth <= arguments[0].clientWidth", details)
    assert browser.run(width) <= size[0]


def test_it_prints_in_full_and_in_light_colours(browser: Browser) -> None:
    browser.open(small_page(), dark=True)
    browser.node("second").click()
    browser.wait(lambda: len(browser.all(".firing")) == 3)
    browser.command("Emulation.setEmulatedMedia", media="print")
    try:
        assert is_dark(browser, "color")
        for hidden in (".search", "#stage", "#tabs", ".zoom", "#map"):
            assert not browser.find(hidden).is_displayed()
        for shown in ("h1", "#graph", "#details", "#layers tbody"):
            assert browser.find(shown).is_displayed()
        cut_off = browser.run(
            "return ['#details', '#layers', '#layers-table'].filter((s) => {"
            "const e = document.querySelector(s);"
            "return e.scrollHeight > e.clientHeight + 1 || e.scrollWidth > e.clientWidth + 1; })"
        )
        assert cut_off == []
    finally:
        browser.command("Emulation.setEmulatedMedia", media="")
