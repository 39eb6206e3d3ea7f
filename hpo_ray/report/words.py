"""How a report writes numbers, values and places: short, and the same everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

LONGEST = 60
"""Characters of a value in a table."""


def value_text(value: Any) -> str:
    """A value in a table: numbers to six digits, nothing for None, and no longer than `LONGEST`."""
    if value is None:
        return ""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return shortened(text)


def shortened(text: str, most: int = LONGEST) -> str:
    """A text of at most so many characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def ordinal(place: int) -> str:
    """`1st`, `2nd`, `3rd`, `4th`, `11th`."""
    suffix = "th" if place % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(place % 10, "th")
    return f"{place}{suffix}"


def listed(texts: Sequence[str], most: int | None = None) -> str:
    """`a, b and c`; with `most` the first so many, and how many more there are."""
    shown = list(texts) if most is None or len(texts) <= most else [*texts[:most], f"{len(texts) - most} more"]
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
