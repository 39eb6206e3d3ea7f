"""A store that can't be reached: how long it is waited for, what the study then says, and how that is recognised."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from typing import TypeVar

from hpo_ray.errors import StudyError
from hpo_ray.executors.disk import is_full
from hpo_ray.location import Location, reason

T = TypeVar("T")

PATIENCE_S = 60.0
"""How long what a study can't do without is tried again."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 8.0


class StoreDown(StudyError):
    """What a study lies on can't be reached. No fault of the trial that met it: it goes on when the study does."""

    @classmethod
    def of(cls, location: Location, error: BaseException) -> StoreDown:
        """Of a store that doesn't answer."""
        return cls(f"store.root={location.parent}: can't be reached: {reason(error)}")

    def advised(self, folder: Path) -> StoreDown:
        """The same, and what to do about it; `folder` is the study's, here."""
        return StoreDown(f"{self}. {folder} is whole: go on with `python -m hpo_ray resume {folder}`")


def insist(action: Callable[[], T], location: Location, patience_s: float | None = None) -> T:
    """What an action gives; one that fails because of the store is tried again.

    Args:
        action: may be repeated.
        location: the study's, for the message.
        patience_s: seconds; None for `PATIENCE_S`.

    Raises:
        StoreDown: it has failed all the time.
        FileNotFoundError: what it asks for isn't there.
        OSError: the disk here is full.
    """
    until, pause = monotonic() + (PATIENCE_S if patience_s is None else patience_s), _FIRST_PAUSE_S
    while True:
        try:
            return action()
        except FileNotFoundError:
            raise
        except OSError as error:
            if is_full(error):
                raise
            if monotonic() + pause > until:
                raise StoreDown.of(location, error) from error
        sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)


def find_outage(error: BaseException | None) -> StoreDown | None:
    """The outage that an error is or comes from; None if it is another error.

    Args:
        error: of this process, or as Ray brings it from another one.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, StoreDown):
            return error
        # Of an actor that could not be built, or of a function's thread, Ray brings the text only.
        if told := re.search(rf"\b{StoreDown.__module__}\.{StoreDown.__name__}: (.+)", str(error)):
            return StoreDown(told[1].strip())
        error = getattr(error, "cause", None) or error.__cause__ or error.__context__
    return None
