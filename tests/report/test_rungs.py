"""Through the rungs, as planned and as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from written import added, curve, ended, finished, plots, reported, started, study, tables

from hpo_ray.errors import StudyError
from hpo_ray.report.rungs import flow, section
from hpo_ray.report.subject import Subject


def test_a_study_that_went_as_planned(hyperband: Subject) -> None:
    rows = [(row.s, row.resource, row.reported, row.planned, row.fates["went up"], row.up) for row in flow(hyperband)]
    assert rows == [
        (2, 1, 9, 9, 3, 3),
        (2, 3, 3, 3, 1, 1),
        (2, 9, 1, 1, 0, None),
        (1, 3, 5, 5, 1, 1),
        (1, 9, 1, 1, 0, None),
        (0, 9, 3, 3, 0, None),
    ]
    figure = hyperband.result.plot.rung_flow()
    assert {trace.name: trace.y for trace in figure.data} == {
        "went up": (3, 1, 0, 1, 0, 0),
        "completed": (0, 0, 1, 0, 1, 3),
        "stopped": (6, 2, 0, 4, 0, 0),
        "planned": (9, 3, 1, 5, 1, 3),
    }
    assert list(map(list, figure.data[0].x)) == [
        ["s=2", "s=2", "s=2", "s=1", "s=1", "s=0"],
        ["1", "3", "9", "3", "9", "9"],
    ]
    (table,) = tables(section(hyperband))
    assert list(table.head) == ["s of the bracket", "rung at step", "trials", "planned", "went up", "planned"]
    assert list(table.rows[0]) == ["2", "1", "9", "9", "3", "3"] and list(table.rows[2]) == ["2", "9", "1", "1", "", ""]


def test_a_study_that_did_not(tmp_path: Path, hyperband: Subject) -> None:
    subject = study(
        tmp_path / "s",
        started(),
        *(added(i, bracket=0, rung=rung) for i, rung in enumerate((1, 1, 0, 0, 0))),
        added(5, bracket=3, rung=0),  # the first bracket of a second round
        added(6, bracket=None, rung="?"),
        *curve(0, [0.1, 0.1, 0.1]),
        *curve(1, [0.2, 0.2]),
        *curve(2, [0.3]),
        *curve(3, [0.4]),
        *curve(5, [0.5]),
        ended(1, "failed", "E"),
        ended(2, "stopped"),
        ended(4, "failed", "E"),
        config_of=hyperband.folder,
    )
    first, second = flow(subject)[:2]
    assert dict(first.fates) == {"went up": 2, "stopped": 1, "unfinished": 2} and first.lost == 1
    assert dict(second.fates) == {"unfinished": 1} and second.lost == 1
    (table,) = tables(section(subject))
    assert list(table.head)[-1] == "failed on the way" and list(table.rows[1]) == ["2", "3", "1", "3", "0", "1", "1"]


def test_early_stopping_without_rungs(tmp_path: Path) -> None:
    events = [e for i in range(4) for e in (added(i), *curve(i, [0.5] * (1, 1, 3, 9)[i]))]
    subject = study(tmp_path, started(), *events, *(ended(i, "stopped") for i in range(3)), ended(3), finished())
    figure = subject.result.plot.stopping()
    assert (figure.data[0].x, figure.data[0].y, figure.data[0].text) == ((1, 3), (2, 1), ("1", "3"))
    (plot,) = plots(section(subject))
    assert plot.caption == "3 of 4 trials were stopped before step 9, which saved 22 steps at most."


def test_many_resources_are_put_together(tmp_path: Path) -> None:
    events = [e for i, r in enumerate((1, 2, 120)) for e in (added(i), reported(i, r, 0.5), ended(i, "stopped"))]
    figure = study(tmp_path, started(max_resource=121), *events).result.plot.stopping()
    assert (figure.data[0].y, figure.data[0].text) == ((2, 1), ("1 to 2", "119 to 120"))
    assert figure.data[0].x == (1.5, 119.5)


def test_nothing_to_show(tmp_path: Path, hyperband: Subject) -> None:
    subject = study(tmp_path, started(), added(0), reported(0, 1, 0.5), ended(0))
    assert section(subject) is None
    with pytest.raises(StudyError, match="no rungs"):
        subject.result.plot.rung_flow()
    with pytest.raises(StudyError, match="rung_flow"):
        hyperband.result.plot.stopping()
