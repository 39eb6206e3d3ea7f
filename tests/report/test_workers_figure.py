"""Utilisation: lanes, busy shares, and what is put together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from written import added, finished, plots, reported, started, study, words

from hpo_ray.errors import StudyError
from hpo_ray.events import Event, StudyResumed
from hpo_ray.report.subject import Subject
from hpo_ray.report.workers import Stretch, Utilisation, section, spans, stretches, sum_until, utilisation


def two_lanes() -> list[Event]:
    """Trial 0 from 0 to 4 in two steps, 1 from 0 to 1, 2 from 1 to 3; all of it took 8 seconds."""
    steps = [(1, 1, 1.0, 1.0), (0, 1, 2.0, 2.0), (2, 1, 3.0, 2.0), (0, 2, 4.0, 2.0)]
    reports = [reported(number, resource, 0.5, end, seconds) for number, resource, end, seconds in steps]
    return [*(added(i) for i in range(3)), *reports, finished(8.0)]


def test_lanes_and_shares(tmp_path: Path) -> None:
    subject = study(tmp_path, started(workers=2), *two_lanes())
    assert stretches(subject) == [Stretch(0, 1, 0.0, 1.0), Stretch(1, 0, 0.0, 4.0, 2), Stretch(0, 2, 1.0, 3.0)]
    over_time = [(2.0, 1.0), (4.0, 0.75), (6.0, 0.0), (8.0, 0.0)]
    assert utilisation(subject, 4) == Utilisation(2, 7.0, 7 / 16, over_time, stretches(subject))
    assert words(section(subject)) == ["7 seconds of training in 8 seconds on 2 workers: 44% busy."]
    figure = subject.result.plot.workers()
    bars = [
        bar for trace in figure.data[1:] for bar in zip(trace.y, trace.base, trace.x, trace.customdata, strict=True)
    ]
    assert bars == [
        (1, 0.0, 4.0, "trial 0, 2 steps"),
        (0, 0.0, 1.0, "trial 1, 1 step"),
        (0, 1.0, 2.0, "trial 2, 1 step"),
    ]


def test_a_trial_keeps_its_lane_and_a_gap_is_seen(tmp_path: Path) -> None:
    reports = [reported(0, 1, 0.5, 2.0, 2.0), reported(1, 1, 0.5, 3.0, 3.0), reported(1, 2, 0.5, 6.0, 2.0)]
    subject = study(tmp_path, started(workers=2), added(0), added(1), *reports, finished(8.0))
    assert [(one.lane, one.trial, one.start) for one in stretches(subject)] == [(0, 0, 0.0), (1, 1, 0.0), (1, 1, 4.0)]


def test_an_older_log_does_not_tell_the_workers(tmp_path: Path) -> None:
    subject = study(tmp_path, started(), *two_lanes())
    assert "2 workers (the most that trained at a time" in words(section(subject))[0]


def test_reports_that_come_together_are_of_steps_one_after_another(tmp_path: Path) -> None:
    reports = [reported(0, resource, 0.5, 6.0, 2.0) for resource in (1, 2, 3)]
    subject = study(tmp_path, started(workers=1), added(0), *reports, finished(6.0))
    assert spans(subject) == [(0.0, 2.0, 0), (2.0, 4.0, 0), (4.0, 6.0, 0)]
    assert "100% busy" in words(section(subject))[0] and stretches(subject) == [Stretch(0, 0, 0.0, 6.0, 3)]


def test_too_many_stretches_are_put_together(tmp_path: Path) -> None:
    events: list[Event] = [e for i in range(64) for e in (added(i), reported(i, 1, 0.5, i + 1.0, 1.0))]
    subject = study(tmp_path, started(workers=1), *events, finished(64.0))
    assert len(stretches(subject)) == 64
    few = stretches(subject, most=10)
    assert len(few) <= 10 and all(one.several for one in few)
    assert sum(one.steps for one in few) == 64 and (few[0].start, few[-1].end) == (0.0, 64.0)
    assert len(stretches(subject, most=0)) == 1, "a lane has one at least"


def test_a_bar_of_several_has_the_colour_of_the_longest(tmp_path: Path) -> None:
    steps = [(0, 1.0, 1.0), (1, 3.0, 2.0), (2, 3.5, 0.5)]
    events: list[Event] = [e for i, end, seconds in steps for e in (added(i), reported(i, 1, 0.5, end, seconds))]
    subject = study(tmp_path, started(workers=1), *events, finished(4.0))
    assert stretches(subject, most=1) == [Stretch(0, 1, 0.0, 3.5, 3, True)]


def test_trials_that_take_turns_share_a_lane(tmp_path: Path) -> None:
    events: list[Event] = [added(0), added(1)]
    events += [reported(i % 2, 1 + i // 2, 0.5, 0.001 * (i + 1), 0.001) for i in range(6)]
    subject = study(tmp_path, started(workers=1), *events, finished(10.0))
    assert [(one.lane, one.trial) for one in stretches(subject)] == [(0, 0), (0, 1)] * 3


def test_a_simulation_has_its_own_figures(tmp_path: Path) -> None:
    simulation = {
        "workers": 4,
        "utilisation": 0.5,
        "utilisation_over_time": [[4.0, 0.75], [8.0, 0.25]],
        "lost_workers": 1,
    }
    subject = study(tmp_path, started(workers=2), *two_lanes()[:-1], finished(8.0, simulation=simulation))
    assert words(section(subject)) == [
        "7 virtual seconds of training in 8 virtual seconds on 4 workers: 50% busy. 1 worker got lost on the way."
    ]
    figure = subject.result.plot.workers()
    assert (figure.data[0].x, figure.data[0].y) == ((0.0, 4.0, 8.0), (0.75, 0.75, 0.25))
    assert figure.layout.xaxis2.title.text == "virtual seconds"


def test_resumptions_are_marked(tmp_path: Path) -> None:
    subject = study(tmp_path, started(workers=2), *two_lanes()[:-1], StudyResumed(3.5, 1e9), finished(8.0))
    assert {shape.x0 for shape in subject.result.plot.workers().layout.shapes} == {3.5}
    assert "taken up again (1 time)" in plots(section(subject))[0].caption


def test_sum_until() -> None:
    assert sum_until([1.0, 2.0], np.array([0.0, 1.5, 4.0])).tolist() == [0.0, 0.5, 5.0]


def test_a_real_study(hyperband: Subject) -> None:
    figure = hyperband.result.plot.workers()
    assert [trace.name for trace in figure.data[1:]] == ["bracket 0 (s=2)", "bracket 1 (s=1)", "bracket 2 (s=0)"]
    used = utilisation(hyperband)
    assert used is not None and used.workers == used.lanes == 1 and 0 < used.share < 1


def test_nothing_to_show(tmp_path: Path) -> None:
    subject = study(tmp_path, started(), added(0), reported(0, 1, 0.5))
    assert section(subject) is None
    with pytest.raises(StudyError, match="tells no time"):
        subject.result.plot.workers()
