"""What population-based training does to a configuration: always in bounds, on the grid, and never stuck."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest

from hpo_ray.errors import ConfigError
from hpo_ray.schedulers.explore import check_movable, crossover, explore, replaced, step
from hpo_ray.space import Categorical, Fixed, Float, Int, Space

DOMAINS = {
    "float": Float(0.1, 0.2),
    "float around zero": Float(-1.0, 1.0),
    "negative float": Float(-3.0, -1.0),
    "log float": Float(1e-5, 0.1, log=True),
    "stepped float": Float(0.0, 1.0, step=0.1),
    "int": Int(1, 9),
    "negative int": Int(-4, 4),
    "log int": Int(1, 1000, log=True),
    "stepped int": Int(16, 128, step=16),
    "ordered": Categorical((8, 16, 32, 64), ordered=True),
    "unordered": Categorical(("relu", "tanh", "gelu")),
    "bool": Categorical((True, False)),
}
SETTINGS: list[dict[str, Any]] = [
    {"resample_probability": 0.0},
    {"resample_probability": 0.25},
    {"resample_probability": 0.0, "factors": (0.5, 3.0)},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("name", DOMAINS)
def test_ten_thousand_draws_stay_in_the_domain_and_move(name: str, settings: dict[str, Any]) -> None:
    """Each from the last, as in a long training: a drift out of the bounds would show."""
    domain, rng = DOMAINS[name], np.random.default_rng(1)
    space = Space({"x": domain})
    config = space.sample(rng)
    seen, moved = Counter(), 0
    for _ in range(10_000):
        after = explore(space, config, rng, **settings)
        assert domain.contains(after["x"]), after
        assert after == space.check(after) and type(after["x"]) is type(domain.coerce(after["x"]))
        moved += after != config
        seen[after["x"]] += 1
        config = after
    assert moved > 1000 and len(seen) > 1
    if isinstance(domain, Categorical):
        assert set(seen) == set(domain.choices)


CONDITIONAL = Space(
    {
        "net": {"units": Int(16, 256, log=True), "depth": Int(1, 3)},
        "optimizer": ["sgd", "adam"],
        "momentum": Float(0.0, 0.99, when={"optimizer": "sgd"}),
        "nesterov": Categorical((True, False), when={"optimizer": "sgd"}),
        "beta": Float(0.8, 0.999, when={"optimizer": "adam"}),
        "second": Float(1e-3, 1.0, log=True, when={"net.depth": [2, 3]}),
        "dropout": 0.1,
    }
)


def test_ten_thousand_draws_of_a_conditional_space_are_whole_configurations() -> None:
    rng = np.random.default_rng(2)
    config, seen = CONDITIONAL.sample(rng), Counter()
    for _ in range(10_000):
        after = explore(CONDITIONAL, config, rng, frozen=("net.units",))
        assert after == CONDITIONAL.check(after)
        assert after["net"]["units"] == config["net"]["units"] and after["dropout"] == 0.1
        seen[after["optimizer"], after["net"]["depth"]] += 1
        config = after
    assert len(seen) == 6


def test_what_gets_active_is_drawn_and_what_does_not_stay_active_is_dropped() -> None:
    space = Space({"a": Categorical(("on", "off"), ordered=True), "x": Float(0.0, 1.0, when={"a": "on"})})
    rng = np.random.default_rng(0)
    assert explore(space, {"a": "on", "x": 0.5}, rng, resample_probability=0.0) == {"a": "off"}
    on = explore(space, {"a": "off"}, rng, resample_probability=0.0)
    assert on["a"] == "on" and 0 <= on["x"] <= 1
    assert replaced(space, on, {"a": "off"}, rng) == {"a": "off"}


@pytest.mark.parametrize(
    ("domain", "value", "down", "up"),
    [
        (Float(0.0, 1.0), 0.5, 0.4, 0.6),
        (Float(0.0, 1.0), 0.9, 0.72, 1.0),  # clipped
        (Float(1e-4, 1e-1, log=True), 1e-2, 8e-3, 1.2e-2),
        (Float(1e-4, 1e-1, log=True), 1e-4, 1e-4, 1.2e-4),
        (Float(-3.0, -1.0), -2.0, -1.6, -2.4),
        (Float(0.0, 1.0, step=0.1), 0.3, 0.2, 0.4),  # 0.24 and 0.36 on the grid
        (Float(0.0, 1.0, step=0.1), 0.0, 0.0, 0.1),
        (Float(0.0, 1.0, step=0.1), 1.0, 0.8, 1.0),
        (Int(1, 9), 1, 1, 2),  # 0.8 and 1.2 would both be 1
        (Int(1, 9), 5, 4, 6),
        (Int(1, 9), 9, 7, 9),
        (Int(-4, 4), 0, -1, 1),
        (Int(-4, 4), -2, -1, -3),  # away from zero is a fall
        (Int(1, 1000, log=True), 100, 80, 120),
        (Int(16, 128, step=16), 32, 16, 48),  # at least one step of the grid
        (Int(16, 128, step=16), 112, 96, 128),
        (Categorical((8, 16, 32), ordered=True), 16, 8, 32),
        (Categorical((8, 16, 32), ordered=True), 8, 16, 16),  # the only neighbour
        (Categorical((8, 16, 32), ordered=True), 32, 16, 16),
    ],
)
def test_steps_by_hand(domain, value, down, up) -> None:
    assert step(domain, value, 0.0) == pytest.approx(down, rel=1e-12)
    assert step(domain, value, 0.99) == pytest.approx(up, rel=1e-12)


@pytest.mark.parametrize("domain", [Float(0.0, 1.0), Float(-1.0, 1.0)])
def test_zero_which_no_factor_moves_is_drawn_anew(domain) -> None:
    assert step(domain, 0.0, 0.99) is None
    drawn = explore(Space({"x": domain}), {"x": 0.0}, np.random.default_rng(0), resample_probability=0.0)
    assert drawn["x"] != 0.0


def test_it_is_a_function_of_the_generator_and_leaves_the_parent_alone() -> None:
    parent = CONDITIONAL.sample(np.random.default_rng(5))
    before = CONDITIONAL.flatten(parent)
    first, again = (explore(CONDITIONAL, parent, np.random.default_rng(3)) for _ in range(2))
    assert first == again != explore(CONDITIONAL, parent, np.random.default_rng(4))
    assert CONDITIONAL.flatten(parent) == before


def test_resampling_draws_from_the_whole_domain() -> None:
    space, rng = Space({"x": Float(1e-4, 1.0, log=True)}), np.random.default_rng(0)
    drawn = [explore(space, {"x": 0.5}, rng, resample_probability=1.0)["x"] for _ in range(2000)]
    assert np.mean(np.log10(drawn)) == pytest.approx(-2.0, abs=0.1)
    kept = [explore(space, {"x": 0.1}, rng, resample_probability=0.25)["x"] for _ in range(2000)]
    near = sum(math.isclose(x, 0.08) or math.isclose(x, 0.12) for x in kept)
    assert near / 2000 == pytest.approx(0.75, abs=0.04)


def test_a_users_constants_are_kept_and_values_from_outside_are_brought_in() -> None:
    space = Space({"opt": {"lr": Float(0.1, 0.2)}, "act": ["relu", "tanh"]})
    after = explore(space, {"opt": {"lr": 7.0, "eps": 1e-8}, "act": "elu", "data": "/x"}, np.random.default_rng(0))
    assert after["opt"]["eps"] == 1e-8 and after["data"] == "/x"
    assert 0.1 <= after["opt"]["lr"] <= 0.2 and after["act"] in ("relu", "tanh")


def test_crossover_takes_each_value_from_one_of_two() -> None:
    space = Space({f"x{i}": Float(0.0, 1.0) for i in range(4)})
    a, b = dict.fromkeys(space, 0.25), dict.fromkeys(space, 0.75)
    rng = np.random.default_rng(0)
    assert crossover(space, a, b, rng, 0.0) == a and crossover(space, a, b, rng, 1.0) == b
    children = [crossover(space, a, b, rng, 0.5, frozen=("x3",)) for _ in range(2000)]
    assert all(child["x3"] == 0.25 for child in children)
    for name in ("x0", "x1", "x2"):
        assert sum(child[name] == 0.75 for child in children) / 2000 == pytest.approx(0.5, abs=0.05)


def test_crossover_of_conditional_configurations_lies_in_the_space() -> None:
    rng = np.random.default_rng(0)
    for _ in range(2000):
        child = crossover(CONDITIONAL, CONDITIONAL.sample(rng), CONDITIONAL.sample(rng), rng, 0.5)
        assert child == CONDITIONAL.check(child)


@pytest.mark.parametrize("name", [name for name, domain in DOMAINS.items() if isinstance(domain, Float | Int)])
def test_to_unit_is_the_inverse_of_from_unit(name: str) -> None:
    domain, rng = DOMAINS[name], np.random.default_rng(0)
    for u in rng.random(500).tolist():
        value = domain.from_unit(u)
        assert 0 <= domain.to_unit(value) <= 1
        assert domain.from_unit(domain.to_unit(value)) == pytest.approx(value, rel=1e-12)
        if domain.size is None:
            assert domain.to_unit(value) == pytest.approx(u, abs=1e-9)


@pytest.mark.parametrize("low_high", [(1.0, 1.1), (100.0, 110.0), (-1.1, -1.0)])
def test_bounds_that_the_factors_only_jump_between_are_an_error(low_high) -> None:
    with pytest.raises(ConfigError, match=r"^space\.x: .*scheduler\.factors=\[0\.8, 1\.2\].*widen") as caught:
        check_movable(Space({"x": Float(*low_high), "y": Float(0.0, 1.0)}), (0.8, 1.2), ())
    assert caught.value.key == "space.x"
    check_movable(Space({"x": Float(*low_high), "y": Float(0.0, 1.0)}), (0.8, 1.2), ("x",))
    check_movable(Space({"x": Float(*low_high)}), (0.99, 1.01), ())


def test_bounds_that_can_be_moved_in() -> None:
    entries = {**{f"a {name}": domain for name, domain in DOMAINS.items()}, "two": Int(100, 101)}
    check_movable(Space(entries), (0.8, 1.2), ())
    with pytest.raises(ConfigError, match=r"^space\.x"):
        check_movable(Space({"x": Int(100, 110)}), (0.8, 1.2), ())


@pytest.mark.parametrize("factors", [(1.0, 1.2), (0.8, 0.9), (1.1, 1.2), (0.8,), (-0.8, 1.2), (0.8, math.inf), 0.8])
def test_factors_must_go_both_ways(factors) -> None:
    with pytest.raises(ConfigError, match=r"^scheduler\.factors=.*one below 1 and one above"):
        check_movable(Space({"x": Float(0.0, 1.0)}), factors, ())


def test_something_must_be_left_to_explore() -> None:
    with pytest.raises(ConfigError, match=r"^scheduler\.frozen=\[x\]: leaves nothing of space \(x, y, z\)"):
        check_movable(Space({"x": Float(0.0, 1.0), "y": Fixed(3), "z": ["only"]}), (0.8, 1.2), ("x",))


def test_rays_own_exploration_leaves_the_bounds_and_is_stuck_at_small_integers() -> None:
    """What was drawn from uniform(0.1, 0.2) drifts out of it, and 2 times 0.8 or 1.2 is rounded to 2."""
    import random

    from ray.tune.schedulers import pbt

    try:
        random.seed(0)
        value, count = 0.15, 2
        values, counts = [], []
        for _ in range(100):
            mutations = {"x": lambda: 0.15, "n": lambda: 2}
            new, _ = pbt._explore({"x": value, "n": count}, mutations, 0.0, (1.2, 0.8), None)
            value, count = new["x"], new["n"]
            values.append(value)
            counts.append(count)
    except (AttributeError, TypeError) as error:
        pytest.skip(f"Ray has changed its scheduler: {error}")
    assert not all(0.1 <= value <= 0.2 for value in values)
    assert set(counts) == {2}
    ours, rng, reached = {"x": 0.15, "n": 2}, np.random.default_rng(0), set()
    space = Space({"x": Float(0.1, 0.2), "n": Int(1, 8)})
    for _ in range(100):
        ours = explore(space, ours, rng, resample_probability=0.0)
        assert 0.1 <= ours["x"] <= 0.2
        reached.add(ours["n"])
    assert reached == set(range(1, 9))
