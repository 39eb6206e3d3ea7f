"""Studies from Python: the same as from the command line, with objects where that has names."""

from __future__ import annotations

import doctest
import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray import tune

import hpo_ray
from hpo_ray import Space, Task, importing, load_study, resume_study, tune_study
from hpo_ray.__main__ import main
from hpo_ray.config import load
from hpo_ray.errors import ConfigError, StudyError
from hpo_ray.overrides import to_text
from hpo_ray.results import StudyResult

SPACE = {"lr": {"low": 0.1, "high": 1.0}}
QUIET: dict[str, Any] = {"executor": "inprocess", "view": "none"}
PACKAGE = Path(hpo_ray.__file__).parent
WITH_EXAMPLES = sorted(
    ".".join(("hpo_ray", *path.relative_to(PACKAGE).with_suffix("").parts))
    for path in PACKAGE.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


def curves(result: StudyResult) -> list[Any]:
    return [(trial.config, trial.history, trial.state) for trial in result.records]


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_of_docstrings(folder: Path, module: str) -> None:
    found = doctest.testmod(importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.failed == 0 and found.attempted > 0


def test_a_study_is_the_one_of_the_command_line(folder: Path) -> None:
    typed = ["method=hyperband", "task=custom", "task.trainable=mine.train", "space={lr: {low: 0.1, high: 1.0}}"]
    typed += ["task.max_resource=9", "seed=4", "executor=inprocess", "view=none"]
    assert main(typed) == 0
    ways: list[dict[str, Any]] = [
        {"task": "mine.train", "space": SPACE, "max_resource": 9},
        {"task": importlib.import_module("mine").train, "space": Space(SPACE), "scheduler": {"max_resource": 9}},
        {"task": Task("t", "mine.train", "loss", "min", 9, "step", {}), "space": SPACE},
        {"task": "mine.train", "overrides": [typed[3], "task.max_resource=9"]},
        {"task": "mine.train", "space": SPACE, "task.max_resource": 9},
    ]
    line = curves(load_study("outputs/custom-hyperband-1"))
    assert len(line) == 17
    for way in ways:
        assert curves(tune_study(seed=4, **QUIET, **way)) == line, way


def test_choices_come_before_what_changes_in_them(folder: Path) -> None:
    result = tune_study(
        "parabola", method="random", budget={"trials": 3}, **{"scheduler.max_resource": 2}, scheduler="asha", **QUIET
    )
    config = result.path / "config.yaml"
    assert "ASHA" in config.read_text() and result.state.started is not None and result.state.started.max_resource == 2


def test_a_function_from_within_a_function(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(config: dict[str, float]) -> None:
        tune.report({"score": -config["x"]})

    settings: dict[str, Any] = {"metric": "score", "mode": "max", "max_resource": 1, "method": "random"}
    result = tune_study(train, {"x": [1, 2]}, budget={"trials": 2}, **settings, **QUIET)
    assert result.best is not None and result.best.value in (-1, -2)
    more = resume_study(result.path, budget={"trials": 4}, view="none")
    assert len(more.records) == 4
    capsys.readouterr()
    monkeypatch.setattr(importing, "_given", {})  # as in another process
    assert main(["resume", str(result.path), "budget.trials=5"]) == 2
    err = capsys.readouterr().err
    assert "was handed to tune_study in another process" in err and "hpo_ray.resume_study(path, task=train)" in err
    again = resume_study(result.path, train, budget={"trials": 5}, view="none")
    assert len(again.records) == 5


SCRIPT = """
import hpo_ray
from ray import tune

def train(config):
    for step in range(2):
        tune.report({"loss": config["lr"] / (1 + step)})

def tune_it():
    result = hpo_ray.tune_study(train, {"lr": {"low": 0.1, "high": 1.0}}, method="random", max_resource=2,
                                budget={"trials": 3}, executor="inprocess")
    print(result.path, len(result.trials))
"""


def test_a_script_and_its_study_on_the_command_line(folder: Path) -> None:
    (folder / "script.py").write_text(SCRIPT + 'if __name__ == "__main__":\n    tune_it()\n')
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "script.py"], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("random on custom: 3 trials") and lines[-1].endswith("outputs/custom-random-1 3")
    assert lines[-2] == "finished: all trials are done; report outputs/custom-random-1/report.html"
    assert main(["resume", "outputs/custom-random-1", "budget.trials=5"]) == 0
    assert len(load_study("outputs/custom-random-1").records) == 5


def test_a_script_that_tunes_when_it_is_imported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))
    (folder / "unguarded.py").write_text(SCRIPT + "tune_it()\n")
    with pytest.raises(ConfigError, match=r"importing its module runs tune_study; put that call under `if __name__ =="):
        tune_study("unguarded.train", SPACE, **QUIET)
    assert not (folder / "outputs").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, None), (signal.SIGTERM, 143)])
def test_an_interruption_saves_all_and_is_not_swallowed(
    folder: Path, capsys: pytest.CaptureFixture[str], number: int, code: int | None
) -> None:
    def train(config: dict[str, float]) -> None:
        for step in range(9):
            if step == 3:
                os.kill(os.getpid(), number)
            tune.report({"loss": config["lr"]})

    with pytest.raises(KeyboardInterrupt if code is None else SystemExit) as raised:
        tune_study(train, SPACE, method="random", max_resource=9, executor="inprocess", view="plain")
    assert code is None or getattr(raised.value, "code", None) == code
    said = capsys.readouterr().out
    assert "interrupted; to go on: " in said and "resume outputs/custom-random-1" in said
    result = load_study("outputs/custom-random-1")
    assert result.state.ended is not None and result.state.ended.state == "interrupted"
    assert next(len(trial.history) for trial in result.records) >= 3


