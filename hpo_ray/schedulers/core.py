"""What a scheduler is, without Ray: a fold over what happened to the trials.

A core hears `add`, `report` and `end`, and answers with decisions. It holds no clock, no generator and no trial
objects, and is keyed by trial ids alone, so that feeding it a log again gives the same state again. Values are
*losses*: the caller has turned the sign where more is better.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from hpo_ray.schedulers.brackets import Budget, Ladder, Plan


class Action(str, Enum):
    """What becomes of a trial after a report."""

    CONTINUE = "continue"
    PAUSE = "pause"
    STOP = "stop"


@dataclass(frozen=True)
class Decision:
    """An action and, in words, why."""

    action: Action
    reason: str = ""


@dataclass(frozen=True)
class Clone:
    """A trial is to go on from a checkpoint under another configuration.

    Attributes:
        source: id of the trial whose checkpoint it is; the trial's own to change its configuration alone.
        config: the configuration from then on.
        source_config: what the source's configuration was when this was decided. If it has changed by the time of
            the copy, its weights may no longer fit.
    """

    source: str
    config: Mapping[str, Any]
    source_config: Mapping[str, Any]


@dataclass(frozen=True)
class Moves:
    """What a rung that has just closed does with its paused trials, best first.

    Attributes:
        promote: ids of trials that go on.
        stop: ids of trials that don't.
        reasons: in words, why, by id.
        clones: of those that go on, by id, which do so from a checkpoint and a configuration that are not theirs.
    """

    promote: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    reasons: Mapping[str, str] | None = None
    clones: Mapping[str, Clone] = field(default_factory=dict)


NO_MOVES = Moves()
CONTINUE = Decision(Action.CONTINUE)


class SchedulerCore(Protocol):
    """The algorithm of a scheduler."""

    max_resource: int
    pauses: bool
    """Whether a trial can be paused and go on later, which needs checkpoints."""
    ranks: bool
    """Whether it compares trials with one another, which takes one metric."""
    ladder: Ladder
    """At which resources it compares them."""

    def plan(self, budget: Budget) -> Plan:
        """What it will do with this budget; raises `ConfigError` for a budget that doesn't fit it."""

    def add(self, trial_id: str, config: Mapping[str, Any] | None = None) -> None:
        """A trial was added. Adding it again (a retry) changes nothing."""

    def report(self, trial_id: str, resource: int, loss: float) -> Decision:
        """A trial reported a loss at a resource. What is on record already is not changed by a second report."""

    def next_decision(self, trial_id: str) -> int:
        """The least resource at which a report of a running trial may be answered by anything but to go on.

        One that the trial has passed already, such as 0, stands for its next report. A core without this method is
        asked about each report.
        """

    def end(self, trial_id: str, loss: float | None) -> None:
        """A trial ended by itself with this loss, or failed (None)."""

    def forget(self, trial_id: str) -> None:
        """A trial that ended will not be asked about again; memory is for those that live."""

    def advance(self, source_finished: bool, room: int) -> Moves:
        """Decides about the paused trials; `NO_MOVES` itself if nothing has changed by it.

        Args:
            source_finished: no further trial will be added.
            room: how many trials could start now. What decides at the last moment promotes no more than that.
        """

    def waits_for(self) -> str:
        """What it waits for, in words; empty when nothing paused waits."""

    def tags(self, trial_id: str) -> Mapping[str, int]:
        """What it says of a trial: bracket, rung."""
