"""Learning curves: who is drawn, in which colour, and on which axes."""

from __future__ import annotations

import math
from pathlib import Path

from written import added, curve, ended, finished, plots, reported, started, study

from hpo_ray.report.curves import RAMP, learning_curves, section
from hpo_ray.report.subject import Subject
from hpo_ray.report.theme import faded


def test_rungs_are_colours_and_lines(hyperband: Subject) -> None:
    figure = hyperband.result.plot.learning_curves()
    names = [(trace.name, trace.line.color, trace.showlegend) for trace in figure.data]
    assert names == [
        ("reached 1", faded(RAMP[0], 0.55), True),
        ("reached 3", faded(RAMP[2], 0.55), True),
        ("reached 9", faded(RAMP[4], 0.9), True),
        ("trial 4, the winner", "#D55E00", True),
    ]
    assert [shape.x0 for shape in figure.layout.shapes] == [1, 3, 9]
    assert figure.layout.xaxis.type == "log" and list(figure.layout.xaxis.tickvals) == [1, 3, 9]
    assert figure.data[3].x == (*range(1, 10), None) and set(figure.data[3].customdata) == {4}
    assert sum(x is None for trace in figure.data for x in trace.x) == 17
    assert "dotted lines: the rungs, at step 1, 3, 9." in plots(section(hyperband))[0].caption


def test_stopped_failed_and_without_a_value(tmp_path: Path) -> None:
    subject = study(
        tmp_path,
        started(),
        *(added(i) for i in range(5)),
        *curve(0, [0.5, math.nan, 0.25]),
        *curve(1, [0.9]),
        *curve(2, [0.8, 0.7]),
        *curve(3, [math.nan]),
        ended(0),
        ended(1, "stopped"),
        ended(2, "failed", "E: x"),
        ended(3, "failed", "E: x"),
        finished(),
    )
    figure = learning_curves(subject)
    assert figure is not None
    drawn = {trace.name: (trace.x, trace.y) for trace in figure.data}
    assert drawn == {
        "failed or stopped": ((1, None, 1, 2, None), (0.9, None, 0.8, 0.7, None)),
        "trial 0, the winner": ((1, 2, 3, None), (0.5, None, 0.25, None)),
        "failed": ((2,), (0.7,)),
    }
    assert figure.data[0].marker.size[:2] == (4.3, 0) and figure.layout.yaxis.type == "linear"
    assert plots(section(subject))[0].caption == (
        "The curves of 3 trials; a dot is where one ends, and faint ones were ended early. A cross is where a trial "
        "failed; 1 failed before a first value."
    )


def test_many_are_thinned_but_not_the_winner_nor_who_completed(tmp_path: Path) -> None:
    events = [e for i in range(400) for e in (added(i), reported(i, 1, 1.0 + i))]
    events += [reported(333, 2, 0.5), reported(7, 2, 0.6), ended(333), ended(7)]
    subject = study(tmp_path, started(), *events)
    figure = learning_curves(subject)
    assert figure is not None
    drawn = {number for trace in figure.data for number in trace.customdata}
    assert len(drawn) == 300 and {333, 7, 0, 399} <= drawn
    assert figure.layout.yaxis.type == "log"
    assert "300 of 400 trials" in plots(section(subject))[0].caption


def test_far_outliers_are_left_out_and_told(tmp_path: Path) -> None:
    events = [e for i in range(40) for e in (added(i), reported(i, 1, float(-i)))]
    subject = study(tmp_path, started("max"), *events, added(40), reported(40, 1, -1e9))
    assert "1 value far from the others lies outside." in plots(section(subject))[0].caption


def test_nothing_without_a_value(tmp_path: Path) -> None:
    assert section(study(tmp_path, started(), added(0), reported(0, 1, math.nan))) is None
