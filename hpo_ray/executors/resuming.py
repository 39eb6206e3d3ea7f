"""Brings a study back to where its log ends: scheduler and searcher by feeding them the log, trials by what it says.

Never from a snapshot of Ray's. A trial that was paused, with a checkpoint of where it was, is paused again. One that
was training goes on from its last checkpoint; what it then reports again, up to where it was, decides nothing (see
`SchedulerFold`). Of one about which all was decided, only the end is left to record.

A simulated study runs again from its start instead (`RepeatedLog`): its checkpoints are gone with its process, and its
time costs nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.tune.result import TRAINING_ITERATION

from hpo_ray.errors import ConfigError, StudyError
from hpo_ray.events import (
    CheckpointSaved,
    Decided,
    Event,
    EventLog,
    Reported,
    StudyEnded,
    StudyResumed,
    StudyStarted,
    TrialRetried,
    to_line,
)
from hpo_ray.executors.internals import Controller, restore_trial
from hpo_ray.executors.keeper import ASIDE, Checkpoints, Disk
from hpo_ray.executors.recorder import Recorder
from hpo_ray.executors.saved import LastTwo
from hpo_ray.executors.source import TrialSource
from hpo_ray.results import StudyState
from hpo_ray.schedulers.adapter import CoreScheduler
from hpo_ray.schedulers.core import Action
from hpo_ray.searchers.adapter import SpaceSearcher
from hpo_ray.study import Study

_MOST_DEATHS = 3


@dataclass(frozen=True)
class Saved:
    """A checkpoint on record.

    Attributes:
        path: relative to the study's folder, or absolute.
        resource: where it was made.
        iteration: steps of the trainable by then.
        metrics: what was reported there.
    """

    path: str
    resource: int
    iteration: int
    metrics: Mapping[str, Any]


def check_resumable(study: Study) -> None:
    """Raises `ConfigError` if scheduler or searcher can't be brought back from a log."""
    for key, part, ours in (
        ("scheduler", study.scheduler, CoreScheduler),
        ("searcher", study.searcher, SpaceSearcher),
    ):
        if not isinstance(part, ours):
            raise ConfigError(
                f"{key}: {type(part).__name__} is not one of hpo_ray's: what it has in mind is not in the log, so the "
                f"study can't go on as if nothing had happened; start a new one",
                key=key,
            )


def feed(study: Study, state: StudyState, events: Iterable[Event]) -> None:
    """Lets results, searcher and scheduler hear a log.

    Raises:
        StudyError: the scheduler decides otherwise than the log says.
    """
    scheduler, searcher = study.scheduler, study.searcher
    assert isinstance(scheduler, CoreScheduler) and isinstance(searcher, SpaceSearcher)
    searcher.follows_log = True
    for line, event in enumerate(events, 1):
        state.apply(event)
        searcher.observe(event)
        try:
            scheduler.fold.observe(event)
        except StudyError as error:
            raise StudyError(
                f"line {line} of the log: {error}. It was written with another version, or other settings, of the "
                f"scheduler; go on with those, or start a new study"
            ) from None


def take_up(
    study: Study,
    events: Iterable[Event],
    dying: Sequence[str],
    folder: Path,
    recorder: Recorder,
    source: TrialSource,
    controller: Controller,
    lying: Checkpoints,
) -> None:
    """Hands the trials that have not ended back to the controller, or ends them where only that is left.

    Args:
        study: whose scheduler has heard the log.
        events: the log.
        dying: `cut_off` of the study as the log has it.
        folder: the study's folder.
        recorder: records what ends here.
        source: gets the trials that have to train.
        controller: gets those that are paused.
        lying: where the trials' checkpoints lie.
    """
    assert isinstance(study.scheduler, CoreScheduler)
    fold, state = study.scheduler.fold, recorder.state
    source.number = len(state.trials)
    checkpoints, settled, deaths = saved_checkpoints(events), _settled(events), _deaths(events)
    for record in state.trials.unfinished():
        trial_id, standing = record.trial_id, fold.standing[record.trial_id]
        there = [saved for saved in checkpoints.get(trial_id, []) if lying.has(saved.path)]
        # What a process that died has left of checkpoints that it did not complete or record.
        lying.clear(record.number, but=[Path(saved.path).name for saved in there])
        Disk(folder).remove(record.number, ASIDE)
        saved_there = (bool(there) and there[-1].resource == standing.seen) or not source.can_save
        if not there and checkpoints.get(trial_id):
            gone = f"its checkpoint at {checkpoints[trial_id][-1].resource} is gone"
            if record.lineage or len(record.schedule or ()) > 1:  # weights that it can't train again by itself
                recorder.end_now(trial_id, "failed", f"{gone}, whose weights came from other configurations")
                continue
            recorder.append(
                TrialRetried(trial_id, f"{gone}; starts from the beginning", recorder.clock(), counted=False)
            )
        if standing.broken:
            recorder.end_now(trial_id, "failed", standing.broken)
            continue
        if deaths.get(trial_id, 0) + (trial_id in dying) >= _MOST_DEATHS:
            # In-process what kills its process kills the study, each time that it is taken up.
            reason = f"the study's process has died {_MOST_DEATHS} times in a row while this trial trained"
            recorder.end_now(trial_id, "failed", reason)
            continue
        full = standing.seen >= study.draft.max_resource
        if saved_there and (full or standing.decision.action is Action.STOP):
            reason = fold.reasons.get(trial_id) or f"reached max_resource {study.draft.max_resource}"
            recorder.end_now(trial_id, "completed" if full else "stopped", reason)
            continue
        # A function may have been paused without a checkpoint of where it is, and then there is none to miss.
        unsaved = not isinstance(study.trainable, type) and record.checkpoint_resource != standing.seen
        as_it_was = saved_there or (unsaved and trial_id in settled) or trial_id in fold.losers
        paused = standing.decision.action is Action.PAUSE and as_it_was
        trial = source.make(trial_id, record.number, record.config)
        known = [(saved.path, _result(saved, study.time_attr)) for saved in there]
        restore_trial(trial, known, paused, record.retries)
        if paused:
            controller.add_trial(trial)
        else:
            source.again.append(trial)


