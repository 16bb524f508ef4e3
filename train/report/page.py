"""Pages: one HTML file that loads nothing, opens from disk, and follows the system's light or dark.

Text is escaped, markup is `Html`; there is no other way into a page. The one script that may run is the page's own, by
its hash.
"""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..text import right_aligned
from .charts import THEMES, Chart


class Html(str):
    """Markup, as opposed to text."""


def markup(content: str) -> Html:
    """Escapes text; returns markup unchanged.

    >>> markup("a < b"), markup(Html("<b>"))
    ('a &lt; b', '<b>')
    """
    return content if isinstance(content, Html) else Html(escape(content))


def formula(content: str) -> Html:
    """Returns text with its indices as subscripts, δ_0, δ_(l+1), x_l, and no line that ends within a norm or a ratio.

    >>> formula("x_l < |δ_(l+1)|/|δ_L|")
    'x<sub>l</sub> &lt; <span class="whole">|δ<sub>l+1</sub>|/|δ<sub>L</sub>|</span>'
    """
    low = r"([δx])_(?:\((\w\+\w)\)|(\w)\b)"
    text = re.sub(low, lambda match: f"{match[1]}<sub>{match[2] or match[3]}</sub>", markup(content))
    norm = r"\|[δx]<sub>[^|]*\|"
    return Html(re.sub(f"{norm}(?:/{norm})?", lambda match: f'<span class="whole">{match[0]}</span>', text))


def page(title: str, *body: Html, refresh_s: int | None = None) -> str:
    """A whole document, forbidden by its policy to load anything; it loads itself again every `refresh_s` seconds."""
    here, content = Path(__file__), "\n".join((Html(f"<h1>{markup(title)}</h1>"), *body))
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    colours = {
        name: "".join(f"--c{i}:{c};" for i, c in enumerate(t["range"]["category"])) for name, t in THEMES.items()
    }
    style = f":root {{{colours['light']}}}\n@media (prefers-color-scheme: dark) {{ :root {{{colours['dark']}}} }}\n"
    style += here.with_suffix(".css").read_text(encoding="utf-8")
    if "<figure data-chart>" in content:
        import vl_convert

        script = vl_convert.javascript_bundle()  # pyright: ignore[reportCallIssue]: without one, all of Vega
        script += here.with_suffix(".js").read_text(encoding="utf-8")
        script = script.replace("</script", "<\\/script")
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{digest}'"
        content += f'\n<script type="application/json" id="themes">{in_script(THEMES)}</script>'
        content += f'\n<script type="module">{script}</script>'
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
    head += f'<meta name="viewport" content="width=device-width"><title>{markup(title)}</title><style>{style}</style>'
    head += "" if refresh_s is None else f'<meta http-equiv="refresh" content="{refresh_s}">'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{content}\n</body></html>\n'


def in_script(value: Any) -> str:
    """Returns JSON that ends no script: in ASCII, without <.

    >>> in_script(["</script>", "\u2028"])
    '["\\\\u003c/script>","\\\\u2028"]'
    """
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def section(title: str, *body: Html, level: int = 2) -> Html:
    return Html(f"<section><h{level}>{markup(title)}</h{level}>\n" + "\n".join(body) + "</section>")


def paragraph(*content: str, quiet: bool = False) -> Html:
    mark = ' class="quiet"' if quiet else ""
    return Html(f"<p{mark}>{''.join(map(markup, content))}</p>")


def items(*lines: str) -> Html:
    return Html("<ul>" + "".join(f"<li>{markup(line)}</li>" for line in lines) + "</ul>")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    """A table with columns of numbers right-aligned; it scrolls when it is wider than the page.

    On a phone each row is a block of lines with the column's title before each value.

    Raises ValueError: a row has not as many cells as there are columns.
    """
    if any(len(row) != len(columns) for row in rows):
        raise ValueError(f"expected rows of {len(columns)} cells")
    marks = [' class="right"' if right else "" for right in right_aligned(columns, rows)]

    heads = "".join(f"<th{mark}>{markup(column)}</th>" for column, mark in zip(columns, marks, strict=True))
    labels = [re.sub("<.*?>", "", markup(column).replace("<sub>", "_")) for column in columns]
    lines = (
        "".join(
            f'<td{mark} data-label="{label}">{markup(cell)}</td>'
            for label, mark, cell in zip(labels, marks, row, strict=True)
        )
        for row in rows
    )
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return Html(f'<div class="scroll"><table><thead><tr>{heads}</tr></thead>\n<tbody>{body}</tbody></table></div>')


def picture(chart: Chart, alt: str, caption: str = "") -> Html:
    """A chart that answers to the pointer; `alt` is what a screen reader says of it."""
    under = f"<figcaption>{markup(caption)}</figcaption>" if caption else ""
    spec = f'<script type="application/json">{in_script(chart | {"description": alt})}</script>'
    return Html(f'<figure data-chart><div class="chart"></div>{spec}{under}</figure>')


def folded(title: str, *body: Html) -> Html:
    """Content that is shown on a click."""
    return Html(f"<details><summary>{markup(title)}</summary>\n" + "\n".join(body) + "</details>")
