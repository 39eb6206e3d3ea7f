"""Recorded curves: served to the digit, matched as said, and errors that name file, line and column."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from hpo_ray.errors import ConfigError, StudyError
from hpo_ray.results import StudyResult
from hpo_ray.space import Categorical, Float, Int, Space
from hpo_ray.tasks.recorded import Recording
from hpo_ray.testing import run_study

SPACE = Space({"lr": Float(1e-4, 1.0, log=True), "units": Int(0, 100), "opt": Categorical(["sgd", "adam"])})


def table(path: Path, rows: list[dict]) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def row(lr: float = 0.1, units: int = 10, opt: str = "sgd", resource=1, value=1.0, seconds=2.0) -> dict:  # type: ignore[no-untyped-def]
    return {"lr": lr, "units": units, "opt": opt, "resource": resource, "value": value, "seconds": seconds}


def line(config: dict | None = None, **more) -> str:  # type: ignore[no-untyped-def]
    trial = {
        "config": config or {"lr": 0.1, "units": 10, "opt": "sgd"},
        "history": [[1, 3.0], [2, 2.0]],
        "seconds": 4.0,
    }
    return json.dumps({**trial, "trained": 2, "state": "completed", "error": None, **more}) + "\n"


@pytest.fixture
def recorded(folder: Path) -> StudyResult:
    return run_study(["method=random", "task=hartmann6", "task.max_resource=9", "budget.trials=20",
                      "executor=simulated", "executor.step_s=3"], folder / "then")  # fmt: skip


def replay(result: StudyResult, *more: str) -> list[str]:
    return ["task=recorded", f"task.args.path={result.path}", "space=hartmann6", "task.max_resource=9", *more]


@pytest.mark.parametrize("match", ["exact", "nearest"])
@pytest.mark.parametrize("executor", ["simulated", "inprocess"])
def test_a_study_replays_its_own_trials_to_the_digit(recorded, folder, match, executor) -> None:
    now = run_study(
        [*replay(recorded), "method=random", "budget.trials=20", f"task.args.match={match}", f"executor={executor}"],
        folder / "now",
    )
    assert [(t.config, t.history) for t in now.records] == [(t.config, t.history) for t in recorded.records]
    assert all(t.metrics["cost"] == 3.0 and t.metrics["distance"] == 0.0 for t in now.records)
    if executor == "simulated":
        assert [t.seconds for t in now.records] == [t.seconds for t in recorded.records]


@pytest.mark.parametrize("path", ["folder", "file", "table"])
def test_another_method_on_the_same_curves(recorded, folder, path) -> None:
    """From the folder, from its trials.jsonl and from a table of the same reports: Hyperband decides the same."""
    where = recorded.path if path == "folder" else recorded.path / "trials.jsonl"
    if path == "table":
        rows = [
            {**t.config, "resource": resource, "value": value, "seconds": 3.0}
            for t in recorded.records
            for resource, value in t.history
        ]
        where = table(folder / "curves.parquet", rows)
    overrides = [*replay(recorded), f"task.args.path={where}", "task.args.match=exact", "method=hyperband"]
    result = run_study([*overrides, "executor=simulated", "executor.workers=4"], folder / "now")
    curves = {json.dumps(t.config): dict(t.history) for t in recorded.records}
    for trial in result.records:
        assert trial.history == [(r, curves[json.dumps(trial.config)][r]) for r in range(1, trial.resource + 1)]
        assert trial.seconds == 3.0 * trial.resource
    assert result.state.states["completed"] == 5


def test_nearest_by_hand(folder: Path) -> None:
    rows = [row(0.01, 50, "sgd", value=1.0), row(1.0, 50, "sgd", value=2.0), row(0.01, 90, "adam", value=3.0)]
    recording = Recording(table(folder / "t.parquet", rows), SPACE)
    # The range of lr is four powers of ten: 0.1 lies a quarter from 0.01 and a quarter from 1; the first wins.
    curve, distance = recording.nearest({"lr": 0.1, "units": 50, "opt": "sgd"})
    assert curve.values == (1.0,) and distance == pytest.approx(0.25)
    curve, distance = recording.nearest({"lr": 0.11, "units": 50, "opt": "sgd"})
    assert curve.values == (2.0,) and distance == pytest.approx(-math.log10(0.11) / 4)
    # Another optimizer is 1 away, however near the rest.
    curve, distance = recording.nearest({"lr": 0.01, "units": 90, "opt": "sgd"})
    assert curve.values == (1.0,) and distance == pytest.approx(0.4)
    curve, distance = recording.nearest({"lr": 0.01, "units": 40, "opt": "adam"})
    assert curve.values == (3.0,) and distance == pytest.approx(0.5)


def test_what_only_one_of_two_has_is_one_apart(folder: Path) -> None:
    space = Space({"opt": ["sgd", "adam"], "momentum": {"low": 0.0, "high": 1.0, "when": {"opt": "sgd"}}})
    rows = [
        {"opt": "adam", "momentum": None, "resource": 1, "value": 1.0, "seconds": 1.0},
        {"opt": "sgd", "momentum": 0.5, "resource": 1, "value": 2.0, "seconds": 1.0},
    ]
    recording = Recording(table(folder / "t.parquet", rows), space)
    assert recording.nearest({"opt": "adam"})[1] == 0.0
    assert recording.nearest({"opt": "sgd", "momentum": 0.75})[1] == 0.25
    assert recording.exact({"opt": "adam"}).values == (1.0,)  # type: ignore[union-attr]
    only_sgd = Recording(table(folder / "s.parquet", rows[1:]), space)
    assert only_sgd.nearest({"opt": "adam"})[1] == pytest.approx(math.sqrt(2))


def test_exact_compares_numbers_by_value_and_ignores_fixed_ones(folder: Path) -> None:
    space = Space({"units": Int(0, 100), "dropout": 0.1})
    rows = [{"units": 10.0, "resource": 1, "value": 1.0, "seconds": 1.0}]
    recording = Recording(table(folder / "t.parquet", rows), space)
    assert recording.exact({"units": 10, "dropout": 0.5}) is not None
    assert recording.exact({"units": 11, "dropout": 0.1}) is None


def test_of_equal_configurations_the_longest_curve_counts(folder: Path) -> None:
    path = folder / "trials.jsonl"
    path.write_text(line(history=[[1, 9.0]], trained=1) + line() + line(history=[[1, 5.0], [2, 5.0]]))
    assert Recording(path, SPACE).exact({"lr": 0.1, "units": 10, "opt": "sgd"}).values == (3.0, 2.0)  # type: ignore[union-attr]


def test_sparse_curves_jump(folder: Path) -> None:
    rows = [{"x": 2.5, "resource": r, "value": 1.0 / r, "seconds": float(r)} for r in (10, 20, 40)]
    path = table(folder / "t.parquet", rows)
    overrides = ["task=recorded", f"task.args.path={path}", "space=parabola", "task.max_resource=40", "method=random"]
    result = run_study([*overrides, "budget.trials=1", "executor=simulated"], folder / "now")
    assert result.records[0].history == [(10, 0.1), (20, 0.05), (40, 0.025)]
    assert result.state.trained == 40 and result.state.ended.time == 70.0  # type: ignore[union-attr]


@pytest.mark.parametrize("executor", ["simulated", "inprocess", pytest.param("ray", marks=pytest.mark.ray)])
def test_beyond_a_recorded_curve_is_an_error_that_ends_the_study(folder, executor, request) -> None:
    if executor == "ray":
        request.getfixturevalue("ray_cluster")
    then = run_study(["method=hyperband", "task=branin", "task.max_resource=9", "executor=simulated"], folder / "then")
    overrides = ["task=recorded", f"task.args.path={then.path}", "space=branin", "task.max_resource=9", "method=random"]
    with pytest.raises(StudyError, match=r"trials\.jsonl: trial \d+ wants more than .* of line \d+ ends at [13]\."):
        run_study([*overrides, f"executor={executor}"], folder / "now")


def test_an_unknown_configuration_is_an_error_with_exact(recorded, folder) -> None:
    with pytest.raises(StudyError, match=r"none of its 20 curves is of trial 0's .* use task.args.match=nea"):
        run_study([*replay(recorded), "task.args.match=exact", "seed=7", "executor=simulated"], folder / "now")


def test_a_trial_that_failed_fails_again(folder: Path) -> None:
    path = folder / "trials.jsonl"
    path.write_text(
        line({"x": 1.0}, history=[[1, 3.0]], state="failed", error="out of memory")
        + line({"x": 3.0}, history=[[1, None]])
        + line({"x": 2.0})
    )
    overrides = ["task=recorded", f"task.args.path={path}", "space=parabola", "task.max_resource=2", "method=random"]
    more = ["searcher.initial=[{x: 1.0},{x: 3.0}]", "budget.trials=2", "executor=simulated", "budget.target=-1"]
    with pytest.raises(StudyError, match="all 2 trials failed"):
        run_study([*overrides, *more], folder / "now")
    trials = [json.loads(text) for text in next((folder / "now").glob("*/trials.jsonl")).read_text().splitlines()]
    assert "failed in the recording" in trials[0]["error"] and "out of memory" in trials[0]["error"]
    assert trials[1]["error"] == "loss is nan at 1"


# Bad input: each message starts with the file, and names line or row and column.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        (line() + line()[:40], "line 2: torn: the file ends in the middle of it"),
        (line() + "{]\n" + line(), "line 2: no JSON: Expecting property name enclosed in double quotes at character 2"),
        (line() + "\n" + line(), "line 2: no JSON: Expecting value at character 1"),
        (line() + "[1, 2]\n", "line 2, column config: missing"),
        (line() + json.dumps({"config": {}}) + "\n", "line 2, column history: missing"),
        (line().replace('"seconds"', '"sec"'), "line 1, column seconds: missing"),
        (line(history=[[1]]), "line 1, column history: must be a list of [resource, value]"),
        (line(history="none"), "line 1, column history: must be a list of [resource, value]"),
        (line(seconds=-1.0), "line 1, column seconds: -1.0: must be a finite number >= 0"),
        (line(seconds=None), "line 1, column seconds: None"),
        (line(trained=None), "line 1, column trained: None: must be a whole number >= 0"),
        (line(trained="x"), "line 1, column trained: 'x': must be a whole number >= 0"),
        (
            line().replace('{"lr": 0.1, "units": 10, "opt": "sgd"}', "null"),
            "line 1, column config: None: must be a map",
        ),
        (line(history=[[float("inf"), 1.0]]), "line 1, column history: must be a list of [resource, value]"),
        (line(history=[]), "holds no curves: no trial in it has reported"),
        (line() + line({"lr": 0.1, "opt": "sgd"}), "line 2, column units: missing; its configuration has lr, opt"),
        (line({"lr": 0.1, "units": 10, "opt": "lion"}), "line 1, column opt: 'lion' is not one of"),
        (line({"lr": "fast", "units": 10, "opt": "sgd"}), "line 1, column lr: 'fast' is not a float in"),
    ],
)
def test_a_jsonl_that_can_not_be(folder: Path, text: str, message: str) -> None:
    path = folder / "trials.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        Recording(path, SPACE)
    separator = ", " if message.startswith("line") else ": "
    assert str(caught.value).startswith(f"task.args.path={path}{separator}{message}")
    assert caught.value.key == "task.args.path"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{k: v for k, v in row().items() if k != "seconds"}],
            ", column seconds: missing; it has lr, units, opt, resou",
        ),
        ([{k: v for k, v in row().items() if k != "lr"}], ", column lr: missing"),
        ([row(), row(resource=2, seconds=-2.0)], ", row 1, column seconds: -2.0: must be a finite number >= 0"),
        ([row(), row(resource=2, seconds=math.inf)], ", row 1, column seconds: inf"),
        ([row(resource=0)], ", row 0, column resource: 0: must be a whole number >= 1"),
        ([row(resource=1.5)], ", row 0, column resource: 1.5: must be a whole number >= 1"),
        ([row(value="good")], ", row 0, column value: 'good': must be a number"),
        ([row(), row(lr=0.2), row()], ", row 2, column resource: 1 is there already for this configuration, in row 0"),
        ([{**row(), "units": [1, 2]}], ", row 0, column units: [1, 2]: must be a number or a text"),
        ([row(opt="lion")], ", row 0, column opt: 'lion' is not one of"),
    ],
)
def test_a_table_that_can_not_be(folder: Path, rows: list[dict], message: str) -> None:
    path = table(folder / "t.parquet", rows)
    with pytest.raises(ConfigError) as caught:
        Recording(path, SPACE)
    assert str(caught.value).startswith(f"task.args.path={path}{message}")


def test_whole_resources_may_be_floats_as_pandas_makes_them(folder: Path) -> None:
    recording = Recording(table(folder / "t.PARQUET", [row(resource=1.0), row(resource=2.0)]), SPACE)
    assert recording.curves[0].resources == (1, 2)


def test_a_table_that_is_torn_empty_or_missing(folder: Path) -> None:
    path = table(folder / "t.parquet", [row()])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ConfigError, match=r"t\.parquet: is no complete parquet file: "):
        Recording(path, SPACE)
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"t\.parquet: is empty"):
        Recording(path, SPACE)
    with pytest.raises(ConfigError, match=r"t\.parquet: is empty: it has columns, but no rows"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row()]).slice(0, 0), path)
        Recording(path, SPACE)
    with pytest.raises(ConfigError, match=r"none\.parquet: no such file; give a study's folder"):
        Recording(folder / "none.parquet", SPACE)
    with pytest.raises(ConfigError, match=r"the study has no trials\.jsonl yet"):
        Recording(folder, SPACE)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["task.args.path=null"], "task.args.path is not set: give a study's folder"),
        (["task.args.match=close"], "task.args.match='close': must be nearest or exact"),
        (["task.max_resource=27"], "scheduler.max_resource=27: the longest of the 20 curves in "),
        (["task.metric=accuracy"], "task.metric=accuracy, task.mode=min: "),
        (["task.mode=max"], "task.metric=loss, task.mode=max: "),
    ],
)
def test_a_study_that_can_not_be_is_refused_before_it_starts(recorded, folder, more, message) -> None:
    with pytest.raises(ConfigError) as caught:
        run_study([*replay(recorded), *more, "executor=simulated"], folder / "now")
    assert str(caught.value).startswith(message)
    assert not (folder / "now").exists()
