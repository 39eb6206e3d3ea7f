"""How all figures look: colours that work on light and dark pages and for any colour vision, and no background."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

from hpo_ray.report.comparison import COLOURS

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

BLUE, ORANGE, GREEN, PINK, YELLOW, SKY, _ = COLOURS
GREY = "#8a8f98"
CYCLE = (BLUE, ORANGE, GREEN, PINK, YELLOW, SKY, GREY)
"""Colours of series, in this order. None is black or white: the page may be either."""
DIVERGING, SEQUENTIAL = "RdBu", "Viridis"
MOST_POINTS = 2000
"""How many points a trace has at most; with more, it is thinned, and its caption says so."""


def figure(**layout: Any) -> Figure:
    """An empty figure in the style of the report: no title (the page has one), no background, room for a phone.

    Args:
        layout: further properties of Plotly's layout, for example `xaxis_title="epoch"`.
    """
    import plotly.graph_objects as go

    made = go.Figure()
    made.update_layout(template="none")
    return styled(made).update_layout(**layout)


def styled(made: Figure) -> Figure:
    """Gives a figure from elsewhere, as Optuna's, the style of the report."""
    made.update_layout(
        title=None,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 12, "color": GREY},
        margin={"l": 56, "r": 16, "t": 24, "b": 48},
        colorway=list(CYCLE),
        hoverlabel={"namelength": -1},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0.0},
    )
    for axes in (made.update_xaxes, made.update_yaxes):
        axes(gridcolor="rgba(138,143,152,0.25)", zeroline=False, linecolor=GREY, automargin=True)
    return made


def escaped(text: Any) -> str:
    """A text for a figure, where Plotly would take `<b>` or `&amp;` for markup: it is shown as it stands."""
    return html.escape(str(text), quote=False)


def faded(colour: str, alpha: float) -> str:
    """A colour `#rrggbb` with an opacity from 0 to 1."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha:g})"


def thinned(count: int, most: int = MOST_POINTS) -> list[int]:
    """Which of so many points are drawn: all, or `most` of them, evenly spread, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]
