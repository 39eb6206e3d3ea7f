"""The grid: every combination once, none that differs in inactive names only."""

from __future__ import annotations

import itertools
import json

import pytest

from hpo_ray.errors import ConfigError
from hpo_ray.searchers import GridCore
from hpo_ray.space import Categorical, Float, Int, Space

CONDITIONAL = Space(
    {
        "optimizer": ["sgd", "adam", "none"],
        "momentum": Float(0.0, 1.0, when={"optimizer": "sgd"}),
        "nesterov": {"choices": [True, False], "when": {"optimizer": "sgd"}},
        "beta": {"choices": [0.8, 0.9], "when": {"optimizer": "adam"}},
        "fixed": 7,
    }
)


def all_points(core: GridCore) -> list[dict[str, object]]:
    points = []
    for number in itertools.count():
        proposal = core.suggest(number)
        if proposal is None:
            return points
        points.append(proposal.config)
    raise AssertionError


def test_values_of_each_kind_of_domain() -> None:
    assert Float(0.0, 1.0).spread(3) == (0.0, 0.5, 1.0)
    assert Float(1e-4, 1.0, log=True).spread(3) == pytest.approx((1e-4, 1e-2, 1.0))
    assert Float(0.0, 1.0, step=0.25).spread(9) == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert Int(1, 9).spread(3) == (1, 5, 9)
    assert Int(1, 2).spread(5) == (1, 2), "no more than there are"
    assert Int(1, 100, log=True).spread(3) == (1, 10, 100)
    assert Int(2, 10, step=4).spread(3) == (2, 6, 10)
    assert Float(0.0, 1.0).spread(1) == (0.5,)


def test_all_combinations_in_order() -> None:
    core = GridCore(Space({"a": [1, 2], "b": Int(0, 4), "c": ["x", "y"]}), grid_points={"b": 2})
    assert core.points == 8
    assert [(c["a"], c["b"], c["c"]) for c in all_points(core)] == list(itertools.product([1, 2], [0, 4], ["x", "y"]))


def test_conditions_make_it_smaller() -> None:
    core = GridCore(CONDITIONAL, grid_points=3)
    points = all_points(core)
    assert core.points == len(points) == 3 * 2 + 2 + 1, "sgd: momentum x nesterov; adam: beta; none"
    assert len({json.dumps(point, sort_keys=True) for point in points}) == 9
    assert all(("momentum" in p) == (p["optimizer"] == "sgd") for p in points)
    assert all(CONDITIONAL.check(p) == p for p in points)


def test_a_sample_of_it_has_each_point_at_most_once_and_all_in_the_end() -> None:
    core = GridCore(CONDITIONAL, seed=3, sample=True)
    points = all_points(core)
    assert sorted(map(json.dumps, points)) == sorted(map(json.dumps, all_points(GridCore(CONDITIONAL))))
    assert points != all_points(GridCore(CONDITIONAL))
    assert points == all_points(GridCore(CONDITIONAL, seed=3, sample=True))


def test_a_sample_of_a_huge_grid_needs_no_list_of_it() -> None:
    space = Space({f"x{i}": Float(0.0, 1.0) for i in range(20)})
    core = GridCore(space, grid_points=10, sample=True)
    assert core.points == 10**20
    huge = GridCore(Space({f"x{i}": Float(0.0, 1.0) for i in range(8)}), grid_points=10, sample=True)
    configs = [huge.suggest(i).config for i in range(200)]  # type: ignore[union-attr]
    assert len({json.dumps(config) for config in configs}) == 200
    again = GridCore(huge.space, grid_points=10, sample=True)
    assert again.suggest(150).config == configs[150]  # type: ignore[union-attr]


def test_known_configurations_come_first_and_count() -> None:
    core = GridCore(Space({"a": Float(0.0, 1.0)}), grid_points=2, initial=[{"a": 0.3}])
    assert core.size == 3
    assert [p["a"] for p in all_points(core)] == [0.3, 0.0, 1.0]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"grid_points": 0}, r"searcher\.grid_points=0: must be a whole number >= 1"),
        ({"grid_points": {"a": 1.5}}, r"searcher\.grid_points\.a=1\.5"),
        ({"grid_points": {"b": 2}}, r"searcher\.grid_points\.b: 'b' is no hyperparameter; the space has a"),
    ],
)
def test_mistakes(settings: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        GridCore(Space({"a": Float(0.0, 1.0)}), **settings)  # type: ignore[arg-type]


def test_it_refuses_a_budget_that_leaves_out_a_corner() -> None:
    core = GridCore(Space({"a": Categorical((1, 2, 3))}))
    core.check_budget(3)
    core.check_budget(9)
    core.check_budget(None)
    with pytest.raises(ConfigError, match=r"the grid has 3 points and there will be 2 trials.*searcher\.sample=true"):
        core.check_budget(2)
    GridCore(core.space, sample=True).check_budget(2)
