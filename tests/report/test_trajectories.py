"""Hyperparameters that trials move themselves, from the reports in the log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from written import added, finished, plots, reported, started, study

from hpo_ray.errors import StudyError
from hpo_ray.report.subject import Subject
from hpo_ray.report.trajectories import section, trajectories


def report(number: int, resource: int, value: float, decay: float, **more: Any) -> Any:
    many = {"mean": decay, "min": decay / 2, "max": decay * 2, "std": 0.1}
    metrics = {f"hyperparameter__w.{key}": edge for key, edge in many.items()}
    return reported(number, resource, value, **metrics, **{"hyperparameter__a.mean": -decay}, **more)


def two(folder: Path) -> Subject:
    return study(
        folder,
        started(),
        *(added(i, {"w": 1.0, "a.mean": 1.0}) for i in range(3)),
        report(0, 1, 0.5, 1.0, residual=1e-9, damping=0.0, test_loss=9.0),
        report(1, 1, 0.6, 3.0, residual=1e-8, damping=0.0, test_loss=8.0),
        report(0, 2, 0.4, 2.0, residual=1e-3, damping=0.0, test_loss=7.0),
        reported(2, 1, 0.9),
        finished(),
    )


def test_panels(tmp_path: Path) -> None:
    figure = two(tmp_path).result.plot.trajectories()
    titles = [title.text for title in figure.layout.annotations]
    assert titles == ["loss", "w (mean, least and most of many)", "a.mean"]
    drawn = [(trace.name, trace.x, trace.y, trace.yaxis) for trace in figure.data]
    assert drawn == [
        ("trials", (1,), (0.6,), "y"),
        ("trial 0, the winner", (1, 2), (0.5, 0.4), "y"),
        ("test_loss of the winner", (1, 2), (9.0, 7.0), "y"),
        ("band", (1, 2), (2.0, 4.0), "y2"),
        ("band", (1, 2), (0.5, 1.0), "y2"),
        ("trials", (1,), (3.0,), "y2"),
        ("trial 0, the winner", (1, 2), (1.0, 2.0), "y2"),
        ("trials", (1,), (-3.0,), "y3"),
        ("trial 0, the winner", (1, 2), (-1.0, -2.0), "y3"),
    ]
    assert [trace.fill for trace in figure.data[3:5]] == [None, "tonexty"]


def test_solver_shows_what_changes(tmp_path: Path) -> None:
    subject = two(tmp_path)
    figure = subject.result.plot.solver()
    assert [title.text for title in figure.layout.annotations] == ["residual"]
    assert figure.layout.yaxis.type == "log"
    assert [plot.name for plot in plots(section(subject))] == ["trajectories", "solver"]
    assert "Each line is one of 2 trials" in plots(section(subject))[0].caption


def test_many_trials_keep_the_winner(tmp_path: Path) -> None:
    events = [e for i in range(80) for e in (added(i, {"w": 1.0}), report(i, 1, 0.5 - 0.4 * (i == 41), 1.0))]
    subject = study(tmp_path, started(), *events, finished())
    figure = trajectories(subject)
    assert figure is not None
    assert {trace.name for trace in figure.data} == {"trials", "trial 41, the winner", "band"}
    assert len(set(figure.data[0].customdata)) == 49
    assert plots(section(subject))[0].caption.startswith("50 of 80 trials are drawn")


def test_nothing_to_show(hyperband: Subject) -> None:
    assert section(hyperband) is None
    for name in ("trajectories", "solver"):
        with pytest.raises(StudyError, match="nothing to plot"):
            getattr(hyperband.result.plot, name)()
