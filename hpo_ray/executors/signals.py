"""SIGINT and SIGTERM: the first ends a study in order and soon, the second ends its process at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from hpo_ray.executors.base import Executor
from hpo_ray.view import View

_BOTH = (signal.SIGINT, signal.SIGTERM)


RAY_GRACE_S = 3.0


class Interrupted(BaseException):
    """A signal came in the middle of a step that runs in this process, and the step didn't end in time."""


class Signals:
    """Which signal came, if any, and what time is left.

    From the first signal on, a step that runs in this process has `STEP_S` to end, what runs has until `SAVE_S` to be
    saved, and at `EXIT_S` the process ends whatever it is doing: the log is whole at any moment. That is within three
    seconds, which is what Ray gives a job that is stopped; where a job has more (`RAY_JOB_STOP_WAIT_TIME_S`, which
    `cluster.stop_grace_s` sets), they are longer in proportion.

    Python lets a handler run when the main thread comes back to Python. A thread that is woken by the signal itself
    (`signal.set_wakeup_fd`) does what must not wait for that. Code in C that keeps Python's lock stops both.

    Args:
        executor: whose steps may be interrupted.
        view: what is cleared before the process ends.

    Attributes:
        received: the first signal; None before.
        since_s: when it came, by `time.monotonic`.
        last_words: what is printed if the process has to end at once.
        last_act: what is done then.
    """

    STEP_S, SAVE_S, EXIT_S, FAREWELL_S = 1.0, 1.8, 2.6, 0.2

    def __init__(self, executor: Executor, view: View) -> None:
        longer = max(1.0, _grace_s() / RAY_GRACE_S)
        self.STEP_S, self.SAVE_S, self.EXIT_S = (longer * s for s in (self.STEP_S, self.SAVE_S, self.EXIT_S))
        self.received: int | None = None
        self.since_s = 0.0
        self.last_words = ""
        self.last_act: Callable[[], None] = lambda: None
        self._executor, self._view = executor, view
        self._hurry = False
        self._ours = 0
        self._lock = threading.Lock()
        self._closed = False
        self._timers: list[threading.Timer] = []

    def listen(self) -> None:
        """Takes the signals over. Again after Ray has started, which takes SIGTERM itself."""
        if threading.current_thread() is threading.main_thread():
            for number in _BOTH:
                signal.signal(number, self._in_main_thread)

    def watch(self, pipe: int) -> None:
        """Hears of each signal at once, in a thread of its own; until the pipe is closed."""
        while heard := os.read(pipe, 1):
            if heard[0] in _BOTH:
                self._heard(heard[0])

    def close(self) -> None:
        """The study has ended in time."""
        with self._lock:
            self._closed = True
        for timer in self._timers:
            timer.cancel()

    def _heard(self, number: int) -> None:
        with self._lock:
            if self._closed:
                return
            if self._ours:
                self._ours -= 1
                return
            first = not self._timers
            self._note(number)
            if first:
                self._timers = [
                    threading.Timer(self.STEP_S, self._interrupt),
                    threading.Timer(self.EXIT_S, self._exit),
                ]
                for timer in self._timers:
                    timer.daemon = True
                    timer.start()
        if not first:
            self._exit()

    def _note(self, number: int) -> None:
        if self.received is None:
            self.since_s = time.monotonic()
            self.received = number

    def _in_main_thread(self, number: int, frame: FrameType | None) -> None:
        self._note(number)
        if self._hurry and self._executor.in_step:
            self._hurry = False
            raise Interrupted

    def _interrupt(self) -> None:
        """Sends the signal again, by which the main thread leaves the step that it is in."""
        if self._executor.in_step and not self._closed:
            assert self.received is not None
            self._hurry, self._ours = True, self._ours + 1
            signal.pthread_kill(threading.main_thread().ident or 0, self.received)

    def _exit(self) -> None:
        """Ends the process: not even a terminal that takes nothing can keep it."""
        assert self.received is not None
        if self._closed:
            return
        farewell = threading.Thread(target=self._farewell, daemon=True)
        farewell.start()
        farewell.join(self.FAREWELL_S)
        os._exit(128 + self.received)

    def _farewell(self) -> None:
        with suppress(Exception):
            self.last_act()
        if self.last_words:
            print(self.last_words, file=sys.__stdout__, flush=True)  # `sys.stdout` may be a trial's own
        self._view.stop()


def _grace_s() -> float:
    """What a job of Ray has between SIGTERM and its end; as Ray's own default, if it isn't a number."""
    try:
        return float(os.environ.get("RAY_JOB_STOP_WAIT_TIME_S", RAY_GRACE_S))
    except ValueError:
        return RAY_GRACE_S


@contextmanager
def signals_of(executor: Executor, view: View) -> Iterator[Signals]:
    """Handles both signals as long as the study runs; in the main thread only, as Python does."""
    signals = Signals(executor, view)
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    before = {number: signal.getsignal(number) for number in _BOTH}
    woken_before = signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
    watching = threading.Thread(target=signals.watch, args=(reads,), name="hpo_ray-signals", daemon=True)
    watching.start()
    signals.listen()
    try:
        yield signals
    finally:
        signals.close()
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(woken_before)
        os.close(writes)
        watching.join()
        os.close(reads)
