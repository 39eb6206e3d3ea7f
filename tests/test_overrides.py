"""Each rewritten override is composed by the real Hydra: what counts is the configuration that comes out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import OmegaConf

from hpo_ray.overrides import rewrite
from hpo_ray.space import Categorical, Float, Int, Space, SpaceError

SMALL = {
    "lr": {"low": 1e-4, "high": 0.3, "log": True},
    "optimizer": ["sgd", "adam"],
    "momentum": {"low": 0.0, "high": 0.9, "when": {"optimizer": "sgd"}},
    "dropout": 0.1,
    "inner": {"eps": {"low": 1e-8, "high": 1e-3, "log": True}},
}
UNITS = {"units": {"low": 16, "high": 256}}


@dataclass
class Schema:
    seed: int = 0
    space: dict[str, Any] = field(default_factory=dict)
    task: dict[str, Any] = field(default_factory=dict)


Composer = Callable[..., dict[str, Any]]


@pytest.fixture
def composed(tmp_path: Path) -> Composer:
    """Composes rewritten overrides over a tree like the project's: a typed schema, a group `space`, a task."""
    ConfigStore.instance().store(name="schema_of_test_overrides", node=Schema)
    files = {
        "config": {"defaults": ["schema_of_test_overrides", {"space": "small"}, {"task": "plain"}, "_self_"]},
        "space/small": SMALL,
        "space/units": UNITS,
        "task/plain": {},
        "task/digits": {"defaults": [{"override /space": "units"}]},
    }
    for name, content in files.items():
        path = tmp_path / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        header = "# @package _global_\n" if name == "task/digits" else ""
        path.write_text(header + OmegaConf.to_yaml(OmegaConf.create(content)))

    def compose_space(*overrides: str) -> dict[str, Any]:
        with initialize_config_dir(str(tmp_path), version_base="1.3"):
            space = compose("config", overrides=rewrite(list(overrides))).get("space", {})
        return OmegaConf.to_container(space, resolve=True) if space else {}

    return compose_space


