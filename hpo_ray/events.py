"""The log of a study: `events.jsonl`, append-only, one JSON object a line, flushed as it happens.

It is the truth of a study. Everything else (results, tables, reports, the state of scheduler and searcher) is folded
from it. A process that dies in the middle of a write leaves at most one torn line, the last, which `repair` cuts.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from hpo_ray.errors import StudyError

SCHEMA_VERSION = 1
FILE_NAME = "events.jsonl"


class LogError(StudyError):
    """A log that can't be read: the message names file, line and reason."""


@dataclass(frozen=True)
class StudyStarted:
    """The first line of every log.

    `time` is in seconds since the epoch; in all later events it counts seconds since this one. `metrics`, `reference`
    and `constraints` are those of the task, where it has several metrics or bounds to keep.
    """

    kind: ClassVar[str] = "study_started"
    study: str
    method: str
    task: str
    metric: str
    mode: str
    seed: int
    max_resource: int
    time: float
    versions: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, str] = field(default_factory=dict)
    reference: Mapping[str, float] = field(default_factory=dict)
    constraints: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class TrialAdded:
    """A trial was proposed. `tags`: what its method says of it (bracket, rung, generation, parent)."""

    kind: ClassVar[str] = "trial_added"
    trial_id: str
    number: int
    config: Mapping[str, Any]
    tags: Mapping[str, Any]
    time: float


@dataclass(frozen=True)
class Reported:
    """A trial reported. `trained`: units of resource that this report cost; `seconds`: wall clock of the step."""

    kind: ClassVar[str] = "reported"
    trial_id: str
    resource: int
    trained: int
    metrics: Mapping[str, Any]
    seconds: float
    time: float


@dataclass(frozen=True)
class CheckpointSaved:
    """A checkpoint of a trial is complete. `path` is relative to the study's folder; None if it stays in memory."""

    kind: ClassVar[str] = "checkpoint_saved"
    trial_id: str
    resource: int
    path: str | None
    time: float


@dataclass(frozen=True)
class Decided:
    """The scheduler decided about a trial. `tags` as they are after the decision.

    `action`: `pause`; `promote`, to go on; `exploit`, to go on from a copy of another trial's checkpoint, which
    `tags` name as `parent`; `replay`, to go on from its own. In the last two `config` is the configuration from then
    on, `resource` that of the checkpoint and `metrics`, of an exploit, what the other trial had reported there.
    """

    kind: ClassVar[str] = "decided"
    trial_id: str
    action: str
    reason: str
    tags: Mapping[str, Any]
    time: float
    config: Mapping[str, Any] | None = None
    resource: int | None = None
    metrics: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class TrialRetried:
    """A trial failed and is about to be tried again, from its last checkpoint where it has one."""

    kind: ClassVar[str] = "trial_retried"
    trial_id: str
    error: str
    time: float


@dataclass(frozen=True)
class TrialEnded:
    """A trial is over.

    `state`: `completed` (reached its full resource or ended by itself), `stopped` (the scheduler ended it early) or
    `failed` (raised, died or reported a value that is not finite). A trial without this event was left unfinished
    when the study ended before it.
    """

    kind: ClassVar[str] = "trial_ended"
    trial_id: str
    state: str
    reason: str
    error: str | None
    time: float


@dataclass(frozen=True)
class StudyEnded:
    """The study is over.

    `state`: `finished`, `interrupted` or `failed`. `simulation`: of a simulated cluster its workers, how busy they
    were, and the wall clock that the simulation took. `model`: what the searcher's model says of the best trial.
    """

    kind: ClassVar[str] = "study_ended"
    state: str
    reason: str
    time: float
    simulation: Mapping[str, Any] | None = None
    model: Mapping[str, Any] | None = None


