"""What an executor is: it says how many trials fit at a time, and brings what runs them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Resources:
    """What one trial gets: processor cores, and GPUs or a fraction of one."""

    cpu: float = 1.0
    gpu: float = 0.0


class Executor(ABC):
    """Runs trainables for Ray Tune's controller."""

    name: ClassVar[str]

    @abstractmethod
    def start(self, resources: Resources) -> int:
        """Starts what is needed, and gives how many trials of these resources fit at a time.

        Raises:
            ConfigError: not even one fits; the message says what there is.
        """

    @property
    def in_step(self) -> bool:
        """Whether a user's code is running in this process, which a signal may interrupt."""
        return False

    @abstractmethod
    def actor_manager(self) -> Any:
        """The controller's actor manager; None for Ray's own."""

    @abstractmethod
    def stop(self) -> None:
        """Stops what `start` started."""
