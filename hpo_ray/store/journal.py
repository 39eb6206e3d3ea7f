"""Optuna's journal file, written many lines at a time, and mended where Optuna's own code gives up.

It is Optuna's format under Optuna's lock, so whatever else opens the file sees the same. What is different:

- a line that a dead writer left half written is cut before anything is appended; appended to, it would make the journal
  unreadable for every study in it;
- a dead writer's lock is broken after 3 s, not 30;
- all lines of a batch are written at once, under one lock and with one sync to the disk;
- a line that can't be read is an error at once, and a file that another process has put in its place is noticed.

Only JSON is read: Optuna's snapshots, which are pickles, are a feature of other backends.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend, JournalFileOpenLock, JournalFileSymlinkLock

GRACE_S = 3
"""A lock whose owner has written nothing for so long is a dead one's."""


class JournalReplaced(Exception):
    """The file is another one than was read before, or has lost lines: read it again from its start."""


class JournalDamaged(Exception):
    """The file holds a line that can't be read."""


class JournalFile(BaseJournalBackend):
    """A journal file.

    Args:
        path: the file; made if it is not there.
        grace_s: how long the lock of a writer that does nothing is respected.
    """

    def __init__(self, path: Path, grace_s: float = GRACE_S) -> None:
        self.path = path.absolute()  # the lock is a link to it, which a relative path would lead astray
        # A symbolic link is what Optuna's own writers lock with, and its age is that of the journal: a batch that takes
        # long is no dead one. Windows allows links to administrators only.
        lock = JournalFileOpenLock if os.name == "nt" else JournalFileSymlinkLock
        self._lock = lock(str(self.path), GRACE_S)
        self._lock.grace_period = grace_s  # type: ignore[assignment]  # compared with a difference of times
        with self.path.open("ab") as file:
            self._inode = os.fstat(file.fileno()).st_ino
        self._starts = array("q", [0])
        """Where each line starts that was read, and where the next one will."""
        self._batch: list[dict[str, Any]] | None = None
        self._before_batch = -1
        """How many lines the file has, once that is known in a batch."""

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """The lines from a number on; in a batch, those to be written as well.

        Raises:
            JournalDamaged: one can't be read.
            JournalReplaced: the file is another one.
        """
        if self._batch is None or self._before_batch < 0:
            yield from self._read_file(log_number_from)
            if self._batch is not None:
                self._before_batch = len(self._starts) - 1
        if self._batch:
            yield from self._batch[max(0, log_number_from - self._before_batch) :]

    def _read_file(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        number = min(log_number_from, len(self._starts) - 1)
        with self.path.open("rb") as file:
            self._check(os.fstat(file.fileno()))
            file.seek(self._starts[number])
            for line in file:
                if not line.endswith(b"\n"):
                    break  # torn, or being written
                if number + 1 == len(self._starts):
                    self._starts.append(self._starts[number] + len(line))
                if number >= log_number_from:
                    yield self._parse(line, number)
                number += 1

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            log = json.loads(line)
        except ValueError as error:  # of UTF-8, too
            raise JournalDamaged(f"{self.path}, line {number + 1}: {error}") from None
        if not isinstance(log, dict):
            raise JournalDamaged(f"{self.path}, line {number + 1}: not a JSON object")
        return log

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Appends lines: at the end of the batch in a batch, at once otherwise."""
        if self._batch is not None:
            self._batch += logs
            return
        with self.alone():
            self._append(logs, self._cut_torn_tail())

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other writers out."""
        self._lock.acquire()
        try:
            yield
        finally:
            self._lock.release()

    @contextmanager
    def batch(self) -> Iterator[None]:
        """What is appended within is written at its end, all at once; nothing of it if there is an error.

        Raises:
            JournalReplaced: another process has written meanwhile, because it took this one for dead.
        """
        with self.alone():
            size = self._cut_torn_tail()
            self._batch, self._before_batch = [], -1
            try:
                yield
                if self._batch:
                    self._append(self._batch, size)
            finally:
                self._batch = None

    def check(self) -> None:
        """Looks whether the file is still the one that was read.

        Raises:
            JournalReplaced: it is not.
        """
        self._check(self.path.stat())

    def _check(self, found: os.stat_result) -> None:
        if found.st_ino != self._inode or found.st_size < self._starts[-1]:
            raise JournalReplaced(f"{self.path}: was replaced by another process")

    def _cut_torn_tail(self) -> int:
        """Cuts the file to its last newline; its size then. Under the lock only."""
        with self.path.open("rb+") as file:
            self._check(os.fstat(file.fileno()))
            size = end = file.seek(0, os.SEEK_END)
            while end > 0:
                start = max(0, end - 65536)
                file.seek(start)
                newline = file.read(end - start).rfind(b"\n")
                end = start + newline + 1 if newline >= 0 else start
                if newline >= 0:
                    break
            if end < size:
                file.truncate(end)
            return end

    def _append(self, logs: list[dict[str, Any]], size: int) -> None:
        data = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        with self.path.open("ab") as file:
            found = os.fstat(file.fileno())
            self._check(found)
            if found.st_size != size:
                raise JournalReplaced(f"{self.path}: another process has written to it in spite of the lock")
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
