"""A study of Optuna's becomes one of ours: from memory, from a database, from a journal; and ours come back."""

from __future__ import annotations

import doctest
import json
import math
import shlex
import sqlite3
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial

from hpo_ray import load_study
from hpo_ray.__main__ import main
from hpo_ray.best import load_config
from hpo_ray.errors import ConfigError, StudyError
from hpo_ray.events import FILE_NAME, Reported, read
from hpo_ray.overrides import to_text
from hpo_ray.results import StudyResult
from hpo_ray.space import Categorical, Fixed, Float, Int, Space
from hpo_ray.testing import run_study

LR = FloatDistribution(1e-4, 1.0, log=True)
EXPERIMENTAL = pytest.mark.filterwarnings("ignore:.*set_metric_names is experimental")
START = datetime(2026, 1, 31, 12)


@pytest.fixture(autouse=True)
def quiet(folder: Path) -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(before)


def add(study: optuna.Study, **more: Any) -> None:
    study.add_trial(create_trial(**{"params": {"lr": 0.1}, "distributions": {"lr": LR}, **more}))


def space(result: StudyResult) -> Space:
    return Space.from_config(load_config(result.path)["space"])


def opened(kind: str) -> BaseStorage:
    if kind == "sqlite":
        return RDBStorage("sqlite:///studies.db")
    return JournalStorage(JournalFileBackend("studies.journal"))


def test_each_state_and_its_values(folder: Path) -> None:
    study = optuna.create_study(study_name="five")
    add(study, value=0.25, intermediate_values={0: 0.75, 1: 0.5, 2: 0.25})
    add(study, state=TrialState.PRUNED, intermediate_values={0: 0.875}, user_attrs={"note": ["a", 1], "value": 3})
    add(study, state=TrialState.FAIL, intermediate_values={0: math.nan}, user_attrs={"no": {1, 2}, "nan": math.nan})
    study.enqueue_trial({"lr": 0.5})
    study.ask().report(0.5, 0)
    study.enqueue_trial({"lr": 0.25})
    result = load_study(study)
    assert [(t.number, t.trial_id, t.state, t.config) for t in result.records] == [
        (0, "0", "completed", {"lr": 0.1}),
        (1, "1", "stopped", {"lr": 0.1}),
        (2, "2", "failed", {"lr": 0.1}),
        (3, "3", "running", {}),
        (4, "4", "running", {"lr": 0.25}),
    ]
    assert [t.history for t in result.records[:2]] == [[(1, 0.75), (2, 0.5), (3, 0.25)], [(1, 0.875)]]
    assert result.records[2].history[0][0] == 1 and math.isnan(result.records[2].history[0][1])
    assert result.records[3].history == [(1, 0.5)]
    assert [t.tags for t in result.records] == [{}, {"note": ["a", 1], "value_": 3}, {}, {}, {}]
    assert result.records[2].error == "failed in Optuna, which keeps no reason"
    assert space(result) == Space({"lr": Float(1e-4, 1.0, log=True)})
    started = result.state.started
    assert started is not None
    assert (started.metric, started.mode, started.max_resource, started.command) == ("value", "min", 3, None)
    assert result.to_json()["totals"] | {"seconds": 0, "training_seconds": 0} == {
        "trials": 5, "completed": 1, "stopped": 1, "failed": 1, "unfinished": 2, "resource": 6, "seconds": 0,
        "training_seconds": 0}  # fmt: skip


@EXPERIMENTAL
def test_the_best_is_the_studys_best(folder: Path) -> None:
    """All complete trials are compared by what they returned, wherever they ended and whatever they reported last."""
    study = optuna.create_study(direction="maximize")
    study.set_metric_names(["accuracy"])
    add(study, value=0.5, intermediate_values={1: 0.25, 2: 0.375, 9: 0.5})
    add(study, value=0.75, intermediate_values={1: 0.5, 3: 0.625})
    add(study, value=0.625, intermediate_values={9: 0.875})
    add(study, value=0.125)
    result = load_study(study)
    assert [t.history for t in result.records] == [
        [(1, 0.25), (2, 0.375), (9, 0.5)], [(1, 0.5), (3, 0.625), (9, 0.75)], [(9, 0.875), (9, 0.625)], [(9, 0.125)]
    ]  # fmt: skip
    assert [t.value for t in result.records] == [0.5, 0.75, 0.625, 0.125]
    assert [t.trained for t in result.records] == [9, 3, 9, 9], "a value that was returned later costs nothing"
    assert result.best is not None and result.best.number == study.best_trial.number == 1
    assert result.state.again == 0 and result.state.started.metric == "accuracy"  # type: ignore[union-attr]