BAD: list[tuple[dict[str, Any], str]] = [
    ({"task": "digits_mpl"}, r"task=digits_mpl: .*nearest: digits_mlp"),
    ({"task": "nowhere.train", "space": SPACE}, r"task.trainable=nowhere.train: no module 'nowhere'"),
    ({"task": 3}, r"task=3: must be a function or class of Ray Tune, its dotted path"),
    ({"task": lambda: None, "space": SPACE}, r"task.trainable=.*<lambda>: must take one argument"),
    ({"task": "parabola", "method": "hyperbnd"}, r"method=hyperbnd: .*nearest: hyperband"),
    ({"task": "parabola", "shceduler": "asha"}, r"shceduler"),
    ({"task": "parabola", "scheduler": {"etaa": 4}}, r"scheduler.etaa.*nearest: scheduler.eta"),
    ({"task": "parabola", "budget": {"trials": 3}}, r"budget.trials"),
    ({"task": "parabola", "space": {"x": {"low": 2, "high": 1}}}, r"space.x.*low=2"),
    ({"task": "parabola", "space": {"x": object()}}, r"a configuration can't hold a object; give numbers"),
    ({"task": "mine.train"}, r"space is empty"),
    ({"task": "mine.train", "space": {"l<r": [1, 2]}}, r"'l<r': can't be a name in a configuration that is typed; use"),
    ({"task": "parabola", "space": 3}, r"space=3"),
    ({"task": "parabola", "overrides": ["method"]}, r"method"),
    ({"task": "parabola", "config_dir": "nowhere"}, r"--config-dir nowhere: no such folder"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_mistakes_are_told_before_anything_starts(folder: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tune_study(**{"method": "hyperband", **QUIET, **arguments})
    assert not (folder / "outputs").exists()


def test_a_study_that_fails_raises_and_names_its_report(folder: Path) -> None:
    def train(config: dict[str, float]) -> None:
        raise ValueError("no data")

    with pytest.raises(StudyError, match=r"all 2 trials failed.*\n(.*\n)*.*no data") as raised:
        tune_study(train, SPACE, method="random", budget={"trials": 2}, **QUIET)
    assert raised.value.report == (folder / "outputs/custom-random-1/report.html").resolve()


def test_resume_of_what_is_no_study(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere: no such folder"):
        resume_study("nowhere")


def test_a_study_that_has_ended_is_left_as_it_is(folder: Path) -> None:
    result = tune_study("branin", method="random", budget={"trials": 3}, **QUIET)
    before = (result.path / "events.jsonl").read_bytes()
    assert curves(resume_study(result.path)) == curves(result)
    assert (result.path / "events.jsonl").read_bytes() == before


# Values as they are typed.


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        -2.5,
        1e-05,
        1e300,
        float("inf"),
        "plain",
        "with 'both' \"quotes\"",
        'back\\slash and \\" and the end \\',
        "a, b: {c} [d] = ~+ #x",
        "",
        "null",
        "3",
        "äöü\tü",
        [1, "a", None, [2.5]],
        {"low": 1e-4, "high": 0.1, "log": True},
        {"choices": ["a b", "c'd"], "when": {"optimizer": "sgd"}},
        {"learning rate": 1, "opt (v2)": [2], "a:b=c,d": 3, "x/y.z": 4},
    ],
)
def test_what_is_typed_is_what_was_given(value: Any) -> None:
    assert load([f"task.args.it={to_text(value)}"]).task.args.it == value


def test_scalars_of_numpy_and_paths() -> None:
    assert to_text({"a": np.float32(0.5), "b": np.int64(3), "c": (1, 2), "d": np.bool_(True), "e": Path("x/y")}) == (
        '{a: 0.5, b: 3, c: [1, 2], d: true, e: "x/y"}'
    )


# What a person gets.


def test_trials_as_a_table(folder: Path) -> None:
    result = tune_study("mine.train", {**SPACE, "act": ["a", "b"]}, max_resource=9, **QUIET)
    table = result.trials
    assert list(table.columns) == [
        "number", "trial_id", "state", "value", "resource", "trained", "seconds", "bracket", "rung",
        "config.lr", "config.act", "metrics.loss", "error",
    ]  # fmt: skip
    assert table["number"].tolist() == list(range(17))
    lines = [json.loads(line) for line in (result.path / "trials.jsonl").read_text().splitlines()]
    assert table["value"].tolist() == [line["value"] for line in lines]
    assert table["config.lr"].tolist() == [line["config"]["lr"] for line in lines]
    assert table.loc[table["resource"] == 9, "value"].min() == (result.best and result.best.value)


def test_in_a_notebook(folder: Path) -> None:
    def train(config: dict[str, Any]) -> None:
        tune.report({"loss": 1.0})

    hostile = "<script>alert(1)</script>"
    result = tune_study(train, {"x": [hostile]}, method="random", max_resource=1, budget={"trials": 1}, **QUIET)
    page = result._repr_html_()
    assert "<script" not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<td>1 (trial 0, resource 1)</td>" in page and "report.html" in page
