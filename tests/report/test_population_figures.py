"""Populations: copies, the winner's way, schedules, generations."""

from __future__ import annotations

from pathlib import Path

import pytest
from written import added, copied, curve, finished, plots, reported, started, study

from hpo_ray.errors import StudyError
from hpo_ray.report.population import Copy, copies, generations, paths, schedule, section
from hpo_ray.report.subject import Subject


def three(folder: Path) -> Subject:
    """0 copies 1 at 2; then 1 copies 2 at 1, which lies before; then 2 copies 0 at 3."""
    return study(
        folder,
        started(max_resource=4),
        *(added(i, {"lr": 0.1 * (i + 1), "act": "relu", "same": 1}, exploits=0) for i in range(3)),
        *curve(0, [0.9, 0.9]),
        *curve(1, [0.5, 0.4]),
        *curve(2, [0.3]),
        copied(0, 1, 2, {"lr": 0.4, "act": "relu", "same": 1}),
        reported(0, 3, 0.35),
        copied(1, 2, 1, {"lr": 0.5, "act": "<b>", "same": 1}),
        reported(1, 2, 0.38),
        copied(2, 0, 3, {"lr": 0.6, "act": "relu", "same": 1}),
        reported(2, 4, 0.1),
        finished(),
    )


def test_whose_weights(tmp_path: Path) -> None:
    subject = three(tmp_path)
    assert copies(subject) == [Copy(0, 1, 2), Copy(1, 2, 1), Copy(2, 0, 3)]
    assert paths(subject) == {
        0: [(0, 1), (2, 0)],  # of 1 as it was, not as it became when it had copied 2
        1: [(0, 2), (1, 1)],
        2: [(0, 1), (2, 0), (3, 2)],
    }


def test_lineage(tmp_path: Path) -> None:
    way, arrows, points = three(tmp_path).result.plot.lineage().data
    assert (way.x, way.y) == ((0, 2, 2, 3, 3, 4), (1, 1, 0, 0, 2, 2))
    assert (arrows.x, arrows.y) == ((2, 2, None, 1, 1, None, 3, 3, None), (1, 0, None, 2, 1, None, 0, 2, None))
    assert (points.x, points.y) == ((1, 2, 3, 1, 2, 2, 1, 4), (0, 0, 0, 1, 1, 1, 2, 2))
    assert points.customdata == (0.9, 0.9, 0.35, 0.5, 0.4, 0.38, 0.3, 0.1) and points.marker.reversescale


def test_schedule(tmp_path: Path) -> None:
    figure = three(tmp_path).result.plot.schedule()
    assert [title.text for title in figure.layout.annotations] == ["lr", "act"], "what never changes is left out"
    others, winner, act, _ = figure.data
    assert (winner.name, winner.x, winner.y) == ("the winner", (0, 2, 3, 4, None), (0.2, 0.4, 0.6, 0.6, None))
    assert others.x == (0, 2, 3, None, 0, 1, 2, None) and others.customdata == (0,) * 4 + (1,) * 4
    assert act.y == ("relu", "relu", "relu", None, "relu", "&lt;b&gt;", "&lt;b&gt;", None)
    assert figure.layout.yaxis2.type == "category" and figure.layout.yaxis2.ticktext == ("relu", "&lt;b&gt;")


def test_long_categories_stay_apart(tmp_path: Path) -> None:
    long = "a" * 30
    subject = study(
        tmp_path,
        started(),
        *(added(i, {"act": f"{long}{i}"}, exploits=0) for i in (0, 1)),
        *(reported(i, 1, 0.5 - 0.1 * i) for i in (0, 1)),
        copied(0, 1, 1, {"act": f"{long}2"}),
    )
    axis = subject.result.plot.schedule().layout.yaxis
    assert axis.tickvals == (f"{long}1", f"{long}2") and set(axis.ticktext) == {"a" * 15 + "…"}


def test_a_real_population(population: Subject) -> None:
    made = section(population)
    assert [plot.name for plot in plots(made)] == ["lineage", "schedule"] and made is not None
    assert made.title == "Population"
    exploits = sum(trial.tags["exploits"] for trial in population.trials)
    assert len(copies(population)) == exploits > 0
    for number, path in paths(population).items():
        assert path[-1][1] == number and [start for start, _ in path] == sorted({start for start, _ in path})


def test_generations(tmp_path: Path) -> None:
    subject = study(
        tmp_path,
        started(),
        *(added(i, generation=0, parents=[]) for i in (0, 1)),
        *(added(i, generation=1, parents=[0, i - 2]) for i in (2, 3)),
        added(4, generation=2, parents=[3, 2]),
        *(reported(i, 1, value) for i, value in enumerate((0.5, 0.4, 0.3, 0.45, 0.2))),
        finished(),
    )
    lines, trials, tops, winner = subject.result.plot.generations().data
    assert trials.x == pytest.approx((-0.175, 0.175, 0.825, 1.175, 2.0)) and trials.y == (0.5, 0.4, 0.3, 0.45, 0.2)
    assert (tops.x, tops.y) == ((0, 1, 2), (0.4, 0.3, 0.2))
    assert (winner.x, winner.y) == ((2.0,), (0.2,))
    assert lines.y == (0.45, 0.2, None, 0.3, 0.2, None, 0.5, 0.45, None, 0.4, 0.45, None, 0.5, 0.3, None)
    assert (
        plots(section(subject))[0].caption
        == "The 5 of 5 trials that reached step 1, those of a generation side by side."
    )


def test_a_real_evolution(evolution: Subject) -> None:
    assert [plot.name for plot in plots(section(evolution))] == ["generations"]
    assert evolution.result.plot.generations().data[-2].x == (0, 1, 2)


def test_nothing_to_show(hyperband: Subject) -> None:
    assert section(hyperband) is None and schedule(hyperband) is None and generations(hyperband) is None
    for name in ("lineage", "schedule", "generations"):
        with pytest.raises(StudyError, match="nothing to plot"):
            getattr(hyperband.result.plot, name)()
