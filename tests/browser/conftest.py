"""Pages in the chromium that is installed, without a driver: a frame of any width, and a script that looks into it."""

import json
import shutil
import subprocess
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any, NamedTuple

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")
# Files may look into files, so that the outer page may ask about the inner one, which loads nothing all the same.
_OPTIONS += ("--allow-file-access-from-files", "--hide-scrollbars", "--enable-logging=stderr", "--log-level=0")
_FRAME = """<!doctype html><meta charset="utf-8"><body style="margin:0">
<iframe src="{page}" {sandbox} style="border:0;width:{width}px;height:{height}px"></iframe><pre id="answer"></pre>
<script>
onload = async () => {{
  const page = document.querySelector("iframe").contentWindow, doc = page.document;
  const until = async (ready) => {{
    for (let i = 0; i < 600 && !ready(); i++) await new Promise((done) => setTimeout(done, 50));
  }};
  let answer;
  try {{ answer = await (async () => {{ {script} }})(); }} catch (error) {{ answer = {{ error: String(error) }}; }}
  document.getElementById("answer").textContent = JSON.stringify(answer);
}};
</script>"""


class Shown(NamedTuple):
    """`answer`: what the script returned. `console`: the lines that the page wrote to it. `picture`: a PNG."""

    answer: Any
    console: list[str]
    picture: Path


@pytest.fixture
def browser(tmp_path) -> Callable[..., Shown]:
    """Opens a page: `browser(page, script, width=390, height=800, dark=True, javascript=False)`.

    `page`: a Path or an address. `script`: the body of an async function with `page` (its window), `doc` and
    `until(condition)`; what it returns is the answer.
    """
    if CHROMIUM is None:
        pytest.skip("no chromium here; apt-get install chromium")

    def opened(
        page: Path | str, script: str, width: int = 1280, height: int = 900, dark: bool = False, javascript: bool = True
    ) -> Shown:
        address = page.resolve().as_uri() if isinstance(page, Path) else page
        frame, picture = tmp_path / "frame.html", tmp_path / f"{width}{'_dark' * dark}.png"
        sandbox = "" if javascript else 'sandbox="allow-same-origin"'  # which runs no script
        content = _FRAME.format(page=address, width=width, height=height, script=script, sandbox=sandbox)
        frame.write_text(content, encoding="utf-8")
        options = [*_OPTIONS, f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={max(500, width)},{height}"]
        options += [f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--virtual-time-budget=60000"]
        call = [str(CHROMIUM), *options, f"--screenshot={picture}", "--dump-dom", frame.as_uri()]
        done = subprocess.run(call, capture_output=True, text=True, timeout=300, check=True)
        console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
        _, found, rest = done.stdout.partition('<pre id="answer">')
        assert found, done.stderr[-2000:]
        answer = json.loads(unescape(rest.partition("</pre>")[0]))
        assert not (isinstance(answer, dict) and "error" in answer), answer
        return Shown(answer, console, picture)

    return opened
