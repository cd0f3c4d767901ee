"""A visit to the page in a real browser, which records everything that must not happen."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

IGNORED = re.compile("GL Driver Message|GPU stall")  # of the software renderer that browsers use without a screen
WATCH = """
window.planted = [];
for (const name of ["alert", "confirm", "prompt", "print"]) window[name] = () => window.planted.push(name);
document.addEventListener("securitypolicyviolation", (event) => {
  console.error(`policy violated: ${event.violatedDirective} ${event.blockedURI} ${event.sample}`);
});
"""


class Visit:
    """A page in a browser context of its own. options: those of the context, and `storage`: of the session."""

    def __init__(self, browser: Any, address: str, folder: Path, options: dict[str, Any]) -> None:
        self.address, self.folder = address, folder
        self.expected: list[str] = []
        self.messages: list[str] = []
        self.foreign: list[str] = []
        settings: dict[str, Any] = {"viewport": {"width": 1280, "height": 860}, "reduced_motion": "reduce"}
        stored = options.pop("storage", {})
        self.context = browser.new_context(**settings | options)
        self.context.set_default_timeout(60_000)  # milliseconds; a machine that runs other tests is slow
        self.context.add_init_script(WATCH)
        for key, value in stored.items():
            self.context.add_init_script(f"sessionStorage.setItem({json.dumps(key)}, {json.dumps(value)})")
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self._note(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self._note(f"uncaught: {error}"))
        self.page.on("dialog", lambda dialog: self._note(f"dialog: {dialog.message}"))
        self.page.on("request", lambda request: self._check(request.url))
        self.page.goto(address)
        self.page.locator("tessella-app[data-ready]").wait_for()

    def _note(self, text: str) -> None:
        if not IGNORED.search(text):
            self.messages.append(text)

    def _check(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("blob", "data") and parts.netloc != urlsplit(self.address).netloc:
            self.foreign.append(url)

    def expect_messages(self, *patterns: str) -> None:
        """Allow console messages that contain one of the patterns."""
        self.expected.extend(patterns)

    def find(self, selector: str) -> Any:
        """Return the locator of a selector."""
        return self.page.locator(selector)

    def module(self, name: str) -> str:
        """Return the path of a file of the page."""
        path: str = self.find("script[src]").get_attribute("src")
        return path.replace("main.js", name)

    def button(self, name: str) -> Any:
        """Return the locator of the button with this accessible name."""
        return self.page.get_by_role("button", name=name, exact=True)

    def until(self, expression: str) -> None:
        """Wait until a JavaScript expression is true."""
        for _ in range(600):
            if self.page.evaluate(expression):
                return
            self.page.evaluate("new Promise(requestAnimationFrame)")
        raise AssertionError(f"never true: {expression}")

    def tiles(self) -> Any:
        """Return the locator of all tiles that are in view."""
        return self.page.locator("tessella-tile:visible")

    def keys_of_tiles(self) -> list[str]:
        """Return the file names under the tiles, in order."""
        names: list[str] = self.page.locator("tessella-tile:visible .tile-name").all_inner_texts()
        return names

    def add_files(self, *files: Path | dict[str, Any]) -> None:
        """Choose files to classify."""
        self.find("input.choose").set_input_files([file_of(file) for file in files])

    def close(self) -> None:
        """Close the page, after comparing what happened with what may happen."""
        planted = self.page.evaluate("window.planted")
        self.context.close()
        unexpected = [text for text in self.messages if not any(re.search(each, text) for each in self.expected)]
        found = (planted, self.foreign, unexpected)
        assert found == ([], [], []), found


def file_of(file: Path | dict[str, Any]) -> dict[str, Any]:
    """Return a file as Playwright takes it."""
    if isinstance(file, dict):
        return file
    return dict(name=file.name, mimeType="image/jpeg", buffer=file.read_bytes())
