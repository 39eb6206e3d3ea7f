"""A study and its tracker while it runs: a process of its own follows the log, and so delays nothing and loses nothing.

A process, not a thread: the trackers' packages take seconds of processor time to import, install exit handlers that
wait until the last byte is uploaded, and keep global state that a user's own training code may want for itself. This
one doesn't hear Ctrl-C, and when the study's process dies it still tells the tracker what is in the log.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from hpo_ray.commands import resume_command
from hpo_ray.store.urls import without_password
from hpo_ray.trackers.base import Tracker

POLL_S = 1.0
LONGEST_PAUSE_S = 30.0
LAST_S = 600
"""How long after the end of its study the process may still be at work, on an upload for example."""
FAILED_S = 1.0
"""How long the end of a study waits for a tracker that is out of reach."""
LOCK = ".tracker"
"""The file in a study's folder that the process holds locked, so that no two tell the same."""


class Following:
    """A tracker that is told of a study which runs.

    Args:
        folder: the study's folder.
        tracker: who is told; None for nobody.
        section: the tracker's configuration, `_target_` and its arguments.
    """

    def __init__(self, folder: Path, tracker: Tracker | None, section: Mapping[str, Any]) -> None:
        self._folder, self._tracker = folder, tracker
        self._process: subprocess.Popen[bytes] | None = None
        self._problem = ""
        """What the process said last: nothing, if all is well."""
        if tracker is None:
            return
        paths = [path or os.getcwd() for path in sys.path]  # a tracker of the user's own may be anywhere on it
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "hpo_ray.trackers.following"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,
        )
        self._say({"folder": str(folder), "tracker": dict(section)})
        self._listening = threading.Thread(target=self._listen, name="hpo_ray-tracker", daemon=True)
        self._listening.start()

    def __enter__(self) -> Following:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close(0.0)

    def close(self, timeout_s: float) -> str | None:
        """Lets the tracker be told what is still missing, and waits for that.

        One that was out of reach is asked once more, which is waited for a second at most.

        Args:
            timeout_s: how long to wait at most. The process goes on by itself after that, for ten minutes at most.

        Returns:
            None if the tracker has all of the study; otherwise a line for a person.
        """
        process, self._process = self._process, None
        if process is None or self._tracker is None:
            return None
        self._say({"over": True}, process)
        place = self._tracker.place(self._folder.parent)
        try:
            ended = self._wait(process, timeout_s)
        finally:
            lines = self._let_go(process)
        if not ended:
            going = f"; {self._problem}" if self._problem else ""
            return (
                f"{place} lacks a part of this study so far{going}; a process goes on with it for {LAST_S // 60} "
                f"minutes at most. Whatever lacks then: {resume_command(self._folder)}"
            )
        if process.returncode == 0:
            return None
        why = self._problem or without_password(lines[-1] if lines else f"its process ended with {process.returncode}")
        return f"{place} lacks a part of this study: {why}; to send it: {resume_command(self._folder)}"

    def _say(self, content: Mapping[str, Any], process: subprocess.Popen[bytes] | None = None) -> None:
        stream = (process or self._process).stdin  # type: ignore[union-attr]
        with suppress(OSError):  # it may have ended: why, its exit tells
            stream.write(json.dumps(content).encode() + b"\n")  # type: ignore[union-attr]
            stream.flush()  # type: ignore[union-attr]

    def _wait(self, process: subprocess.Popen[bytes], timeout_s: float) -> bool:
        """Waits for the end of a process, not for long after something goes wrong; whether it came."""
        began = time.monotonic()
        failed_at: float | None = None
        while True:
            now = time.monotonic()
            if self._problem and failed_at is None:
                failed_at = now
            until = began + timeout_s if failed_at is None else min(began + timeout_s, failed_at + FAILED_S)
            try:
                process.wait(max(0.0, min(until - now, 0.2)))
                return True
            except subprocess.TimeoutExpired:
                if now >= until:
                    return False

    def _let_go(self, process: subprocess.Popen[bytes]) -> list[str]:
        """Closes what is ours of a process, which may go on; the lines that it wrote to its standard error."""
        with suppress(OSError):
            process.stdin.close()  # type: ignore[union-attr]
        if process.poll() is None:
            process.returncode = 0  # nobody waits for it any more, and Python need not warn of that
        else:
            self._listening.join(1.0)
        with self._errors as file:
            file.seek(0)
            return file.read().decode(errors="replace").strip().splitlines()

    def _listen(self) -> None:
        stream = self._process.stdout  # type: ignore[union-attr]
        with stream:  # type: ignore[union-attr]
            for line in stream:  # type: ignore[union-attr]
                self._problem = line.decode(errors="replace").strip()


def follow(
    folder: Path,
    tracker: Tracker,
    wait: Callable[[float], bool],
    say: Callable[[str], None] = lambda problem: None,
) -> bool:
    """Follows a log until its study is over; whether the tracker was told all of it.

    Args:
        folder: the study's folder.
        tracker: who is told.
        wait: waits for so many seconds, or until the study is over; whether it is. Once it is, it waits no longer.
        say: is told what goes wrong, and an empty text when that is over.
    """
    from hpo_ray.trackers.copying import Copy

    copy: Copy | None = None
    failures = 0
    while True:
        over = wait(0.0)  # asked before the log is: it gets no longer then
        fresh = copy is None
        copy = copy or Copy(folder, tracker)
        try:
            copy.catch_up(over)
        except Exception as error:  # whatever a tracker, its server or a file system raises
            _close(copy)
            copy, failures = None, failures + 1
            say(reason(error))
            if over and fresh:
                return False
            if not over:
                wait(min(2.0 ** (failures - 1), LONGEST_PAUSE_S))
            continue
        if failures:
            say("")
        failures = 0
        if over:
            _close(copy)
            return True
        wait(POLL_S)


def reason(error: BaseException) -> str:
    """What went wrong, in one line without a password."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return without_password(text if len(text) < 200 else f"{text[:200]} ...")


def _close(copy: Any) -> None:
    with suppress(Exception):  # of a tracker that has just failed
        copy.close()


def main() -> int:
    """The process: reads what to do from its standard input, whose next line, or end, is the end of the study."""
    from hpo_ray.study import make

    status = os.dup(1)
    with open(os.devnull, "wb") as nowhere:  # packages print what they like
        os.dup2(nowhere.fileno(), 1)
    request = json.loads(_line())
    folder = Path(request["folder"])

    def say(problem: str) -> None:
        with suppress(OSError):  # nobody listens any more
            os.write(status, f"{' '.join(problem.split())}\n".encode())

    over = False

    def wait(seconds: float) -> bool:
        nonlocal over
        if not over and select.select([0], [], [], seconds)[0]:
            over = True
            signal.alarm(LAST_S)
        return over

    try:
        tracker = make("tracker", request["tracker"])
        with (folder / LOCK).open("w") as lock:
            while not _locked(lock.fileno()):  # one of an earlier run of this study may still be at it
                wait(0.1)
                if over:
                    time.sleep(0.1)
            done = follow(folder, tracker, wait, say)
    except Exception as error:
        say(reason(error))
        done = False
    sys.stderr.flush()
    os._exit(0 if done else 1)  # exit handlers of a tracker whose server is down may wait for ever


def _line() -> bytes:
    data = b""
    while not data.endswith(b"\n") and (more := os.read(0, 1)):
        data += more
    return data


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


if __name__ == "__main__":
    main()
