"""Steps that are reported together: where a call ends, what it must not lose, and that a study comes to the same."""

from __future__ import annotations

import errno
import itertools
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from methods import SCHEDULERS, small
from ray import tune
from ray.tune.execution.tune_controller import TuneController

from hpo_ray.errors import StudyError
from hpo_ray.events import FILE_NAME, CheckpointSaved, Event, EventLog, Reported, read
from hpo_ray.executors import InProcessExecutor, binding
from hpo_ray.executors.internals import Controller
from hpo_ray.results import StudyResult
from hpo_ray.testing import check_same_events, check_time_never_goes_back, run_study
from hpo_ray.trainables.checkpoint import read as read_checkpoint
from hpo_ray.trainables.context import TrialContext

FOR_EVER = 1e9


def own(name: str, *more: str) -> list[str]:
    """The overrides that tune a function or class of the user's."""
    return ["task=custom", f"task.trainable=mine.{name}", "space={lr: {low: 0.01, high: 1.0}}", *more]


class Calls(Counter[str]):
    """How often each method of a trainable was called."""

    @property
    def of_training(self) -> int:
        return self["train"] + self["train_buffered"]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Counts the controller's calls of trainables, from here on."""
    counted = Calls()
    schedule = Controller._schedule_trial_task

    def count(self: Controller, trial: Any, method_name: str, *args: Any, **kwargs: Any) -> Any:
        counted[method_name] += 1
        return schedule(self, trial, method_name, *args, **kwargs)

    monkeypatch.setattr(Controller, "_schedule_trial_task", count)
    return counted


def both(
    overrides: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, calls: Calls, seconds: float = FOR_EVER
) -> tuple[StudyResult, StudyResult, int, int]:
    """A study in this process that reports each step, and one that reports together: both, and their calls."""
    one = run_study([*overrides, "executor=inprocess", f"study.root={folder}"], folder / "one")
    single = calls.of_training
    monkeypatch.setattr(InProcessExecutor, "report_every_s", seconds)
    together = run_study([*overrides, "executor=inprocess"], folder / "together")
    return one, together, single, calls.of_training - single


# One call ----------------------------------------------------------------------------------------------------------


class Steps(tune.Trainable):  # type: ignore[misc]  # ray ships no types
    """Reports what the table of its configuration says of each step; what is an exception is raised."""

    def step(self) -> dict[str, Any]:
        """One step."""
        report = self.config["table"].get(self.iteration + 1, {})
        if isinstance(report, BaseException):
            raise report
        return {"loss": 1.0, **report}

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Nothing."""
        return {}


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock of the worker's that goes on by a second each time that it is looked at."""
    clock = itertools.count()
    monkeypatch.setattr(binding, "monotonic", lambda: next(clock))


def bound(table: dict[int, Any], time_attr: str = "training_iteration") -> Any:
    from ray.train._internal.session import TrialInfo

    info = TrialInfo(
        name="0", id="0", resources={}, logdir="", driver_ip=None, driver_node_id=None, experiment_name=None
    )
    info.trial_id = "0"
    info.trial_resources = None
    return binding.bind(Steps, TrialContext(), time_attr=time_attr)({"table": table, binding.TRIAL_INFO: info})


@pytest.mark.parametrize(
    ("table", "seconds", "resource", "steps"),
    [
        ({}, 100, 7, 7),
        ({}, 100, 1, 1),
        ({}, 100, 0, 1),  # at least one
        ({}, 0.0, 9, 1),
        ({}, 3.0, 9, 3),  # its clock shows 1 s after the first step
        ({4: {"done": True}}, 100, 9, 4),
        ({4: {"should_checkpoint": True}}, 100, 9, 4),
        ({4: {"should_checkpoint": False}}, 100, 9, 9),
        ({4: {"loss": math.nan}}, 100, 9, 4),
        ({4: {"val": {"loss": math.inf}}}, 100, 9, 4),
        ({4: {"loss": np.float32(math.nan)}}, 100, 9, 4),
        ({4: {"loss": np.array(-math.inf)}}, 100, 9, 4),
        ({9: {"loss": math.nan}}, 100, 9, 9),  # which is in its configuration all along
        ({4: {"name": "text", "flag": True, "many": [math.nan]}}, 100, 9, 9),
        ({4: {"__duplicate__": True}}, 100, 9, 4),  # without a resource: a function has returned
        ({4: ValueError("went wrong")}, 100, 9, 3),
    ],
)
def test_where_a_call_ends(ticks: None, table: dict[int, Any], seconds: float, resource: int, steps: int) -> None:
    reports = bound(table).train_buffered(seconds, resource)
    assert [report.get("training_iteration", steps) for report, _ in reports] == list(range(1, steps + 1))


