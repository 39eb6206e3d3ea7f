"""Which checkpoints of a study stay on the disk.

A trial that runs or is paused has at most two, and a third while one is written: Ray Tune removes older ones. This
removes those of trials that have ended, all but what `store.keep_checkpoints` keeps:

- `best` (the default): the last one of the best trial that has ended; with several metrics also those of the Pareto
  front of the trials that have ended.
- `completed`: the last one of each completed trial, too.
- `all`: all that are there when a trial ends.

The best that has *ended*, and not the incumbent: an incumbent that still runs has its own, and may fail yet.

On an object store this removes those of living trials, too, by what the log says: a checkpoint goes when the log that
lies there needs it no more (`Mirror`).
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Protocol

from hpo_ray.events import Event, TrialEnded, TrialRetried
from hpo_ray.executors.saved import LastTwo
from hpo_ray.pareto import front
from hpo_ray.results import StudyState, losses
from hpo_ray.trials import TrialRecord

CHECKPOINT = re.compile(r"checkpoint_\d{6,}")
ASIDE = re.compile(r"\.saving-\d+")


class Checkpoints(Protocol):
    """Where the checkpoints of a study's trials lie, and how they are removed."""

    def has(self, path: str) -> bool:
        """Whether a checkpoint is there; `path` is relative to the study's folder. Asked before a trial runs."""

    def clear(self, number: int, but: Collection[str]) -> None:
        """Removes the checkpoints of a trial, all but those of these names. Asked before a trial runs."""

    def ended(self, number: int, but: Collection[str]) -> None:
        """The same, of a trial that has ended."""

    def replaced(self, path: str) -> None:
        """A checkpoint of a living trial isn't needed any more: a later one is in the log."""


class Disk:
    """Checkpoints in the study's folder. What can't be removed stays: the study goes on without the space.

    Args:
        folder: the study's folder; nothing outside of it is removed, nor what a trainable keeps beside checkpoints.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def has(self, path: str) -> bool:
        """See `Checkpoints`."""
        return (self._folder / path).is_dir()

    def clear(self, number: int, but: Collection[str]) -> None:
        """See `Checkpoints`."""
        self.remove(number, CHECKPOINT, but)

    ended = clear

    def replaced(self, path: str) -> None:
        """Nothing: Ray Tune removes it."""

    def remove(self, number: int, pattern: re.Pattern[str], but: Collection[str] = ()) -> None:
        """Removes the folders of a trial whose names are of a pattern."""
        place = self._folder / "trials" / str(number)
        if place.is_symlink() or place.parent.is_symlink():  # it leads out of the study's folder
            return
        try:
            with os.scandir(place) as entries:
                found = [e.path for e in entries if pattern.fullmatch(e.name) and e.is_dir(follow_symlinks=False)]
        except OSError:  # a study in memory makes no folders
            return
        for path in found:
            if os.path.basename(path) not in but:
                shutil.rmtree(path, ignore_errors=True)


class Keeper:
    """Removes checkpoints as a study goes on. Each event takes it as long as one folder does, however many trials.

    Args:
        folder: the study's folder.
        keep: `best`, `completed` or `all`.
        state: the fold of the study's log. Trials that have ended in it are brought in line at once.
        checkpoints: where they lie; by default in the folder.
        events: the log so far.
    """

    def __init__(
        self,
        folder: Path,
        keep: str,
        state: StudyState,
        checkpoints: Checkpoints | None = None,
        events: Iterable[Event] = (),
    ) -> None:
        self._disk = Disk(folder)
        self._checkpoints: Checkpoints = checkpoints or self._disk
        self._keep = keep
        self._state = state
        self._best: TrialRecord | None = None
        self._front: list[TrialRecord] = []
        self._last = LastTwo()
        for event in events:
            self._last.observe(event)
        for trial in state.trials.values():
            if trial.state not in ("running", "paused"):
                self._ended(trial)

    def observe(self, event: Event) -> None:
        """Takes an event into account that the state knows already, and so does the log: what it removes is settled."""
        for path in self._last.observe(event):
            self._checkpoints.replaced(path)
        if isinstance(event, TrialEnded):
            self._ended(self._state.trials[event.trial_id])
        elif isinstance(event, TrialRetried):  # its process may have died in the middle of a save
            self._disk.remove(self._state.trials[event.trial_id].number, ASIDE)

    def _ended(self, trial: TrialRecord) -> None:
        kept = {record.number: record for record in self._kept()}
        if trial.state != "failed":
            self._best = self._state.better(self._best, trial)
            self._front = self._extended(self._front, trial)
        kept[trial.number] = trial
        keeps = {record.number for record in self._kept()}
        for number, record in kept.items():
            if self._keep == "all":
                continue
            if number not in keeps and not (record.state == "completed" and self._keep == "completed"):
                self._checkpoints.ended(number, but=())
            elif record is trial:
                self._checkpoints.ended(number, but=(os.path.basename(trial.checkpoint or ""),))
        self._disk.remove(trial.number, ASIDE)

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
