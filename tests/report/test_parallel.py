"""Parallel coordinates: where the lines go."""

from __future__ import annotations

from pathlib import Path

import pytest
import written
from hand_made import at_once, study

from hpo_ray.errors import StudyError
from hpo_ray.report.parallel import parallel, section
from hpo_ray.report.parts import Plot


@pytest.fixture(autouse=True)
def _few_repetitions(monkeypatch: pytest.MonkeyPatch) -> None:
    """How far importances spread is of no matter here."""
    monkeypatch.setattr("hpo_ray.report.importance.REPEATS", 1)


def test_a_line_goes_from_the_metric_through_each_hyperparameter(tmp_path: Path) -> None:
    configs = [{"rate": 10.0**-i, "kind": "a" if i % 2 else "b"} for i in range(5)]
    subject = study(tmp_path / "s", at_once(configs, [4.0, 3.0, 0.0, 1.0, 2.0]))
    drawn = parallel(subject)
    assert drawn is not None
    others, best = drawn.data
    assert (others.name, best.name) == ("others", "the best"), "the best tenth of five is one"
    assert list(best.x[:3]) == [0.0, 0.5, 0.25], "trial 2: the least loss, the middle of four decades, the first choice"
    assert list(best.y[:3]) == [0, -1, -2] and best.x[3] is None
    assert best.text[0] == "loss 0, trial 2" and best.text[2] == "kind b, trial 2"
    assert len(others.x) == 4 * 4
    assert list(drawn.layout.yaxis.ticktext) == ["loss", "rate", "kind"]
    ticks = [annotation.text for annotation in drawn.layout.annotations]
    assert ticks == ["0", "4", "0.0001", "1", "b", "a"]


def test_of_max_the_largest_is_the_best_and_what_breaks_a_bound_never_is(tmp_path: Path) -> None:
    metrics = [{"loss": float(i), "size": i} for i in range(5)]
    subject = study(
        tmp_path / "s", at_once(({"x": i} for i in range(5)), metrics), mode="max", constraints={"size": {"high": 3}}
    )
    drawn = parallel(subject)
    assert drawn is not None and drawn.data[-1].text[0] == "loss 3, trial 3"


def test_at_most_eight_axes_and_some_lines_and_it_is_said(tmp_path: Path) -> None:
    configs = [{f"x{k}": i * (k + 1) for k in range(9)} for i in range(700)]
    subject = study(tmp_path / "s", at_once(configs, [1.0] * 699 + [0.5]))
    made = section(subject)
    assert made is not None and isinstance(made.parts[0], Plot)
    plot = made.parts[0]
    assert len(plot.figure.layout.yaxis.ticktext) == 9
    others, tenth, best = plot.figure.data
    assert [len(trace.x) // 10 for trace in (others, tenth, best)] == [200, 49, 1]
    for said in ("The 8 most important of 9", "Of the best tenth, the first 50", "Of the others, 200 are drawn."):
        assert said in plot.caption


def test_trials_without_a_hyperparameter_are_left_of_its_axis(tmp_path: Path) -> None:
    subject = study(tmp_path / "s", at_once([{"x": 1, "y": 0.5}, {"x": 2}, {"x": 3, "y": 1.5}], [2.0, 1.0, 3.0]))
    made = section(subject)
    assert made is not None and isinstance(made.parts[0], Plot)
    best = made.parts[0].figure.data[-1]
    assert best.x[2] < 0 and best.text[2] == "y absent, trial 1"
    assert "Left of an axis are trials that don't have the hyperparameter." in made.parts[0].caption


def test_without_two_trials_that_differ_there_is_nothing(tmp_path: Path) -> None:
    for number, configs in enumerate(([], [{"x": 1}], [{"x": 1}, {"x": 1}])):
        subject = study(tmp_path / str(number), at_once(configs, range(len(configs))))
        assert parallel(subject) is None and section(subject) is None
    with pytest.raises(StudyError, match="no two trials with values that differ"):
        subject.result.plot.parallel()


def test_the_winner_stands_out_where_it_was_not_the_best(tmp_path: Path) -> None:
    """All are compared at step 1, where trial 0 was the best; trial 3 went on to step 3 and won."""
    reports = [
        event for i in range(24) for event in written.curve(i, [0.1 + i, 0.1 + i, 0.01] if i == 3 else [0.1 + i])
    ]
    added = (written.added(i, {"x": i / 24, "y": (i * 7) % 24 / 24}) for i in range(24))
    subject = written.study(tmp_path, written.started(max_resource=3), *added, *reports, written.finished())
    made = section(subject)
    assert made is not None and isinstance(made.parts[0], Plot)
    *_, last = made.parts[0].figure.data
    assert last.name == "the winner" and last.text[0].endswith("trial 3")
    assert "The winner, trial 3, was not the best there." in made.parts[0].caption
