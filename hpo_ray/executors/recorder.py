"""Between Ray's controller and the scheduler: writes the study's log, and keeps the rules that hold for every method.

The rules: each report has the metric; a value that is not finite ends the trial as failed; a trial stops at
`max_resource`, whatever its scheduler; a study ends when its target is reached.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.result import AUTO_RESULT_KEYS, TRAINING_ITERATION
from ray.tune.schedulers import TrialScheduler
from ray.tune.trainable import FunctionTrainable

from hpo_ray.errors import StudyError
from hpo_ray.events import (
    CheckpointSaved,
    Decided,
    Event,
    Moved,
    Reported,
    StudyEnded,
    StudyStarted,
    TrialAdded,
    TrialEnded,
    TrialRetried,
)
from hpo_ray.executors.binding import OUTPUT_FILE, readable
from hpo_ray.executors.deadline import KEY as TIMEOUT_KEY
from hpo_ray.executors.disk import DiskFull, is_full
from hpo_ray.executors.internals import Fallback, MemoryCheckpoint, StudyTrial, last_metrics
from hpo_ray.executors.keeper import Checkpoints, Keeper
from hpo_ray.pareto import violations
from hpo_ray.results import StudyState
from hpo_ray.schedulers.adapter import CoreScheduler
from hpo_ray.schedulers.core import Moves
from hpo_ray.schedulers.population_adapter import Change
from hpo_ray.searchers.adapter import SpaceSearcher
from hpo_ray.study import Study
from hpo_ray.trials import OUTPUT, TrialRecord, split_error

_RAY_ADDS = ("trial_id", "done", "should_checkpoint", "experiment_tag", "_time_total_s")
_SESSION_ADDS = ("_hostname", "_node_ip", "_pid", "_timestamp")
_NOT_METRICS = frozenset((*AUTO_RESULT_KEYS, *_RAY_ADDS, *_SESSION_ADDS))
_ERROR_LINES = 20
_DIED = "the worker died"
_FEWEST_TRIALS = 8
"""Below, a study goes on whatever share of its trials has failed."""


class Recorder(TrialScheduler):  # type: ignore[misc]  # ray ships no types
    """A scheduler that records what the scheduler within it decides.

    Args:
        study: whose scheduler it is.
        log: appends an event to the study's log.
        state: the fold of the same events.
        folder: the study's folder.
        clock: seconds since the study started.
        checkpoints: where trials' checkpoints lie, if not in the folder.
        events: of a study that is taken up, those that the state has heard.
    """

    _supports_buffered_results = False

    def __init__(
        self,
        study: Study,
        log: Callable[[Event], None],
        state: StudyState,
        folder: Path,
        clock: Callable[[], float],
        checkpoints: Checkpoints | None = None,
        events: Sequence[Event] = (),
    ) -> None:
        super().__init__()
        self.scheduler = study.scheduler
        if isinstance(study.scheduler, CoreScheduler):
            study.scheduler.fold.moved = self._moved
        self._searcher = study.searcher if isinstance(study.searcher, SpaceSearcher) else None
        if self._searcher is not None:
            self._searcher.follows_log = True
        self.state = state
        self.clock = clock
        self.time_attr = study.time_attr
        self.error: StudyError | None = None
        """Why the study can't go on. Raised by the loop: Ray would wrap it into an error of its own."""
        self.target_reached = False
        self._log = log
        self._folder = folder
        self._keeper = Keeper(folder, study.draft.keep_checkpoints, state, checkpoints, events)
        self._metric_name = study.draft.task.metric
        self._max_resource = study.draft.max_resource
        self._max_failed_fraction = study.max_failed_fraction
        task = study.draft.task
        self._several, self._constraints = tuple(task.metrics), task.constraints
        self._also = [
            *(("task.metrics", name) for name in task.metrics),
            *(("task.constraints", name) for name in task.constraints),
        ]
        self._target = study.draft.budget.target
        self._most_resource = study.draft.budget.resource
        own = type(study.scheduler).on_trial_result is CoreScheduler.on_trial_result
        self._asks_rarely = isinstance(study.scheduler, CoreScheduler) and own
        store = study.draft.config["store"]
        self._checkpoint_every: int | None = store["checkpoint_every"]
        self._checkpoint_every_s: float | None = store["checkpoint_every_s"]
        self._saved_at: dict[str, tuple[int, float]] = {}
        """(resource, seconds trained) of the last checkpoint of living trials."""
        self._goes_on_from: dict[str, int] = {}
        """The resource of the checkpoint that a trial starts from which was tried again, or taken up."""
        self._again_until: dict[str, int] = {}
        """How far such a trial had come."""
        self._endings: dict[str, tuple[str, str]] = {}
        """(state, reason) of trials that are about to end because of their last report."""
        self.stepped_at: float | None = None
        """When the step ended whose report comes now, on `clock`; None: now."""
        self._logged_at = 0.0

    def append(self, event: Event) -> None:
        """Writes an event to the log and takes it into account; what can't be written ends the study, with `error`.

        What the log has no room for has not happened.
        """
        if isinstance(self.error, DiskFull) and not isinstance(event, StudyEnded):
            return
        try:
            self._log(event)
        except StudyError as error:
            self.error = self.error or error
            return
        except OSError as error:
            self.error = self.error or (
                DiskFull(self._folder)
                if is_full(error)
                else StudyError(f"{self._folder}: the log can't be written: {error.strerror or error}")
            )
            return
        if not isinstance(event, StudyStarted):  # its time is that of the calendar
            self._logged_at = event.time
        self.state.apply(event)
        self._keeper.observe(event)
        if isinstance(event, Reported | TrialEnded):
            self._check_failed()
        if self._searcher is not None:
            self._searcher.observe(event)

    @property
    def metric(self) -> str:
        """The metric's name, which Ray asks for."""
        return self._metric_name

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Records a new trial; one that is added again is a retry."""
        self.scheduler.on_trial_add(tune_controller, trial)
        if trial.trial_id not in self.state.trials:
            number = len(self.state.trials)
            proposed = self._searcher.tags(trial.trial_id) if self._searcher is not None else {}
            tags = {**proposed, **self._tags(trial)}
            self.append(TrialAdded(trial.trial_id, number, trial.config, tags, self.clock()))
        elif trial.status != Trial.PAUSED:
            resource = int((last_metrics(trial) or {}).get(self.time_attr, 0))
            self._goes_on_from[trial.trial_id] = resource
            self._again_until[trial.trial_id] = self.state.trials.live(trial.trial_id).furthest
            self.saved(trial.trial_id, resource)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Records a report and what the scheduler makes of it."""
        try:
            value = self._report(trial, result)
            if value is None or not math.isfinite(value):
                return str(TrialScheduler.STOP)
            decision = self.scheduler.on_trial_result(tune_controller, trial, result)
        except StudyError as error:
            self.error = error
            return str(TrialScheduler.STOP)
        full = self.state.trials[trial.trial_id].resource >= self._max_resource
        if decision == TrialScheduler.CONTINUE and full:
            decision = TrialScheduler.STOP
        if decision == TrialScheduler.STOP:
            reason = self._reason(trial) or (f"reached max_resource {self._max_resource}" if full else "")
            self._endings[trial.trial_id] = ("completed" if full else "stopped", reason)
        elif decision == TrialScheduler.PAUSE:
            self._decided(trial, "pause")
        return str(decision)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Records that a trial ended: by itself, or because of its last report."""
        record = self.state.trials[trial.trial_id]
        ending = self._endings.pop(trial.trial_id, None)
        if ending is None:
            if result and result.get(self.time_attr, 0) > (record.history[-1][0] if record.history else 0):
                self._report(trial, result)
            ending = self._endings.pop(trial.trial_id, ("completed", "ended by itself"))
            if not record.history:
                ending = ("failed", f"ended without reporting {self._metric_name}")
        state, reason = ending
        if state == "failed":
            self.scheduler.on_trial_error(tune_controller, trial)
        else:
            self.scheduler.on_trial_complete(tune_controller, trial, result)
        self._ended(trial, state, reason, reason if state == "failed" else None)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Records a failure. With status ERROR the trial is about to be retried."""
        fallback = trial.take_fallback() if isinstance(trial, StudyTrial) else None
        lost = trial.take_lost() if isinstance(trial, StudyTrial) else None
        text = self._error_text(trial) if fallback is None and lost is None else ""
        if fallback is not None:
            self._went_back(trial, fallback)
        elif lost is not None:
            self.append(TrialRetried(trial.trial_id, lost, self.clock(), counted=False))
        elif trial.status == Trial.ERROR:
            self.append(TrialRetried(trial.trial_id, text, self.clock()))
        else:
            self._endings.pop(trial.trial_id, None)
            self._ended(trial, "failed", _why(text), text)
        self.scheduler.on_trial_error(tune_controller, trial)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """Records that a paused trial lost."""
        reason = self._reason(trial)
        self.scheduler.on_trial_remove(tune_controller, trial)
        self._ended(trial, "stopped", reason, None)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Records which paused trial goes on."""
        trial = self.scheduler.choose_trial_to_run(tune_controller)
        if trial is not None and trial.status == Trial.PAUSED:
            change = self._ask("change", trial)
            if change is None:
                self._decided(trial, "promote")
            else:
                self._changed(trial, change)
        return trial

    def debug_string(self) -> str:
        """What the scheduler says."""
        return str(self.scheduler.debug_string())

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the log is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `save`."""

    def _report(self, trial: Trial, result: Mapping[str, Any]) -> float | None:
        """Records a report; gives the metric, or None if it is not there, which is the end of the study."""
        metrics = metrics_of(result)
        if self.time_attr not in result:
            self.error = StudyError(
                f"scheduler.time_attr={self.time_attr}: trial {int(trial.trial_id)} did not report it; "
                f"it reported {', '.join(sorted(metrics)) or 'nothing'}"
            )
            return None
        value = metrics.get(self._metric_name)
        if not isinstance(value, int | float):
            self.error = StudyError(
                f"task.metric={self._metric_name}: trial {int(trial.trial_id)} did not report it as a number; it "
                f"reported {', '.join(sorted(metrics)) or 'nothing'}. Set task.metric to one of these, or report "
                f"{self._metric_name!r}"
            )
            return None
        for key, name in self._also:
            if not isinstance(metrics.get(name), int | float):
                self.error = StudyError(
                    f"{key}.{name}: trial {int(trial.trial_id)} did not report {name} as a number; it reported "
                    f"{', '.join(sorted(metrics)) or 'nothing'}"
                )
                return None
        record = self.state.trials[trial.trial_id]
        resource = int(result[self.time_attr])
        before = self._goes_on_from.pop(trial.trial_id, record.position)
        self.append(
            Reported(
                trial.trial_id,
                resource,
                _trained(record, before, resource),
                metrics,
                float(result.get("time_this_iter_s", 0.0)),
                # A report of another trial that was read before may be the later one: the log's time doesn't go back.
                self.clock() if self.stepped_at is None else max(self._logged_at, self.stepped_at),
                resource <= self._again_until.get(trial.trial_id, 0),
            )
        )
        wrong = next((name for name in (self._metric_name, *self._several) if not math.isfinite(metrics[name])), None)
        if wrong is not None:
            self._endings[trial.trial_id] = ("failed", f"{wrong} is {metrics[wrong]} at {resource}")
            return math.nan
        sign = self.state.sign
        if self._target is not None and sign * value <= sign * self._target and not self._violated(metrics):
            self.target_reached = True
        return float(value)

    def _violated(self, metrics: Mapping[str, Any]) -> bool:
        return any(beyond > 0.0 for beyond in violations(self._constraints, metrics))

    def _decided(self, trial: Trial, action: str) -> None:
        self.append(Decided(trial.trial_id, action, self._reason(trial), self._tags(trial), self.clock()))

    def goes_to(self, trial: Trial) -> int | None:
        """The resource that a trial may train to before anybody has to hear of it; None for one step.

        Nothing is decided on the way there: no rung, no checkpoint that is due by its units, no end of the study. What
        counts seconds (`budget.time_s`, `store.checkpoint_every_s`) is looked at when the reports have come.
        """
        if self._target is not None or not self._asks_rarely:
            return None
        record = self.state.trials.live(trial.trial_id)
        position = self._goes_on_from.get(trial.trial_id, record.position)
        until = min(self.scheduler.fold.next_decision(trial.trial_id), self._max_resource)
        if self._checkpoint_every is not None and self._worth_saving(trial):
            until = min(until, self._saved_at.get(trial.trial_id, (0, 0.0))[0] + self._checkpoint_every)
        if self._most_resource is not None:
            until = min(until, position + self._most_resource - (self.state.trained - self.state.again))
        return until if until > position + 1 else None

    def checkpoint_is_due(self, trial: Trial) -> bool:
        """Whether a trial that goes on is to be saved now: after so many units, or seconds, since it was last."""
        if not self._worth_saving(trial) or trial.trial_id in self._endings:
            return False
        record = self.state.trials.live(trial.trial_id)
        resource, seconds = self._saved_at.get(trial.trial_id, (0, 0.0))
        units = self._checkpoint_every is not None and record.position - resource >= self._checkpoint_every
        return units or (self._checkpoint_every_s is not None and record.seconds - seconds >= self._checkpoint_every_s)

    def has_unsaved(self, trial: Trial) -> bool:
        """Whether a trial has trained since its last checkpoint, and can be saved."""
        record = self.state.trials.live(trial.trial_id)
        return self._worth_saving(trial) and record.position > 0 and record.position != record.checkpoint_resource

    def _worth_saving(self, trial: Trial) -> bool:
        """Functions save when they like."""
        cls = trial.get_trainable_cls()
        return not issubclass(cls, FunctionTrainable) and bool(getattr(cls, "can_save", False))

    def saved(self, trial_id: str, resource: int) -> None:
        """A trial has just been saved."""
        self._saved_at[trial_id] = resource, self.state.trials.live(trial_id).seconds

    def end_now(self, trial_id: str, state: str, reason: str) -> None:
        """Ends a trial of a study that is taken up: all was decided about it, but its end."""
        loss = None if state == "failed" else self.scheduler.fold.standing[trial_id].loss
        self.scheduler.fold.end(trial_id, loss)
        self.append(TrialEnded(trial_id, state, reason, reason if state == "failed" else None, self.clock()))

    def _moved(self, moves: Moves, source_finished: bool, room: int) -> None:
        """Records what the scheduler was asked, and what came of it."""
        self.append(Moved(list(moves.promote), list(moves.stop), source_finished, room, self.clock()))

    def _changed(self, trial: Trial, change: Change) -> None:
        """Records that a trial goes on from another checkpoint, or under another configuration.

        In one line, the checkpoint too: between two the process may die.
        """
        metrics = None if change.metrics is None else metrics_of(change.metrics)
        copied = change.checkpoint is not None
        self.append(
            Decided(
                trial.trial_id,
                change.action,
                self._reason(trial),
                self._tags(trial),
                self.clock(),
                change.config,
                change.resource,
                metrics,
                checkpoint_name(change.checkpoint, trial) if copied else None,
                iteration_of(trial) if copied else None,
            )
        )

    def _went_back(self, trial: Trial, fallback: Fallback) -> None:
        """Records that the last checkpoint can't be read, and that the one before is the last again."""
        dropped, taken = (checkpoint_name(checkpoint, trial) for checkpoint in (fallback.dropped, fallback.taken))
        text = f"checkpoint {dropped} can't be read: {fallback.why}; goes on from {taken}"
        self.append(TrialRetried(trial.trial_id, text, self.clock(), counted=False))
        resource = int(fallback.metrics.get(self.time_attr, 0))
        self.append(CheckpointSaved(trial.trial_id, resource, taken, self.clock()))

    def _ended(self, trial: Trial, state: str, reason: str, error: str | None) -> None:
        if error is not None:
            output = Path(trial.local_path, OUTPUT_FILE)
            trial.storage.bring_output(output)
            error += f"{OUTPUT}{output.relative_to(self._folder)}" if output.exists() else ""
        self._saved_at.pop(trial.trial_id, None)
        self._again_until.pop(trial.trial_id, None)
        self.append(TrialEnded(trial.trial_id, state, reason, error, self.clock()))

    def _check_failed(self) -> None:
        """Ends a study in which nearly everything fails: what is wrong is then not the configurations."""
        failed, heard, most = self.state.states["failed"], self.state.heard, self._max_failed_fraction
        if heard < _FEWEST_TRIALS or failed / heard <= most or self.error is not None:
            return
        assert self.state.first_failure is not None
        number, text = self.state.first_failure
        text, output = split_error(text)
        text += f"\noutput: {self._folder / output}" if output is not None else ""
        self.error = StudyError(
            f"{failed} of the {heard} trials that have reported or failed so far have failed, more than "
            f"failure.max_failed_fraction={most:g} of them; with failure.max_failed_fraction=1 the study goes on "
            f"whatever fails. The first, trial {number}, failed with:\n{text}"
        )

    def _error_text(self, trial: Trial) -> str:
        """The last lines of what the trial raised: Ray has just written it to the trial's folder."""
        path = trial.error_file
        text = Path(path).read_text(encoding="utf-8", errors="replace") if path and Path(path).exists() else ""
        last = text.rpartition("Failure # ")[2].partition("\n")[2] or text  # Ray appends one failure to another
        return "\n".join(_death(readable(last)).splitlines()[-_ERROR_LINES:]) or "unknown error"

    def _reason(self, trial: Trial) -> str:
        return str(self._ask("reason", trial) or "")

    def _tags(self, trial: Trial) -> Mapping[str, Any]:
        return dict(self._ask("tags", trial) or {})

    def _ask(self, what: str, trial: Trial) -> Any:
        """What a scheduler of ours says of a trial; None if a user's own says nothing."""
        answer = getattr(self.scheduler, what, None)
        return answer(trial.trial_id) if answer else None

    def __getattr__(self, name: str) -> Any:
        """Whatever else a user's scheduler offers to Ray."""
        if name == "scheduler":
            raise AttributeError(name)
        return getattr(self.scheduler, name)


