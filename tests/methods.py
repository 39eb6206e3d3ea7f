"""Every method of conf/, by glob, and what makes a study of it small: a new file is tested as soon as it is there."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

CONF = Path(__file__).parents[1] / "conf"
ALL = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
NEEDS_A_STUDY = ("pbt_replay",)
"""It replays the schedule of another study: tests/schedulers/test_population.py."""
GRADIENT = [m for m in ALL if "override /trainable" in (CONF / f"method/{m}.yaml").read_text()]
"""Those that move hyperparameters within a trial, and need a task that can be differentiated."""
METHODS = [method for method in ALL if method not in (*NEEDS_A_STUDY, *GRADIENT)]
SEVERAL = [m for m in METHODS if OmegaConf.load(CONF / f"method/{m}.yaml").method.get("several")]


def part(method: str, group: str) -> str:
    """The searcher or scheduler that a method names."""
    for entry in OmegaConf.load(CONF / f"method/{method}.yaml").defaults:
        for key, value in entry.items():
            if str(key) == f"override /{group}":
                return str(value)
    raise AssertionError(f"{method} names no {group}")


SCHEDULERS = {part(method, "scheduler"): method for method in reversed(METHODS) if method not in SEVERAL}
"""One method for each scheduler."""


def each_part_once(methods: Iterable[str]) -> list[Any]:
    """These methods as parameters, slow but for the first with each scheduler and each searcher."""
    met: set[tuple[str, str]] = set()
    found = []
    for method in methods:
        parts = {(group, part(method, group)) for group in ("scheduler", "searcher")}
        found.append(pytest.param(method, marks=pytest.mark.slow if parts <= met else ()))
        met |= parts
    return found


def differentiable(method: str) -> list[str]:
    """The overrides that make a method with gradients small, on a task that it can differentiate."""
    task, space = "Ridge", "{decay: {low: 1e-4, high: 10.0, log: true}}"
    if part(method, "trainable") == "descent":
        task, space = "OneRate", "{inner_lr: {low: 0.01, high: 0.3, log: true}}"
    overrides = ["task=custom", f"task.trainable=mine_differentiable.{task}", f"space={space}"]
    overrides.append("trainable.inner_steps=5")
    scheduler = part(method, "scheduler")
    return overrides + (["budget.trials=5"] if scheduler == "asha" else small(method) if scheduler == "pbt" else [])


def small(method: str) -> list[str]:
    """The overrides that make a method small, and let its model, if it has one, come to a say."""
    scheduler, searcher = part(method, "scheduler"), part(method, "searcher")
    overrides = []
    if scheduler in ("fifo", "median"):
        overrides.append(f"budget.trials={8 if scheduler == 'median' else 6}")
    elif scheduler in ("pbt", "pb2"):
        overrides += ["scheduler.population=4", "scheduler.interval=1"]
    else:
        overrides.append("scheduler.eta=2")
    if searcher in ("tpe", "gp", "mf_tpe"):
        overrides.append("searcher.startup=3")
    if searcher in ("evolution", "de", "dehb"):
        overrides.append("searcher.population=4")
    if searcher == "nsga2":
        overrides.append("searcher.settings.population_size=4")
    if searcher == "grid":
        overrides.append("searcher.sample=true")
    return overrides


def learns(method: str) -> bool:
    """Whether its suggestions depend on results."""
    import hpo_ray.searchers

    target = str(OmegaConf.load(CONF / f"searcher/{part(method, 'searcher')}.yaml")["_target_"])
    return bool(getattr(hpo_ray.searchers, target.rpartition(".")[2]).Core.learns)