def test_how_long_ago_each_step_ended(ticks: None) -> None:
    assert [ago for _, ago in bound({}).train_buffered(100, 4)] == [4, 3, 2, 1]


def test_the_resource_is_what_the_study_calls_so(ticks: None) -> None:
    table = {step: {"info": {"epoch": 10 * step}} for step in range(1, 9)}
    reports = bound(table, "info/epoch").train_buffered(100, 35)
    assert [report["info"]["epoch"] for report, _ in reports] == [10, 20, 30, 40]
    assert len(bound({}, "epoch").train_buffered(100, 9)) == 1, "a report without one is the driver's to refuse"


@pytest.mark.parametrize("call", ["train", "train_buffered", "save"])
@pytest.mark.parametrize("error", [ValueError("went wrong"), SystemExit(3)])
def test_what_is_raised_after_a_report_comes_with_the_next_call_whatever_it_is(error: BaseException, call: str) -> None:
    trial = bound({3: error})
    assert len(trial.train_buffered(100, 9)) == 2
    with pytest.raises(type(error)) as raised:
        trial.train_buffered(100, 9) if call == "train_buffered" else getattr(trial, call)()
    assert str(raised.value) == str(error)


def test_what_the_first_step_raises_is_raised_at_once() -> None:
    with pytest.raises(ValueError, match="went wrong"):
        bound({1: ValueError("went wrong")}).train_buffered(100, 9)


# Whole studies -----------------------------------------------------------------------------------------------------

R = 9


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=pytest.mark.slow) if m == "pb2" else m for m in SCHEDULERS.values()]
)
def test_law_reports_that_come_together_change_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, calls: Calls, method: str
) -> None:
    overrides = [f"method={method}", "task=branin_currin", f"task.max_resource={R}", *small(method)]
    overrides += ["scheduler.interval=4"] if method in ("pbt", "pb2") else []
    one, together, single, fewer = both(overrides, folder, monkeypatch, calls)
    check_same_events(one, together)
    check_time_never_goes_back(together)
    assert fewer < single or method == "median", "the median rule decides at each report"


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *((name, "random") for name in ("short", "not_finite", "train", "raises")),
        ("no_checkpoint", "hyperband"),
        *(pytest.param(name, "hyperband", marks=pytest.mark.slow) for name in ("short", "not_finite", "train")),
    ],
)
def test_law_for_functions(folder: Path, monkeypatch: pytest.MonkeyPatch, calls: Calls, name: str, method: str) -> None:
    more = ["scheduler.on_missing_checkpoint=restart"] if method == "hyperband" else ["budget.trials=8"]
    overrides = [*own(name, f"method={method}", f"task.max_resource={R}", "failure.max_failed_fraction=1"), *more]
    one, together, single, fewer = both(overrides, folder, monkeypatch, calls)
    check_same_events(one, together)
    assert fewer < single if name != "train" else fewer == single, "one that saves each step is asked for each"


