"""Pages in a headless Chromium, as a person with a browser has them."""

from __future__ import annotations

import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


class Page(HTMLParser):
    """The visible rows of the results, what is open, and the links."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[str] = []
        self.links: list[str] = []
        self.sorts: list[str | None] = []
        self.sources: list[str] = []
        self.text = ""
        self._hidden = self._in_label = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "action", "data")]
        if tag == "tbody" and "data-number" in given:
            self._hidden = "hidden" in given
        if tag == "tbody" and "data-number" not in given:
            self._hidden = True  # the runs of a row, or the comparison
        if tag == "th" and given.get("scope") == "row" and not self._hidden:
            self._in_label = True
        if tag == "th" and "aria-sort" in given:
            self.sorts.append(given["aria-sort"])
        if tag == "a":
            self.links.append(given.get("href") or "")

    def handle_endtag(self, tag: str) -> None:
        self._in_label = self._in_label and tag != "th"

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._in_label:
            self.rows.append(data)


def dom(page: Path, scratch: Path, state: str, *flags: str) -> str:
    """The page as it stands after its scripts; the test is skipped where there is no browser."""
    if BROWSER is None:
        pytest.skip("no Chromium is installed")
    address = f"file://{quote(str(page))}#{state}"
    command = [BROWSER, *FLAGS, *flags, f"--user-data-dir={scratch}/browser", "--dump-dom", address]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def in_browser(page: Path, scratch: Path, state: str, *flags: str) -> Page:
    """The rows, links and text that it then has."""
    return Page(dom(page, scratch, state, *flags))


class _Out(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self._inside = "", False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = self._inside or ("id", "out") in attrs

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "pre"

    def handle_data(self, data: str) -> None:
        self.text += data if self._inside else ""


def returned(page: Path, scratch: Path, script: str, state: str = "", *flags: str) -> Any:
    """What ``script``, the body of an async function, returns in ``page``."""
    added = f"""<script>(async () => {{ const made = document.createElement("pre"); made.id = "out";
      try {{ made.textContent = JSON.stringify(await (async () => {{ {script} }})()); }}
      catch (error) {{ made.textContent = JSON.stringify({{ error: String(error.stack) }}); }}
      document.body.append(made); }})();</script></body>"""
    copy = page.with_name("scripted.html")
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", added), encoding="utf-8")
    found = json.loads(_Out(dom(copy, scratch, state, "--virtual-time-budget=20000", *flags)).text)
    assert not (isinstance(found, dict) and "error" in found), found
    return found