def test_without_intermediate_values_a_trial_is_one_unit(folder: Path) -> None:
    study = optuna.create_study(study_name="a b/ü?")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1) ** 2, n_trials=3)
    result = load_study(study, metric="loss")
    assert result.path == Path("outputs/a_b_ü_")
    assert [t.history for t in result.records] == [[(1, trial.value)] for trial in study.trials]
    assert result.state.trained == 3 and result.records[0].metrics == {"loss": study.trials[0].value}


def test_times(folder: Path) -> None:
    study = optuna.create_study()
    for start, end in ((4.0, 10.0), (2.0, 5.0)):
        when = {"datetime_start": START + timedelta(seconds=start), "datetime_complete": START + timedelta(seconds=end)}
        trial = create_trial(
            value=0.5, params={"lr": 0.1}, distributions={"lr": LR}, intermediate_values={1: 2.0, 3: 0.5}
        )
        for name, value in when.items():
            setattr(trial, name, value)
        study.add_trial(trial)
    result = load_study(study)
    assert result.state.started is not None and result.state.started.time == (START + timedelta(seconds=2)).timestamp()
    reports = [e for e in read(result.path / FILE_NAME) if isinstance(e, Reported)]
    assert [(e.trial_id, e.resource, e.time, e.seconds) for e in reports] == [
        ("1", 1, 1.0, 1.0), ("1", 3, 3.0, 2.0), ("0", 1, 4.0, 2.0), ("0", 3, 8.0, 4.0)
    ]  # fmt: skip
    assert result.state.ended is not None and result.state.ended.time == 8.0


@EXPERIMENTAL
def test_several_objectives_and_constraints(folder: Path) -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    for accuracy, size, beyond in ((0.5, 10.0, -1.0), (0.75, 20.0, 0.0), (0.875, 15.0, 2.0), (0.25, 30.0, -3.0)):
        trial = study.ask({"lr": LR})
        trial.set_constraint("memory", beyond)
        study.tell(trial, [accuracy, size])
    study.tell(study.ask({"lr": LR}), state=TrialState.FAIL)
    result = load_study(study)
    assert result.state.started is not None
    assert result.state.started.metrics == {"value_0": "max", "value_1": "min"}
    assert result.state.started.constraints == {"constraint.memory": {"high": 0.0}}
    assert [t.feasible for t in result.records] == [True, True, False, True, None]
    assert [t.number for t in result.pareto_front()] == [1, 0]
    assert {t.number for t in result.pareto_front()} == {t.number for t in study.best_trials}
    study.set_metric_names(["accuracy", "size"])
    by_size = load_study(study, metric="size", mode="min")
    assert by_size.state.started is not None and by_size.state.started.metric == "size"
    with pytest.raises(ConfigError, match=r"task.metric=sizes: the study .* optimises accuracy, size; nearest: size"):
        load_study(study, metric="sizes")
    with pytest.raises(ConfigError, match=r"task.mode=max: the study .* has size to minimise"):
        load_study(study, metric="size", mode="max")


def test_the_space_with_its_conditions(folder: Path) -> None:
    def objective(trial: optuna.Trial) -> float:
        kind = trial.suggest_categorical("model.kind", ["tree", "net"])
        if kind == "tree":
            return float(trial.suggest_int("model.depth", 2, 8, step=2))
        if trial.suggest_categorical("model.drop", [True, False]):
            trial.suggest_float("rate", 0.1, 0.5, step=0.1)
        return trial.suggest_float("lr", 1e-4, 1.0, log=True)

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    study.optimize(objective, n_trials=20)
    result = load_study(study)
    known = space(result)
    assert known.domains == {
        "model.kind": Categorical(("tree", "net")),
        "model.depth": Int(2, 8, step=2, when={"model.kind": ("tree",)}),
        "model.drop": Categorical((True, False), when={"model.kind": ("net",)}),
        "rate": Float(0.1, 0.5, step=0.1, when={"model.drop": (True,)}),
        "lr": Float(1e-4, 1.0, log=True, when={"model.kind": ("net",)}),
    }
    for mine, theirs in zip(result.records, study.trials, strict=True):
        assert known.check(mine.config) == mine.config and known.flatten(mine.config) == theirs.params
    assert result.records[0].config["model"]["kind"] == study.trials[0].params["model.kind"]
    assert "inferred" not in result.state.ended.reason  # type: ignore[union-attr]


