"""The log of a study, told to a tracker: all of it the first time, then what is new."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpo_ray.errors import StudyError
from hpo_ray.events import FILE_NAME, LogError, Reported, TrialAdded, TrialEnded, from_line
from hpo_ray.results import StudyState
from hpo_ray.trackers.base import CONFIG, Point, Session, Tracked, Tracker, TrialNews
from hpo_ray.trials import TrialRecord, flat

_CHUNK = 1 << 18


class Copy:
    """Tells a tracker what the log of a study says.

    Args:
        folder: the study's folder.
        tracker: who is told.
    """

    def __init__(self, folder: Path, tracker: Tracker) -> None:
        self._folder, self._tracker = folder, tracker
        self._session: Session | None = None
        self._state = StudyState()
        self._identity = ""
        self._read_bytes = 0
        self._added: dict[str, tuple[Mapping[str, Any], float]] = {}
        """Of trials that haven't ended: the configuration that they began with, and when."""
        self._heard: dict[str, int] = {}
        """How many points of such a trial there were."""
        self._points: dict[str, list[Point]] = {}
        """New ones."""
        self._ended: dict[str, float] = {}
        self._dirty: dict[str, TrialRecord] = {}

    def catch_up(self, over: bool = False) -> None:
        """Tells what the log has to say by now.

        Args:
            over: whether nobody writes to the log any more, and the best trial's files are where they belong. The end
                of the study is told only then.

        Raises:
            LogError: the log is damaged.
            Exception: whatever the tracker raises; this copy can't go on then.
        """
        while self._read():
            self._write()
        if over and self._session is not None:
            self._session.finish(self._state)

    def close(self) -> None:
        """Lets the tracker go."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def _read(self) -> bool:
        """Takes up the next part of the log; whether there was any."""
        with (self._folder / FILE_NAME).open("rb") as file:
            file.seek(self._read_bytes)
            data = file.read(_CHUNK)
            while data and b"\n" not in data and (more := file.read(_CHUNK)):
                data += more
        lines = data[: data.rfind(b"\n") + 1].splitlines(keepends=True)
        for line in lines:
            if not self._identity:
                self._identity = hashlib.sha256(line).hexdigest()[:8]
            self._read_bytes += len(line)
            self._take(line)
        return bool(lines)

    def _take(self, line: bytes) -> None:
        try:
            event = from_line(line.decode("utf-8"))
        except ValueError as error:
            raise LogError(f"{self._folder / FILE_NAME}: not an event of a study: {error}") from None
        trial_id = getattr(event, "trial_id", None)
        if trial_id is None:
            self._state.apply(event)
            return
        if isinstance(event, TrialAdded):
            self._state.apply(event)
            self._added[trial_id] = event.config, self._epoch(event.time)
        trial = self._state.trials.live(trial_id)  # before it is stored away, as one that has ended is
        if not isinstance(event, TrialAdded):
            self._state.apply(event)
        if trial_id not in self._added:
            return  # what comes after its end
        if isinstance(event, Reported) and not event.again:
            self._report(trial, event)
        elif isinstance(event, TrialEnded):
            self._ended[trial_id] = self._epoch(event.time)
        self._dirty[trial_id] = trial

    def _report(self, trial: TrialRecord, event: Reported) -> None:
        metrics = _numbers(event.metrics)
        if trial.schedule is not None:
            metrics |= {f"{CONFIG}{name}": value for name, value in _numbers(flat(trial.config)).items()}
        number = self._heard[trial.trial_id] = self._heard.get(trial.trial_id, 0) + 1
        if metrics:
            point = Point(number, event.resource, self._epoch(event.time), metrics)
            self._points.setdefault(trial.trial_id, []).append(point)

    def _epoch(self, time: float) -> float:
        assert self._state.started is not None
        return self._state.started.time + time

    def _write(self) -> None:
        started = self._state.started
        if started is None:
            raise StudyError(f"{self._folder / FILE_NAME}: its first line starts no study")
        if self._session is None:
            self._session = self._tracker.open(Tracked(self._folder, self._identity, started))
        for trial_id, trial in sorted(self._dirty.items(), key=lambda item: item[1].number):
            config, began = self._added[trial_id]
            ended = self._ended.pop(trial_id, None)
            self._session.write(TrialNews(trial, config, began, ended, tuple(self._points.pop(trial_id, ()))))
            if ended is not None:
                del self._added[trial_id]
                self._heard.pop(trial_id, None)
        self._dirty.clear()


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Those of the values that are finite numbers."""
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
