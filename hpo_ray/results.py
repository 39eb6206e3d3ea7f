"""What a study found: projections of its log, and the files that they are written to.

`StudyState` folds events one at a time, so the live view during a run, the files after it and a study that is loaded
later all say the same.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpo_ray.errors import ConfigError
from hpo_ray.events import (
    FILE_NAME,
    CheckpointSaved,
    Decided,
    Event,
    Reported,
    StudyEnded,
    StudyResumed,
    StudyStarted,
    TrialAdded,
    TrialEnded,
    TrialRetried,
    read,
)
from hpo_ray.pareto import front, hypervolume, violations
from hpo_ray.trials import COLUMNS, TrialRecord, Trials, column_order, to_row

if TYPE_CHECKING:
    from pandas import DataFrame

    from hpo_ray.report.plots import Plots

SCHEMA_VERSION = 1
RESULT_FILE = "result.json"
TRIALS_FILE = "trials.jsonl"
REPORT_FILE = "report.html"
BEST_FOLDER = "best"


@dataclass(frozen=True)
class Incumbent:
    """The best trial from a moment on.

    Attributes:
        time: seconds since the study started, on its clock.
        trained: units of resource that the study had spent by then.
        number: the trial.
        resource: where its value was reported.
        value: the metric.
    """

    time: float
    trained: int
    number: int
    resource: int
    value: float

    def to_json(self) -> dict[str, Any]:
        """An entry of result.json."""
        return {
            "seconds": self.time,
            "trained": self.trained,
            "number": self.number,
            "resource": self.resource,
            "value": self.value,
        }


class StudyState:
    """The fold of a log: what is known of a study after some of its events."""

    def __init__(self) -> None:
        self.started: StudyStarted | None = None
        self.ended: StudyEnded | None = None
        self.resumed = 0
        """How often it was taken up."""
        self.trials = Trials()
        self.trained = 0
        self.again = 0
        """How much of it was trained before, and is not of the budget's."""
        self.seconds = 0.0
        self.states: Counter[str] = Counter()
        self.reached: Counter[tuple[int | None, int]] = Counter()
        """How many trials of a bracket have reached which resource, and no higher one."""
        self.best: TrialRecord | None = None
        self.incumbents: list[Incumbent] = []
        """The best trial over time: `best` as it was each time that it changed."""
        self.best_at_full: list[Incumbent] = []
        """The best report at full resource or above over time, which only gets better."""
        self.best_seen: tuple[TrialRecord, int, float] | None = None
        """The best report of all: trial, resource, value."""
        self.config_seen: Mapping[str, Any] = {}
        """The configuration of that trial at that time."""
        self.heard = 0
        """How many trials have reported, or failed before they did."""
        self.first_failure: tuple[int, str] | None = None
        """The number of the trial that failed first, and its error; for good, not to be retried."""
        self.last_failure: tuple[int, str] | None = None

    def apply(self, event: Event) -> None:
        """Takes the next event into account."""
        if isinstance(event, Reported):
            self._reported(self.trials.live(event.trial_id), event)
        elif isinstance(event, TrialAdded):
            record = TrialRecord(event.trial_id, event.number, event.config, tags=dict(event.tags))
            if "exploits" in event.tags:  # a member of a population, whose configuration may change
                record.schedule = [(0, event.config)]
            self.trials.add(record)
            self.states["running"] += 1
            self.reached[event.tags.get("bracket"), 0] += 1
        elif isinstance(event, Decided):
            trial = self.trials.live(event.trial_id)
            trial.tags.update(event.tags)
            if event.action == "pause":
                self._move(trial, "paused")
            elif event.action in ("promote", "exploit", "replay"):
                self._move(trial, "running")
            if event.config is not None:
                self._changed(trial, event)
        elif isinstance(event, CheckpointSaved):
            trial = self.trials.live(event.trial_id)
            trial.checkpoint, trial.checkpoint_resource = event.path, event.resource
        elif isinstance(event, TrialEnded):
            trial = self.trials.live(event.trial_id)
            trial.error = event.error
            if event.state == "failed":
                self.heard += not trial.history
                self.last_failure = trial.number, event.error or event.reason
                self.first_failure = self.first_failure or self.last_failure
            self._move(trial, event.state)
            if trial is self.best and event.state == "failed":
                self.best = self._find_best()
                self._note_incumbent(event.time)
            self.trials.store(event.trial_id)
        elif isinstance(event, TrialRetried):
            trial = self.trials.live(event.trial_id)
            trial.error = event.error
            trial.retries += event.counted
        elif isinstance(event, StudyStarted):
            self.started = event
        elif isinstance(event, StudyEnded):
            self.ended = event
        elif isinstance(event, StudyResumed):
            self.ended = None
            self.resumed += 1

    @property
    def sign(self) -> int:
        """1 when less is better, -1 when more is."""
        return -1 if self.started is not None and self.started.mode == "max" else 1

    def _move(self, trial: TrialRecord, state: str) -> None:
        self.states[trial.state] -= 1
        self.states[state] += 1
        trial.state = state

    def _reported(self, trial: TrialRecord, event: Reported) -> None:
        assert self.started is not None
        value = event.metrics.get(self.started.metric)
        value = float(value) if isinstance(value, int | float) else math.nan
        self.trained += event.trained
        self.again += event.trained if event.again else 0
        self.seconds += event.seconds
        trial.trained += event.trained
        trial.seconds += event.seconds
        self.heard += not trial.history
        trial.history.append((event.resource, value))
        trial.position, trial.copied = event.resource, False
        trial.furthest = max(trial.furthest, event.resource)
        if not math.isfinite(value):
            return
        keeps = None
        if self.started.constraints:
            keeps = max(violations(self.started.constraints, event.metrics)) <= 0.0
        if (event.resource >= self.started.max_resource and keeps is not False) and (
            not self.best_at_full or self.sign * value < self.sign * self.best_at_full[-1].value
        ):
            self.best_at_full.append(Incumbent(event.time, self.trained, trial.number, event.resource, value))
        moved_up = event.resource > trial.resource
        if moved_up:
            bracket = trial.tags.get("bracket")
            self.reached[bracket, trial.resource] -= 1
            self.reached[bracket, event.resource] += 1
        if event.resource >= trial.resource:
            trial.value, trial.resource, trial.metrics = value, event.resource, event.metrics
            trial.feasible = keeps
        better = self.best_seen is None or self.sign * value < self.sign * self.best_seen[2]
        if keeps is not False and better:
            self.best_seen, self.config_seen = (trial, event.resource, value), trial.config
        if trial is not self.best:
            self.best = self.better(self.best, trial)
        elif not moved_up or keeps is False:  # a higher resource alone leaves it the best; otherwise it may be worse
            self.best = self._find_best()
        self._note_incumbent(event.time)

    def _changed(self, trial: TrialRecord, event: Decided) -> None:
        """A trial goes on under another configuration, with its own weights or with another trial's."""
        assert self.started is not None and event.config is not None and event.resource is not None
        source, resource = trial, event.resource
        if event.action == "exploit":
            source = self.trials[self._id(event.tags["parent"])]
            trial.lineage = [*(trial.lineage or []), (resource, source.number)]
        trial.schedule = [*source.schedule_before(resource), (resource, event.config)]
        trial.config = event.config
        if event.checkpoint is not None:
            trial.checkpoint, trial.checkpoint_resource = event.checkpoint, resource
        if event.metrics is None:
            return
        # What it had before is abandoned with its weights: it is where the other one was.
        value = event.metrics.get(self.started.metric)
        bracket = trial.tags.get("bracket")
        self.reached[bracket, trial.resource] -= 1
        self.reached[bracket, resource] += 1
        trial.value = float(value) if isinstance(value, int | float) and math.isfinite(value) else source.value
        trial.resource = trial.position = trial.furthest = resource
        trial.metrics, trial.copied = event.metrics, True
        self.best = self._find_best()
        self._note_incumbent(event.time)

    def _id(self, number: int) -> str:
        return next(trial.trial_id for trial in self.trials.values() if trial.number == number)

    def _note_incumbent(self, time: float) -> None:
        best = self.best
        if best is None or best.value is None:
            return
        last = self.incumbents[-1] if self.incumbents else None
        if last is None or (last.number, last.resource, last.value) != (best.number, best.resource, best.value):
            self.incumbents.append(Incumbent(time, self.trained, best.number, best.resource, best.value))

    def _find_best(self) -> TrialRecord | None:
        best = None
        for trial in self.trials.values():
            best = self.better(best, trial)
        return best

    def better(self, best: TrialRecord | None, trial: TrialRecord) -> TrialRecord | None:
        """The better of two trials: at the higher resource, then by value, then by number.

        Failed ones don't count, nor do those that don't keep the constraints. One that has copied another comes after
        it until it has trained itself.
        """
        if trial.value is None or trial.state == "failed" or trial.feasible is False:
            return best
        if best is None or best.value is None:
            return trial
        key = (-trial.resource, self.sign * trial.value, trial.copied, trial.number)
        return trial if key < (-best.resource, self.sign * best.value, best.copied, best.number) else best


