"""Pareto fronts and hypervolumes by hand."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from hpo_ray.errors import StudyError
from hpo_ray.pareto import dominates, front, hypervolume, violations
from hpo_ray.testing import run_study


def test_who_dominates_whom() -> None:
    assert dominates((1, 2), (1, 3)) and dominates((0, 0), (1, 1))
    assert not dominates((1, 2), (1, 2)) and not dominates((0, 3), (1, 1)) and not dominates((1, 1), (0, 3))


def test_a_front_by_hand() -> None:
    points = [(4, 1), (2, 2), (3, 3), (1, 4), (2, 2), (5, 1)]
    assert front(points) == [0, 1, 3, 4], "equal points stay, (3, 3) loses to (2, 2), (5, 1) to (4, 1)"
    assert front([]) == []


@pytest.mark.parametrize(
    ("points", "reference", "volume"),
    [
        ([], (5, 5), 0.0),
        ([(2,), (3,)], (5,), 3.0),
        ([(1, 1)], (3, 4), 6.0),
        # Steps at x = 1, 2, 4 below 5: (2-1)(5-4) + (4-2)(5-2) + (5-4)(5-1)
        ([(4, 1), (2, 2), (1, 4)], (5, 5), 1 + 6 + 4),
        ([(4, 1), (2, 2), (1, 4), (3, 3), (2, 2)], (5, 5), 11.0),
        ([(6, 0), (5, 5), (2, 2)], (5, 5), 9.0),
        # Two boxes 2x2x2 and 3x1x1 from (3, 3, 3): 8 + 3 - the overlap 2x1x1
        ([(1, 1, 1), (0, 2, 2)], (3, 3, 3), 9.0),
    ],
)
def test_hypervolumes_by_hand(points: list[tuple[float, ...]], reference: tuple[float, ...], volume: float) -> None:
    for order in itertools.permutations(points):
        assert hypervolume(order, reference) == pytest.approx(volume)


@pytest.mark.parametrize("dimensions", [2, 3, 4])
def test_hypervolume_counts_the_cells_of_a_grid(dimensions: int) -> None:
    """Points with whole coordinates: the volume is the number of unit cells that some point dominates."""
    points = np.random.default_rng(dimensions).integers(0, 5, (12, dimensions))
    cells = sum(
        bool((points <= cell).all(axis=1).any()) for cell in np.array(list(itertools.product(*[range(5)] * dimensions)))
    )
    assert hypervolume(points.tolist(), [5] * dimensions) == pytest.approx(cells)


def test_violations() -> None:
    bounds = {"size": {"high": 10.0}, "accuracy": {"low": 0.9, "high": 0.99}}
    assert violations(bounds, {"size": 12, "accuracy": 0.95}) == pytest.approx([2.0, -0.05, -0.04])
    assert violations(bounds, {"size": 12}) == [2.0, float("inf"), float("inf")]
    assert violations({}, {"size": 12}) == []


def test_the_front_of_a_study(folder: Path) -> None:
    """result.json against a plain double loop over trials.jsonl, and the hypervolume against a grid of cells."""
    result = run_study(["method=nsga2", "task=branin_currin", "budget.trials=40", "executor=inprocess"], folder)
    content = json.loads((result.path / "result.json").read_text())
    points = {t.number: (t.metrics["branin"], t.metrics["currin"]) for t in result.records}
    best = {n for n, p in points.items() if not any(dominates(q, p) for q in points.values())}
    assert {entry["number"] for entry in content["pareto_front"]} == best and len(best) > 1
    first = [entry["values"]["branin"] for entry in content["pareto_front"]]
    assert first == sorted(first), "best first in the first metric"
    assert content["metrics"] == {"branin": "min", "currin": "min"}
    assert content["reference"] == {"branin": 18.0, "currin": 6.0}
    assert content["hypervolume"] == hypervolume(list(points.values()), (18.0, 6.0))


def test_without_a_reference_there_is_no_hypervolume(folder: Path) -> None:
    overrides = ["method=nsga2", "task=branin_currin", "task.metrics={loss: min, currin: max}", "budget.trials=5"]
    result = run_study([*overrides, "executor=inprocess"], folder)
    content = json.loads((result.path / "result.json").read_text())
    assert content["hypervolume"] is None and content["metrics"] == {"loss": "min", "currin": "max"}
    assert max(e["values"]["currin"] for e in content["pareto_front"]) == max(
        t.metrics["currin"] for t in result.records
    )


@pytest.mark.parametrize("method", ["tpe", "tpe_multi", "nsga2", "random"])
def test_constraints_keep_trials_from_being_the_best(folder: Path, method: str) -> None:
    overrides = [f"method={method}", "task=branin_currin", "task.constraints={branin: {low: 20.0}}"]
    result = run_study([*overrides, "budget.trials=30", "executor=inprocess"], folder)
    assert result.best is not None and result.best.feasible
    kept = [t.metrics["branin"] for t in result.records if t.metrics["branin"] >= 20.0]
    metric = result.state.started.metric  # type: ignore[union-attr]
    if metric == "branin":
        assert result.best.value == min(kept)
    lines = [json.loads(line) for line in (result.path / "trials.jsonl").read_text().splitlines()]
    assert [line["feasible"] for line in lines] == [t.metrics["branin"] >= 20.0 for t in result.records]
    assert all(t.feasible for t in result.pareto_front())
    assert all(incumbent.value >= 20.0 for incumbent in result.state.best_at_full if metric == "branin")


def test_the_mode_of_the_first_metric_comes_from_the_metrics(folder: Path) -> None:
    typed = ["method=random", "task=branin_currin", "task.metrics={branin: max, currin: min}", "task.metric=branin"]
    result = run_study([*typed, "budget.trials=9", "executor=inprocess"], folder)
    assert result.best is not None and result.best.value == max(t.metrics["branin"] for t in result.records)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("task.metrics={branin: min, size: min}", r"task\.metrics\.size: trial 0 did not report size as a number"),
        ("task.constraints={size: {high: 3}}", r"task\.constraints\.size: trial 0 did not report size"),
        ("task.constraints={currin: {high: -3}}", r"task\.constraints=.*none of the 5 trials that reported keeps them"),
    ],
)
def test_a_metric_that_never_comes_or_a_bound_that_nobody_keeps_fails_the_study(
    folder: Path, override: str, says: str
) -> None:
    with pytest.raises(StudyError, match=says):
        run_study(["method=tpe", "task=branin_currin", override, "budget.trials=5", "executor=inprocess"], folder)


def test_a_target_is_reached_by_a_trial_that_keeps_the_bounds(folder: Path) -> None:
    typed = ["method=random", "task=branin_currin", "task.constraints={currin: {high: 4}}", "budget.target=60"]
    result = run_study([*typed, "budget.trials=60", "executor=inprocess"], folder)
    assert any(t.metrics["branin"] <= 60 and t.metrics["currin"] > 4 for t in result.records[:-1])
    assert result.best is not None and result.best.metrics["currin"] <= 4 and result.best.metrics["branin"] <= 60
    assert result.state.best_seen is not None and result.state.best_seen[0].metrics["currin"] <= 4


def test_a_second_metric_that_is_not_finite_fails_the_trial(folder: Path) -> None:
    typed = ["method=tpe_multi", "task=custom", "task.trainable=mine.second_not_finite", "task.max_resource=2"]
    typed += ["space={lr: {low: 0.0, high: 1.0}}", "task.metrics={loss: min, other: min}"]
    result = run_study([*typed, "budget.trials=12", "executor=inprocess"], folder)
    failed = [t for t in result.records if t.state == "failed"]
    assert failed and all(t.config["lr"] < 0.5 and "other is nan at 1" in str(t.error) for t in failed)
    assert all(t.config["lr"] >= 0.5 for t in result.pareto_front())
