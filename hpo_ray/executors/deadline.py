"""Ends a call in this process that takes too long, by the clock on the wall and a signal, SIGALRM."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from hpo_ray.errors import ConfigError

KEY = "budget.trial_timeout_s"


class TrialTimeout(Exception):
    """A call of a trainable did not end in time."""

    __module__ = "builtins"  # so that a traceback ends with its name alone


class _Ring(BaseException):
    """What the signal raises in the user's code: no `except Exception` stops it."""


def check_interruptible(seconds: float) -> None:
    """Checks that a call can be interrupted here: Python handles signals in the main thread only, Windows has none.

    Raises:
        ConfigError: it can't.
    """
    where = "outside of the main thread"
    if hasattr(signal, "setitimer"):
        if threading.current_thread() is threading.main_thread():
            return
    else:
        where = "on this platform"
    raise ConfigError(
        f"{KEY}={seconds:g}: executor=inprocess can't interrupt a trial {where}; use executor=ray, or null", key=KEY
    )


@contextmanager
def deadline(seconds: float | None, what: str) -> Iterator[None]:
    """Ends the block when it has taken so many seconds.

    The signal comes again each time that they have passed once more, for code that catches everything and goes on.
    C code that doesn't return to Python can't be interrupted.

    Args:
        seconds: None for no limit.
        what: begins the message: `no report for` gives `no report for 30 s (budget.trial_timeout_s)`.

    Raises:
        TrialTimeout: it took longer, whatever else it raised or returned after that. It has the traceback of the code
            that was interrupted.
    """
    if seconds is None:
        yield
        return
    armed, rang = True, False

    def ring(number: int, frame: FrameType | None) -> None:
        nonlocal rang
        if armed:
            rang = True
            raise _Ring

    message = f"{what} {seconds:g} s ({KEY})"
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    except BaseException as error:
        armed = False
        if not rang:
            raise
        raise TrialTimeout(message).with_traceback(error.__traceback__) from None
    finally:
        armed = False  # first: a signal that is on its way is handled in the calls below
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before if before is not None else signal.SIG_DFL)
    if rang:
        raise TrialTimeout(message)
