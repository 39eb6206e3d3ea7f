"""The page: sections become one HTML file that needs nothing else, no network and no server.

Every text is escaped here. The page's own policy (CSP) lets no other script run than the two that are named by their
hashes, and no request leave it, so that even what an error of ours let through would do nothing.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from hpo_ray.report.parts import Listing, Part, Plot, Section, Table, Words

_WIDE = 24
"""Characters of a cell from which on it needs some width on a phone, where the table is scrolled."""


@dataclass(frozen=True)
class Head:
    """What stands above the sections.

    Attributes:
        title: of the page.
        lines: below it.
        state: of the study; None for several.
        cards: (what it is, value, a word on it), the most important first.
    """

    title: str
    lines: Sequence[str] = ()
    state: str | None = None
    cards: Sequence[tuple[str, str, str]] = field(default_factory=tuple)


def page(head: Head, sections: Sequence[Section]) -> Iterator[str]:
    """The whole page, in pieces that are to be written one after another."""
    from plotly.offline import get_plotlyjs

    library, ours = _script(get_plotlyjs()), _script(_file("page.js"))
    policy = (
        f"default-src 'none'; script-src {_hash(library)} {_hash(ours)}; style-src 'unsafe-inline'; "
        f"img-src data: blob:; font-src data:; base-uri 'none'; form-action 'none'"
    )
    title = _text(head.title)
    yield (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="generator" content="hpo_ray {version("hpo_ray")}">\n'
        f'<title>{title}</title>\n<link rel="icon" href="data:,">\n'
        f"<style>\n{_file('page.css')}</style>\n</head>\n<body>\n"
    )
    yield from _head(head)
    links = "".join(f'<a href="#{_text(section.key)}">{_text(section.title)}</a>' for section in sections)
    yield f'<nav><div><div class="links">{links}</div>'
    yield '<button type="button" title="light or dark">dark</button></div></nav>\n<main>\n'
    yield "<noscript><p>The figures are drawn by JavaScript, which is switched off here.</p></noscript>\n"
    count = 0
    for section in sections:
        yield f'<section id="{_text(section.key)}">\n<h2>{_text(section.title)}</h2>\n'
        for part in section.parts:
            count += 1
            yield from _part(part, f"figure-{count}")
        yield "</section>\n"
    yield f"</main>\n<footer>Written by hpo_ray {version('hpo_ray')}. Figures: Plotly.js.</footer>\n"
    yield f"<script>{library}</script>\n<script>{ours}</script>\n</body>\n</html>\n"


def _head(head: Head) -> Iterator[str]:
    state = f' <span class="state-{_text(head.state)}">{_text(head.state)}</span>' if head.state else ""
    yield f"<header>\n<h1>{_text(head.title)}{state}</h1>\n"
    yield "".join(f"<p>{_text(line)}</p>\n" for line in head.lines)
    if head.cards:
        cards = (
            f"<div><span>{_text(what)}</span><b>{_text(value)}</b><span>{_text(more)}</span></div>"
            for what, value, more in head.cards
        )
        yield f'<div class="cards">{"".join(cards)}</div>\n'
    yield "</header>\n"


def _part(part: Part, identity: str) -> Iterator[str]:
    if isinstance(part, Words):
        yield f"<p>{_text(part.text)}</p>\n"
    elif isinstance(part, Plot):
        height = part.figure.layout.height
        style = f' style="height: {int(height)}px"' if height else ""
        yield f'<figure>\n<div class="plot" id="{identity}" data-figure="{identity}-data"{style}></div>\n'
        yield f"<figcaption>{_text(part.caption)}</figcaption>\n</figure>\n"
        yield f'<script type="application/json" id="{identity}-data">{_json(part.figure)}</script>\n'
    elif isinstance(part, Table):
        yield from _table(part)
    elif isinstance(part, Listing):
        yield f"<details{' open' if part.open else ''}><summary>{_text(part.title)}</summary>\n"
        yield f"<pre>{_text(part.text)}</pre></details>\n"


def _table(table: Table) -> Iterator[str]:
    def cells(row: Sequence[str], tag: str) -> str:
        kinds = (
            ' class="number"' if i in table.numeric else ' class="wide"' if len(cell) > _WIDE else ""
            for i, cell in enumerate(row)
        )
        return "".join(f"<{tag}{kind}>{_text(cell)}</{tag}>" for kind, cell in zip(kinds, row, strict=True))

    yield f'<div class="table"><table>\n<thead><tr>{cells(table.head, "th")}</tr></thead>\n<tbody>\n'
    for row in table.rows:
        yield f"<tr>{cells(row, 'td')}</tr>\n"
    more = f'<p class="faint">{_text(table.more)}</p>' if table.more else ""
    yield f"</tbody></table>{more}</div>\n"


def _text(text: Any) -> str:
    return html.escape(str(text), quote=True)


def _json(figure: Any) -> str:
    """A figure as JSON that can stand in a script element: nothing in it can end that."""
    text: str = figure.to_json()
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _script(text: str) -> str:
    """A script that can stand in the page, which `</script` in one of its strings would end."""
    return text.replace("</script", "<\\/script")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _file(name: str) -> str:
    return files("hpo_ray.report").joinpath(name).read_text(encoding="utf-8")