Event = StudyStarted | TrialAdded | Reported | CheckpointSaved | Decided | TrialRetried | TrialEnded | StudyEnded
_KINDS: dict[str, type[Event]] = {
    kind.kind: kind
    for kind in (
        StudyStarted,
        TrialAdded,
        Reported,
        CheckpointSaved,
        Decided,
        TrialRetried,
        TrialEnded,
        StudyEnded,
    )
}
_REQUIRED = {
    kind: {known.name for known in fields(kind) if known.default is MISSING and known.default_factory is MISSING}
    for kind in _KINDS.values()
}
_NAMES = {kind: frozenset(known.name for known in fields(kind)) for kind in _KINDS.values()}
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


_encode = json.JSONEncoder(allow_nan=False).encode


def _strict(value: Any) -> Any:
    """`value` as strict JSON has it: no NaN or infinity, which become their names."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return value


def to_line(event: Event) -> str:
    """An event as one line of JSON, its newline included."""
    values = {"event": event.kind, **vars(event)}
    try:
        return _encode(values) + "\n"
    except (TypeError, ValueError):  # rare: a value that is not finite, or a mapping that is no dict
        return _encode(_strict(values)) + "\n"


def from_line(line: str) -> Event:
    """The event that a line holds.

    Raises:
        ValueError: the line is no JSON object, of no known kind, or lacks a field.
    """
    data = json.loads(line)
    if not isinstance(data, dict):
        raise ValueError("not a JSON object")
    kind = _KINDS.get(data.pop("event", None))
    if kind is None:
        raise ValueError("not an event of a kind that this version knows")
    if missing := _REQUIRED[kind] - data.keys():
        raise ValueError(f"lacks {', '.join(sorted(missing))}")
    if data.get("metrics"):
        data["metrics"] = {
            name: _NOT_FINITE.get(value, value) if isinstance(value, str) else value
            for name, value in data["metrics"].items()
        }
    return kind(**(data if data.keys() <= _NAMES[kind] else {name: data[name] for name in _NAMES[kind] & data.keys()}))


class EventLog:
    """Appends events to a study's log.

    Args:
        path: the file; made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: io.TextIOWrapper | None = path.open("a", encoding="utf-8", newline="\n")

    def append(self, event: Event) -> None:
        """Writes an event and hands it to the operating system before it returns."""
        if self._file is None:
            raise LogError(f"{self.path}: the log is closed")
        self._file.write(to_line(event))
        self._file.flush()

    def close(self) -> None:
        """Syncs the file to the disk and closes it."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None


def repair(path: Path) -> int:
    """Cuts a torn last line, and says how many bytes that were.

    A line is torn if it does not end in a newline. A complete line that can't be read is damage of another kind, which
    `read` reports.
    """
    size = path.stat().st_size
    with path.open("rb+") as file:
        data = file.read()
        keep = data.rfind(b"\n") + 1
        if keep < size:
            file.truncate(keep)
            file.flush()
            os.fsync(file.fileno())
    return size - keep


def read(path: Path) -> list[Event]:
    """All events of a log, a torn last line left out.

    Raises:
        LogError: the file is missing or empty, a line can't be read, or a newer version has written it.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LogError(f"{path}: can't be read: {error.strerror}") from None
    lines = data.split(b"\n")[:-1]
    events: list[Event] = []
    for number, raw in enumerate(lines, 1):
        try:
            line = raw.decode("utf-8")
            if number == 1:
                _check_version(path, line)
            events.append(from_line(line))
        except ValueError as error:
            raise LogError(f"{path}, line {number}: not an event of a study: {error}") from None
        if (number == 1) != isinstance(events[-1], StudyStarted):
            raise LogError(f"{path}, line {number}: only the first line starts a study")
    if not events:
        raise LogError(f"{path}: holds no complete event")
    return events


def _check_version(path: Path, line: str) -> None:
    version = json.loads(line).get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise LogError(
            f"{path}: written by a newer hpo_ray (schema {version}; this one reads up to {SCHEMA_VERSION}); update it"
        )