def test_distributions_that_change_or_that_a_space_has_no_word_for(folder: Path) -> None:
    study = optuna.create_study()
    for high, x in ((10, 3), (100, 30)):
        told = {
            "x": IntDistribution(1, high),
            "one": FloatDistribution(2.0, 2.0),
            "c": CategoricalDistribution((1, True)),
            "only": CategoricalDistribution(("a",)),
            "t": CategoricalDistribution((None, "b", 0.5)),
        }
        add(study, value=1.0, distributions=told, params={"x": x, "one": 2.0, "c": True, "only": "a", "t": None})
    result = load_study(study)
    assert space(result).domains == {
        "x": Int(1, 100), "one": Fixed(2.0), "c": Categorical(("1", "true")), "only": Fixed("a"),
        "t": Categorical((None, "b", 0.5))}  # fmt: skip
    assert result.records[1].config == {"x": 30, "one": 2.0, "c": "true", "only": "a", "t": None}


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_the_same_study_by_its_object_its_url_and_its_path(folder: Path, kind: str) -> None:
    storage = opened(kind)
    study = optuna.create_study(storage=storage, study_name="one", sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    first = load_study(study)
    files = {path.name: path.read_bytes() for path in first.path.iterdir()}
    path = "studies.db" if kind == "sqlite" else "studies.journal"
    sources = [path, folder / path, *(["sqlite:///studies.db"] if kind == "sqlite" else [])]
    for source in sources:
        assert load_study(source).path == first.path == Path("outputs/one")
        assert {path.name: path.read_bytes() for path in first.path.iterdir()} == files
    assert main(["report", str(sources[-1])]) == 0
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    assert len(load_study(path).records) == 3 and [p.name for p in Path("outputs").iterdir()] == ["one"]
    optuna.create_study(storage=storage, study_name="two").optimize(lambda t: t.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(ConfigError, match=rf"{path}: holds 2 studies; say which by study.name= .*: one, two$"):
        load_study(path)
    with pytest.raises(ConfigError, match=r"study.name=tow: no such study in .*; nearest: two; there are: one, two$"):
        load_study(path, study_name="tow")
    assert main(["report", path]) == 2 and main(["report", path, "study.name=two", "task.metric=loss"]) == 0
    assert load_study("outputs/two").state.started.metric == "loss"  # type: ignore[union-attr]
    if isinstance(storage, RDBStorage):
        storage.engine.dispose()


def test_two_studies_in_memory_are_two(folder: Path) -> None:
    for name in ("outputs/s", "outputs/s-2"):
        study = optuna.create_study(study_name="s")
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
        assert str(load_study(study).path) == str(load_study(study).path) == name


@pytest.mark.parametrize(
    ("overrides", "several"),
    [
        (["method=hyperband", "task=hartmann6", "task.max_resource=9", "executor=simulated"], False),
        (["method=random", "task=mixed10", "budget.trials=4", "task.max_resource=3", "executor=simulated"], False),
        (["method=nsga2", "task=branin_currin", "budget.trials=12", "executor=simulated"], True),
    ],
)
def test_a_study_of_ours_comes_back_from_its_store(folder: Path, overrides: list[str], several: bool) -> None:
    """The law of the round trip: the same trials, values, curves, tags and times."""
    more = ["task.metrics={branin: min, currin: min}"] if several else []
    first = run_study([*overrides, *more, "seed=3", "study.name=first"], folder / "outputs")
    second = load_study(folder / "outputs" / "hpo_ray.journal", name="second")
    for mine, theirs in zip(second.records, first.records, strict=True):
        for name in (
            "number",
            "trial_id",
            "config",
            "state",
            "value",
            "resource",
            "history",
            "metrics",
            "tags",
            "error",
        ):
            assert getattr(mine, name) == getattr(theirs, name), name
        assert mine.seconds == pytest.approx(theirs.seconds, abs=1e-6) and mine.trained == theirs.trained
    assert second.best is not None and first.best is not None and second.best.number == first.best.number
    keys = ("metric", "mode", "seed", "max_resource", "task", "metrics", "constraints")
    assert {k: getattr(second.state.started, k) for k in keys} == {k: getattr(first.state.started, k) for k in keys}
    assert [t.number for t in second.pareto_front()] == [t.number for t in first.pareto_front()] if several else True
    assert set(space(second).names) == set(space(first).names)


def test_an_imported_study_is_replayed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The law of the replay: its own configurations give its own curves, on a virtual clock, to the digit."""

    def objective(trial: optuna.Trial) -> float:
        x, kind = trial.suggest_float("x", 0.0, 1.0), trial.suggest_categorical("o.kind", ["a", "b"])
        for step in range(3):
            trial.report(x + len(kind) / (step + 1), step)
        return x + len(kind) / 3

    study = optuna.create_study(study_name="then", sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=6)
    then = load_study(study)
    configs = [dict(t.config) for t in then.records]
    typed = [
        f"task.args.path={then.path}", "task.args.match=exact", "task.metric=value", "task.mode=min",
        "task.max_resource=3", f"space={to_text(space(then).to_config())}", "method=random", "budget.trials=6",
        f"searcher.initial={to_text(configs)}", "executor=simulated"]  # fmt: skip
    now = run_study(["task=recorded", *typed], folder / "now")
    assert [(t.config, t.history) for t in now.records] == [(t.config, t.history) for t in then.records]
    assert now.best is not None and now.best.value == study.best_value

    assert main(["report", str(then.path)]) == 0
    command = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("next "))
    words = shlex.split(command)
    assert main([*words[words.index("hpo_ray") + 1 :], "budget.trials=4", "store=none", "view=none"]) == 0
    again = load_study("outputs/recorded-tpe-1")
    assert [(t.state, t.resource) for t in again.records] == [("completed", 3)] * 4


def test_what_is_no_storage(folder: Path) -> None:
    Path("notes.txt").write_text("not JSON\n")
    Path("empty.journal").write_text("")
    Path("other.jsonl").write_text('{"a": 1}\n')
    with sqlite3.connect("other.db") as connection:
        connection.execute("CREATE TABLE cats (name TEXT)")
    connection.close()
    optuna.create_study(storage=opened("journal"), study_name="none yet")
    for source, message in (
        ("notes.txt", r"notes.txt: can't be read as the storage of Optuna studies: .*, line 1: Expecting value"),
        ("empty.journal", r"empty.journal: can't be read as .*: the file is empty. Give .* a journal file of Optuna's"),
        ("other.jsonl", r"other.jsonl: can't be read as the storage of Optuna studies: "),
        ("other.db", r"other.db: is no storage of Optuna studies; its tables are cats"),
        ("sqlite:///other.db", r"other.db: is no storage of Optuna studies; its tables are cats"),
        ("sqlite:///missing.db", r"sqlite:///missing.db: there is no file missing.db"),
        ("sqlite:///notes.txt", r"notes.txt is no SQLite database; give a journal file by its path"),
        ("sqlite:///nowhere/x.db", r"there is no folder nowhere"),
        ("studies.journal", r"Optuna.*|studies.journal: the study none yet has no trials"),
        (3, r"3: must be the folder of a study, an experiment of Ray Tune, the storage of an Optuna study, or an"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_study(source)
    assert not Path("missing.db").exists() and not Path("outputs").exists()
    with pytest.raises(StudyError, match=r"missing.journal: no such folder or file"):
        load_study("missing.journal")
    with pytest.raises(ConfigError, match=r"time_attr=epoch: is of Ray Tune"):
        load_study("notes.txt", time_attr="epoch")
    with pytest.raises(ConfigError, match=r"study_name=x: tells the studies of an Optuna storage apart"):
        load_study(folder, study_name="x")
    assert main(["report", "notes.txt"]) == 2


def test_damage_in_the_middle_of_a_journal_is_named(folder: Path) -> None:
    study = optuna.create_study(storage=opened("journal"), study_name="s")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    lines = Path("studies.journal").read_text().splitlines(keepends=True)
    Path("studies.journal").write_text("".join([*lines[:3], lines[3][:20] + "\n", *lines[4:]]))
    with pytest.raises(ConfigError, match=r"studies\.journal, line 4: "):
        load_study("studies.journal")
    Path("studies.journal").write_text("".join(lines[:-1]) + lines[-1][:20])
    assert [t.state for t in load_study("studies.journal").records] == ["completed", "running"]


def test_a_password_is_nowhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpo_ray.importers.optuna import _whole

    assert _whole("postgresql+psycopg://me:hush@host/db") == "postgresql+psycopg://me@host/db"
    with pytest.raises(ConfigError) as caught:
        load_study("postgresql+psycopg://me:hush@127.0.0.1:1/db")
    assert "hush" not in str(caught.value) and "can't be read as the storage" in str(caught.value)


def test_the_examples_of_load_study(folder: Path) -> None:
    import hpo_ray.importers.spaces
    import hpo_ray.results

    for module in (hpo_ray.results, hpo_ray.importers.spaces):
        done = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
        assert done.failed == 0 and done.attempted > 0


def test_a_log_of_ours_can_still_be_read_without_a_source(folder: Path) -> None:
    """Studies that are older than the field have none."""
    study = optuna.create_study(study_name="s")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    first = load_study(study)
    lines = (first.path / FILE_NAME).read_text().splitlines(keepends=True)
    old = {k: v for k, v in json.loads(lines[0]).items() if k not in ("source", "crc32")}
    (first.path / FILE_NAME).write_text("".join([json.dumps(old) + "\n", *lines[1:]]))
    assert load_study(first.path).state.started.source is None  # type: ignore[union-attr]
    assert load_study(study).path == Path("outputs/s-2"), "so it is no import of this one"
