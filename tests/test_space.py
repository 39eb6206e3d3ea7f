"""Spaces: what they accept, what they refuse and how, and the measure that they draw from."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
    json_to_distribution,
)

from hpo_ray.errors import ConfigError
from hpo_ray.space import Categorical, Domain, Fixed, Float, Int, Space, SpaceError

settings.register_profile(
    "space", deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
deterministic = settings(settings.get_profile("space"))

EXAMPLE = {
    "lr": {"low": 1e-4, "high": 0.3, "log": True},
    "units": {"low": 16, "high": 256, "log": True},
    "activation": ["relu", "tanh", "gelu"],
    "optimizer": {
        "name": ["sgd", "adam"],
        "momentum": {"low": 0.0, "high": 0.99, "when": {"name": "sgd"}},
        "nesterov": {"value": True, "when": {"name": "sgd"}},
    },
    "depth": {"choices": [1, 2, 4], "ordered": True},
    "dropout": 0.1,
}

# Strategies ------------------------------------------------------------------------------------------------------

magnitudes = st.floats(1e-12, 1e12)
reals = st.one_of(st.just(0.0), magnitudes, magnitudes.map(lambda x: -x))
scalars = st.one_of(st.none(), st.booleans(), st.integers(-9, 9), reals, st.text("abc .=", max_size=3))


@st.composite
def floats(draw: st.DrawFn) -> Float:
    if draw(st.booleans()):
        low, high = sorted(draw(st.tuples(magnitudes, magnitudes)))
        assume(low < high)
        return Float(low, high, log=True)
    low, high = sorted(draw(st.tuples(reals, reals)))
    assume(low < high)
    if draw(st.booleans()):
        return Float(low, high)
    step = (high - low) / draw(st.floats(1.0, 50.0))
    assume(4 * math.ulp(max(abs(low), abs(high))) <= step and low + step <= high)
    return Float(low, high, step=min(step, math.nextafter(high - low, 0)))


@st.composite
def ints(draw: st.DrawFn) -> Int:
    kind = draw(st.sampled_from(["plain", "log", "step"]))
    low = draw(st.integers(1 if kind == "log" else -1000, 1000))
    high = low + draw(st.integers(1, 2**40))
    step = draw(st.integers(1, high - low)) if kind == "step" else None
    return Int(low, high, log=kind == "log", step=step)


@st.composite
def categoricals(draw: st.DrawFn) -> Categorical:
    # 1, 1.0 and True are one key, so unique_by leaves no two equal choices
    choices = draw(st.lists(scalars, min_size=1, max_size=4, unique_by=lambda c: c))
    return Categorical(tuple(choices), ordered=draw(st.booleans()))


domains = st.one_of(floats(), ints(), categoricals(), scalars.map(Fixed))


@st.composite
def spaces(draw: st.DrawFn, conditional: bool = True) -> Space:
    """Spaces of up to six names, some nested, whose conditions point at any earlier or later countable name."""
    names = draw(st.permutations(["a", "b", "n.a", "n.b", "n.m.c", "z"]))[: draw(st.integers(0, 6))]
    ranked = draw(st.permutations(names))
    entries: dict[str, Domain] = {}
    for rank, name in enumerate(ranked):
        entries[name] = domain = draw(domains)
        parents = [p for p in ranked[:rank] if not (isinstance(entries[p], Float) and entries[p].step is None)]
        if conditional and parents and draw(st.booleans()):
            parent = draw(st.sampled_from(parents))
            units = draw(st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=2))
            allowed = list(dict.fromkeys(entries[parent].from_unit(u) for u in units))
            arguments = {k: v for k, v in vars(domain).items() if k != "when"}
            entries[name] = type(domain)(**arguments, when={parent: allowed})
    return Space({name: entries[name] for name in names})


seeds = st.integers(0, 2**32 - 1)
units = st.floats(0, 1, exclude_max=True)

# Laws ------------------------------------------------------------------------------------------------------------


@deterministic
@given(spaces())
def test_config_round_trip(space: Space) -> None:
    config = space.to_config()
    assert Space.from_config(config) == space
    assert Space.from_config(yaml.safe_load(yaml.safe_dump(config, sort_keys=False))) == space
    assert Space(dict(space.domains)) == space
    assert pickle.loads(pickle.dumps(space)) == space
    assert eval(repr(space)) == space


@deterministic
@given(spaces(conditional=False))
def test_optuna_round_trip(space: Space) -> None:
    searched = {name: domain for name, domain in space.domains.items() if not isinstance(domain, Fixed)}
    unordered = {n: Categorical(d.choices) if isinstance(d, Categorical) else d for n, d in searched.items()}
    distributions = space.to_optuna()
    assert list(distributions) == list(searched)
    assert Space.from_optuna(distributions) == Space(unordered)
    assert Space.from_optuna(distributions).to_optuna() == distributions


@deterministic
@given(spaces(), seeds)
def test_samples_are_in_the_space(space: Space, seed: int) -> None:
    config = space.sample(np.random.default_rng(seed))
    flat = space.flatten(config)
    assert list(flat) == [name for name in space if space.is_active(name, flat)]
    for name, value in flat.items():
        assert space.domains[name].contains(value)
        assert value is None or type(value) in (bool, int, float, str)
    assert space.check(config) == config
    assert space.check(flat) == config
    assert space.nest(flat) == config


@deterministic
@given(spaces(), seeds)
def test_a_sample_takes_one_uniform_per_name(space: Space, seed: int) -> None:
    rng, same = np.random.default_rng(seed), np.random.default_rng(seed)
    flat = space.flatten(space.sample(rng))
    uniforms = dict(zip(space.names, [same.random() for _ in space], strict=True))
    assert flat == {name: space.domains[name].from_unit(uniforms[name]) for name in flat}
    assert rng.random() == same.random()


@deterministic
@given(spaces())
def test_order_has_parents_first(space: Space) -> None:
    assert sorted(space.order) == sorted(space.names)
    for name, domain in space.domains.items():
        assert all(space.order.index(parent) < space.order.index(name) for parent in domain.conditions)


@deterministic
@given(domains, units, units)
def test_from_unit_covers_the_domain_in_order(domain: Domain, u: float, v: float) -> None:
    first, last = domain.from_unit(0.0), domain.from_unit(math.nextafter(1.0, 0.0))
    assert all(domain.contains(domain.from_unit(x)) for x in (0.0, u, v, math.nextafter(1.0, 0.0), 1.0))
    assert domain.coerce(domain.from_unit(u)) == domain.from_unit(u)
    if isinstance(domain, Categorical):
        assert (first, last) == (domain.choices[0], domain.choices[-1])
    elif isinstance(domain, Fixed):
        assert first == last == domain.value
    elif isinstance(domain, Int) or domain.step is not None:
        # Under a log one double of u is worth up to 1e-15 of the range: some integers, if there are 2**40 of them.
        assert first == domain.low
        assert last == domain.high if not domain.log else last >= domain.high * (1 - 1e-12)
        assert domain.from_unit(1.0) == domain.high
        assert domain.from_unit(min(u, v)) <= domain.from_unit(max(u, v))
    else:
        assert first == domain.low
        assert last == pytest.approx(domain.high, rel=1e-12, abs=1e-12 * (domain.high - domain.low))


@deterministic
@given(domains, units)
def test_to_unit_is_the_inverse_of_from_unit(domain: Domain, u: float) -> None:
    """To the value: exactly, but for floats without a grid, where logarithms round."""
    value = domain.from_unit(u)
    back = domain.from_unit(domain.to_unit(value))
    if isinstance(domain, Float) and domain.step is None:
        assert back == pytest.approx(value, rel=1e-9, abs=1e-12 * (domain.high - domain.low))
    else:
        assert back == value


@given(spaces(), seeds)
def test_to_units_is_the_inverse_of_from_units(space: Space, seed: int) -> None:
    config = space.sample(np.random.default_rng(seed))
    again = space.flatten(space.from_units(space.to_units(config)))
    assert set(again) == set(space.flatten(config))
    for name, value in space.flatten(config).items():
        domain = space.domains[name]
        if isinstance(domain, Float) and domain.step is None:
            assert again[name] == pytest.approx(value, rel=1e-9, abs=1e-12 * (domain.high - domain.low))
        else:
            assert again[name] == value


@given(floats().filter(lambda domain: domain.step is not None))
def test_a_float_grid_is_stable(domain: Float) -> None:
    assert Float(domain.low, domain.high, step=domain.step) == domain
    assert domain.coerce(domain.high) == domain.high
    assert not domain.contains(domain.low + 0.5 * domain.step)


# Exact values ----------------------------------------------------------------------------------------------------


def test_log_uniform_quantiles_are_powers() -> None:
    domain = Float(1e-4, 1.0, log=True)
    assert [domain.from_unit(u) for u in (0.0, 0.25, 0.5, 0.75, 1.0)] == pytest.approx(
        [1e-4, 1e-3, 1e-2, 1e-1, 1.0], rel=1e-15
    )
    assert Float(1e-300, 1e300, log=True).from_unit(0.5) == pytest.approx(1.0, rel=1e-12)


def test_uniform_quantiles() -> None:
    assert [Float(-1, 3).from_unit(u) for u in (0.0, 0.25, 0.5, 1.0)] == [-1.0, 0.0, 1.0, 3.0]
    assert Float(-1.7e308, 1.7e308).from_unit(0.5) == 0.0


def test_integers_have_equal_mass() -> None:
    drawn = Counter(Int(3, 7).from_unit((k + 0.5) / 1000) for k in range(1000))
    assert drawn == dict.fromkeys(range(3, 8), 200)
    drawn = Counter(Int(0, 9, step=4).from_unit((k + 0.5) / 999) for k in range(999))
    assert drawn == {0: 333, 4: 333, 8: 333}


def test_log_integers_have_the_mass_of_their_half_open_intervals() -> None:
    domain = Int(1, 8, log=True)
    edges = [math.log((k - 0.5) / 0.5) / math.log(8.5 / 0.5) for k in range(1, 10)]
    for k, (left, right) in enumerate(pairwise(edges), start=1):
        assert domain.from_unit(left + 1e-9) == k
        assert domain.from_unit(right - 1e-9) == k


def test_an_index_is_not_rounded_up() -> None:
    assert 0.3 * 10 == 3.0  # though the double 0.3 is below 3/10
    assert Int(0, 9).from_unit(0.3) == 2
    assert Int(0, 9).from_unit(math.nextafter(0.3, 1.0)) == 3


def test_float_grid_is_decimal() -> None:
    domain = Float(0, 1, step=0.1)
    assert [domain.from_unit((k + 0.5) / 11) for k in range(11)] == [k / 10 for k in range(11)]
    assert Float(0.0, 1.0, step=0.3) == Float(0.0, 0.9, step=0.3)
    assert Float(0.1, 0.7, step=0.2).high == 0.7
    assert domain.coerce(0.1 + 0.2) == 0.3


def test_int_step() -> None:
    assert Int(1, 10, step=4) == Int(1, 9, step=4)
    assert Int(1, 10, step=1) == Int(1, 10)
    assert [n for n in range(12) if Int(1, 10, step=4).contains(n)] == [1, 5, 9]


def test_optuna_distributions() -> None:
    assert Space(EXAMPLE).to_optuna() == {
        "lr": FloatDistribution(1e-4, 0.3, log=True),
        "units": IntDistribution(16, 256, log=True),
        "activation": CategoricalDistribution(["relu", "tanh", "gelu"]),
        "optimizer.name": CategoricalDistribution(["sgd", "adam"]),
        "optimizer.momentum": FloatDistribution(0.0, 0.99),
        "depth": CategoricalDistribution([1, 2, 4]),
    }
    grid = Space({"x": Float(0.0, 1.0, step=0.3), "k": Int(1, 10, step=4)}).to_optuna()
    assert grid == {"x": FloatDistribution(0.0, 0.9, step=0.3), "k": IntDistribution(1, 9, step=4)}
    assert {n: json_to_distribution(distribution_to_json(d)) for n, d in grid.items()} == grid
    single = Space.from_optuna({"x": FloatDistribution(1.5, 1.5), "k": IntDistribution(2, 2)})
    assert single == Space({"x": 1.5, "k": 2})


def test_importing_space_imports_only_the_standard_library() -> None:
    script = "import sys, hpo_ray.space; print({'numpy', 'optuna', 'ray', 'torch', 'hydra'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


# Reading ---------------------------------------------------------------------------------------------------------


def test_from_config() -> None:
    space = Space.from_config(EXAMPLE)
    assert dict(space.domains) == {
        "lr": Float(1e-4, 0.3, log=True),
        "units": Int(16, 256, log=True),
        "activation": Categorical(("relu", "tanh", "gelu")),
        "optimizer.name": Categorical(("sgd", "adam")),
        "optimizer.momentum": Float(0.0, 0.99, when={"optimizer.name": "sgd"}),
        "optimizer.nesterov": Fixed(True, when={"optimizer.name": "sgd"}),
        "depth": Categorical((1, 2, 4), ordered=True),
        "dropout": Fixed(0.1),
    }
    assert space.names == tuple(space) == tuple(space.domains)
    assert len(space) == 8


@pytest.mark.parametrize(
    ("entry", "domain"),
    [
        ({"low": 1, "high": 2.0}, Float(1.0, 2.0)),
        ({"low": "1e-4", "high": 1, "log": True}, Float(1e-4, 1.0, log=True)),
        ({"low": 0.0, "high": 1.0, "step": "1e-1"}, Float(0.0, 1.0, step=0.1)),
        ({"low": 0, "high": 9, "step": None, "when": None}, Int(0, 9)),
        (("a", None), Categorical(("a", None))),
        (None, Fixed(None)),
        (Int(1, 2), Int(1, 2)),
    ],
)
def test_entries(entry: Any, domain: Domain) -> None:
    read = Space({"x": entry}).domains["x"]
    assert type(read) is type(domain)
    assert read == domain


def test_a_float_and_an_int_range_differ() -> None:
    assert type(Space({"x": {"low": 1, "high": 2}}).domains["x"]) is Int
    assert Space({"x": Int(1, 2)}) != Space({"x": Float(1, 2)})
    assert Space({"x": [1], "y": [2]}) != Space({"y": [2], "x": [1]})


def test_an_empty_space() -> None:
    space = Space({})
    assert (len(space), space.sample(np.random.default_rng(0)), space.check({}), space.to_config()) == (0, {}, {}, {})
    assert space == Space() == Space.from_optuna({})
    with pytest.raises(SpaceError, match=r"config\.lr: 0\.1 is of no hyperparameter; the space is empty"):
        space.check({"lr": 0.1})


def test_repr_says_what_is_not_default() -> None:
    assert repr(Float(0, 1, when={"a": 1})) == "Float(low=0.0, high=1.0, when={'a': (1,)})"
    assert repr(Space({"a": [1]})) == "Space({'a': Categorical(choices=(1,))})"


# Conditions ------------------------------------------------------------------------------------------------------


def test_conditions_name_siblings_but_full_names_win() -> None:
    inner = {"kind": ["p", "q"], "x": {"low": 0, "high": 1, "when": {"kind": "p"}}}
    assert Space({"n": inner}).domains["n.x"].conditions == {"n.kind": ("p",)}
    assert Space({"n": inner, "kind": ["p"]}).domains["n.x"].conditions == {"kind": ("p",)}
    assert Space({"n": {"m": {"x": inner["x"]}, "kind": ["p"]}}).domains["n.m.x"].conditions == {"n.kind": ("p",)}
    nested = {"n": inner, "y": {"value": 1, "when": {"n": {"kind": ["p", "q"]}}}}
    assert Space(nested).domains["y"].conditions == {"n.kind": ("p", "q")}


def test_a_child_is_active_only_under_an_active_parent() -> None:
    space = Space(
        {
            "c": Float(0, 1, when={"b": 2}),
            "b": Categorical((1, 2), when={"a": "on"}),
            "a": ["on", "off"],
        }
    )
    assert space.order == ("a", "b", "c")
    assert space.is_active("c", {"a": "on", "b": 2})
    assert not space.is_active("c", {"a": "off", "b": 2})
    assert not space.is_active("c", {"a": "on", "b": 1})
    assert not space.is_active("c", {})
    # units in declaration order c, b, a
    assert space.from_units([0.5, 0.9, 0.0]) == {"c": 0.5, "b": 2, "a": "on"}
    assert space.from_units([0.5, 0.9, 0.9]) == {"a": "off"}


def test_all_conditions_must_hold_and_true_is_not_one() -> None:
    space = Space({"a": [1, 2], "b": [True, False], "x": Fixed(0, when={"a": [1, 2], "b": True})})
    assert space.is_active("x", {"a": 2, "b": True})
    assert not space.is_active("x", {"a": 2, "b": False})
    assert not space.is_active("x", {"a": 2, "b": 1})


def test_adding_a_condition_or_fixing_a_value_leaves_the_other_draws() -> None:
    plain = {"a": [1, 2], "b": Float(0, 1), "c": Float(0, 1)}
    conditional = plain | {"b": Float(0, 1, when={"a": 1})}
    fixed = plain | {"b": 0.5}
    inactive = 0
    for seed in range(20):
        configs = [Space(s).sample(np.random.default_rng(seed)) for s in (plain, conditional, fixed)]
        assert len({(config["a"], config["c"]) for config in configs}) == 1
        inactive += "b" not in configs[1]
    assert 0 < inactive < 20


def test_fixing_a_parent_needs_no_other_change() -> None:
    space = Space({"a": "adam", "momentum": Float(0, 1, when={"a": "sgd"}), "beta": Float(0, 1, when={"a": "adam"})})
    assert space.from_units([0.0, 0.5, 0.5]) == {"a": "adam", "beta": 0.5}


# Checking --------------------------------------------------------------------------------------------------------


def test_check_completes_a_configuration() -> None:
    space = Space(EXAMPLE)
    given_config = {"lr": np.float64(0.1), "units": np.int64(32), "activation": "relu", "depth": 2}
    whole = {"lr": 0.1, "units": 32, "activation": "relu", "depth": 2, "dropout": 0.1}
    sgd = {"name": "sgd", "momentum": 0, "nesterov": True}
    checked = space.check(given_config | {"optimizer.name": "sgd", "optimizer": {"momentum": 0}})
    assert checked == whole | {"optimizer": sgd}
    assert list(checked) == ["lr", "units", "activation", "optimizer", "depth", "dropout"]
    assert [type(checked[name]) for name in ("lr", "units")] == [float, int]
    assert type(checked["optimizer"]["momentum"]) is float
    assert space.check(given_config | {"optimizer.name": "adam", "dropout": 0.1}) == whole | {
        "optimizer": {"name": "adam"}
    }


GOOD = {"lr": 0.1, "units": 32, "activation": "relu", "depth": 2, "optimizer.name": "adam"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 1}, "lr: 1 is not a float in [0.0001, 0.3]; nearest: 0.3"),
        ({"lr": "0.1"}, "lr: '0.1' is not a float in [0.0001, 0.3]"),
        ({"lr": True}, "lr: True is not a float in [0.0001, 0.3]"),
        ({"lr": math.nan}, "lr: nan is not a float in [0.0001, 0.3]"),
        ({"units": 32.5}, "units: 32.5 is not an integer in [16, 256]; nearest: 32"),
        ({"units": 3}, "units: 3 is not an integer in [16, 256]; nearest: 16"),
        ({"activation": "rely"}, "activation: 'rely' is not one of ['relu', 'tanh', 'gelu'] (nearest: 'relu')"),
        ({"depth": True}, "depth: True is not one of [1, 2, 4]"),
        ({"depth": [1]}, "depth: [1] is not one of [1, 2, 4]"),
        ({"dropout": 0.2}, "dropout: 0.2 is not its fixed value 0.1; leave it out"),
        (
            {"optimizer": {"momentum": 0.5}},
            "optimizer.momentum: 0.5 is not used: it needs 'optimizer.name' to be one of ['sgd'], here 'adam'",
        ),
        ({"learning_rate": 1, "lr": 0.1}, "learning_rate: 1 is of no hyperparameter"),
        ({"unit": 1}, "unit: 1 is of no hyperparameter (nearest: 'units'); the space has lr, units,"),
        ({"optimizer": {"name": "sgd"}}, "optimizer.name: given twice, 'adam' and 'sgd'; remove one"),
        ({1: 2}, ": 1 is not a name"),
    ],
)
def test_check_refuses(change: dict[Any, Any], message: str) -> None:
    with pytest.raises(SpaceError) as raised:
        Space(EXAMPLE).check(GOOD | change, "searcher.initial[0]")
    separator = "" if message.startswith(":") else "."
    assert str(raised.value).startswith(f"searcher.initial[0]{separator}{message}")


def test_check_names_what_is_missing() -> None:
    with pytest.raises(SpaceError) as raised:
        Space(EXAMPLE).check({name: value for name, value in GOOD.items() if name != "units"})
    assert str(raised.value) == "config.units: missing; add units, an integer in [16, 256]"
    assert raised.value.key == "config.units"


def test_check_names_an_inactive_parent() -> None:
    space = Space({"a": [0, 1], "b": Categorical((0, 1), when={"a": 1}), "c": Float(0, 1, when={"b": 1})})
    with pytest.raises(SpaceError, match=r"config\.c: 0\.5 is not used: its parent 'b' is inactive; remove it"):
        space.check({"a": 0, "c": 0.5})


def test_nest_takes_names_of_the_space_only() -> None:
    with pytest.raises(SpaceError, match=r"config\.bb: 1 is of no hyperparameter"):
        Space({"a.b": [1]}).nest({"bb": 1})


# Bad spaces ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"low": 1.0, "high": 0.5}, "low=1.0 is not below high=0.5; swap them"),
        ({"low": 1, "high": 1}, "low=1 is not below high=1; write the value alone to fix it"),
        ({"low": 0, "high": 8, "log": True}, "low=0 has no logarithm; with log=True low must be above 0"),
        ({"low": -1.0, "high": 8.0, "log": True}, "low=-1.0 has no logarithm"),
        ({"low": 0.1, "high": 1.0, "log": True, "step": 0.1}, "step=0.1 cannot go with log=True; drop one"),
        ({"low": 1, "high": 9, "log": True, "step": 2}, "step=2 cannot go with log=True; drop one"),
        ({"low": 0.0, "high": 1.0, "step": 0.0}, "step=0.0 is not positive; give a step above 0"),
        ({"low": 0, "high": 9, "step": -3}, "step=-3 is not positive"),
        ({"low": 0, "high": 9, "step": 10}, "step=10 is larger than the range from 0 to 9; make it smaller"),
        ({"low": 0.0, "high": 1.0, "step": 1.5}, "step=1.5 is larger than the range from 0.0 to 1.0"),
        ({"low": 1.0, "high": 2.0, "step": 1e-17}, "step=1e-17 is too small for floats near 2.0; leave it out"),
        ({"low": 0, "high": 1, "step": 0.1}, "step=0.1 is not an integer; for a float range write low or high as a"),
        ({"low": 0.0, "high": math.inf}, "high=inf is not finite; give the range an end"),
        ({"low": "nan", "high": 1.0}, "low=nan is not finite"),
        ({"low": False, "high": 1.0}, "low=False is not a number; write a number such as 0.1"),
        ({"low": 0, "high": True}, "high=True is not an integer; write an integer"),
        ({"low": "small", "high": 1.0}, "low='small' is not a number"),
        ({"low": 0, "high": 2**53 + 1}, "high=9007199254740993 is beyond 2**53"),
        ({"low": 1, "high": 2, "log": "yes"}, "log='yes' is neither true nor false; write one of them"),
        ({"low": 1}, "{'low': 1} lacks high; add it"),
        ({"log": True}, "{'log': True} lacks low and high; add them"),
        ({"ordered": True}, "{'ordered': True} lacks choices; add it"),
        (
            {"lo": 1, "high": 2},
            "unknown keyword 'lo' (nearest: 'low'); a domain (which 'high' makes it) takes low, high,",
        ),
        ({"low": 1, "choices": [1]}, "{'low': 1, 'choices': [1]} is both a range and a choice; give low and high, or"),
        ({"value": 1, "ordered": True}, "is both a choice and a fixed value; give low and high, or choices, or value"),
        ({"when": {"other": 1}}, "{'when': {'other': 1}} says no values; give low and high, or choices, or value"),
        ([], "choices=[] is empty; list one choice or more"),
        ({"choices": "abc"}, "choices='abc' is not a list; write ['abc', …]"),
        ({"choices": ["a"], "ordered": 1}, "ordered=1 is neither true nor false"),
        ([1, 2, 1], "choice 1 equals choice 1; list it once"),
        ([1, True], "choice True equals choice 1; list it once"),
        ([math.nan], "choice nan equals nothing, itself included; write null"),
        ([[1, 2], [3]], "choice [1, 2] is not None, a bool, a number or a string; give each choice a name"),
        (
            {"value": [1, 2]},
            "value [1, 2] is not None, a bool, a number or a string; to choose among values, list them",
        ),
        (b"raw", "value b'raw' is not None, a bool, a number or a string"),
        ({}, "{} is neither a domain nor a nested space; remove it, ~space.x"),
        ({"value": 1, "when": "other"}, "when='other' is not a mapping; write {name: value} or {name: [values]}"),
        ({"value": 1, "when": {"other": []}}, "when.other=[] can never hold; list the values of 'other'"),
        (
            {"value": 1, "when": {"other": [[1]]}},
            "when.other: [1] is not None, a bool, a number or a string; write a value",
        ),
    ],
)
def test_bad_domains(entry: Any, message: str) -> None:
    with pytest.raises(SpaceError) as raised:
        Space.from_config({"other": [1, 2], "x": entry})
    assert str(raised.value).startswith("space.x: ")
    assert message in str(raised.value)
    assert raised.value.key == "space.x"


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            {"optimizer": ["sgd"], "m": {"value": 1, "when": {"optimiser": "sgd"}}},
            "space.m.when.optimiser: 'optimiser' is no hyperparameter (nearest: 'optimizer'); the other names are",
        ),
        ({"m": {"value": 1, "when": {"o": 1}}}, "space.m.when.o: 'o' is no hyperparameter; there is no other name"),
        (
            {"n": {"o": ["sgd", "adam"], "m": {"value": 1, "when": {"o": "sdg"}}}},
            "space.n.m.when.o: 'sdg' is not one of ['sgd', 'adam'] (nearest: 'sgd'); remove the value, or add it to "
            "space.n.o",
        ),
        (
            {"k": {"low": 1, "high": 4}, "m": {"value": 1, "when": {"k": 5}}},
            "space.m.when.k: 5 is not an integer in [1, 4]; nearest: 4",
        ),
        (
            {"lr": {"low": 0.0, "high": 1.0}, "m": {"value": 1, "when": {"lr": 0.5}}},
            "space.m.when.lr: 'lr' is a float in [0.0, 1.0], and would never be one of [0.5]; give it",
        ),
        (
            {"n": {"o": [1], "m": {"value": 1, "when": {"o": 1, "n.o": 1}}}},
            "space.n.m.when.n.o: 'n.o' is named twice; remove one",
        ),
        ({"a": {"value": 1, "when": {"a": 1}}}, "space.a.when: a cycle of conditions, a -> a; remove one of them"),
        (
            {
                "top": {"value": 1, "when": {"a": 1}},
                "a": {"value": 1, "when": {"b": 1}},
                "b": {"value": 1, "when": {"c": 1}},
                "c": {"value": 1, "when": {"a": 1}},
            },
            "space.a.when: a cycle of conditions, a -> b -> c -> a; remove one of them",
        ),
        ({"low": 1, "high": 2}, "space.low: 'low' is a keyword of domains, not a name; rename it, or put it under"),
        ({"n.step": 1}, "space.n.step: 'step' is a keyword of domains, not a name"),
        ({"n": {"m": {"k": [1]}}, "n.m": 2}, "space.n.m: the nested space of 'n.m.k' has this name too; rename one"),
        ({"n": {"m": 1}, "n.m": 2}, "space.n.m: given twice, 1 and 2; remove one"),
        ({True: 1}, "space: True is not a name; write a string without empty parts"),
        ({"n": {"": 1}}, "space.n: '' is not a name"),
    ],
)
def test_bad_spaces(space: dict[Any, Any], message: str) -> None:
    with pytest.raises(SpaceError) as raised:
        Space.from_config(space)
    assert str(raised.value).startswith(message)


def test_a_space_error_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError):
        Float(1, 0)
    with pytest.raises(ValueError, match="optuna_space"):
        Space({"a": []}, where="optuna_space")


@pytest.mark.parametrize("u", [-0.1, 1.1, math.nan])
def test_from_unit_refuses_what_is_outside(u: float) -> None:
    with pytest.raises(ValueError, match="is not in the unit interval"):
        Float(0, 1).from_unit(u)


def test_from_optuna_refuses_choices_that_are_not_scalars() -> None:
    with pytest.warns(UserWarning, match="contains"):
        distribution = CategoricalDistribution([(1, 2)])
    with pytest.raises(SpaceError, match=r"space\.x: choice \(1, 2\) is not None, a bool"):
        Space.from_optuna({"x": distribution})
