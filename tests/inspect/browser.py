"""A page in a headless Chromium, and the questions that tests ask about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from dsgc.inspect.page_data import PageData
from dsgc.inspect.render_page import render_page

__all__ = ["Browser"]

CHECKS = (Path(__file__).parent / "browser_checks.js").read_text(encoding="utf-8")


class Browser:
    """A page in a headless browser, and the questions that tests ask about it."""

    def __init__(self, driver: webdriver.Chrome, folder: Path) -> None:
        self.driver = driver
        self.folder = folder

    def open(self, data: PageData, size: tuple[int, int] = (1400, 900), dark: bool = False) -> None:
        """Open the page about `data` and wait until it is drawn."""
        place = self.folder / "page.html"
        place.write_text(render_page(data), encoding="utf-8")
        self.resize(size)
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        still = {"name": "prefers-reduced-motion", "value": "reduce"}
        self.command("Emulation.setEmulatedMedia", features=[feature, still])
        self.driver.get(place.as_uri())
        self.wait(lambda: self.run("return performance.getEntriesByName('dsgc-drawn').length"))

    def resize(self, size: tuple[int, int]) -> None:
        width, height = size
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def command(self, name: str, **arguments: Any) -> Any:
        return self.driver.execute_cdp_cmd(name, arguments)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def check(self, name: str) -> Any:
        """Call a function of browser_checks.js."""
        return self.run(f"{CHECKS}\nreturn {name}();")

    def wait(self, condition: Callable[[], Any]) -> Any:
        return WebDriverWait(self.driver, 20, 0.02).until(lambda _: condition())

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        script = "return document.querySelector(arguments[0])?.textContent ?? ''"
        return str(self.run(script, selector))

    def click(self, selector: str) -> None:
        self.find(selector).click()

    def node(self, name: str) -> WebElement:
        """The box of a node by its name, which must hold no space and no comma."""
        found = self.run(
            "return [...document.querySelectorAll('#world .node')].find((box) =>"
            " box.getAttribute('aria-label').split(',')[0].endsWith(' ' + arguments[0]))",
            name,
        )
        assert isinstance(found, WebElement), f"no node {name}"
        return found

    def press(self, *keys: str, shift: bool = False) -> None:
        chain = ActionChains(self.driver, duration=0)
        if shift:
            chain.key_down(Keys.SHIFT)
        for key in keys:
            chain.send_keys(key)
        if shift:
            chain.key_up(Keys.SHIFT)
        chain.perform()

    def focused_node(self) -> str:
        """The name of the node that has the focus."""
        return self.focused().split(",")[0].split(" ")[-1]

    def focused(self) -> str:
        """What has the focus: its label, or its text, or its id."""
        return str(
            self.run(
                "const e = document.activeElement;"
                "return e.getAttribute('aria-label') || e.textContent.trim() || e.id"
            )
        )

    def stage(self) -> str:
        return self.text("#stage-name")

    def show_stage(self, name: str) -> None:
        """Go back stage by stage until `name` is shown."""
        while self.stage() != name:
            before = self.stage()
            self.click("#stage-before")
            self.wait(partial(self.has_left, before))

    def has_left(self, stage: str) -> bool:
        return self.stage() != stage

    def has_text(self, selector: str, text: str) -> bool:
        return self.text(selector) == text

    def wait_for_text(self, selector: str, words: str) -> None:
        """Wait until the first element that `selector` names holds `words`."""
        self.wait(lambda: words in self.text(selector))

    def height(self, selector: str) -> float:
        element = self.find(selector)
        return float(self.run("return arguments[0].getBoundingClientRect().height", element))

    def transform(self) -> tuple[float, float, float]:
        """Where the graph is drawn: x, y, scale."""
        x, y, scale = self.run(
            "const m = document.getElementById('world').transform.baseVal.consolidate().matrix;"
            "return [m.e, m.f, m.a]"
        )
        return x, y, scale

    def errors(self) -> list[str]:
        """What the console complained about since the last call."""
        return [entry["message"] for entry in self._log("browser")]

    def requests(self) -> list[str]:
        """The addresses that the page asked for since the last call."""
        events = [json.loads(entry["message"])["message"] for entry in self._log("performance")]
        return [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]

    def _log(self, kind: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.driver.get_log(kind)  # type: ignore[no-untyped-call]
        return found