@dataclass(frozen=True)
class StudyResult:
    """A finished or interrupted study.

    Attributes:
        path: its folder.
        state: the fold of its log.
        test_metrics: metrics of the best trial on the test split, where the task has one.
        test_error: why they could not be computed.
        store_note: what the store lacks of it, and what to do; None if it has all.
        report_note: why its report could not be written.
        tracker_note: what its tracker lacks of it, and what to do; None if it has all.
    """

    path: Path
    state: StudyState
    test_metrics: Mapping[str, float] | None = None
    test_error: str | None = None
    store_note: str | None = None
    report_note: str | None = None
    tracker_note: str | None = None

    @property
    def best(self) -> TrialRecord | None:
        """The best value among the trials at the highest resource that any reached."""
        return self.state.best

    @property
    def records(self) -> list[TrialRecord]:
        """All trials by number."""
        return list(self.state.trials.values())

    @property
    def trials(self) -> DataFrame:
        """All trials as a table, a row a trial, by number.

        Columns: `number`, `trial_id`, `state`, `value` (of the metric, at `resource`), `resource`, `trained` (units),
        `seconds`, what the method says of it (`bracket`, `rung`, `generation`, …), `config.NAME` for each
        hyperparameter, `metrics.NAME` for all that it reported at `resource`, and `error`. What a trial lacks is NaN or
        None.
        """
        import pandas

        rows = [to_row(trial) for trial in self.records]
        columns = list(dict.fromkeys(name for row in (dict.fromkeys(COLUMNS), *rows) for name in row))
        return pandas.DataFrame(rows, columns=sorted(columns, key=column_order))

    @property
    def plot(self) -> Plots:
        """Its figures: `result.plot.incumbent()`, `.learning_curves()`, `.importance()`, and what else a report has."""
        from hpo_ray.report.plots import Plots

        return Plots(self)

    def _repr_html_(self) -> str:
        from hpo_ray.report.summary import as_html

        return as_html(self)

    def pareto_front(self) -> list[TrialRecord]:
        """Of several metrics the trials that no other is better than in all; best first in the first metric.

        Only those that keep the constraints, at the highest resource that any trial has reached.
        """
        started = self.state.started
        assert started is not None
        candidates = [
            trial
            for trial in self.records
            if trial.value is not None and trial.state != "failed" and trial.feasible is not False
        ]
        full = max((trial.resource for trial in candidates), default=0)
        candidates = [trial for trial in candidates if trial.resource == full and self._losses(trial) is not None]
        points = [self._losses(trial) or () for trial in candidates]
        return [candidates[i] for i in sorted(front(points), key=lambda i: points[i])]

    def hypervolume(self) -> float | None:
        """The volume that the front dominates within `task.reference`; None where that lacks a metric."""
        return self._hypervolume(self.pareto_front())

    def _hypervolume(self, front: list[TrialRecord]) -> float | None:
        started = self.state.started
        assert started is not None
        if not set(started.metrics) <= set(started.reference):
            return None
        reference = [_loss(mode, started.reference[name]) for name, mode in started.metrics.items()]
        return hypervolume([self._losses(trial) or () for trial in front], reference)

    def _losses(self, trial: TrialRecord) -> tuple[float, ...] | None:
        assert self.state.started is not None
        return losses(self.state.started, trial)

    def _several_json(self) -> dict[str, Any]:
        """What result.json says of several metrics."""
        started = self.state.started
        assert started is not None
        if not started.metrics:
            return {}
        front = self.pareto_front()
        return {
            "metrics": dict(started.metrics),
            "pareto_front": [
                {
                    "trial_id": trial.trial_id,
                    "number": trial.number,
                    "values": {name: trial.metrics[name] for name in started.metrics},
                    "config": trial.config,
                    "resource": trial.resource,
                }
                for trial in front
            ],
            "reference": dict(started.reference),
            "hypervolume": self._hypervolume(front),
        }

    def to_json(self) -> dict[str, Any]:
        """The content of result.json."""
        state, started, ended = self.state, self.state.started, self.state.ended
        assert started is not None
        best_seen = None
        if state.best_seen is not None:
            trial, resource, value = state.best_seen
            best_seen = {
                "trial_id": trial.trial_id,
                "number": trial.number,
                "config": state.config_seen,
                "value": value,
                "resource": resource,
            }
        return {
            "schema_version": SCHEMA_VERSION,
            "study": started.study,
            "method": started.method,
            "task": started.task,
            "state": ended.state if ended else "running",
            "reason": ended.reason if ended else "",
            "seed": started.seed,
            "max_resource": started.max_resource,
            "metric": {"name": started.metric, "mode": started.mode},
            "best": self._best_json(),
            "best_seen": best_seen,
            "incumbents": [incumbent.to_json() for incumbent in state.incumbents],
            "best_at_full_resource": [incumbent.to_json() for incumbent in state.best_at_full],
            "totals": {
                "trials": len(state.trials),
                "completed": state.states["completed"],
                "stopped": state.states["stopped"],
                "failed": state.states["failed"],
                "unfinished": state.states["running"] + state.states["paused"],
                "resource": state.trained,
                "seconds": round(ended.time, 3) if ended else None,
                "training_seconds": round(state.seconds, 3),
            },
            **self._several_json(),
            **({"constraints": dict(started.constraints)} if started.constraints else {}),
            "model": dict(ended.model) if ended and ended.model else None,
            "simulation": dict(ended.simulation) if ended and ended.simulation else None,
            "versions": dict(started.versions),
        }

    def _best_json(self) -> dict[str, Any] | None:
        if self.best is None:
            return None
        return {
            "trial_id": self.best.trial_id,
            "number": self.best.number,
            "config": self.best.config,
            **self.best.moved_json(),
            **({} if self.best.schedule is None else {"schedule": self.best.schedule_json()}),
            "value": self.best.value,
            "resource": self.best.resource,
            "metrics": self.best.metrics,
            "test_metrics": self.test_metrics,
            "test_error": self.test_error,
            "checkpoint": BEST_FOLDER if (self.path / BEST_FOLDER).is_dir() else None,
        }

    def write(self) -> None:
        """Writes result.json and trials.jsonl, each whole or not at all."""
        write_whole(
            self.path / TRIALS_FILE, (json.dumps(trial.to_json()) + "\n" for trial in self.state.trials.values())
        )
        write_whole(self.path / RESULT_FILE, [json.dumps(self.to_json(), indent=2) + "\n"])