def test_nan_raise_and_retry_in_the_middle(folder: Path, monkeypatch: pytest.MonkeyPatch, calls: Calls) -> None:
    faults = "0-4-nan_1-5-raise_2-2-raise_3-1-nan"
    overrides = own("Faulty", f"task.args.faults={faults}", "method=random", "budget.trials=6", "task.max_resource=7")
    overrides += ["store.checkpoint_every=3"]
    one, together, _, _ = both([*overrides, "failure.max_failed_fraction=1"], folder, monkeypatch, calls)
    check_same_events(one, together)
    assert [len(trial.history) for trial in together.records] == [4, 4, 1, 1, 7, 7]
    assert [trial.state for trial in together.records] == [*["failed"] * 4, *["completed"] * 2]
    assert "ValueError: went wrong" in str(together.records[1].error)
    retried = []
    for name in ("a", "b"):  # each goes wrong once
        (folder / name).mkdir()
        monkeypatch.setattr(InProcessExecutor, "report_every_s", FOR_EVER if name == "b" else 0.0)
        path = f"task.args.path={folder / name}"
        more = [path, "failure.max_retries=1", "executor=inprocess", "failure.max_failed_fraction=1"]
        retried.append(run_study([*overrides, *more], folder / f"study-{name}"))
    check_same_events(*retried)
    assert [r for r, _ in retried[1].records[1].history] == [1, 2, 3, 4, 4, 5, 6, 7], "from its checkpoint at 3"


@pytest.mark.parametrize(
    ("more", "single", "fewer"),
    [
        (["method=random", "budget.trials=3"], 27, 3),
        (["method=random", "budget.trials=3", "store.checkpoint_every=4"], 27, 9),  # to 4, 8, 9
        (["method=successive_halving"], 9 + 3 * 2 + 6, 9 + 3 + 1),
        (["method=hyperband"], 69, (9 + 3 + 1) + (5 + 1) + 3),
        (["method=random", "budget.resource=20", "budget.trials=3"], 21, 4),  # 9, 9 and 2; the last is not waited for
        (["method=random", "budget.trials=3", "budget.target=0.0"], 27, 27),  # its end must not come late
        (["method=median", "budget.trials=3", "scheduler.min_resource=5"], 27, 15),
    ],
)
def test_how_many_calls_it_takes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, calls: Calls, more: list[str], single: int, fewer: int
) -> None:
    overrides = own("DictCheckpoint", *more, f"task.max_resource={R}")
    one, together, *counted = both(overrides, folder, monkeypatch, calls)
    check_same_events(one, together)
    assert counted == [single, fewer]


@pytest.mark.parametrize("derived", [False, True])
def test_a_scheduler_of_the_users_hears_of_each_report_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, calls: Calls, derived: bool
) -> None:
    """Ray's, and one of ours whose answer to a report is the user's own: nobody knows when it decides."""
    target = "ray.tune.schedulers.MedianStoppingRule"
    if derived:
        target = "mine_scheduler.Mine"
        (folder / "mine_scheduler.py").write_text(
            "from hpo_ray.schedulers import FIFO\n\n\nclass Mine(FIFO):\n"
            "    def on_trial_result(self, controller, trial, result):\n"
            "        super().on_trial_result(controller, trial, result)\n"
            "        return 'STOP' if result['training_iteration'] == 4 else 'CONTINUE'\n"
        )
        monkeypatch.syspath_prepend(str(folder))
    overrides = own("DictCheckpoint", "method=random", "budget.trials=2", f"task.max_resource={R}")
    monkeypatch.setattr(InProcessExecutor, "report_every_s", FOR_EVER)
    overrides.append(f"scheduler._target_={target}")
    if not derived:
        overrides.append("~scheduler.max_resource")
    result = run_study([*overrides, "executor=inprocess"], folder)
    assert calls["train_buffered"] == 0
    assert [trial.resource for trial in result.records] == [4 if derived else R] * 2


