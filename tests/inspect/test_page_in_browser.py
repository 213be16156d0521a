"""The inspection page in a real browser: what it shows and says."""

from __future__ import annotations

from functools import partial

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from dsgc.inspect.page_data import PageData, PageLayer, PageNode, PageStage
from tests.inspect.browser import Browser
from tests.inspect.pages import residual_page, small_page

SLOWEST_OPENING = 10_000.0
TIMES = "\N{MULTIPLICATION SIGN}"


# ---- opening


def test_it_opens_without_network_and_shows_the_last_stage(browser: Browser) -> None:
    browser.open(small_page())
    assert [url for url in browser.requests() if not url.startswith(("file:", "data:"))] == []
    assert browser.text("h1") == "A small network"
    assert browser.stage() == "lower_to_packed"
    assert len(browser.all("#world .node")) == len(small_page().stages[-1].nodes)
    # All edges of a style that leave a node are one wire: two readers of the mask share one.
    assert len(browser.all("#world .wire.packed")) == 2
    assert len(browser.all("#world .wire.selection")) == 1
    assert "two threads" in browser.text("#details")


def test_its_policy_stops_requests_and_foreign_scripts(browser: Browser) -> None:
    browser.open(small_page())
    blocked = browser.driver.execute_async_script(
        """
        const done = arguments[0], blocked = [];
        document.addEventListener("securitypolicyviolation", (event) => {
          blocked.push(event.effectiveDirective);
          if (blocked.length === 3) done(blocked.sort());
        });
        fetch("https://example.com/").catch(() => {});
        const image = new Image();
        image.src = "https://example.com/a.png";
        const script = document.createElement("script");
        script.textContent = "document.title = 'changed'";
        document.body.append(script);
        """
    )
    assert blocked == ["connect-src", "img-src", "script-src-elem"]
    assert browser.run("return document.title") != "changed"
    for message in browser.errors():
        assert "Content Security Policy" in message or "ERR_BLOCKED_BY_CSP" in message


def test_a_page_of_the_size_of_resnet_152_opens_quickly(browser: Browser) -> None:
    data = residual_page(50, 10)
    assert len(data.stages[-1].nodes) > 1500
    browser.open(data)
    start, loaded, drawn = browser.run(
        "const of = (name) => performance.getEntriesByName(name)[0].startTime;"
        "const page = performance.getEntriesByType('navigation')[0];"
        "return [of('dsgc-start'), page.domContentLoadedEventEnd, of('dsgc-drawn')]"
    )
    print(f"script after {start:.0f} ms, DOMContentLoaded {loaded:.0f} ms, drawn {drawn:.0f} ms")
    assert start <= drawn < SLOWEST_OPENING
    assert len(browser.all("#world .node")) == len(data.stages[-1].nodes)


def test_names_are_text_whatever_they_hold(browser: Browser) -> None:
    name = "</script><img src=x onerror=\"document.title='run'\">'\u2028\u4e2d\U0001f600"
    node = PageNode(name, name, "sparse", name, mask_group=name, facts={name: name}, where=name)
    stage = PageStage(name, (node,), (), name, f"@@\n+{name}", name)
    layer = PageLayer(name, True, {name: name})
    browser.open(PageData(name, {name: name}, (stage,), (layer,)))
    browser.click("#layers tbody button")
    for tab in ("nodes", "text", "diff"):
        browser.click(f"#tab-{tab}")
        browser.wait_for_text(f"#view-{tab}", "onerror")
    assert browser.text("h1") == name
    assert browser.all("img") == []
    assert browser.run("return document.title") == f"{name} · dsgc inspect"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (PageData("t", {}, (), ()), "No stage was recorded"),
        (PageData("t", {}, (), (PageLayer("a", True, {}),)), "No stage was recorded"),
        (PageData("t", {}, (PageStage("s", (), ()),), ()), "has no nodes"),
    ],
)
def test_what_is_missing_is_said(browser: Browser, data: PageData, words: str) -> None:
    browser.open(data)
    assert words in browser.find("#graph-empty").text
    if data.layers:
        browser.click("#layers tbody button")
        details = browser.text("#details")
        for said in ("no node in this stage", "No run was recorded", "no generated kernel"):
            assert said in details
        browser.press(Keys.ESCAPE)
    else:
        assert "no report about any layer" in browser.text("#layers")
    if data.stages:
        for tab, said in (("nodes", "no nodes"), ("text", "without its text"), ("diff", "No diff")):
            browser.click(f"#tab-{tab}")
            browser.wait_for_text(f"#view-{tab}", said)


# ---- details


