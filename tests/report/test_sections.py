"""The law of all sections: no study that can be read makes them fail, and what they say is text."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from written import added, copied, curve, ended, finished, reported, started, study

from hpo_ray.events import Event, StudyEnded, TrialRetried
from hpo_ray.report.parts import Listing, Plot, Table, Words
from hpo_ray.report.sections import sections
from hpo_ray.report.subject import Subject

EVIL = "<script>alert(1)</script>"
EVIL_CONFIG = {EVIL: EVIL, "a.b": {"c": [1, {"d": None}]}, "None": None, "flag": True, "big": 1e300, "nan": math.nan}


def obeys(subject: Subject) -> list[str]:
    """The keys of the sections, after each of their parts was looked at."""
    made = sections(subject)
    for section in made:
        assert section.parts and section.title
        for part in section.parts:
            if isinstance(part, Words):
                assert part.text
            elif isinstance(part, Table):
                assert all(len(row) == len(part.head) for row in part.rows)
                assert all(isinstance(cell, str) for row in (part.head, *part.rows) for cell in row)
                assert all(0 <= column < len(part.head) for column in part.numeric)
            elif isinstance(part, Plot):
                text = part.figure.to_json()
                json.loads(text, parse_constant=pytest.fail)  # NaN and Infinity are no JSON
                assert "<script" not in text.replace("\\u003c", "<") and part.caption
            else:
                assert isinstance(part, Listing) and part.title and part.text
    assert len({section.key for section in made}) == len(made)
    return [section.key for section in made]


def hypergradient(number: int, resource: int, value: float) -> Event:
    return reported(number, resource, value, **{f"hyperparameter__{EVIL}": 0.1 * resource, "residual": 0.1**resource})


ODD: dict[str, list[Event]] = {
    "nothing yet": [],
    "no report": [added(0)],
    "one running": [added(0), reported(0, 1, 0.5, 1.0, 0.5)],
    "one report": [added(0), reported(0, 1, 0.5), ended(0), finished()],
    "all failed": [added(0), added(1), reported(0, 1, 0.5), ended(0, "failed", "E"), ended(1, "failed", None)],
    "interrupted": [added(0), reported(0, 1, 0.5), StudyEnded("interrupted", "", 3.0)],
    "nan": [added(0), added(1), *curve(0, [math.nan, math.inf, -math.inf]), *curve(1, [0.1, math.nan])],
    "no number": [added(0), reported(0, 1, "x"), reported(0, 2, None), reported(0, 3, True)],
    "huge": [added(0), added(1), *curve(0, [1e308, -1e308]), *curve(1, [1e-300, 1e300])],
    "markup": [added(0, EVIL_CONFIG), added(1, {}), reported(0, 1, 0.5, 2.0, 1.0), ended(1, "failed", EVIL)],
    "odd tags": [
        *(
            added(i, bracket=bracket, rung=EVIL, generation=generation, parents=parents)
            for i, (bracket, generation, parents) in enumerate(
                [(EVIL, 0, None), (None, 1, [9]), (7, "x", "ab"), (-1, 2, [1])]
            )
        ),
        *(reported(i, 1, 0.5 + i) for i in range(4)),
    ],
    "retried": [added(0), TrialRetried("0", "", 0.0), reported(0, 1, 0.5), reported(0, 1, 0.4)],
    "population": [
        *(added(i, {EVIL: f"{EVIL}{i}", "x": i}, exploits=0) for i in range(2)),
        *curve(0, [0.5, 0.4]),
        copied(1, 0, 2, {EVIL: EVIL, "x": math.nan}),
    ],
    "copy of nothing": [*(added(i, exploits=0) for i in range(2)), copied(1, 0, 0, {"x": 3}, math.nan)],
    "hypergradient": [
        added(0, {EVIL: 1.0}),
        added(1),
        *(hypergradient(0, i, 1 / i) for i in (1, 2, 2)),
        hypergradient(1, 1, math.nan),
    ],
}


PLANNED = ("nothing yet", "all failed", "odd tags")


@pytest.mark.parametrize(
    ("name", "planned"),
    [
        pytest.param(name, planned, marks=pytest.mark.slow if planned and name not in PLANNED else ())
        for name in ODD
        for planned in (False, True)
    ],
)
def test_law_no_study_makes_a_section_fail(tmp_path: Path, hyperband: Subject, name: str, planned: bool) -> None:
    first = started("max" if planned else "min", metric="loss")
    obeys(study(tmp_path / "s", first, *ODD[name], config_of=hyperband.folder if planned else None))


def test_law_a_name_of_the_metric_is_text(tmp_path: Path) -> None:
    reports: list[Event] = [reported(0, i, 0.0, float(i), 0.5, **{EVIL: 0.5 / i}) for i in (1, 2)]
    assert obeys(study(tmp_path, started(metric=EVIL), added(0), *reports)) == [
        "winner",
        "incumbent",
        "curves",
        "workers",
        "provenance",
    ]


@pytest.mark.parametrize(
    ("kind", "cut"),
    [
        pytest.param(kind, cut, marks=() if cut in cuts else pytest.mark.slow)
        for kind, cuts in (("hyperband", (7, 23)), ("population", (5, 47)), ("evolution", (23,)))
        for cut in (1, 2, 3, 5, 7, 11, 23, 47)
    ],
)
def test_law_a_study_may_end_anywhere(tmp_path: Path, request: pytest.FixtureRequest, kind: str, cut: int) -> None:
    whole: Subject = request.getfixturevalue(kind)
    obeys(study(tmp_path / str(cut), *whole.events[:cut], config_of=whole.folder))


def test_which_sections_there_are(hyperband: Subject, population: Subject, evolution: Subject) -> None:
    last = ["importance", "parallel", "slices", "workers", "provenance"]
    assert obeys(hyperband) == ["winner", "incumbent", "curves", "rungs", *last]
    assert obeys(population) == obeys(evolution) == ["winner", "incumbent", "curves", "population", *last]


@pytest.mark.parametrize("kind", ["hyperband", "population", "evolution"])
def test_law_each_figure_can_be_had_by_its_name(request: pytest.FixtureRequest, kind: str) -> None:
    subject: Subject = request.getfixturevalue(kind)
    for section in sections(subject):
        for part in section.parts:
            if isinstance(part, Plot) and "(" not in part.name:
                assert getattr(subject.result.plot, part.name)() == part.figure
