"""Self-contained pages: one file, nothing from a network, opens from disk, light and dark.

What is text is escaped, what is markup is `Html`; there is no other way into a page.
"""

import base64
import re
from collections.abc import Sequence
from html import escape

from ..text import right_aligned

_STYLE = """
:root { color-scheme: light dark;
  --line: #d0d7de; --quiet: #57606a; --ink: #1f2328; --paper: #ffffff; --raised: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --line: #3d444d; --quiet: #9198a1; --ink: #e6edf3; --paper: #0d1117; --raised: #161b22; }
}
body { margin: 2rem auto; max-width: 78rem; padding: 0 1rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif; }
h1, h2, h3 { line-height: 1.25; margin: 2rem 0 0.5rem; }
p, li, figcaption { max-width: 48rem; }
figure { margin: 1rem 0; }
figcaption, .quiet { color: var(--quiet); font-size: 0.9rem; }
/* Pictures keep the white ground that their colours are made for. */
img { max-width: 100%; height: auto; background: #ffffff; border-radius: 6px; }
.scroll { overflow-x: auto; }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 0.9rem; }
th, td { padding: 0.3rem 0.5rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { background: var(--raised); }
.right { text-align: right; font-variant-numeric: tabular-nums; }
td.right { white-space: nowrap; }
summary { cursor: pointer; color: var(--quiet); }
sub { line-height: 0; }
code { background: var(--raised); padding: 0.1em 0.3em; border-radius: 4px; overflow-wrap: anywhere; }
"""


class Html(str):
    """Markup, as opposed to text."""


def markup(content: str) -> Html:
    """Text escaped; markup as it is.

    >>> markup("a < b"), markup(Html("<b>"))
    ('a &lt; b', '<b>')
    """
    return content if isinstance(content, Html) else Html(escape(content))


def formula(content: str) -> Html:
    """Text whose indices are set low: δ_0, δ_(l+1), x_l.

    >>> formula("|δ_(l+1)| < x_l")
    '|δ<sub>l+1</sub>| &lt; x<sub>l</sub>'
    """
    low = r"([δx])_(?:\((\w\+\w)\)|(\w)\b)"
    return Html(re.sub(low, lambda found: f"{found[1]}<sub>{found[2] or found[3]}</sub>", markup(content)))


def page(title: str, *body: Html) -> str:
    """A whole document."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{markup(title)}</title>'
    # Whatever a page may hold one day, it loads nothing and runs nothing.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head += f'<meta http-equiv="Content-Security-Policy" content="{policy}"><style>{_STYLE}</style>'
    content = "\n".join((Html(f"<h1>{markup(title)}</h1>"), *body))
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{content}\n</body></html>\n'


def section(title: str, *body: Html, level: int = 2) -> Html:
    return Html(f"<section><h{level}>{markup(title)}</h{level}>\n" + "\n".join(body) + "</section>")


def joined(*content: str) -> Html:
    """Text and markup after each other."""
    return Html("".join(map(markup, content)))


def paragraph(*content: str, quiet: bool = False) -> Html:
    mark = ' class="quiet"' if quiet else ""
    return Html(f"<p{mark}>{joined(*content)}</p>")


def code(text: str) -> Html:
    return Html(f"<code>{markup(text)}</code>")


def items(*lines: str) -> Html:
    return Html("<ul>" + "".join(f"<li>{markup(line)}</li>" for line in lines) + "</ul>")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    """Columns of numbers are right-aligned; wider than the page, it scrolls.

    Raises ValueError: a row has not as many cells.
    """
    if any(len(row) != len(columns) for row in rows):
        raise ValueError(f"expected rows of {len(columns)} cells")
    marks = [' class="right"' if right else "" for right in right_aligned(columns, rows)]

    def line(cells: Sequence[str], tag: str) -> str:
        inner = (f"<{tag}{mark}>{markup(cell)}</{tag}>" for cell, mark in zip(cells, marks, strict=True))
        return f"<tr>{''.join(inner)}</tr>"

    body = "\n".join(line(row, "td") for row in rows)
    return Html(f'<div class="scroll"><table><thead>{line(columns, "th")}</thead>\n<tbody>{body}</tbody></table></div>')


def folded(title: str, *body: Html) -> Html:
    """What is seen after a click on the title."""
    return Html(f"<details><summary>{markup(title)}</summary>\n" + "\n".join(body) + "</details>")


def picture(svg: str, says: str, caption: str = "") -> Html:
    """An SVG; `says` is what it shows, for those who cannot see it.

    As an image of its own, since the ids inside two inlined drawings could be the same.
    """
    data = base64.b64encode(svg.encode()).decode()
    under = f"<figcaption>{markup(caption)}</figcaption>" if caption else ""
    return Html(f'<figure><img alt="{escape(says)}" src="data:image/svg+xml;base64,{data}">{under}</figure>')


def side_by_side(*parts: Html) -> Html:
    return Html('<div class="row">' + "\n".join(parts) + "</div>")
