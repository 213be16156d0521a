"""The inspection page in a real browser: going through it by mouse, touch and keys."""

from __future__ import annotations

from typing import Any

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from tests.inspect.browser import Browser
from tests.inspect.pages import residual_page, small_page


def test_wheel_drag_fingers_and_buttons_move_the_graph(browser: Browser) -> None:
    browser.open(residual_page(20, 2))
    graph = browser.find("#graph")
    middle = {"x": 450.0, "y": 380.0}
    last = browser.transform()

    def moved() -> tuple[float, float, float]:
        nonlocal last
        browser.wait(lambda: browser.transform() != last)
        last = browser.transform()
        return last

    x, y, scale = last
    wheel: dict[str, Any] = {"type": "mouseWheel", "deltaX": 0, **middle}
    browser.command("Input.dispatchMouseEvent", deltaY=300, **wheel)
    assert moved() == pytest.approx((x, y - 300, scale))
    browser.command("Input.dispatchMouseEvent", deltaY=-100, modifiers=2, **wheel)
    x, y, larger = moved()
    assert larger > scale
    drag = ActionChains(browser.driver, duration=50).move_to_element_with_offset(graph, -250, 0)
    drag.click_and_hold().move_by_offset(30, 40).release().perform()
    assert moved() == pytest.approx((x + 30, y + 40, larger))
    for gap in (40, 60, 80, 100):
        points = [{"x": 450.0, "y": 380.0 - gap}, {"x": 450.0, "y": 380.0 + gap}]
        kind = "touchStart" if gap == 40 else "touchMove"
        browser.command("Input.dispatchTouchEvent", type=kind, touchPoints=points)
    browser.command("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    browser.wait(lambda: browser.transform()[2] == pytest.approx(min(3, 2.5 * larger), rel=0.05))
    last = browser.transform()
    browser.click("#zoom-whole")
    _, _, scale = moved()
    assert browser.height("#world") <= browser.height("#view-graph")
    browser.click("#zoom-in")
    assert moved()[2] > scale
    browser.click("#zoom-out")
    assert moved()[2] == pytest.approx(scale)
    browser.click("#zoom-start")
    assert moved()[2] >= 0.8


def test_the_whole_page_can_be_used_by_keys(browser: Browser) -> None:
    browser.open(small_page())
    seen: list[str] = []
    while "Layer" not in seen and len(seen) < 60:
        browser.press(Keys.TAB)
        seen.append(browser.focused().split(",")[0])
    order = ["To the graph", "search", "Keys", "Dark theme", "Previous stage", "Stage", "Graph"]
    order += ["input x", "Legend", "Zoom in", "Height of the table of layers", "Layer"]
    places = [seen.index(name) for name in order]
    assert places == sorted(places)
    while browser.focused_node() != "x":
        browser.press(Keys.TAB, shift=True)
    browser.press(Keys.ARROW_DOWN)
    assert browser.focused_node() == "first"
    browser.press(Keys.ARROW_DOWN)
    assert browser.focused_node() == "relu"
    browser.press(Keys.END)
    assert browser.focused_node() == "output"
    browser.press(Keys.HOME, Keys.ARROW_DOWN, Keys.ENTER)
    assert browser.focused() == "Conv2d"
    assert browser.run("return document.activeElement.closest('#details') !== null")
    browser.press(Keys.ESCAPE)
    assert browser.focused_node() == "first"
    assert "This model" in browser.text("#details")
    browser.press(" ")
    assert browser.focused_node() == "first"
    assert "Conv2d first" in browser.text("#live")
    browser.press("[")
    browser.wait_for_text("#stage-name", "choose_layers")
    assert browser.focused_node() == "first"
    browser.press("/")
    assert browser.focused() == "search"


def test_every_edge_can_be_walked_both_ways(browser: Browser) -> None:
    browser.open(small_page())
    for edge in small_page().stages[-1].edges:
        for key, start, goal in (
            (Keys.ARROW_DOWN, edge.source, edge.target),
            (Keys.ARROW_UP, edge.target, edge.source),
        ):
            browser.node(start).click()
            browser.press(key)
            reached = {browser.focused_node()}
            for step in (Keys.ARROW_LEFT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT):
                if goal not in reached:
                    browser.press(step)
                    reached.add(browser.focused_node())
            assert goal in reached, f"from {start}"


def test_tabs_and_the_divider_follow_arrow_keys(browser: Browser) -> None:
    browser.open(small_page())
    browser.run("document.getElementById('tab-graph').focus()")
    browser.press(Keys.ARROW_RIGHT)
    assert browser.find("#tab-nodes").get_attribute("aria-selected") == "true"
    assert browser.find("#view-nodes").is_displayed()
    browser.press(Keys.END)
    assert browser.find("#view-diff").is_displayed()
    before = browser.height("#layers")
    browser.run("document.getElementById('splitter').focus()")
    browser.press(Keys.ARROW_UP)
    assert browser.height("#layers") > before
