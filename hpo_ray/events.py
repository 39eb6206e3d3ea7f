"""The log of a study: `events.jsonl`, append-only, one JSON object a line, flushed as it happens.

It is the truth of a study. Everything else (results, tables, reports, the state of scheduler and searcher) is folded
from it. A process that dies in the middle of a write leaves at most one torn line, the last, which `repair` cuts.
Every line ends in a checksum of itself, so that damage of any other kind is found and named, and never taken for a
result.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from hpo_ray.errors import StudyError

SCHEMA_VERSION = 2
FILE_NAME = "events.jsonl"


class LogError(StudyError):
    """A log that can't be read: the message names file, line and reason."""


@dataclass(frozen=True)
class StudyStarted:
    """The first line of every log.

    `time` is in seconds since the epoch; in all later events it counts seconds since this one. `command`: what was
    typed; `workers`: how many trials may run at a time. `metrics`, `reference` and `constraints` are those of the task,
    where it has several metrics or bounds to keep. `source`: of an imported study where it comes from.
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
    command: str | None = None
    workers: int | None = None
    metrics: Mapping[str, str] = field(default_factory=dict)
    reference: Mapping[str, float] = field(default_factory=dict)
    constraints: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    source: str | None = None
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
    """A trial reported.

    `trained`: units of resource that this report cost; `seconds`: wall clock of the step; `again`: whether it had
    reported as much before, and was tried again or taken up from an earlier checkpoint.
    """

    kind: ClassVar[str] = "reported"
    trial_id: str
    resource: int
    trained: int
    metrics: Mapping[str, Any]
    seconds: float
    time: float
    again: bool = False


@dataclass(frozen=True)
class CheckpointSaved:
    """A checkpoint of a trial is complete.

    `path` is relative to the study's folder; None if it stays in memory. `iteration`: how many steps of the trainable
    it is, where that is not `resource`.
    """

    kind: ClassVar[str] = "checkpoint_saved"
    trial_id: str
    resource: int
    path: str | None
    time: float
    iteration: int | None = None


@dataclass(frozen=True)
class Decided:
    """The scheduler decided about a trial. `tags` as they are after the decision.

    `action`: `pause`; `promote`, to go on; `exploit`, to go on from a copy of another trial's checkpoint, which
    `tags` name as `parent`; `replay`, to go on from its own. In the last two `config` is the configuration from then
    on, `resource` that of the checkpoint, `metrics`, of an exploit, what the other trial had reported there, and
    `checkpoint` the trial's own copy of the checkpoint, as in `CheckpointSaved`, of `iteration` steps.
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
    checkpoint: str | None = None
    iteration: int | None = None


@dataclass(frozen=True)
class Moved:
    """The scheduler was asked about the paused trials, and something came of it.

    Each such question is recorded with what it was asked with, so that asking a fresh scheduler the same in the same
    order gives the same scheduler. `promote`: ids of who goes on, each of which is `Decided` when there is room for it;
    `stop`: ids of who ends.
    """

    kind: ClassVar[str] = "moved"
    promote: Sequence[str]
    stop: Sequence[str]
    source_finished: bool
    room: int
    time: float


@dataclass(frozen=True)
class TrialRetried:
    """A trial failed and is about to be tried again, from its last checkpoint where it has one.

    `counted`: whether that is one of the times that `failure.max_retries` allows; not if only a checkpoint was bad.
    """

    kind: ClassVar[str] = "trial_retried"
    trial_id: str
    error: str
    time: float
    counted: bool = True


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


@dataclass(frozen=True)
class StudyResumed:
    """The study goes on, in another process. What comes after a `StudyEnded` is after this.

    `wall` is in seconds since the epoch, `command` what was typed. The time that the study stood still counts nothing:
    `time` goes on where it was. `budget`: what it may spend from here on. `cut_off`: ids of the trials that were in
    training when its process died; none if it ended by itself.
    """

    kind: ClassVar[str] = "study_resumed"
    time: float
    wall: float
    budget: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    cut_off: Sequence[str] = ()
    command: str | None = None


Event = (
    StudyStarted
    | TrialAdded
    | Reported
    | CheckpointSaved
    | Decided
    | Moved
    | TrialRetried
    | TrialEnded
    | StudyEnded
    | StudyResumed
)
_KINDS: dict[str, type[Event]] = {
    kind.kind: kind
    for kind in (
        StudyStarted,
        TrialAdded,
        Reported,
        CheckpointSaved,
        Decided,
        Moved,
        TrialRetried,
        TrialEnded,
        StudyEnded,
        StudyResumed,
    )
}
_REQUIRED = {
    kind: {known.name for known in fields(kind) if known.default is MISSING and known.default_factory is MISSING}
    for kind in _KINDS.values()
}
_NAMES = {kind: frozenset(known.name for known in fields(kind)) for kind in _KINDS.values()}
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


_encode = json.JSONEncoder(allow_nan=False).encode
_CHECKSUM = ', "crc32": "'


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
    """An event as one line of JSON, its newline included. Its last field is the CRC-32 of all before it."""
    values = {"event": event.kind, **vars(event)}
    try:
        text = _encode(values)
    except (TypeError, ValueError):  # rare: a value that is not finite, or a mapping that is no dict
        text = _encode(_strict(values))
    return f'{text[:-1]}{_CHECKSUM}{zlib.crc32(text[:-1].encode()):08x}"}}\n'


