"""The Pareto front of points that are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hand_made import Trial, at_once, study

from hpo_ray.errors import StudyError
from hpo_ray.report.front import front, front_of, section
from hpo_ray.report.parts import Plot, Table, Words
from hpo_ray.report.subject import Subject
from hpo_ray.testing import run_study

POINTS = [(1.0, 5.0), (2.0, 2.0), (4.0, 1.0), (3.0, 3.0), (4.0, 4.0), (9.0, 0.5)]


def two(folder: Path, modes: tuple[str, str] = ("min", "min"), **started: Any) -> Subject:
    metrics = [{"loss": x, "size": y} for x, y in POINTS]
    modes_by_name = dict(zip(("loss", "size"), modes, strict=True))
    return study(folder / "s", at_once(({"x": i} for i in range(6)), metrics), metrics=modes_by_name, **started)


def test_the_front_of_known_points_with_its_volume(tmp_path: Path) -> None:
    subject = two(tmp_path, reference={"loss": 5.0, "size": 6.0})
    found = front_of(subject)
    assert found is not None
    assert [trial.number for trial in found.front] == [0, 1, 2, 5]
    assert [trial.number for trial in found.dominated] == [3, 4]
    # (5-1)(6-5) + (5-2)(5-2) + (5-4)(2-1); the last point is beyond the reference.
    assert found.volume == 14.0
    assert [t.number for t in found.front] == [t.number for t in subject.result.pareto_front()]
    made = section(subject)
    assert made is not None and made.title == "Pareto front" and isinstance(made.parts[0], Plot)
    assert "Hypervolume 14 against loss 5, size 6." in made.parts[0].caption


@pytest.mark.parametrize(
    ("modes", "numbers"),
    [(("min", "min"), [0, 1, 2, 5]), (("max", "max"), [5, 4, 0]), (("max", "min"), [5]), (("min", "max"), [0])],
)
def test_the_line_joins_the_front_from_the_best_in_the_first_metric(
    tmp_path: Path, modes: tuple[str, str], numbers: list[int]
) -> None:
    drawn = front(two(tmp_path, modes))
    assert drawn is not None
    line = next(trace for trace in drawn.data if trace.name == "front")
    assert list(zip(line.x, line.y, strict=True)) == [POINTS[number] for number in numbers]
    assert line.line.shape == "hv", "until the next one, which is worse in x, y is what it was"


def test_the_volume_is_a_surface_between_the_front_and_the_reference(tmp_path: Path) -> None:
    drawn = front(two(tmp_path, reference={"loss": 5.0, "size": 6.0}))
    assert drawn is not None
    surface = next(trace for trace in drawn.data if trace.name == "hypervolume")
    corners = list(zip(surface.x, surface.y, strict=True))
    assert corners == [(1.0, 6.0), (1.0, 5.0), (2.0, 2.0), (4.0, 1.0), (5.0, 1.0), (5.0, 6.0)]
    reference = next(trace for trace in drawn.data if trace.name == "reference")
    assert (*reference.x, *reference.y) == (5.0, 6.0)


def test_of_max_a_volume_is_above_the_reference(tmp_path: Path) -> None:
    found = front_of(two(tmp_path, ("max", "max"), reference={"loss": 0.5, "size": 0.25}))
    assert found is not None and found.volume == 8.5 * 0.25 + 3.5 * 3.5 + 0.5 * 1.0


def test_the_front_is_at_the_highest_resource_of_those_that_keep_the_bounds(tmp_path: Path) -> None:
    low, high = {"loss": 1.0, "size": 1.0}, {"loss": 0.5, "size": 9.0}
    trials = [Trial({"x": 0}, {1: low}), Trial({"x": 1}, {1: low, 3: high})]
    modes = {"loss": "min", "size": "min"}
    found = front_of(study(tmp_path / "s", trials, max_resource=3, metrics=modes, constraints={"size": {"high": 4}}))
    assert found is not None and found.resource == 1 and [trial.number for trial in found.front] == [0]


def test_what_breaks_a_bound_is_crossed_and_beats_nobody(tmp_path: Path) -> None:
    subject = two(tmp_path, constraints={"loss": {"low": 1.5}})
    found = front_of(subject)
    assert found is not None and [trial.number for trial in found.infeasible] == [0]
    assert [trial.number for trial in found.front] == [1, 2, 5]
    drawn = front(subject)
    assert drawn is not None
    crossed = next(trace for trace in drawn.data if trace.name == "beyond a constraint")
    assert crossed.marker.symbol == "x" and list(crossed.x) == [1.0]


@pytest.mark.parametrize(("metrics", "panels"), [(3, 3), (4, 6), (6, 6)])
def test_more_metrics_have_a_panel_for_each_pair(tmp_path: Path, metrics: int, panels: int) -> None:
    names = ["loss", *(f"m{k}" for k in range(1, metrics))]
    reported = [{name: float((i * (k + 2)) % 7) for k, name in enumerate(names)} for i in range(7)]
    subject = study(
        tmp_path / "s", at_once(({"x": i} for i in range(7)), reported), metrics=dict.fromkeys(names, "min")
    )
    made = section(subject)
    assert made is not None and isinstance(made.parts[0], Plot) and isinstance(made.parts[1], Table)
    assert sum(trace.name == "front" for trace in made.parts[0].figure.data) == panels
    assert made.parts[0].figure.layout.yaxis.title.text == "m1 (min)"
    assert ("Of 6 metrics, the first 4 are drawn." in made.parts[0].caption) is (metrics == 6)
    assert "No hypervolume: task.reference does not have" in made.parts[0].caption
    assert made.parts[1].head == ["trial", *names, "configuration"]


def test_the_table_has_the_first_of_a_long_front(tmp_path: Path) -> None:
    reported = [{"loss": float(i), "size": -float(i)} for i in range(15)]
    subject = study(
        tmp_path / "s", at_once(({"x": i} for i in range(15)), reported), metrics={"loss": "min", "size": "min"}
    )
    made = section(subject)
    assert made is not None and isinstance(made.parts[1], Table)
    assert made.parts[1].rows[1] == ["1", "1", "-1", "x=1"] and len(made.parts[1].rows) == 12
    assert made.parts[1].more == "and 3 trials more on the front"


def test_a_task_with_a_tradeoff_shows_it_for_a_study_of_one_metric(folder: Path) -> None:
    overrides = ["task=branin_currin", "method=random", "budget.trials=8", "task.max_resource=1", "executor=inprocess"]
    subject = Subject.of(run_study(overrides, folder).path)
    found, made = front_of(subject), section(subject)
    assert found is not None and not found.chosen and dict(found.metrics) == {"branin": "min", "currin": "min"}
    assert dict(found.reference) == {"branin": 18.0, "currin": 6.0} and found.volume is not None
    assert len(found.front) + len(found.dominated) == 8
    assert made is not None and made.title == "Trade-off" and isinstance(made.parts[0], Words)
    assert made.parts[0].text.startswith("The study optimised loss alone")


def test_trials_without_all_metrics_or_that_failed_are_left_out(tmp_path: Path) -> None:
    subject = study(
        tmp_path / "s",
        at_once([{"x": 1}, {"x": 2}], [{"loss": 1.0}, {"loss": 1.0, "size": "large"}]),
        metrics={"loss": "min", "size": "min"},
    )
    assert front_of(subject) is None and section(subject) is None
    with pytest.raises(StudyError, match="no two metrics to trade off"):
        subject.result.plot.front()
    assert section(study(tmp_path / "one", at_once([{"x": 1}], [1.0]))) is None