def test_a_click_on_a_node_shows_its_details(browser: Browser) -> None:
    browser.open(small_page())
    browser.node("second").click()
    details = browser.text("#details")
    shape = TIMES.join(["4", "16", "8", "8"])
    for words in ("packed_conv2d", shape, "float32", "net.py:12", "1 of 4", "0.9 s"):
        assert words in details
    assert "packed_conv2d second" in browser.text("#live")
    assert browser.node("second").get_attribute("aria-current") == "true"
    items = browser.all("#details .edges")[0].find_elements(By.TAG_NAME, "li")
    reads = [" ".join(item.text.split()) for item in items]
    assert reads == ["relu ReLU", "mask Selection, selection"]
    near = [box.get_attribute("aria-label") for box in browser.all("#world .near")]
    assert len(near) == 3
    assert browser.find("#layers tr.chosen th").text == "second"
    browser.find("#details .edges button").click()
    assert browser.text("#details h2") == "ReLU"
    assert browser.focused_node() == "relu"
    browser.click("#details .close")
    assert browser.all("#world .chosen") == []
    assert "This model" in browser.text("#details")


def test_kernels_have_a_tab_for_each_language_and_can_be_copied(browser: Browser) -> None:
    browser.open(small_page())
    browser.click("#layers tbody tr:nth-child(2) button")
    browser.wait_for_text(".source pre", "def conv")
    assert "<b>&amp;</b>" in browser.text(".source pre")
    tabs = browser.all(".sources [role=tab]")
    assert [tab.text for tab in tabs] == ["TVMScript", "assembly"]
    tabs[1].click()
    browser.wait_for_text(".source pre", "vfmadd231ps")
    assert "500 lines" in browser.text(".source")
    browser.run(
        "navigator.clipboard.writeText ="
        " (text) => { window.copied = text; return Promise.resolve(); }"
    )
    browser.click(".source .plain[aria-label^=Copy]")
    browser.wait_for_text(".source .plain[aria-label^=Copy]", "Copied")
    assert browser.run("return window.copied") == "vfmadd231ps zmm0, zmm1, [rsi]\n" * 500
    browser.click(".source .plain[aria-label^=Enlarge]")
    assert browser.run("return document.querySelector('dialog.large').open")
    browser.press(Keys.ESCAPE)
    browser.wait(lambda: not browser.all("dialog.large"))
    options = browser.all("#kernel option")
    assert [option.text for option in options] == ["conv", "select"]
    options[1].click()
    browser.wait_for_text(".source pre", "def select")


def test_heat_maps_tell_their_values_by_mouse_keys_and_table(browser: Browser) -> None:
    browser.open(small_page())
    browser.click("#layers tbody tr:nth-child(2) button")
    browser.wait(lambda: len(browser.all(".firing")) == 3)
    canvas = browser.all(".firing canvas[role=img]")[1]
    assert canvas.get_attribute("aria-label") == (
        f"By class of input: 2 {TIMES} 4 values, 20 % on average, "
        "least 3.3 % at class dog, column d, most 37 % at class dog, column a."
    )
    figure = browser.all(".firing")[1]
    readout = figure.find_element(By.CSS_SELECTOR, ".readout")
    size = canvas.size
    pointer = ActionChains(browser.driver, duration=0)
    left, low = 4 - size["width"] // 2, size["height"] // 2 - 4
    pointer.move_to_element_with_offset(canvas, left, low).perform()
    assert readout.text == "class dog, column a: 37 %"
    browser.run("arguments[0].focus()", canvas)
    browser.press(Keys.ARROW_UP)
    assert readout.text == "class cat, column a: 20 %"
    browser.press(Keys.ARROW_DOWN, Keys.ARROW_RIGHT)
    assert readout.text == "class dog, column b: 29 %"
    figure.find_element(By.CSS_SELECTOR, "summary").click()
    browser.wait(lambda: figure.find_elements(By.TAG_NAME, "td"))
    table = [cell.text for cell in figure.find_elements(By.CSS_SELECTOR, "tbody td")]
    assert table == ["20 %"] * 4 + ["37 %", "29 %", "13 %", "3.3 %"]
    upper, lower = browser.run(
        "const c = arguments[0], d = c.getContext('2d');"
        "const all = d.getImageData(0, 0, c.width, c.height).data;"
        "return [0.1, 0.9].map((y) => 4 * (c.width * Math.floor(y * c.height) + 2))"
        ".map((at) => [...all.slice(at, at + 3)])",
        canvas,
    )
    assert sum(upper) < sum(lower), "20 % is darker than 37 %"
    assert "Nothing was recorded here" in browser.all(".firing")[2].text


# ---- stages