class CheckpointRecorder(Callback):  # type: ignore[misc]  # ray ships no types
    """Records checkpoints when they are complete. The one thing that Ray tells callbacks and not the scheduler."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def on_checkpoint(self, iteration: int, trials: list[Trial], trial: Trial, checkpoint: Any, **info: Any) -> None:
        """A checkpoint is at its final place."""
        last = trial.last_result
        resource = int(last.get(self._recorder.time_attr, 0))
        iteration = int(last.get(TRAINING_ITERATION, resource))
        name = checkpoint_name(checkpoint, trial)
        self._recorder.append(
            CheckpointSaved(
                trial.trial_id, resource, name, self._recorder.clock(), None if iteration == resource else iteration
            )
        )
        self._recorder.saved(trial.trial_id, resource)


def _trained(record: TrialRecord, before: int, resource: int) -> int:
    """Units that a report cost: since the report before, or since the checkpoint that the trial went on from."""
    if resource <= before:  # its scheduler let it start again from an earlier checkpoint, or from the beginning
        before = record.checkpoint_resource if record.checkpoint_resource < resource else 0
    return resource - before


def iteration_of(trial: Trial) -> int | None:
    """How many steps of its trainable a trial's last checkpoint is; None if that is unknown."""
    return (last_metrics(trial) or {}).get(TRAINING_ITERATION)


