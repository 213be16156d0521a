"""Writes an inspection page: one HTML document that needs nothing but a browser, and no network."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from importlib import resources

from dsgc.inspect.page_data import PageData
from dsgc.inspect.page_payload import payload

__all__ = ["render_page"]

_STYLES = ("page.css", "graph.css", "details.css", "print.css")
# One script: in this order, in one scope.
_SCRIPTS = (
    "dom.js",
    "store.js",
    "viewport.js",
    "graph.js",
    "minimap.js",
    "walk.js",
    "table.js",
    "texts.js",
    "sources.js",
    "firing.js",
    "legend.js",
    "details.js",
    "stages.js",
    "search.js",
    "main.js",
)


def render_page(data: PageData) -> str:
    """The whole HTML text of a page about `data`. Equal data give an equal text.

    The page forbids itself all network access, by a content security policy that allows the one
    script and the one style sheet in it. The text is pure ASCII but for dsgc's own words, so that
    names with any characters, even ones that UTF-8 cannot encode, can be written.

    Raises:
        PageDataError: the data contradict themselves: an edge leads nowhere, two nodes of a stage
            share a name, a graph has a cycle, a picture's rows differ in length, and so on.
    """
    style = "\n".join(map(_resource, _STYLES))
    script = '"use strict";\n{\n' + "\n".join(map(_resource, _SCRIPTS)) + "}\n"
    parts = {
        "title": html.escape(data.title).encode("ascii", "xmlcharrefreplace").decode("ascii"),
        "policy": (
            f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; "
            "img-src data:; base-uri 'none'; form-action 'none'"
        ),
        "style": style,
        "script": script,
        "data": payload(data),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _resource("page.html"))


def _resource(name: str) -> str:
    return (resources.files("dsgc.inspect") / "page" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """How a content security policy names an inline script or style sheet."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