def test_the_slider_goes_through_the_stages(browser: Browser) -> None:
    browser.open(small_page())
    slider = browser.find("#stage")
    assert slider.get_attribute("aria-valuetext") == "3 of 3, lower_to_packed"
    assert browser.text("#stage-about").endswith("10 nodes, 4 new, 1 changed")
    assert len(browser.all("#world .mark.new")) == 4
    browser.run("arguments[0].focus()", slider)
    browser.press(Keys.ARROW_LEFT)
    browser.wait_for_text("#stage-name", "choose_layers")
    assert "the graph stays as it was" in browser.text("#live")
    assert len(browser.all("#world .node")) == 6
    browser.press(Keys.HOME)
    browser.wait_for_text("#stage-name", "trace")
    assert browser.find("#stage-before").get_attribute("aria-disabled") == "true"
    browser.click("#stage-next")
    browser.wait_for_text("#stage-name", "choose_layers")


def test_a_stage_has_a_graph_nodes_text_and_diff(browser: Browser) -> None:
    browser.open(small_page())
    browser.click("#tab-text")
    browser.wait_for_text("#view-text", "%second = packed_conv2d")
    browser.click("#tab-diff")
    browser.wait(lambda: browser.all("#view-diff .added"))
    lines = {kind: browser.all(f"#view-diff .{kind}") for kind in ("added", "removed", "same")}
    assert all(line.text.startswith("+") for line in lines["added"])
    assert all(line.text.startswith("-") for line in lines["removed"])
    colours = {found[0].value_of_css_property("background-color") for found in lines.values()}
    assert len(colours) == 3
    browser.show_stage("trace")
    browser.wait_for_text("#view-diff", "first one")
    browser.click("#tab-nodes")
    rows = browser.all("#view-nodes tbody tr")
    names = ["x", "first", "relu", "second", "add", "output"]
    assert [row.text.split()[0] for row in rows] == names
    rows[3].find_element(By.TAG_NAME, "button").click()
    assert "Conv2d" in browser.text("#details h2")


def test_the_choice_is_kept_from_stage_to_stage(browser: Browser) -> None:
    browser.open(small_page())
    browser.node("second").click()
    browser.show_stage("trace")
    chosen = browser.find("#world .chosen").get_attribute("aria-label") or ""
    assert chosen.startswith("Conv2d second, dense layer, layer second")
    assert "Conv2d" in browser.text("#details h2")


# ---- table and search


def test_tables_sort_by_what_cells_mean(browser: Browser) -> None:
    browser.open(small_page())

    def names() -> list[str]:
        return [cell.text for cell in browser.all("#layers tbody th")]

    heads = browser.all("#layers thead th")
    assert [head.text.lower() for head in heads] == ["layer", "kind", "time", "done", "why"]
    time, done = heads[2], heads[3]
    for head, direction, expected in (
        (time, "ascending", ["first", "head", "second"]),
        (time, "descending", ["second", "head", "first"]),
        (done, "ascending", ["second", "first", "head"]),
        (done, "descending", ["first", "second", "head"]),
        (done, "none", ["first", "second", "head"]),
    ):
        head.find_element(By.TAG_NAME, "button").click()
        assert names() == expected
        assert head.get_attribute("aria-sort") == direction
    assert time.get_attribute("aria-sort") == "none"


def test_a_row_chooses_the_nodes_of_its_layer(browser: Browser) -> None:
    browser.open(residual_page(20, 2))
    button = browser.all("#layers tbody button")[40]
    browser.run("arguments[0].scrollIntoView({ block: 'center' })", button)
    button.click()
    near = browser.all("#world .near")
    assert len(near) == 10
    assert all("layer layer13.conv1," in (box.get_attribute("aria-label") or "") for box in near)
    view = browser.find("#view-graph").rect
    heights = [box.rect["y"] - view["y"] for box in near]
    assert any(0 < height < view["height"] for height in heights)
    assert browser.text("#details h2") == "layer13.conv1"


def test_search_finds_names_operations_and_layers(browser: Browser) -> None:
    browser.open(residual_page(20, 2))
    field = browser.find("#search")
    for query, count in (("layer3.conv2", 10), ("layer3_conv2_norm", 1), ("SELECTION", 60)):
        field.clear()
        field.send_keys(query)
        browser.wait(partial(browser.has_text, "#found", str(count)))
        assert len(browser.all("#world .hit")) == count
    field.send_keys(Keys.ENTER)
    browser.wait_for_text("#found", "1 of 60")
    field.send_keys(Keys.SHIFT + Keys.ENTER)
    browser.wait_for_text("#found", "60 of 60")
    hit = browser.find("#world .hit.chosen")
    assert "layer19_conv2_select" in (hit.get_attribute("aria-label") or "")
    view = browser.find("#view-graph").rect
    assert view["y"] <= hit.rect["y"] <= view["y"] + view["height"]
    browser.click("#found-next")
    assert browser.text("#found") == "1 of 60"
    field.clear()
    field.send_keys("no such thing")
    browser.wait_for_text("#found", "none")
    assert not browser.find("#found-next").is_enabled()