def without(*names: str) -> dict[str, Any]:
    return {name: entry for name, entry in SMALL.items() if name not in names}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        # a scalar fixes
        (["space.lr=0.01"], SMALL | {"lr": 0.01}),
        (["space.optimizer=sgd"], SMALL | {"optimizer": "sgd"}),
        (["space.inner.eps=1e-6"], SMALL | {"inner": {"eps": 1e-6}}),
        (["space.lr='[1,2]'"], SMALL | {"lr": "[1,2]"}),
        (["space.dropout=${seed}"], SMALL | {"dropout": 0}),
        # a keyword changes or adds one thing
        (["space.lr.low=1e-3"], SMALL | {"lr": {"low": 1e-3, "high": 0.3, "log": True}}),
        (["space.momentum.step=0.1"], SMALL | {"momentum": {**SMALL["momentum"], "step": 0.1}}),
        (["++space.momentum.step=0.1"], SMALL | {"momentum": {**SMALL["momentum"], "step": 0.1}}),
        (["space.inner.eps.low=1e-7"], SMALL | {"inner": {"eps": {"low": 1e-7, "high": 1e-3, "log": True}}}),
        (["space.dropout.low=0.0", "space.dropout.high=0.5"], SMALL | {"dropout": {"low": 0.0, "high": 0.5}}),
        (
            ["space.lr.when.optimizer=sgd"],
            SMALL | {"lr": {"low": 1e-4, "high": 0.3, "log": True, "when": {"optimizer": "sgd"}}},
        ),
        (
            ["space.momentum.when.optimizer=[sgd,adam]"],
            SMALL | {"momentum": {"low": 0.0, "high": 0.9, "when": {"optimizer": ["sgd", "adam"]}}},
        ),
        (
            ["space.momentum.when={dropout: 0.1}"],
            SMALL | {"momentum": {"low": 0.0, "high": 0.9, "when": {"dropout": 0.1}}},
        ),
        (["space.momentum.when=null"], SMALL | {"momentum": {"low": 0.0, "high": 0.9, "when": None}}),
        # a list or a mapping replaces, nothing of the old stays
        (["space.lr=[0.1,0.2]"], SMALL | {"lr": [0.1, 0.2]}),
        (["space.lr={low: 1.0, high: 2.0}"], SMALL | {"lr": {"low": 1.0, "high": 2.0}}),
        (["space.optimizer=[adam]"], SMALL | {"optimizer": ["adam"]}),
        (["space.optimizer={low: 1, high: 2}"], SMALL | {"optimizer": {"low": 1, "high": 2}}),
        (["space.dropout=[0.1,0.5]"], SMALL | {"dropout": [0.1, 0.5]}),
        (["space.inner={beta: [1,2]}"], SMALL | {"inner": {"beta": [1, 2]}}),
        (["space.inner.eps=[1e-8,1e-7]"], SMALL | {"inner": {"eps": [1e-8, 1e-7]}}),
        (["space.lr={low: ${seed}, high: 2}"], SMALL | {"lr": {"low": 0, "high": 2}}),
        # left to right
        (["space.lr.low=1e-3", "space.lr=[1,2]"], SMALL | {"lr": [1, 2]}),
        (["space.lr={low: 1, high: 2}", "space.lr.low=0"], SMALL | {"lr": {"low": 0, "high": 2}}),
        (["space.lr=[1,2]", "space.lr=3"], SMALL | {"lr": 3}),
        # additions and removals
        (["+space.x={low: 1, high: 2}"], SMALL | {"x": {"low": 1, "high": 2}}),
        (["+space.x=[1,2]"], SMALL | {"x": [1, 2]}),
        (["+space.x=1"], SMALL | {"x": 1}),
        (["+space.inner.beta=[1,2]"], SMALL | {"inner": {**SMALL["inner"], "beta": [1, 2]}}),
        (["++space.lr={low: 1, high: 2}"], SMALL | {"lr": {"low": 1, "high": 2}}),
        (["++space.x=[1,2]"], SMALL | {"x": [1, 2]}),
        (["+space={x: [1,2], y: 3}"], SMALL | {"x": [1, 2], "y": 3}),
        (["++space={lr: {low: 1, high: 2}}"], SMALL | {"lr": {"low": 1, "high": 2}}),
        (["~space.lr"], without("lr")),
        (["~space.lr", "+space.lr=[1,2]"], SMALL | {"lr": [1, 2]}),
        # the whole space
        (["space={a: [1,2]}"], {"a": [1, 2]}),
        (["space={lr: {low: 1.0, high: 2.0}, b: {c: 1}}"], {"lr": {"low": 1.0, "high": 2.0}, "b": {"c": 1}}),
        (["space={}"], {}),
        (["~space"], {}),
        (["space={a: 1}", "space={b: 2}"], {"b": 2}),
        (["space={a: {low: 1, high: 2}}", "space.a.high=3"], {"a": {"low": 1, "high": 3}}),
        (["space={a: 1}", "+space.b=[1,2]"], {"a": 1, "b": [1, 2]}),
        (["space.lr=1", "space={a: 1}"], {"a": 1}),
        (["~space", "space={a: 1}"], {"a": 1}),
        (["space=units", "space={a: 1}"], {"a": 1}),
        # the group's files, and a task that chooses one
        (["space=units"], UNITS),
        (["space=[small,units]"], SMALL | UNITS),
        (["space={a: 1}", "space=units"], UNITS),
        (["space={a: 1}", "~space"], {}),
        (["space=units", "space.units.low=8"], {"units": {"low": 8, "high": 256}}),
        (["space.units.low=8", "space=units"], {"units": {"low": 8, "high": 256}}),
        (["task=digits"], UNITS),
        (["task=digits", "space.units=[16,32]"], {"units": [16, 32]}),
        (["task=digits", "space={a: 1}"], {"a": 1}),
        (["space={a: 1}", "task=digits"], {"a": 1}),
    ],
)
def test_composes_to(composed: Composer, overrides: list[str], expected: dict[str, Any]) -> None:
    assert composed(*overrides) == expected


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("space.lt=0.1", "Could not override 'space.lt'"),
        ("space.lt=[1,2]", "Could not override 'space.lt'"),
        ("space.lt={low: 1, high: 2}", "Could not override 'space.lt'"),
        ("space.lt.low=1e-3", "Could not override 'space.lt'"),
        ("space.inner.epps.low=1", "Could not override 'space.inner.epps'"),
        ("space.lr.lo=1e-3", "Could not override 'space.lr.lo'"),
        ("space.optimizer.low=1", "Error merging override space.optimizer={}"),
        ("+space.lr={low: 1, high: 2}", "An item is already at 'space.lr'"),
        ("+space={lr: [1,2]}", "An item is already at 'space.lr'"),
        ("+space.lr.low=1", "An item is already at 'space.lr.low'"),
        ("~space.lt", "'space.lt' does not exist"),
    ],
)
def test_what_is_not_there_or_there_already_is_an_error_of_hydra(
    composed: Composer, override: str, message: str
) -> None:
    with pytest.raises(ConfigCompositionException, match=message.replace("{}", r"\{\}")):
        composed(override)


@pytest.mark.parametrize("override", ["space=nope", "space.lr=1,2", "space.lr={low: 1", "space='{a: 1}'"])
def test_what_hydra_refuses_reaches_hydra(composed: Composer, override: str) -> None:
    assert rewrite([override]) == [override]
    with pytest.raises(HydraException):
        composed(override)


def test_other_overrides_stay_in_their_places() -> None:
    others = ["seed=1", "spaces={a: 1}", "task.space={a: 1}", "space@task=units", "not an override", "~task"]
    assert rewrite(others) == others
    assert rewrite(["seed=1", "space={a: 1}", "~task"]) == ["seed=1", "~space", "+space={a: 1}", "~task"]


def test_a_composed_space_is_a_space(composed: Composer) -> None:
    overrides = ["space.lr={low: 1e-3, high: 1}", "space.optimizer=adam", "space.dropout={low: 0, high: 4}"]
    domains = Space.from_config(composed(*overrides)).domains
    assert domains["lr"] == Float(0.001, 1.0)
    assert domains["dropout"] == Int(0, 4)
    assert domains["inner.eps"] == Float(1e-8, 1e-3, log=True)
    ordered = Space.from_config(composed("space.lr={choices: [1,2], ordered: true}"))
    assert ordered.domains["lr"] == Categorical((1, 2), ordered=True)
    with pytest.raises(SpaceError, match=r"space\.lr: .* is both a range and a choice"):
        Space.from_config(composed("space.lr.choices=[1,2]"))
