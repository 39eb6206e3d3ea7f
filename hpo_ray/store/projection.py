"""A study in its store while it runs: a thread follows the log, and so delays nothing and loses nothing.

Whatever the storage does, the study goes on: what fails is tried again from the log, after longer and longer pauses.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from hpo_ray.commands import short
from hpo_ray.events import LogError
from hpo_ray.space import Space
from hpo_ray.store.storage import Store
from hpo_ray.store.urls import reason

if TYPE_CHECKING:
    from hpo_ray.store.copying import StudyCopy
    from hpo_ray.store.storage import OpenStore

POLL_S = 1.0
LONGEST_PAUSE_S = 30.0
_REPAIRS = 2
"""How often one projection mends its store, before it takes that for a fault that mending doesn't help against."""


class Projection:
    """Follows the log of a study that runs, and writes it to its store.

    Args:
        folder: the study's folder.
        space: its space.
        store: where to; None for nowhere.
        poll_s: seconds between two looks at the log.
    """

    def __init__(self, folder: Path, space: Space, store: Store | None, poll_s: float = POLL_S) -> None:
        self._folder, self._space, self._store, self._poll_s = folder, space, store, poll_s
        self._closing = threading.Event()
        self._given_up = threading.Event()
        self._over = threading.Event()
        """Set when the thread has done what it can."""
        self._complete = False
        self._error: Exception | None = None
        self._failures = 0
        self._repairs = 0
        self._behind: list[Path] | None = None
        """Other studies that the store lacks; None before it was asked."""
        self._open: OpenStore | None = None
        self._copy: StudyCopy | None = None
        self._thread: threading.Thread | None = None
        if store is not None:
            self._thread = threading.Thread(target=self._follow, name="hpo_ray-store", daemon=True)
            self._thread.start()

    def __enter__(self) -> Projection:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close(0.0)

    def close(self, timeout_s: float) -> str | None:
        """Writes what is still missing, and ends.

        A store that was down before is asked once more, for a second at most.

        Args:
            timeout_s: how long it may take.

        Returns:
            None if the store has all of the study; otherwise a line for a person.
        """
        if self._thread is None or self._store is None:
            return None
        deadline = time.monotonic() + (min(timeout_s, 1.0) if self._failures else timeout_s)
        self._closing.set()
        self._over.wait(max(0.0, deadline - time.monotonic()))
        self._given_up.set()
        if self._over.is_set():
            self._thread.join(max(1.0, deadline - time.monotonic()))
        if self._complete:
            return None
        why = reason(self._error) if self._error is not None else f"was not done after {timeout_s:g} s"
        url = f" store.url={self._store}" if self._store.url else ""
        root = short(self._store.root)
        return (
            f"{self._store} lacks a part of this study: {why}; the next study in {root} catches up, or "
            f"python -m hpo_ray report {root} --rebuild-store{url}"
        )

    def _follow(self) -> None:
        try:
            while not self._given_up.is_set():
                closing = self._closing.is_set()  # asked before the log is: it gets no longer then
                pause_s = self._try(closing)
                if self._complete or pause_s is None:
                    break
                (self._given_up if closing else self._closing).wait(pause_s)
        finally:
            self._drop()
            self._over.set()

    def _try(self, closing: bool) -> float | None:
        """Brings the store up to the log; how long to wait until the next time, None for no next time."""
        from hpo_ray.store import recovery
        from hpo_ray.store.copying import Busy, Differs
        from hpo_ray.store.journal import JournalDamaged, JournalReplaced

        fresh = self._copy is None
        try:
            try:
                self._catch_up(closing)
            except Differs:
                if self._repairs == _REPAIRS:
                    raise
                self._repairs += 1
                self._rewrite()
                return 0.0
            except JournalDamaged:
                if self._repairs == _REPAIRS or self._store is None:
                    raise
                self._repairs += 1
                self._drop()
                recovery.mend(self._store)
                return 0.0
        except (Busy, JournalReplaced) as error:
            self._drop()
            self._error = error
            return 0.05
        except Exception as error:  # whatever a database, a file system or Optuna raises: the study goes on
            self._drop()
            self._error, self._failures = error, self._failures + 1
            if closing:
                return None if fresh else 0.0  # a connection that was there before may just have been lost
            return min(2.0 ** (self._failures - 1), LONGEST_PAUSE_S)
        self._error, self._failures = None, 0
        return self._poll_s

    def _catch_up(self, closing: bool) -> None:
        if self._copy is None:
            self._connect()
        assert self._copy is not None
        if self._copy.catch_up(self._given_up.is_set) and closing:
            self._copy.finish()
            self._complete = True
        if not closing:
            self._catch_up_others()

    def _catch_up_others(self) -> None:
        """Copies studies that a store which was down, or a process that was killed, has left behind."""
        from hpo_ray.store import recovery
        from hpo_ray.store.copying import Busy

        assert self._open is not None and self._store is not None
        if self._behind is None:
            found = recovery.behind(self._store.root, self._store, self._open)
            self._behind = [folder for folder in found if folder != self._folder]
        while self._behind and not self._closing.is_set():
            folder = self._behind.pop()
            try:
                recovery.copy(folder, self._open, self._closing.is_set)
            except (Busy, LogError):
                continue
            except Exception:  # what is wrong with the store, this study will find out; otherwise the next one tries
                self._drop()
                return

    def _rewrite(self) -> None:
        """Takes the study out of the store, which has something else of it; the next time writes it anew."""
        from hpo_ray.store import recovery

        assert self._copy is not None and self._store is not None
        identity = self._copy.identity
        self._drop()
        opened = self._store.open()
        try:
            recovery.forget(opened, identity)
        finally:
            opened.close()

    def _connect(self) -> None:
        from hpo_ray.store.copying import StudyCopy

        assert self._store is not None
        self._open = self._store.open()
        self._copy = StudyCopy(self._folder, self._open, self._space)

    def _drop(self) -> None:
        if self._copy is not None:
            self._copy.close()
        if self._open is not None:
            self._open.close()
        self._open = self._copy = None
