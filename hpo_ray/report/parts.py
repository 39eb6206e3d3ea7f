"""What a section of a report is made of. All texts are plain: the page escapes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True)
class Words:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Plot:
    """A Plotly figure, with what it shows in one or two sentences.

    Attributes:
        figure: its texts are escaped (`theme.escaped`), its colours those of `theme`.
        caption: what it shows, and how to read it.
        name: of the function that draws it, `result.plot.NAME()`; empty if none there does.
    """

    figure: Figure
    caption: str
    name: str


@dataclass(frozen=True)
class Table:
    """A table. Cells that are numbers are told by `numeric`: the indices of their columns.

    Attributes:
        more: what is left out, for example `and 12 more in trials.jsonl`.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Sequence[int] = ()
    more: str = ""


@dataclass(frozen=True)
class Listing:
    """Text as it stands, in a fixed width, folded under its title unless `open`."""

    title: str
    text: str
    open: bool = False


Part = Words | Plot | Table | Listing


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
        key: its anchor on the page.
        title: its heading.
        parts: what stands in it, in order.
    """

    key: str
    title: str
    parts: Sequence[Part] = field(default_factory=tuple)
