"""One study's log, brought into an open storage: all of it the first time, then what is new."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from optuna.exceptions import DuplicatedStudyError
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial

from hpo_ray.events import FILE_NAME, LogError, StudyEnded, StudyStarted, TrialAdded, TrialEnded, from_line
from hpo_ray.results import StudyState
from hpo_ray.space import Space
from hpo_ray.store import contents
from hpo_ray.store.storage import OpenStore, alone, quiet
from hpo_ray.trials import TrialRecord

LOG_BYTES = "log_bytes"
"""The attribute of a study that says how much of its log the storage has, once it has all of it."""
METRIC_NAMES = "study:metric_names"
"""Where Optuna keeps what `Study.set_metric_names` is given."""
_CHUNK = 1 << 18


class Busy(Exception):
    """Another process is writing this study into its store."""


class Differs(Exception):
    """The storage has something else of a study than its log says; it can't be changed, since its trials have ended."""


class StudyCopy:
    """Copies the log of a study.

    It can be taken up at any time by another copy, in another process: what is there is compared with the log, and
    what lacks is added. Trials are added in the order of their numbers, each with its state last.

    Args:
        folder: the study's folder.
        store: where to.
        space: the study's; None if it is not known, and then all of a configuration becomes a user attribute.

    Raises:
        Busy: another one is at work on this study.
    """

    def __init__(self, folder: Path, store: OpenStore, space: Space | None) -> None:
        self._log, self._store, self._space = folder / FILE_NAME, store, space
        self._distributions = {} if space is None else contents.distributions(space)
        self._open = ExitStack()
        if not self._open.enter_context(alone(folder)):
            self.close()
            raise Busy(f"{folder} is being written by another process")
        self.state: StudyState = _TrialsOnly()
        self.identity = ""
        self.read_bytes = 0
        """Of the log: up to the end of a line."""
        self._line = 0
        self._study_id = -1
        self._attrs: dict[str, Any] = {}
        """The study's user attributes in the storage."""
        self._trial_ids = array("q")
        self._ended: dict[int, FrozenTrial] = {}
        """Trials that the storage had as ended before, until they are compared."""
        self._unfinished: dict[int, FrozenTrial] = {}
        """What the storage has of trials that it can still change."""
        self._dirty: dict[int, TrialRecord] = {}
        self._added: dict[int, tuple[float, Mapping[str, Any]]] = {}
        """Of trials that haven't ended: when they were added, and with which configuration."""
        self._over: dict[int, tuple[float, Mapping[str, Any], float]] = {}
        """The same, and when they ended, of trials that are dirty."""

    def close(self) -> None:
        """Lets others work on this study."""
        self._open.close()

    def catch_up(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Copies what the log has to say by now; False if it was stopped before the end."""
        with quiet():
            self._store.check()
            while self._read():
                with self._store.batch():
                    self._write()
                self._store.slim()
                if stop():
                    return False
            if self._study_id >= 0 and len(self._trial_ids) > len(self.state.trials):
                raise Differs(f"{self._log}: has fewer trials than the store")
            return True

    def finish(self) -> None:
        """Notes that all is there."""
        if self._study_id >= 0:
            with quiet(), self._store.batch():
                self._set_attrs({LOG_BYTES: self.read_bytes})

    def _read(self) -> bool:
        """Takes up the next part of the log; whether there was any."""
        with self._log.open("rb") as file:
            file.seek(self.read_bytes)
            data = file.read(_CHUNK)
            while data and b"\n" not in data and (more := file.read(_CHUNK)):
                data += more
        lines = data[: data.rfind(b"\n") + 1].splitlines(keepends=True)
        for line in lines:
            if not self.identity:
                self.identity = identity(line)
            self._line += 1
            self.read_bytes += len(line)
            self._take(line)
        return bool(lines)

    def _take(self, line: bytes) -> None:
        try:
            event = from_line(line.decode("utf-8"))
        except ValueError as error:
            raise LogError(f"{self._log}, line {self._line}: not an event of a study: {error}") from None
        if (self._line == 1) != isinstance(event, StudyStarted):
            raise LogError(f"{self._log}, line {self._line}: only the first line starts a study")
        if isinstance(event, StudyStarted | StudyEnded) or not hasattr(event, "trial_id"):
            self.state.apply(event)
            return
        if isinstance(event, TrialAdded):
            self.state.apply(event)
            record = self.state.trials.live(event.trial_id)
            self._added[record.number] = event.time, event.config
        else:
            record = self.state.trials.live(event.trial_id)  # before it is stored away, as one that has ended is
            self.state.apply(event)
        if isinstance(event, TrialEnded) and record.number in self._added:
            self._over[record.number] = *self._added.pop(record.number), event.time
        if record.number in self._added or record.number in self._over:  # not what comes after its end
            self._dirty[record.number] = record

    def _write(self) -> None:
        started = self.state.started
        assert started is not None
        if self._study_id < 0:
            self._find(started)
        for number in sorted(self._dirty):
            record = self._dirty[number]
            added, config, *ended = self._over[number] if number in self._over else self._added[number]
            times = added, ended[0] if ended else None
            self._write_trial(contents.trial(record, config, started, times, self._space, self._distributions))
        self._dirty.clear()
        self._over.clear()
        self._set_attrs(contents.study_attrs(started, self.state.ended, self.identity))

    def _find(self, started: StudyStarted) -> None:
        """The study in the storage: its own, under its name or, where another one has that, with its identity."""
        storage, modes = self._store.storage, contents.metrics(started)
        directions = [StudyDirection.MAXIMIZE if mode == "max" else StudyDirection.MINIMIZE for mode in modes.values()]
        known = {study.study_name: study for study in storage.get_all_studies()}
        names = started.study, f"{started.study}-{self.identity}"
        for name in names:
            if name not in known:
                try:
                    self._found(storage.create_new_study(directions, name), {})
                except DuplicatedStudyError:  # another process was quicker
                    continue
            elif known[name].user_attrs.get(contents.IDENTITY) == self.identity:
                self._found(known[name]._study_id, known[name].user_attrs)
            elif not known[name].user_attrs and known[name].directions == directions and self._is_blank(known[name]):
                self._found(known[name]._study_id, {})
            else:
                continue
            self._set_attrs({contents.IDENTITY: self.identity})  # first of all: whose it is
            if known.get(name) is None or METRIC_NAMES not in known[name].system_attrs:
                storage.set_study_system_attr(self._study_id, METRIC_NAMES, list(modes))
            return
        raise DuplicatedStudyError(f"{' and '.join(names)} are names of other studies")

    def _is_blank(self, study: FrozenStudy) -> bool:
        """Whether a writer died when it had only just made the study.

        In a database it may be another one's that is being made at this moment; in a journal, whose lock is held, not.
        """
        return self._store.journal is not None and not self._store.storage.get_all_trials(study._study_id)

    def _found(self, study_id: int, attrs: Mapping[str, Any]) -> None:
        self._study_id, self._attrs = study_id, dict(attrs)
        for number, trial in enumerate(self._store.storage.get_all_trials(study_id, deepcopy=False)):
            self._trial_ids.append(trial._trial_id)  # asked for only where the trial can still be changed
            if not trial.state.is_finished():
                self._unfinished[number] = trial
            elif trial.number == number:  # not one that the store has forgotten
                self._ended[number] = trial

    def _set_attrs(self, attrs: Mapping[str, Any]) -> None:
        for name, value in attrs.items():
            if name not in self._attrs or self._attrs[name] != value:
                self._store.storage.set_study_user_attr(self._study_id, name, value)
                self._attrs[name] = value

    def _write_trial(self, trial: FrozenTrial) -> None:
        number, storage = trial.number, self._store.storage
        if number >= len(self._trial_ids):
            self._trial_ids.append(storage.create_new_trial(self._study_id, trial))
            if not trial.state.is_finished():
                self._unfinished[number] = trial
            return
        if number in self._unfinished:
            self._update(self._trial_ids[number], self._unfinished[number], trial)
            self._unfinished[number] = trial
            if trial.state.is_finished():
                del self._unfinished[number]
        elif trial.state.is_finished() and not _same(self._ended.pop(number, trial), trial):
            raise Differs(f"{self._log}: trial {number} is another one in the store")

    def _update(self, trial_id: int, had: FrozenTrial, trial: FrozenTrial) -> None:
        storage = self._store.storage
        if had.user_attrs.get(contents.TRIAL_ID) != trial.user_attrs[contents.TRIAL_ID] or had.params != trial.params:
            raise Differs(f"{self._log}: trial {trial.number} is another one in the store")
        for step, value in trial.intermediate_values.items():
            if step not in had.intermediate_values or not _equal(had.intermediate_values[step], value):
                storage.set_trial_intermediate_value(trial_id, step, value)
        for name, value in trial.user_attrs.items():
            if name not in had.user_attrs or had.user_attrs[name] != value:
                storage.set_trial_user_attr(trial_id, name, value)
        for name, value in trial.system_attrs.items():
            if had.system_attrs.get(name) != value:
                storage.set_trial_system_attr(trial_id, name, value)
        if trial.state.is_finished():
            storage.set_trial_state_values(trial_id, trial.state, trial.values)


class _TrialsOnly(StudyState):
    """The fold of a log without the search for the best, which may go through all trials and is not asked for here."""

    def _better(self, best: TrialRecord | None, trial: TrialRecord) -> TrialRecord | None:
        return None

    def _find_best(self) -> TrialRecord | None:
        return None

    def _note_incumbent(self, time: float) -> None:
        pass


def identity(first_line: bytes) -> str:
    """What tells a study from others of its name, by the first line of its log."""
    return hashlib.sha256(first_line).hexdigest()[:8]


def _same(a: FrozenTrial, b: FrozenTrial) -> bool:
    """Whether two trials that have ended are the same, but for dates and what may be added to them by hand."""
    curves = a.intermediate_values, b.intermediate_values
    return (
        a.user_attrs.get(contents.TRIAL_ID) == b.user_attrs.get(contents.TRIAL_ID)
        and (a.state, a.params, a.values) == (b.state, b.params, b.values)
        and curves[0].keys() == curves[1].keys()
        and all(_equal(value, curves[1][step]) for step, value in curves[0].items())
    )


def _equal(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))
