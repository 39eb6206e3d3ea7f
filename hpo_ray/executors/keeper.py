"""Which checkpoints of a study stay on the disk.

A trial that runs or is paused has at most two, and a third while one is written: Ray Tune removes older ones. This
removes those of trials that have ended, all but what `store.keep_checkpoints` keeps:

- `best` (the default): the last one of the best trial that has ended; with several metrics also those of the Pareto
  front of the trials that have ended.
- `completed`: the last one of each completed trial, too.
- `all`: all that are there when a trial ends.

The best that has *ended*, and not the incumbent: an incumbent that still runs has its own, and may fail yet.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from hpo_ray.events import Event, TrialEnded, TrialRetried
from hpo_ray.pareto import front
from hpo_ray.results import StudyState, losses
from hpo_ray.trials import TrialRecord

_CHECKPOINT = re.compile(r"checkpoint_\d{6,}")
_ASIDE = re.compile(r"\.saving-\d+")


class Keeper:
    """Removes checkpoints as a study goes on. Each event takes it as long as one folder does, however many trials.

    Args:
        folder: the study's folder; nothing outside of it is removed, nor what a trainable keeps beside checkpoints.
        keep: `best`, `completed` or `all`.
        state: the fold of the study's log. Trials that have ended in it are brought in line at once.
    """

    def __init__(self, folder: Path, keep: str, state: StudyState) -> None:
        self._trials = folder / "trials"
        self._keep = keep
        self._state = state
        self._best: TrialRecord | None = None
        self._front: list[TrialRecord] = []
        for trial in state.trials.values():
            if trial.state not in ("running", "paused"):
                self._ended(trial)

    def observe(self, event: Event) -> None:
        """Takes an event into account that the state knows already, and so does the log: what it removes is settled."""
        if isinstance(event, TrialEnded):
            self._ended(self._state.trials[event.trial_id])
        elif isinstance(event, TrialRetried):  # its process may have died in the middle of a save
            self._remove(self._state.trials[event.trial_id].number, _ASIDE)

    def _ended(self, trial: TrialRecord) -> None:
        kept = {record.number: record for record in self._kept()}
        if trial.state != "failed":
            self._best = self._state.better(self._best, trial)
            self._front = self._extended(self._front, trial)
        kept[trial.number] = trial
        keeps = {record.number for record in self._kept()}
        for number, record in kept.items():
            if number not in keeps and not (record.state == "completed" and self._keep == "completed"):
                if self._keep != "all":
                    self._remove(number, _CHECKPOINT)
            elif record is trial and self._keep != "all":
                self._remove(number, _CHECKPOINT, but=os.path.basename(trial.checkpoint or ""))
        self._remove(trial.number, _ASIDE)

    def _kept(self) -> list[TrialRecord]:
        """The trials that have ended whose last checkpoint is kept in any case."""
        return [*self._front, *([] if self._best is None else [self._best])]

    def _extended(self, known: list[TrialRecord], trial: TrialRecord) -> list[TrialRecord]:
        """The Pareto front with one trial more: of those at the highest resource, as the result's."""
        started = self._state.started
        if started is None or not started.metrics or trial.value is None or trial.feasible is False:
            return known
        if (known and trial.resource < known[0].resource) or losses(started, trial) is None:
            return known
        known = [record for record in known if record.resource == trial.resource] + [trial]
        return [known[index] for index in front([losses(started, record) or () for record in known])]

    def _remove(self, number: int, pattern: re.Pattern[str], but: str | None = None) -> None:
        """Removes folders of a trial. What can't be removed stays: the study goes on without the space."""
        place = self._trials / str(number)
        if place.is_symlink() or self._trials.is_symlink():  # it leads out of the study's folder
            return
        try:
            with os.scandir(place) as entries:
                found = [e.path for e in entries if pattern.fullmatch(e.name) and e.is_dir(follow_symlinks=False)]
        except OSError:  # a study in memory makes no folders
            return
        for path in found:
            if os.path.basename(path) != but:
                shutil.rmtree(path, ignore_errors=True)
