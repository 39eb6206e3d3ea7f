"""What an executor is: it says how many trials fit at a time, and brings what runs them."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hpo_ray.clusters.nodes import Request

if TYPE_CHECKING:
    from hpo_ray.executors.internals import StudyStorage
    from hpo_ray.location import Location


class Executor(ABC):
    """Runs trainables for Ray Tune's controller."""

    name: ClassVar[str]
    in_memory: ClassVar[bool] = False
    """Whether checkpoints stay in memory and go with the study."""
    report_every_s: float = 0.0
    """Seconds of training that a trial may report together where nothing is to be decided in between."""

    @abstractmethod
    def start(self, request: Request) -> int:
        """Starts what is needed, and gives how many trials of these resources may run at a time.

        Raises:
            ConfigError: not even one fits; the message says what there is.
        """

    def check(self, trainable: Any, root: Path | Location) -> None:
        """Looks whether trials can run where they will, once it is started.

        Args:
            trainable: the user's function or class.
            root: where studies lie: a folder, or an object store.

        Raises:
            ConfigError: they can't; what `start` started is stopped.
        """
        return None

    def capacity(self) -> int | None:
        """How many trials may run at a time by now; None where that is what `start` said.

        Raises:
            StudyError: none can, and it makes no sense to wait any longer.
        """
        return None

    @property
    def in_step(self) -> bool:
        """Whether a user's code is running in this process, which a signal may interrupt."""
        return False

    def call_timeout(self, trial_timeout_s: float | None) -> float | None:
        """The seconds after which each call of a trainable is to be interrupted from within its own process.

        None where the executor ends a trial that hangs in another way.

        Raises:
            ConfigError: calls can't be interrupted here.
        """
        return None

    @abstractmethod
    def actor_manager(self, time_attr: str, until_s: float | None, trial_timeout_s: float | None = None) -> Any:
        """The controller's actor manager; None for Ray's own.

        Args:
            time_attr: name of the reported value that counts resource.
            until_s: when the study ends at the latest, in seconds of `clock`.
            trial_timeout_s: seconds of the same clock without a report after which a trial has failed.
        """

    def storage(self, folder: Path, trackers: bool, location: Location | None = None) -> StudyStorage:
        """Where Ray's controller and trainables keep what they save.

        Args:
            folder: the study's folder.
            trackers: whether there are callbacks, which may write into the trials' folders.
            location: the study's folder on an object store, which then holds its checkpoints.
        """
        from hpo_ray.executors.internals import StudyStorage
        from hpo_ray.executors.remote import RemoteStorage

        if location is not None:
            return RemoteStorage(location, folder)
        return StudyStorage(str(folder.parent), folder.name)

    def clock(self, since: float = 0.0) -> Callable[[], float]:
        """A function that gives the seconds since now, and those that had passed before."""
        started = time.monotonic() - since
        return lambda: round(time.monotonic() - started, 6)

    def summary(self) -> Mapping[str, Any] | None:
        """What only the executor knows of a study that has ended, for its log and result."""
        return None

    @abstractmethod
    def stop(self) -> None:
        """Stops what `start` started."""
