"""Where studies are projected to: the journal file of an output root, or a database. Opening imports Optuna."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpo_ray.commands import short
from hpo_ray.store.urls import without_password

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial, TrialState

    from hpo_ray.store.journal import JournalFile

JOURNAL = "hpo_ray.journal"
CONNECT_S = 5
"""A database that doesn't answer a connection for so long is down."""

_TABLES_TRIES = 20
_LOGGERS = ("optuna.storages.journal._storage", "optuna.storages.journal._file", "optuna.storages._rdb.storage")
_quiet = threading.local()


@dataclass(frozen=True)
class Store:
    """Names a storage.

    Attributes:
        root: the folder that studies lie in.
        url: of a database; None for the journal file in `root`.
    """

    root: Path
    url: str | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Store | None:
        """The store of a study's configuration; None if it has none."""
        section = config["store"]
        return cls(Path(config["study"]["root"]).absolute(), section["url"]) if section["project"] else None

    @property
    def journal(self) -> Path:
        """The journal file."""
        return self.root / JOURNAL

    def __str__(self) -> str:
        """For messages: no password."""
        return without_password(self.url) if self.url else str(short(self.journal))

    def open(self) -> OpenStore:
        """Connects to the database, or reads the journal.

        Raises:
            JournalDamaged: the journal can't be read.
            Exception: whatever a database that can't be reached raises.
        """
        with quiet():
            return _open_database(self.url) if self.url else open_journal(self.journal)


class OpenStore:
    """A storage that is open.

    Args:
        storage: Optuna's.
        journal: the file, if it is one.
    """

    def __init__(self, storage: BaseStorage, journal: JournalFile | None = None) -> None:
        self.storage = storage
        self.journal = journal
        self._slimmed = 0
        self._unfinished: list[int] = []

    def batch(self) -> AbstractContextManager[None]:
        """What is written within goes into a journal at once, or not at all; a database takes each call by itself."""
        return nullcontext() if self.journal is None else self.journal.batch()

    def check(self) -> None:
        """Notices a journal that another process has replaced.

        Raises:
            JournalReplaced: it has.
        """
        if self.journal is not None:
            self.journal.check()

    def slim(self) -> None:
        """Forgets what trials were that have ended, which a journal's reader keeps in memory, of all studies in it.

        Only for storages that write from now on: of such a trial nothing is asked but whether it has ended.
        """
        if self.journal is None:
            return
        trials: dict[int, FrozenTrial] = self.storage._replay_result._trials  # type: ignore[attr-defined]
        self._unfinished += range(self._slimmed, len(trials))
        self._slimmed = len(trials)
        left = []
        for trial_id in self._unfinished:
            state = trials[trial_id].state
            if state.is_finished():
                trials[trial_id] = _ended(state)
            else:
                left.append(trial_id)
        self._unfinished = left

    def close(self) -> None:
        """Gives connections back."""
        from optuna.storages import RDBStorage

        if isinstance(self.storage, RDBStorage):
            with suppress(Exception):  # of a database that has gone away
                self.storage.remove_session()
                self.storage.engine.dispose()


@cache
def _ended(state: TrialState) -> FrozenTrial:
    """A trial of which nothing is known but its state."""
    from optuna.trial import FrozenTrial

    return FrozenTrial(-1, state, None, None, None, {}, {}, {}, {}, {}, -1)


def open_journal(path: Path) -> OpenStore:
    """Opens a journal file, which is made if it is not there.

    Raises:
        JournalDamaged: it can't be read.
    """
    from optuna.storages.journal import JournalStorage

    from hpo_ray.store.journal import JournalDamaged, JournalFile, JournalReplaced

    journal = JournalFile(path)
    try:
        return OpenStore(JournalStorage(journal), journal)
    except (OSError, MemoryError, JournalDamaged, JournalReplaced):
        raise
    except Exception as error:  # lines that are JSON, but don't make sense: Optuna doesn't expect them
        raise JournalDamaged(f"{path}: {type(error).__name__}: {error}") from error


def _open_database(url: str) -> OpenStore:
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

    connect: dict[str, Any] = {}
    if url.startswith("sqlite"):
        connect = {"timeout": 30}  # for a write of another process to end
    elif url.startswith(("postgresql", "mysql", "mariadb")) and "connect_timeout" not in url:
        connect = {"connect_timeout": CONNECT_S}
    for _ in range(_TABLES_TRIES):
        try:
            return OpenStore(RDBStorage(url, engine_kwargs={"connect_args": connect, "pool_size": 1}))
        except (IntegrityError, ProgrammingError, OperationalError) as error:
            # Optuna asks which tables there are and then makes the others: of several processes one is the first.
            if isinstance(error, OperationalError) and "already exists" not in str(error):
                raise
            problem = error
            time.sleep(0.05)
    raise problem


@contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's lines about each study and lock, in this thread."""
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if _not_when_quiet not in logger.filters:
            logger.addFilter(_not_when_quiet)
    _quiet.depth = getattr(_quiet, "depth", 0) + 1
    try:
        yield
    finally:
        _quiet.depth -= 1


def _not_when_quiet(record: logging.LogRecord) -> bool:
    return getattr(_quiet, "depth", 0) == 0


@contextmanager
def alone(path: Path) -> Iterator[bool]:
    """Whether no other process, or other thread of this one, is in here with the same folder or file.

    The lock is the kernel's, so it ends with its process. Where the file system has no such locks, it is taken to be.
    """
    try:
        import fcntl
    except ImportError:
        yield True
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass
        yield True
    finally:
        os.close(descriptor)
