"""How trials become lines: which, where they break, on which axis; and how values are written."""

from __future__ import annotations

import math

import pytest

from hpo_ray.report.lines import chosen, left_out, line, value_axis
from hpo_ray.report.words import listed, ordinal, value_text


def test_the_urgent_ones_are_kept() -> None:
    assert chosen(range(10), 20, lambda i: 0) == list(range(10))
    assert chosen(range(10), 4, lambda i: int(i not in (3, 4))) == [0, 3, 4, 9]
    assert chosen(range(10), 1, lambda i: int(i != 7)) == [7]
    assert chosen(range(10), 2, lambda i: int(i != 7)) == [0, 7]
    assert len(chosen(range(1000), 300, lambda i: i % 3)) == 300


def test_a_line_breaks_where_the_resource_goes_back() -> None:
    points = [(1, 0.5), (2, math.nan), (3, 0.123456789), (2, 0.3), (5, 0.2)]
    assert line(points) == ([1, 2, 3, None, 2, 5], [0.5, None, 0.123457, None, 0.3, 0.2])
    assert line([(1, 1.0), (2, 2.0), (3, 3.0)], cuts=[2]) == ([1, 2, None, 3], [1.0, 2.0, None, 3.0])
    assert line([(i, 0.0) for i in range(1, 102)], most=3)[0] == [1, 51, 101]


def test_axes() -> None:
    assert value_axis([0.1, 4.9]) == {"type": "linear"}
    assert value_axis([0.1, 5.0])["type"] == "log"
    assert value_axis([0.0, 5.0]) == {"type": "linear"}
    assert value_axis([math.nan, math.inf]) == {}
    values = [float(i) for i in range(-5, 94)] + [-1e9]
    # All but the 5 least and the 5 greatest lie from -1 to 88: the axis goes as far again, but not beyond the last.
    axis = value_axis(values)
    assert axis == {"type": "linear", "range": pytest.approx([-90 - 89 / 20, 93 + 89 / 20])}
    assert left_out(axis, [*values, math.nan]) == 1
    assert left_out({"type": "log"}, values) == 0


def test_words() -> None:
    assert [ordinal(n) for n in (1, 2, 3, 4, 11, 12, 13, 21, 102, 111)] == (
        "1st 2nd 3rd 4th 11th 12th 13th 21st 102nd 111th".split()
    )
    assert listed([]) == "" and listed(["a"]) == "a" and listed(["a", "b", "c"]) == "a, b and c"
    assert listed(["a", "b", "c", "d"], 2) == "a, b and 2 more"
    assert [value_text(v) for v in (None, 0.1234567, 3, True, "relu", [1, 2])] == [
        "",
        "0.123457",
        "3",
        "True",
        "relu",
        "[1, 2]",
    ]
    assert value_text("a" * 100) == "a" * 59 + "…"