def from_line(line: str) -> Event:
    """The event that a line holds.

    Raises:
        ValueError: the line is no JSON object, of no known kind, lacks a field, or is not what was written.
    """
    before, checksum, rest = line.rstrip("\n").rpartition(_CHECKSUM)
    if checksum and rest != f'{zlib.crc32(before.encode()):08x}"}}':
        raise ValueError("damaged: its checksum doesn't fit")
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

    What was appended is handed to the operating system before `append` returns, so a process that dies loses nothing.
    Against power loss the file is synced to the disk in the background, right away and then `SYNC_EVERY_S` apart at
    least: at most the newest result is lost, or those of the last moment if they come faster than that.

    Args:
        path: the file; made if it is not there.

    Raises:
        LogError: another process is writing to it.
    """

    SYNC_EVERY_S = 0.05

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise LogError(f"{path}: can't be written: {error.strerror}") from None
        for attempt in range(1, 6):
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if attempt == 5:
                    os.close(self._file)
                    raise LogError(f"{path.parent}: this study is running, in another process") from None
                time.sleep(0.02)  # somebody may just have looked whether it is, see `is_running`
        if not os.fstat(self._file).st_size:  # its name has to be on the disk, too
            sync_to_disk(path.parent)
        self._dirty, self._closed = threading.Event(), threading.Event()
        self._error: OSError | None = None
        self._syncing = threading.Thread(target=self._sync, name="hpo_ray-log", daemon=True)
        self._syncing.start()

    def append(self, event: Event) -> None:
        """Writes an event and hands it to the operating system before it returns.

        Raises:
            OSError: it can't be written: then nothing of it is.
        """
        if self._file is None:
            raise LogError(f"{self.path}: the log is closed")
        if self._error is not None:
            raise self._error
        self._write(self._file, to_line(event).encode())
        self._dirty.set()

    def close(self) -> None:
        """Syncs the file to the disk and closes it."""
        if self._file is not None:
            self._closed.set()
            self._dirty.set()
            self._syncing.join()
            file, self._file = self._file, None
            os.close(file)

    def _write(self, file: int, data: bytes) -> None:
        rest, size = data, os.fstat(file).st_size
        try:
            while rest:
                rest = rest[os.write(file, rest) :]
        except OSError:  # no space left: not half a line, on which the next one would follow
            os.ftruncate(file, size)
            raise

    def _sync(self) -> None:
        """Syncs whenever something was written, and once more at the end."""
        assert self._file is not None
        closed = False
        while not closed:
            self._dirty.wait()
            self._dirty.clear()
            closed = self._closed.is_set()
            try:
                os.fsync(self._file)
            except OSError as error:  # told by the next append
                self._error = error
            closed = closed or (self._closed.wait(self.SYNC_EVERY_S) and not self._dirty.is_set())


def sync_to_disk(path: str | Path) -> None:
    """Sees to it that a file, or the names in a folder, survive a loss of power."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def is_running(path: Path) -> bool:
    """Whether a process is writing to a log."""
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(file)
    return False


def last_event(path: Path) -> Event | None:
    """The last event of a log that can be read; None if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 2**20))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return None
    for line in reversed(lines):
        with suppress(ValueError):
            return from_line(line.decode("utf-8"))
    return None


def repair(path: Path) -> int:
    """Cuts a torn last line, and says how many bytes that were.

    A line is torn if it does not end in a newline, or if it is the last and can't be read: a machine that lost its
    power may leave anything there. A line before it that can't be read is damage of another kind, which `read` reports.

    Raises:
        LogError: a newer version has written the log.
    """
    with path.open("rb+") as file:
        data = file.read()
        first, newline, _ = data.partition(b"\n")
        if newline:
            with suppress(ValueError):
                _check_version(path, first.decode("utf-8"))
        keep = whole(data)
        if keep < len(data):
            file.truncate(keep)
            file.flush()
            os.fsync(file.fileno())
    return len(data) - keep


def whole(data: bytes) -> int:
    """How many bytes of a log's content are left when a torn last line is cut; see `repair`."""
    keep = data.rfind(b"\n") + 1
    last = data.rfind(b"\n", 0, max(0, keep - 1)) + 1
    return last if last and not _readable(data[last:keep]) else keep


def _readable(line: bytes) -> bool:
    try:
        from_line(line.decode("utf-8"))
    except ValueError:
        return False
    return True


def read(path: Path) -> list[Event]:
    """All events of a log, a torn last line left out.

    Raises:
        LogError: the file is missing or empty, a line can't be read, or a newer version has written it.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LogError(f"{path}: can't be read: {error.strerror}") from None
    events = list(parse(path, data))
    if not events:
        raise LogError(f"{path}: holds no complete event")
    return events


def parse(path: Path, data: bytes) -> Iterator[Event]:
    """The events in the content of a log; a last line without a newline is left out.

    Raises:
        LogError: a line can't be read, or a newer version has written it.
    """
    for number, raw in enumerate(data.split(b"\n")[:-1], 1):
        try:
            line = raw.decode("utf-8")
            if number == 1:
                _check_version(path, line)
            event = from_line(line)
        except ValueError as error:
            raise LogError(f"{path}, line {number}: not an event of a study: {error}") from None
        if (number == 1) != isinstance(event, StudyStarted):
            raise LogError(f"{path}, line {number}: only the first line starts a study")
        yield event


def _check_version(path: Path, line: str) -> None:
    version = json.loads(line).get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise LogError(
            f"{path}: written by a newer hpo_ray (schema {version}; this one reads up to {SCHEMA_VERSION}); update it"
        )
