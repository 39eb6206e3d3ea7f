"""`report --follow`: the view of a study that runs in another process, from its log."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml
from omegaconf import OmegaConf

from hpo_ray.best import CONFIG_FILE, load_config
from hpo_ray.commands import resume_command, short
from hpo_ray.compare import FILE as COMPARISON_FILE
from hpo_ray.errors import ConfigError, StudyError
from hpo_ray.events import FILE_NAME, Event, LogError, StudyResumed, StudyStarted, from_line, is_running, parse
from hpo_ray.report.summary import summary
from hpo_ray.results import StudyState, load_study
from hpo_ray.study import Draft, draft
from hpo_ray.view import View

LOOK_EVERY_S = 0.25
_CHUNK = 1 << 18


def follow(
    folder: Path,
    view: View,
    sleep: Callable[[float], None] = time.sleep,
    date: Callable[[], float] = time.time,
) -> int:
    """Shows a study until its process has ended, and then its summary. A study that isn't running is summed up at once.

    Args:
        folder: the study's folder.
        view: what it is shown in; nothing is printed if that is silent.
        sleep: waits for so many seconds.
        date: the time of day, in seconds since the epoch.

    Returns:
        0 if the study has finished, 1 if it failed or was interrupted, and 130 if whoever looks on has had enough: the
        study itself goes on then.

    Raises:
        ConfigError: there is no study in the folder, or it has no log yet.
        StudyError: its process died without an end of the study, its folder has gone, or its log can't be read.
    """
    drafted = _draft_of(folder)
    try:
        state, drafted = _watch(folder, drafted, view, sleep, date)
    except KeyboardInterrupt:
        view.stop()
        if not view.silent:
            print("no longer followed; the study goes on")
        return 130
    finally:
        view.stop()
    if not view.silent:
        print(summary(load_study(folder), drafted, ""))
    if state.ended is None:
        raise StudyError(f"{short(folder)}: its process has died; to go on: {resume_command(folder)}")
    return 0 if state.ended.state == "finished" else 1


def study_folder(path: Path) -> Path:
    """The folder of a study that can be followed.

    Raises:
        ConfigError: it isn't one, or has no log yet.
    """
    said = f"report --follow {path}"
    if not path.is_dir():
        raise ConfigError(f"{said}: no such folder; `python -m hpo_ray list` tells which studies there are")
    if (path / COMPARISON_FILE).is_file():
        raise ConfigError(f"{said}: is a comparison; follow one of the studies in it")
    if not (path / CONFIG_FILE).is_file():
        running = [found.parent.name for found in sorted(path.glob(f"*/{FILE_NAME}")) if is_running(found)]
        which = f"; running in it: {', '.join(running[:3])}{', ...' if len(running) > 3 else ''}" if running else ""
        raise ConfigError(f"{said}: is no study, it has no {CONFIG_FILE}{which}")
    log = path / FILE_NAME
    if not log.is_file() or (not log.stat().st_size and not is_running(log)):
        raise ConfigError(f"{said}: it has no log yet; if it is just being started, try again in a moment")
    return path.resolve()


class LogTail:
    """Reads a log that grows.

    Args:
        path: the log.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode: int | None = None
        self._read_bytes = self._lines = 0

    def read(self) -> Iterator[Event]:
        """The events that have been added since the last time. A last line that is not whole yet is left for the next.

        Raises:
            StudyError: the log has gone, or is another one.
            LogError: a line can't be read.
        """
        rest = b""
        while data := self._chunk(self._read_bytes + len(rest)):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._read_bytes += len(line) + 1
                self._lines += 1
                yield self._event(line)

    def _chunk(self, start: int) -> bytes:
        try:
            with self._path.open("rb") as file:  # anew each time: its folder may be removed
                status = os.fstat(file.fileno())
                if status.st_ino != (self._inode or status.st_ino) or status.st_size < self._read_bytes:
                    raise StudyError(f"{short(self._path)}: another log has taken its place; it is no longer followed")
                self._inode = status.st_ino
                file.seek(start)
                return file.read(_CHUNK)
        except OSError as error:
            raise StudyError(
                f"{short(self._path)}: can't be read any longer, so the study can't be followed: {error.strerror}"
            ) from None

    def _event(self, line: bytes) -> Event:
        if self._lines == 1:
            return next(parse(self._path, line + b"\n"))
        try:
            event = from_line(line.decode("utf-8"))
        except ValueError as error:
            raise LogError(f"{self._path}, line {self._lines}: not an event of a study: {error}") from None
        if isinstance(event, StudyStarted):
            raise LogError(f"{self._path}, line {self._lines}: only the first line starts a study")
        return event


class _Clock:
    """The clock of a study that runs elsewhere: it stands still with the study, and a simulation moves it by events."""

    def __init__(self, virtual: bool, date: Callable[[], float]) -> None:
        self._virtual, self._date = virtual, date
        self._zero_s = self._last_s = 0.0

    def hear(self, event: Event) -> float:
        """An event has come; the seconds at which it did."""
        if isinstance(event, StudyStarted):
            self._zero_s = event.time
            return 0.0
        if isinstance(event, StudyResumed):
            self._zero_s = event.wall - event.time
        self._last_s = event.time
        return event.time

    def now(self) -> float:
        """Seconds on the study's clock. Not before its last event, whatever the clocks of two machines say."""
        return self._last_s if self._virtual else max(self._last_s, self._date() - self._zero_s)


def _watch(
    folder: Path, drafted: Draft, view: View, sleep: Callable[[float], None], date: Callable[[], float]
) -> tuple[StudyState, Draft]:
    """Folds the log as it grows, until no process writes to it; what came of it."""
    log, state, caught_up = LogTail(folder / FILE_NAME), StudyState(), False
    clock = _Clock(drafted.virtual_workers > 0, date)
    while True:
        running = is_running(folder / FILE_NAME)  # asked before the log is read: nothing comes after that
        if running and not caught_up:
            view.start(drafted, folder)
        for event in log.read():
            state.apply(event)
            at_s = clock.hear(event)
            if caught_up and isinstance(event, StudyResumed):  # perhaps with a larger budget
                drafted = _draft_of(folder)
                view.stop()
                view.start(drafted, folder)
            # What a simulation did before anybody looked says nothing about how long it takes here.
            if running and (caught_up or not drafted.virtual_workers):
                view.update(state, at_s)
        if not running:
            return state, drafted
        caught_up = True
        if state.started is not None and state.ended is None:
            view.update(state, clock.now())
        sleep(LOOK_EVERY_S)


def _draft_of(folder: Path) -> Draft:
    """What a study's own configuration says that it is."""
    try:
        config = OmegaConf.create(load_config(folder))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{short(folder / CONFIG_FILE)}: can't be read: {str(error).splitlines()[0]}") from None
    return draft(config)