def _why(text: str) -> str:
    """Why a trial has failed, in a word or two."""
    if text.startswith(_DIED):
        return "its worker died"
    return "took too long" if text.endswith(f"({TIMEOUT_KEY})") else "raised an error"


def _death(text: str) -> str:
    """What Ray says of a worker that died, in one line; any other text as it is."""
    if lost := re.match(r"The actor \w+ is unavailable: (.*)", text, re.DOTALL):
        return f"{_DIED}, or its node can't be reached: {lost[1]}"
    if "due to the node running low on memory" in text:  # and then fifty lines on Ray's object store
        used = re.search(r"was (\S+ used / \S+ limit)", text)
        return f"{_DIED}: Ray killed it because its node ran low on memory{f' ({used[1]})' if used else ''}"
    if not text.startswith("The actor died unexpectedly"):
        return text
    known = dict(re.findall(r"^\t(pid|ip): (.*)$", text, re.MULTILINE))
    reason = text.splitlines()[-1].strip()
    reason = re.sub(r"^The actor is dead because its worker process has died\. .*Worker exit detail: ", "", reason)
    reason = reason.partition(" If the process was killed by the kernel OOM killer")[0]  # how to set up Ray
    where = f" (pid {known.get('pid', 'unknown')} on {known['ip']})" if "ip" in known else ""
    return f"{_DIED}{where}: {reason}"


def checkpoint_name(checkpoint: Any, trial: Trial) -> str | None:
    """A checkpoint's path, relative to the study's folder where it lies in it; None if it is in memory."""
    if isinstance(checkpoint, MemoryCheckpoint):
        return None
    path, folder = Path(checkpoint.path), Path(trial.storage.experiment_fs_path)
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def metrics_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of a report: what is a number, a truth value or a text, and isn't Ray's."""
    return {name: scalar for name, value in result.items() if (scalar := _scalar(name, value)) is not None}


def _scalar(name: str, value: Any) -> bool | int | float | str | None:
    """A reported value if it is a metric of the user's: a number, a truth value or a text; None otherwise."""
    if name in _NOT_METRICS or name.startswith("config/"):
        return None
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # a scalar of numpy's or torch's
        value = value.item()
    return value if isinstance(value, bool | int | float | str) else None