def cut_off(state: StudyState) -> list[str]:
    """The trial that was in training when the study's process died; none if it ended in order.

    None either if there were several: it can't be told which of them was at fault.
    """
    running = [record.trial_id for record in state.trials.unfinished() if record.state == "running"]
    return running if state.ended is None and len(running) == 1 else []


def _deaths(events: Iterable[Event]) -> dict[str, int]:
    """How often in a row the study's process has died while a trial trained, without a report of it in between."""
    deaths: dict[str, int] = {}
    for event in events:
        if isinstance(event, StudyResumed):
            for trial_id in event.cut_off:
                deaths[trial_id] = deaths.get(trial_id, 0) + 1
        elif isinstance(event, Reported):
            deaths.pop(event.trial_id, None)
    return deaths


def saved_checkpoints(events: Iterable[Event]) -> dict[str, list[Saved]]:
    """The last two checkpoints of each trial, of the weights that it has: none from before it copied another."""
    metrics: dict[tuple[str, int], Mapping[str, Any]] = {}
    saved: dict[tuple[str, str], Saved] = {}
    last = LastTwo()
    for event in events:
        if isinstance(event, Reported):
            metrics[event.trial_id, event.resource] = event.metrics
        elif isinstance(event, CheckpointSaved) and event.path is not None:
            there = metrics.get((event.trial_id, event.resource), {})
            entry = Saved(event.path, event.resource, event.iteration or event.resource, there)
            saved[event.trial_id, event.path] = entry
        elif isinstance(event, Decided) and event.checkpoint is not None:
            resource = int(event.resource or 0)
            entry = Saved(event.checkpoint, resource, event.iteration or resource, event.metrics or {})
            saved[event.trial_id, event.checkpoint] = entry
            metrics[event.trial_id, resource] = entry.metrics
        last.observe(event)
    return {trial_id: [saved[trial_id, path] for path in paths] for trial_id, paths in last.paths.items()}


def _settled(events: Iterable[Event]) -> set[str]:
    """Who was paused, and had been saved by then if it reports a checkpoint: something else has happened since.

    A function may pause without a checkpoint of where it is. That can't be told from one that died before it was saved
    but by this; if several workers were at it the other way round, the trial goes on from an earlier checkpoint.
    """
    pausing: set[str] = set()
    settled: set[str] = set()
    for event in events:
        trial_id = getattr(event, "trial_id", None)
        if pausing - {trial_id}:
            settled |= pausing - {trial_id}
            pausing &= {trial_id}
        if isinstance(event, Reported):
            settled.discard(trial_id or "")
        elif isinstance(event, Decided) and event.action == "pause":
            pausing.add(event.trial_id)
    return settled


def _result(saved: Saved, time_attr: str) -> dict[str, Any]:
    """What Ray had beside a checkpoint."""
    return {**saved.metrics, TRAINING_ITERATION: saved.iteration, time_attr: saved.resource}


class RepeatedLog:
    """The log of a study that runs again from its start, on a virtual clock: what is in the log has to come again.

    Args:
        log: the log.
        events: what it holds.
        resumed: what is appended before the first event that is new.
        names: the metrics that count; others may be anything, the seconds of a step for example.
    """

    def __init__(self, log: EventLog, events: Iterable[Event], resumed: StudyResumed, names: Iterable[str]) -> None:
        self._log = log
        self._expected = deque(e for e in events if not isinstance(e, StudyEnded | StudyResumed))
        self._resumed: StudyResumed | None = resumed
        self._names = tuple(names)

    @property
    def behind(self) -> bool:
        """Whether something of the log has not come again yet."""
        return bool(self._expected)

    def append(self, event: Event) -> None:
        """Compares an event with the log's, or appends it. An end before all has come again is none.

        Raises:
            StudyError: the log says otherwise.
        """
        if self._expected:
            if isinstance(event, StudyEnded):
                return
            expected = self._expected.popleft()
            if self._of(event) != self._of(expected):
                raise StudyError(
                    f"run again, this study does otherwise than its log: it was {expected}, and is {event}. Its "
                    f"trainable doesn't give the same values again, or its settings are others; the log is as it was"
                )
            return
        if self._resumed is not None:
            self._log.append(StudyResumed(**{**vars(self._resumed), "time": getattr(event, "time", 0.0)}))
            self._resumed = None
        self._log.append(event)

    def _of(self, event: Event) -> str:
        if isinstance(event, StudyStarted):
            return event.kind
        if isinstance(event, Reported):
            used = {name: value for name, value in event.metrics.items() if name in self._names}
            event = Reported(**{**vars(event), "metrics": used})
        return to_line(event)


def goes_on_at(events: list[Event]) -> float:
    """The time of the last event: that at which the study stood still doesn't count."""
    return 0.0 if isinstance(events[-1], StudyStarted) else events[-1].time