def test_a_checkpoint_that_is_due_by_its_seconds_is_of_the_last_report(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is due at each report; what is saved after several of them is what the trial has come to by then."""
    monkeypatch.setattr(InProcessExecutor, "report_every_s", FOR_EVER)
    overrides = own("DictCheckpoint", "method=random", "budget.trials=1", "task.max_resource=9")
    more = ["store.checkpoint_every_s=0", "store.checkpoint_every=4", "store.keep_checkpoints=all"]
    result = run_study([*overrides, *more, "executor=inprocess"], folder)
    saved = [event for event in read(result.path / FILE_NAME) if isinstance(event, CheckpointSaved)]
    assert [event.resource for event in saved] == [4, 8, 9]
    states = [read_checkpoint(result.path / str(event.path))[1] for event in saved[-2:]]  # two are kept
    assert states == [{"steps": 8}, {"steps": 9}]


def test_after_what_the_log_did_not_take_nothing_more_is_taken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InProcessExecutor, "report_every_s", FOR_EVER)
    append, failed = EventLog.append, []

    def fails_once(self: EventLog, event: Event) -> None:
        if isinstance(event, Reported) and event.resource == 3 and not failed:
            failed.append(event)
            raise OSError(errno.EIO, "Input/output error")
        append(self, event)

    monkeypatch.setattr(EventLog, "append", fails_once)
    overrides = own("DictCheckpoint", "method=random", "budget.trials=1", f"task.max_resource={R}")
    with pytest.raises(StudyError, match="the log can't be written: Input/output error"):
        run_study([*overrides, "executor=inprocess"], folder)
    events = read(next(folder.glob("*/events.jsonl")))
    assert [event.resource for event in events if isinstance(event, Reported)] == [1, 2]


@pytest.mark.parametrize(("tick", "reported"), [(1.0, [997.0, 998.0, 999.0]), (1000.0, [100.0, 100.0, 100.0])])
def test_each_report_has_the_time_at_which_its_step_ended_and_none_goes_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tick: float, reported: list[float]
) -> None:
    """The worker's clock and the study's are faked: the study's shows 100 s until the reports come, then 1000 s."""
    stepped: list[float] = []

    def clock(self: InProcessExecutor, since: float = 0.0) -> Any:
        return lambda: 1000.0 if stepped else 100.0

    def worker() -> float:
        stepped.append(tick * len(stepped))
        return stepped[-1]

    monkeypatch.setattr(InProcessExecutor, "report_every_s", FOR_EVER * 1000)
    monkeypatch.setattr(InProcessExecutor, "clock", clock)
    monkeypatch.setattr(binding, "monotonic", worker)
    overrides = own("DictCheckpoint", "method=random", "budget.trials=1", "task.max_resource=3")
    result = run_study([*overrides, "executor=inprocess"], folder)
    events = read(result.path / FILE_NAME)
    assert [event.time for event in events if isinstance(event, Reported)] == reported
    check_time_never_goes_back(result)


def test_the_deadline_is_a_steps_and_not_a_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that reports together may take so much longer before its trial counts as one that hangs."""
    controller: Any = Controller.__new__(Controller)
    controller._in_process, controller._trial_timeout_s, controller._report_every_s = False, 3.0, 7.0
    controller._calls = {}
    monkeypatch.setattr(TuneController, "_schedule_trial_task", lambda *args, **kwargs: None)
    monkeypatch.setattr("hpo_ray.executors.internals.time.monotonic", lambda: 100.0)
    for trial in ("train", "train_buffered", "save"):
        controller._schedule_trial_task(trial, trial)
    assert controller._calls == {
        "train": ("train", 100.0),
        "train_buffered": ("train_buffered", 107.0),
        "save": ("save", 100.0),
    }


@pytest.mark.ray
@pytest.mark.parametrize("name", ["DictCheckpoint", pytest.param("no_checkpoint", marks=pytest.mark.slow)])
def test_on_ray_it_is_the_same_study_with_fewer_calls(folder: Path, ray_cluster: None, calls: Calls, name: str) -> None:
    overrides = own(name, "method=hyperband", "scheduler.on_missing_checkpoint=restart", f"task.max_resource={R}")
    inprocess = run_study([*overrides, "executor=inprocess"], folder / "a")
    counts = []
    for seconds in (0, 600):
        before = calls.of_training
        more = ["executor=ray", f"executor.report_every_s={seconds}", "executor.num_cpus=4", "budget.concurrency=1"]
        on_ray = run_study([*overrides, *more], folder / str(seconds))
        check_same_events(inprocess, on_ray)
        check_time_never_goes_back(on_ray)
        counts.append(calls.of_training - before)
    # A function without checkpoints starts again: 9 + 3 x 3 + 9, 5 x 3 + 9 and 3 x 9 steps.
    single = 69 if name == "DictCheckpoint" else 27 + 24 + 27
    assert counts == [single, (9 + 3 + 1) + (5 + 1) + 3]
