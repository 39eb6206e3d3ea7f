"""The page: what is in the file, and what a browser makes of it."""

from __future__ import annotations

import json
import re

from hpo_ray.report.page import Head, page
from hpo_ray.report.parts import Listing, Plot, Section, Table, Words
from hpo_ray.report.theme import escaped, faded, figure, thinned

HOSTILE = "<script>alert('it ran')</script><img src=x onerror=alert(2)>\"'&amp;</script>"


def text(sections: list[Section], head: Head | None = None) -> str:
    """A page without Plotly's own script."""
    from plotly.offline import get_plotlyjs

    return "".join(page(head or Head("a study"), sections)).replace(get_plotlyjs(), "PLOTLY")


def plot(label: str) -> Plot:
    drawn = figure(xaxis_title=escaped(label), height=200)
    drawn.add_scatter(x=[1, 2], y=[3, 4], name=escaped(label), text=[escaped(label)] * 2)
    return Plot(drawn, label, "it")


def test_what_is_shown_is_text_wherever_it_stands() -> None:
    parts = (
        Words(HOSTILE),
        Table((HOSTILE, "n"), ((HOSTILE, "1"),), numeric=(1,), more=HOSTILE),
        Listing(HOSTILE, HOSTILE),
        plot(HOSTILE),
    )
    made = text([Section("it", HOSTILE, parts)], Head(HOSTILE, [HOSTILE], HOSTILE, [(HOSTILE, HOSTILE, HOSTILE)]))
    tags = re.findall(r"<(script|img|/script)\b[^>]*>", made)
    assert tags == ["script", "/script"] * 3, "the figure, Plotly and the page's own"
    assert made.count("&lt;script&gt;alert(&#x27;it ran&#x27;)") >= 12


def test_a_figure_comes_back_as_it_was() -> None:
    made = text([Section("it", "It", [plot("a < b & c")])])
    held = re.search(r'<script type="application/json" id="figure-1-data">(.*?)</script>', made)
    assert held is not None and "<" not in held[1] and "&" not in held[1]
    data = json.loads(held[1])
    assert data["data"][0]["name"] == "a &lt; b &amp; c", "Plotly shows that as a < b & c"
    assert data["data"][0]["x"] == [1, 2]


def test_scripts_are_those_named_in_the_policy() -> None:
    import base64
    import hashlib

    made = "".join(page(Head("a study"), []))
    policy = re.search(r'content="(default-src[^"]*)"', made)
    assert policy is not None and "'unsafe-inline'" not in policy[1].split("style-src")[0]
    scripts = re.findall(r"<script>(.*?)</script>", made, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert len(hashes) == 2 and all(f"'sha256-{found}'" in policy[1] for found in hashes)
    assert "://" not in re.sub(r"<script>.*?</script>", "", made, flags=re.DOTALL)


def test_thinned() -> None:
    assert thinned(5, 10) == [0, 1, 2, 3, 4]
    assert thinned(101, 5) == [0, 25, 50, 75, 100]
    assert len(set(thinned(10_000, 2000))) == 2000


def test_colours() -> None:
    assert faded("#0072B2", 0.5) == "rgba(0,114,178,0.5)"
