"""A headless Chromium that opens reports, and tells what a person would not see: errors, requests, overflow."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Software rendering: parallel coordinates are drawn by WebGL, and a machine that runs tests has no graphics card.
_FLAGS = ("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")

_MARKS = (".point", ".js-line", ".contourlevel", ".heatmaplayer image", ".js-fill", ".annotation", ".shapelayer path")
"""What Plotly draws of data, by its classes."""


@dataclass
class Opened:
    """A report in the browser.

    Attributes:
        page: Playwright's page.
        problems: what the console says beside logs, and exceptions.
        requests: all addresses that were asked for.
    """

    page: Any
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def draw_all(self) -> None:
        """Draws what lies further down, too, and waits until it is there."""
        self.page.evaluate("report.drawAll()")
        self.page.wait_for_function("report.ready() === report.plots")

    def marks(self) -> dict[str, int]:
        """How many marks (points, lines, bars, cells, ...) each figure has, by its place on the page."""
        found: dict[str, int] = self.page.evaluate(
            "kinds => Object.fromEntries([...document.querySelectorAll('.plot')]"
            ".map((place) => [place.id, place.querySelectorAll(kinds).length]))",
            ", ".join(_MARKS),
        )
        return found

    def overflow(self) -> tuple[int, int]:
        """(width of the content, width of the window) in pixels."""
        wide, window = self.page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        return int(wide), int(window)


class Browser:
    """Chromium, started once."""

    def __init__(self, playwright: Any) -> None:
        self._browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(_FLAGS))

    @contextmanager
    def open(self, path: Path, width: int = 1100, scheme: str = "light") -> Iterator[Opened]:
        """Opens a report in a window of so many pixels, in light or dark."""
        context = self._browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page = context.new_page()
        opened = Opened(page)
        page.on("console", lambda m: m.type in ("error", "warning") and opened.problems.append(f"{m.type}: {m.text}"))
        page.on("pageerror", lambda error: opened.problems.append(str(error)))
        page.on("dialog", lambda dialog: (opened.problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: opened.requests.append(request.url))
        page.goto(path.resolve().as_uri())
        try:
            yield opened
        finally:
            context.close()

    def close(self) -> None:
        """Ends it."""
        self._browser.close()
