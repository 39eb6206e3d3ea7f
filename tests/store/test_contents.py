"""What is in the store is what the studies' own files say, for every method, however often and wherever it was cut."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import optuna
import pytest
from methods import METHODS, differentiable, each_part_once, small
from storages import all_of, check_is_the_study, contents, reading

from hpo_ray.events import FILE_NAME
from hpo_ray.results import StudyResult
from hpo_ray.space import Float, Space
from hpo_ray.store import contents as told
from hpo_ray.store.copying import StudyCopy
from hpo_ray.store.recovery import rebuild
from hpo_ray.store.storage import Store
from hpo_ray.testing import run_study

INPROCESS = ["executor=inprocess"]


def study(method: str, root: Path, *more: str) -> StudyResult:
    overrides = [f"method={method}", "task=branin_currin", "task.max_resource=4", *small(method), *INPROCESS, *more]
    return run_study(overrides, root)


@pytest.mark.parametrize("method", each_part_once(METHODS))
def test_every_method_as_its_own_files_say(folder: Path, method: str) -> None:
    result = study(method, folder, "scheduler.max_resource=4")
    assert result.store_note is None
    stored = all_of(folder)
    assert list(stored) == [result.path.name]
    check_is_the_study(stored[result.path.name], result)
    written = rebuild(Store(folder))
    assert (written.studies, written.trials) == (1, len(result.records))
    assert all_of(folder) == stored, "the same, written as it came and all at once"


def test_settings_that_are_searched_are_parameters_too(folder: Path) -> None:
    overrides = ["method=hypergradient_pbt", *differentiable("hypergradient_pbt"), "task.max_resource=3", *INPROCESS]
    result = run_study(overrides, folder)
    stored = all_of(folder)
    assert all({"decay", "outer_lr"} == set(trial["params"]) for trial in stored[result.path.name]["trials"])
    rebuild(Store(folder))
    assert all_of(folder) == stored


def test_conditions_fixed_values_and_nested_names(folder: Path) -> None:
    space = "space={a: {kind: [x, y], rate: {low: 0.1, high: 1.0, when: {kind: x}}}, lr: {low: 0.01, high: 1.0}, b: 3}"
    overrides = ["task=custom", "task.trainable=mine.train", space, "task.max_resource=3", "method=random"]
    result = run_study([*overrides, "budget.trials=8", *INPROCESS], folder)
    stored = all_of(folder)[result.path.name]
    check_is_the_study(stored, result)
    active = [trial["params"].get("a.kind") == "x" for trial in stored["trials"]]
    assert {True, False} == set(active)
    for trial, has_rate in zip(stored["trials"], active, strict=True):
        assert ("a.rate" in trial["params"]) == has_rate
        assert trial["user_attrs"]["config"] == {"b": 3}


def test_failures_retries_and_values_that_are_not_finite(folder: Path) -> None:
    for name in ("raises", "not_finite"):
        overrides = ["task=custom", f"task.trainable=mine.{name}", "space={lr: {low: 0.01, high: 1.0}}"]
        overrides += ["task.max_resource=3", "method=random", "budget.trials=6", "failure.max_retries=1", *INPROCESS]
        result = run_study(overrides, folder)
        check_is_the_study(all_of(folder)[result.path.name], result)
        assert {trial["state"] for trial in all_of(folder)[result.path.name]["trials"]} == {"FAIL", "COMPLETE"}


def test_constraints_are_where_optuna_keeps_them(folder: Path) -> None:
    overrides = ["task=digits_mlp", "method=tpe", "task.constraints={parameters: {low: 10, high: 5000}}"]
    result = run_study([*overrides, "budget.trials=4", "task.max_resource=1", *INPROCESS], folder)
    for trial, record in zip(all_of(folder)[result.path.name]["trials"], result.records, strict=True):
        parameters = record.metrics["parameters"]
        assert trial["constraints"] == {"parameters low": 10 - parameters, "parameters high": parameters - 5000}
        assert trial["user_attrs"]["feasible"] == record.feasible == (parameters <= 5000)


def test_trials_that_are_not_over_are_running(folder: Path) -> None:
    result = study("hyperband", folder, "scheduler.max_resource=4", "budget.resource=6")
    stored = all_of(folder)[result.path.name]
    check_is_the_study(stored, result)
    assert "RUNNING" in {trial["state"] for trial in stored["trials"]}


def test_optunas_own_code_reads_it(folder: Path) -> None:
    result = study("tpe", folder, "task=mixed10", "task.max_resource=2", "scheduler.max_resource=2")
    with reading(Store(folder)) as opened:
        loaded = optuna.load_study(study_name=result.path.name, storage=opened)
    assert result.best is not None and loaded.best_value == result.best.value
    assert loaded.best_trial.number == result.best.number
    assert loaded.metric_names == [result.state.started.metric]  # type: ignore[union-attr]


def test_a_name_that_is_taken_by_another_study(folder: Path) -> None:
    """As two folders of a team may have, whose studies go to one database."""
    store = Store(folder / "a", f"sqlite:///{folder}/team.db")
    results = [study("random", folder / root, f"store.url={store.url}") for root in ("a", "b")]
    stored = contents(store)
    name = results[0].path.name
    assert len(stored) == 2 and name in stored and all(other.startswith(name) for other in stored)
    for result, found in zip(results, stored.values(), strict=True):
        check_is_the_study(found, result)
    study("random", folder / "b", f"store.url={store.url}", "seed=3")
    assert len(contents(store)) == 3


@pytest.mark.parametrize("method", ["hyperband", "pbt", "nsga2"])
@pytest.mark.parametrize("fresh", [True, False], ids=["a new process each time", "one process"])
@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_a_log_that_grows_from_any_byte_to_any_byte(folder: Path, method: str, fresh: bool, kind: str) -> None:
    result = study(method, folder, "scheduler.max_resource=4", "store=none")
    data = (result.path / FILE_NAME).read_bytes()
    growing = folder / "growing" / result.path.name
    growing.mkdir(parents=True)
    shutil.copy(result.path / "config.yaml", growing)
    store = Store(growing.parent, None if kind == "journal" else f"sqlite:///{folder}/s.db")
    draw = random.Random(0)
    space = Space.from_config(told_space(result))
    copy: StudyCopy | None = None
    for cut in [*sorted(draw.randrange(len(data)) for _ in range(20)), len(data), len(data)]:
        (growing / FILE_NAME).write_bytes(data[:cut])
        if copy is None:
            opened = store.open()
            copy = StudyCopy(growing, opened, space)
        copy.catch_up()
        if fresh or cut == len(data):
            copy.finish()
            copy.close()
            opened.close()
            copy = None
    check_is_the_study(contents(store)[result.path.name], result)
    bit_by_bit = contents(store)
    rebuild(store)
    assert contents(store) == bit_by_bit


def told_space(result: StudyResult) -> dict[str, object]:
    from hpo_ray.best import load_config

    return dict(load_config(result.path)["space"])


def test_a_grid_that_optuna_could_not_read_back_is_told_as_a_range() -> None:
    space = Space({"seventh": Float(0.0, 1.0, step=1 / 7), "tenth": Float(0.0, 1.0, step=0.1)})
    known = told.distributions(space)
    assert space.domains["seventh"].size == 8
    assert known["tenth"].step == 0.1 and known["seventh"].step is None  # type: ignore[attr-defined]
    for distribution in known.values():
        text = optuna.distributions.distribution_to_json(distribution)
        assert optuna.distributions.json_to_distribution(text) == distribution
