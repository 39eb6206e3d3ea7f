"""The copy of a study's folder on an object store, from which the study can go on when the driver's disk is lost.

The driver writes the folder on its own disk, as ever. A thread copies the log, which an object store can't append to,
whole and every few seconds; and whatever else has changed. Checkpoints are not among it: who trains puts them there.

The copy is behind. So that it is enough to go on from at any moment, no checkpoint is removed that it may need: all
removals are left to the mirror, which carries them out after the next copy of the log.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from types import TracebackType

from hpo_ray.errors import StudyError
from hpo_ray.events import FILE_NAME
from hpo_ray.executors.keeper import CHECKPOINT
from hpo_ray.executors.outage import PATIENCE_S, StoreDown, insist
from hpo_ray.location import Location
from hpo_ray.results import BEST_FOLDER

EVERY_S = 5.0
"""Seconds between two copies; more for a log that takes long."""
_SHARE = 4
"""A copy that has taken so long is followed by so many times its length without one."""
_LEAST_S = 2.0
"""How long the end waits for a copy that is under way, in any case."""
_FEW = 8
"""Of more trials than that what is there is asked for at once."""
TRIALS = "trials"


class Overtaken(StudyError):
    """Another process has written the log that is there."""


class Mirror:
    """Keeps the copy, from `with` on. At its end all is copied that isn't yet, unless the process is dying.

    Args:
        folder: the study's folder here.
        location: the study's folder there.

    Attributes:
        overtaken: what to raise, when another process goes on with the study.

    Raises:
        StoreDown: at the end, the store could not be reached.
        Overtaken: another process goes on with the study.
    """

    overtaken: Overtaken | None = None

    def __init__(self, folder: Path, location: Location) -> None:
        self.folder, self.location = folder, location
        self._sent: dict[str, tuple[int, int] | None] = {}
        """What is there of the folder: by path its size and time here when it was copied; None if that is unknown."""
        self._log_size = 0
        self._log_there: int | None = None
        """The length of the log that is there."""
        self._tried: list[int] = []
        """Those of logs since that were sent, and may have come without an answer."""
        self._wishes: list[tuple[int, Collection[str]] | str] = []
        """Of what may be removed: trials that have ended, and the names of what stays of each; or a path."""
        self._there: dict[int, set[str]] | None = None
        """Before trials run, the checkpoints that are there, by trial."""
        self._one_at_a_time, self._lock = threading.Lock(), threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._copy_again_and_again, name="hpo_ray-mirror", daemon=True)

    def __enter__(self) -> Mirror:
        try:
            for name in self.location.names():
                if name == TRIALS:
                    continue
                is_file = self.location.join(name).size() is not None
                below = [name] if is_file else [f"{name}/{path}" for path in self.location.join(name).files()]
                self._sent.update(dict.fromkeys(below))
            self._log_there = self.location.join(FILE_NAME).size()
            self.copy()
        except OSError as error:
            raise StoreDown.of(self.location, error).advised(self.folder) from error
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        if (kind is not None and not issubclass(kind, Exception)) or isinstance(error, Overtaken):
            return
        patience_s = 0.0 if isinstance(error, StoreDown) else PATIENCE_S  # it was waited for already
        until, failure = monotonic() + patience_s, OSError("no answer")
        self._thread.join(max(patience_s, _LEAST_S))
        while not self._thread.is_alive():
            try:
                self.copy()
                return
            except OSError as raised:
                failure = raised
            if monotonic() + EVERY_S > until:
                break
            sleep(EVERY_S)
        if error is None:
            raise StoreDown.of(self.location, failure).advised(self.folder) from failure

    def copy(self) -> None:
        """Copies what has changed, and then removes what the log doesn't need.

        Raises:
            OSError: the store can't be reached; what isn't done is done the next time.
        """
        with self._one_at_a_time:
            with self._lock:  # before the log is read: it then says what these come from
                wishes, self._wishes = self._wishes, []
            try:
                self._copy_log()
                self._copy_others()
                for path in self._doomed(wishes):
                    self.location.join(path).delete()
            except BaseException:
                with self._lock:
                    self._wishes = [*wishes, *self._wishes]
                raise

    def has(self, path: str) -> bool:
        """See `Checkpoints`."""
        number, name = Path(path).parts[-2:]
        return name in self._known().get(int(number), ())

    def clear(self, number: int, but: Collection[str]) -> None:
        """See `Checkpoints`. At once: no trial runs, and the log that is there is the one that the study goes on from.

        Later, a trial that goes on might have written a checkpoint of the same name.
        """
        for name in self._known().get(number, set()) - set(but):
            insist(self.location.join(TRIALS, str(number), name).delete, self.location)

    def ended(self, number: int, but: Collection[str]) -> None:
        """See `Checkpoints`."""
        with self._lock:
            self._wishes.append((number, but))

    def replaced(self, path: str) -> None:
        """See `Checkpoints`."""
        with self._lock:
            self._wishes.append(path)

    def _copy_again_and_again(self) -> None:
        pause = EVERY_S
        while not self._closing.wait(pause):
            started = monotonic()
            try:
                self.copy()
            except Overtaken as error:
                self.overtaken = error
                return
            except OSError:
                pass  # it is tried again
            pause = max(EVERY_S, _SHARE * (monotonic() - started))

    def _copy_log(self) -> None:
        data = (self.folder / FILE_NAME).read_bytes()
        data = data[: data.rfind(b"\n") + 1]
        if len(data) != self._log_size:
            place = self.location.join(FILE_NAME)
            if place.size() not in (self._log_there, *self._tried):
                raise Overtaken(
                    f"{self.location}: another process goes on with this study, and its log is there now. One of them "
                    f"has to end: this one does, its own log is {self.folder / FILE_NAME}"
                )
            self._tried.append(len(data))
            place.write(data)
            self._log_size = self._log_there = len(data)
            self._tried.clear()

    def _copy_others(self) -> None:
        here = dict(self._files())
        for name, stamp in here.items():
            if self._sent.get(name) != stamp:
                try:
                    self.location.join(name).put(self.folder / name)
                except FileNotFoundError:  # it is being replaced
                    continue
                self._sent[name] = stamp
        for name in [name for name in self._sent if name not in here and name != FILE_NAME]:
            with suppress(FileNotFoundError):
                self.location.join(name).unlink()
            del self._sent[name]

    def _files(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """(path relative to the folder, size and time) of what is copied, but for the log."""
        for place, folders, names in os.walk(self.folder):
            if not Path(place).is_relative_to(self.folder / BEST_FOLDER):  # elsewhere hidden is what is being written
                folders[:] = [name for name in folders if not name.startswith(".") and not CHECKPOINT.fullmatch(name)]
                names = [name for name in names if not name.startswith(".")]
            for name in names:
                path = Path(place, name)
                relative = path.relative_to(self.folder).as_posix()
                if relative == FILE_NAME:
                    continue
                try:
                    stat = path.stat()
                except FileNotFoundError:
                    continue
                yield relative, (stat.st_size, stat.st_mtime_ns)

    def _doomed(self, wishes: list[tuple[int, Collection[str]] | str]) -> Iterator[str]:
        """The paths of the checkpoints that are to be removed."""
        ended = dict(wish for wish in wishes if not isinstance(wish, str))  # of a trial's the last one counts
        everything = self._list() if len(ended) > _FEW else None
        for number, but in ended.items():
            there = self._list_trial(number) if everything is None else everything.get(number, set())
            for name in there - set(but):
                yield f"{TRIALS}/{number}/{name}"
        for wish in wishes:
            if isinstance(wish, str):
                yield wish

    def _known(self) -> dict[int, set[str]]:
        if self._there is None:
            self._there = insist(self._list, self.location)
        return self._there

    def _list(self) -> dict[int, set[str]]:
        """The checkpoints of all trials that are there."""
        found: dict[int, set[str]] = {}
        for path in self.location.join(TRIALS).files():
            number, _, rest = path.partition("/")
            name = rest.partition("/")[0]
            if number.isdigit() and CHECKPOINT.fullmatch(name):
                found.setdefault(int(number), set()).add(name)
        return found

    def _list_trial(self, number: int) -> set[str]:
        return {name for name in self.location.join(TRIALS, str(number)).names() if CHECKPOINT.fullmatch(name)}
