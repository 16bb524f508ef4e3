"""A real browser for the tests of pages: Chromium, spoken to in the DevTools protocol through a pipe."""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

_ELEMENTS = """(name => (function all(node) {
    return [...(node.shadowRoot ? all(node.shadowRoot) : []), ...[...node.children].flatMap(all),
            ...(node.localName === name ? [node] : [])];
})(document.body))"""
_TEXT = """(function pieces(node) {
    if (node.nodeType === Node.TEXT_NODE) return node.data.trim() ? [node.data.trim()] : [];
    if (!node.checkVisibility || !node.checkVisibility() || node.matches('style, script')) return [];
    return [...(node.shadowRoot ? node.shadowRoot.childNodes : []), ...node.childNodes].flatMap(pieces);
})(document.body)"""


class Chromium:
    """One tab of a browser without a window.

    Args:
        profile: an empty folder.
    """

    def __init__(self, profile: Path) -> None:
        (read, self._send), (self._receive, write) = os.pipe(), os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"]
        flags += [f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]
        command = ["bash", "-c", f'exec 3<&{read} 4>&{write} "$@"', "bash", str(BROWSER), *flags]
        self.process = subprocess.Popen(
            command, pass_fds=(read, write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(read)
        os.close(write)
        self._pending, self._number, self._session = b"", 0, None
        self.console: list[str] = []  # of the page: what it writes, what fails to load, what is raised
        page = next(info for info in self.call("Target.getTargets")["targetInfos"] if info["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        self.call("Runtime.enable")
        self.call("Log.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Returns the result of a DevTools command."""
        self._number += 1
        session = {} if self._session is None else {"sessionId": self._session}
        message = {"id": self._number, "method": method, "params": parameters, **session}
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._pending:
                received = os.read(self._receive, 2**20)
                assert received, "the browser has ended"
                self._pending += received
            raw, _, self._pending = self._pending.partition(b"\0")
            answer = json.loads(raw)
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            if answer.get("method") in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
                self.console.append(json.dumps(answer["params"]))

    def open(self, url: str, width: int = 1280, height: int = 900, dark: bool = False, javascript: bool = True) -> None:
        """Goes to a page, in a window of this size."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.call("Emulation.setScriptExecutionDisabled", value=not javascript)
        self.call("Page.navigate", url="about:blank")  # an address that differs in its fragment alone loads nothing
        self.console.clear()
        self.call("Page.navigate", url=url)
        self.wait("location.href !== 'about:blank' && document.readyState === 'complete'")

    def value(self, script: str) -> Any:
        """Returns the value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def each(self, name: str, script: str) -> list[Any]:
        """Returns the value of an expression for each `element` of a name, also those within web components."""
        return self.value(f"{_ELEMENTS}({name!r}).map(element => {script})")

    def wait(self, script: str, seconds: float = 60.0) -> Any:
        """Returns the value of an expression once it is true."""
        until = time.monotonic() + seconds
        while not (value := self.value(script)):
            assert time.monotonic() < until, f"not within {seconds:.0f} s: {script}; the page shows {self.text()}"
            time.sleep(0.1)
        return value

    def text(self) -> list[str]:
        """Returns the pieces of text that the page shows, also those within web components."""
        return self.value(_TEXT)

    def shows(self, *pieces: str, seconds: float = 60.0) -> None:
        """Waits until the page shows these pieces of text, in this order."""
        until = time.monotonic() + seconds
        while True:
            rest = iter(shown := self.text())
            if all(piece in rest for piece in pieces):
                return
            assert time.monotonic() < until, f"not within {seconds:.0f} s: {pieces}; the page shows {shown}"
            time.sleep(0.1)

    def screenshot(self, path: Path) -> None:
        """Writes a PNG of the window."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._send)
        os.close(self._receive)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    """The browser; `chromium.open(url)`, then `shows`, `wait`, `value`, `text`, `screenshot`."""
    if BROWSER is None:
        pytest.skip("no chromium on the path")
    browser = Chromium(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


class Shown(NamedTuple):
    """`answer`: what the script returned. `console`: the lines that the page wrote to it. `picture`: a PNG."""

    answer: Any
    console: list[str]
    picture: Path


@pytest.fixture
def browser(chromium, tmp_path) -> Callable[..., Shown]:
    """Opens a page: `browser(page, script, width=390, height=800, dark=True, javascript=False)`.

    `page`: a Path. `script`: the body of an async function with `page` (its window), `doc` and `until(condition)`; what
    it returns is the answer.
    """

    def opened(page: Path, script: str, **window: Any) -> Shown:
        chromium.open(page.resolve().as_uri(), **window)
        until = "async ready => { while (!ready()) await new Promise(done => setTimeout(done, 50)); }"
        answer = chromium.value(f"(async (page, doc, until) => {{ {script} }})(window, document, {until})")
        chromium.screenshot(picture := tmp_path / "picture.png")
        return Shown(answer, list(chromium.console), picture)

    return opened