def losses(started: StudyStarted, trial: TrialRecord) -> tuple[float, ...] | None:
    """The several metrics of a study as losses of a trial; None if it lacks one, or one is not finite."""
    found = []
    for name, mode in started.metrics.items():
        value = trial.metrics.get(name)
        if not isinstance(value, int | float) or not math.isfinite(value):
            return None
        found.append(_loss(mode, value))
    return tuple(found)


def _loss(mode: str, value: float) -> float:
    return -value if mode == "max" else value


def fold(events: Iterable[Event]) -> StudyState:
    """The state of a study after these events."""
    state = StudyState()
    for event in events:
        state.apply(event)
    return state


def load_study(
    source: Any,
    *,
    metric: str | None = None,
    mode: str | None = None,
    root: str | Path = "outputs",
    name: str | None = None,
    study_name: str | None = None,
    time_attr: str | None = None,
) -> StudyResult:
    """Reads a study back from its folder, or imports one that another program has left.

    What is imported becomes a folder like any other, `root/NAME`: `report`, `list`, the store and a replay
    (`task=recorded`) take it from there. Imported again it is the same folder, brought up to what the source has by
    then. Only text is read of a source, nothing is unpickled.

    >>> import hpo_ray, optuna
    >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
    >>> study = optuna.create_study(study_name="parabola", sampler=optuna.samplers.RandomSampler(seed=0))
    >>> study.optimize(lambda trial: (trial.suggest_float("x", -1, 1) - 0.5) ** 2, n_trials=20)
    >>> result = hpo_ray.load_study(study)
    >>> len(result.trials), result.best.number == study.best_trial.number, result.best.config == study.best_params
    (20, True, True)
    >>> str(result.path)
    'outputs/parabola'
    >>> hpo_ray.load_study("outputs/parabola").best.value == study.best_value
    True

    An experiment of Ray Tune doesn't say what was to be optimised:

        load_study("~/ray_results/train_2026-01-31_12-00-00", metric="loss", mode="min")

    Of a storage with several studies: `load_study("sqlite:///studies.db", study_name="second")`.

    Args:
        source: the study's folder, for example `outputs/digits_mlp-hyperband-1`; or the folder of a Ray Tune
            experiment; or an `optuna.Study`, the URL of a database with Optuna studies, or the path of an Optuna
            journal file.
        metric: of an experiment of Ray Tune the reported value that counts; of an Optuna study what its value is to be
            called.
        mode: of an experiment of Ray Tune `min` or `max`.
        root: the folder that an imported study is written to.
        name: of an imported study; by default what it is called where it comes from.
        study_name: which study of an Optuna storage.
        time_attr: of an experiment of Ray Tune the reported whole number that counts resource; by default
            `training_iteration`.

    Raises:
        LogError: there is no readable log in it, and nothing that could be imported.
        ConfigError: what is to be imported can't be read, is damaged or lacks the metric; or `root/name` is something
            else.
    """
    if isinstance(source, str):
        source = os.path.expanduser(source)
    if not isinstance(source, str | Path) or not os.path.exists(os.path.join(source, FILE_NAME)):
        from hpo_ray.importers import import_study

        source = import_study(
            source, metric=metric, mode=mode, root=root, name=name, study_name=study_name, time_attr=time_attr
        )
    elif given := [
        key for key, value in (("name", name), ("study_name", study_name), ("time_attr", time_attr)) if value
    ]:
        raise ConfigError(f"{given[0]}: {source} is a study of ours, nothing is imported; leave it out", key=given[0])
    path = Path(source)
    state = fold(read(path / FILE_NAME))
    assert state.started is not None
    for key, wanted, known in (("metric", metric, state.started.metric), ("mode", mode, state.started.mode)):
        if wanted not in (None, known):
            raise ConfigError(f"{key}={wanted}: {path} is a study by {known}; leave it out", key=f"task.{key}")
    with suppress(OSError, ValueError, KeyError, TypeError):  # it is derived, but for the test; the log tells the rest
        best = json.loads((path / RESULT_FILE).read_text(encoding="utf-8"))["best"]
        return StudyResult(path, state, *((best["test_metrics"], best["test_error"]) if best else ()))
    return StudyResult(path, state)


def write_whole(path: Path, parts: Iterable[str]) -> None:
    """Writes a file such that it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
