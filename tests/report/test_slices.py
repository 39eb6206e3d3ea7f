"""Slices and contours: Optuna's, over the hyperparameters that matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hand_made import at_once, study

from hpo_ray.errors import StudyError
from hpo_ray.report.parts import Plot
from hpo_ray.report.slices import contour, section, slices
from hpo_ray.report.subject import Subject


@pytest.fixture(autouse=True)
def _few_repetitions(monkeypatch: pytest.MonkeyPatch) -> None:
    """How far importances spread is of no matter here."""
    monkeypatch.setattr("hpo_ray.report.importance.REPEATS", 1)


def grid(folder: Path, **started: Any) -> Subject:
    """Nine trials over a logarithmic rate and a kind; a third hyperparameter is the same in all."""
    configs = [{"rate": 10.0**-i, "kind": kind, "same": 1} for i in range(3) for kind in ("a", "b", "c")]
    return study(folder / "s", at_once(configs, [float(i) for i in range(9)]), **started)


def test_a_point_a_trial_on_the_axis_of_its_domain(tmp_path: Path) -> None:
    drawn = slices(grid(tmp_path))
    assert drawn is not None
    by_name = {axis.title.text: axis for axis in (drawn.layout.xaxis, drawn.layout.xaxis2)}
    assert set(by_name) == {"rate", "kind"}
    assert by_name["rate"].type == "log" and by_name["kind"].type == "category"
    assert drawn.layout.yaxis.title.text == "loss"
    assert sorted(drawn.data[0].y) == sorted(drawn.data[1].y) == [float(i) for i in range(9)]


def test_a_contour_takes_numbers_and_choices(tmp_path: Path) -> None:
    drawn = contour(grid(tmp_path))
    assert drawn is not None
    axes = {axis.title.text: axis.type for axis in (drawn.layout.xaxis, drawn.layout.yaxis)}
    assert axes == {"rate": "log", "kind": "category"}
    assert drawn.data[0].type == "contour" and len(drawn.data[1].x) == 9
    assert drawn.data[0].reversescale is True
    assert drawn.data[0].colorbar.title.text == "loss"


def test_more_is_better_turns_the_colours(tmp_path: Path) -> None:
    drawn = contour(grid(tmp_path, mode="max"))
    assert drawn is not None and drawn.data[0].reversescale is False


def test_what_breaks_a_bound_is_crossed(tmp_path: Path) -> None:
    metrics = [{"loss": float(i), "size": i} for i in range(6)]
    subject = study(
        tmp_path / "s", at_once(({"x": i, "y": -i} for i in range(6)), metrics), constraints={"size": {"high": 3}}
    )
    for drawn in (slices(subject), contour(subject)):
        assert drawn is not None
        crossed = [trace for trace in drawn.data if trace.type == "scatter" and trace.marker.symbol == "x"]
        assert crossed and all(len(trace.x) == 2 for trace in crossed)
    made = section(subject)
    assert made is not None and "Crosses don't keep the constraints." in made.parts[0].caption  # type: ignore[union-attr]


def test_one_hyperparameter_has_a_slice_and_no_contour(tmp_path: Path) -> None:
    subject = study(tmp_path / "s", at_once(({"x": i} for i in range(6)), [1.0] * 6))
    made = section(subject)
    assert made is not None and [p.name for p in made.parts if isinstance(p, Plot)] == ["slices"]
    with pytest.raises(StudyError, match="no four trials with two"):
        subject.result.plot.contour()


def test_two_that_are_never_together_have_no_contour(tmp_path: Path) -> None:
    configs = [{"x": i} if i % 2 else {"y": i} for i in range(12)]
    subject = study(tmp_path / "s", at_once(configs, range(12)))
    assert slices(subject) is not None and contour(subject) is None


def test_a_contour_of_many_trials_is_drawn_from_some_and_the_best(tmp_path: Path) -> None:
    configs = [{"x": i / 7.0, "y": (i * 37) % 301} for i in range(300)]
    subject = study(tmp_path / "s", at_once(configs, [0.0 if i == 150 else 1.0 + i for i in range(300)]))
    made = section(subject)
    assert made is not None and isinstance(made.parts[1], Plot)
    points = made.parts[1].figure.data[1]
    assert 99 <= len(points.x) <= 100 and 150 / 7.0 in points.x
    assert f"Drawn from {len(points.x)} of them." in made.parts[1].caption
