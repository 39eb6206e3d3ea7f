"""A scheduler's state: its core, and what it has decided that has not happened yet. Without Ray.

The same class runs in a study and is fed a study's log again: a core hears of trials by the methods of
`SchedulerFold` only, each of which leaves an event in the log, in the same order. So a fresh core that `observe`s the
log is the one that was there, at any point of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hpo_ray.errors import StudyError
from hpo_ray.events import Decided, Event, Moved, Reported, StudyStarted, TrialAdded, TrialEnded
from hpo_ray.schedulers.core import CONTINUE, NO_MOVES, Action, Clone, Decision, Moves, SchedulerCore


@dataclass
class Standing:
    """How far a living trial has got.

    Attributes:
        seen: the highest resource that was decided about, of the weights that it has.
        decision: what was decided there.
        loss: the last loss that it reported; None before.
        broken: which metric it has reported that is not finite, which ends it; empty before.
    """

    seen: int = 0
    decision: Decision = CONTINUE
    loss: float | None = None
    broken: str = ""


class SchedulerFold:
    """A scheduler core and what waits to happen.

    A report at or below the resource that a trial has been decided about decides nothing: it comes from a trial that
    was tried again, or taken up, from an earlier checkpoint. At that resource the decision is repeated.

    Args:
        core: the algorithm, fresh.

    Attributes:
        standing: the trials that live, by id.
        promoted: who goes on as soon as there is room for it, in that order; and as whose clone, if so.
        losers: paused trials that are about to end.
        reasons: why the last decision about a trial was taken.
        moved: called when `advance` has moved something, with what it was asked.
    """

    def __init__(self, core: SchedulerCore) -> None:
        self.core = core
        self.standing: dict[str, Standing] = {}
        self.promoted: dict[str, Clone | None] = {}
        self.losers: dict[str, None] = {}
        self.reasons: dict[str, str] = {}
        self.moved: Callable[[Moves, bool, int], None] = lambda moves, source_finished, room: None
        self._metric, self._sign, self._metrics = "", 1.0, ()  # type: tuple[str, float, tuple[str, ...]]

    def add(self, trial_id: str, config: Mapping[str, Any] | None = None) -> None:
        """A trial was added. Adding it again (a retry) changes nothing."""
        if trial_id not in self.standing:
            self.standing[trial_id] = Standing()
            self.core.add(trial_id, config)

    def report(self, trial_id: str, resource: int, loss: float) -> Decision:
        """A trial reported a loss at a resource; what becomes of it."""
        standing = self.standing[trial_id]
        standing.loss = loss
        if resource <= standing.seen:
            return CONTINUE if resource < standing.seen else standing.decision
        decision = self.core.report(trial_id, resource, loss)
        standing.seen, standing.decision = resource, decision
        if decision.action is not Action.CONTINUE:
            self.reasons[trial_id] = decision.reason
        return decision

    def next_decision(self, trial_id: str) -> int:
        """The least resource at which a running trial may be paused or ended; see `SchedulerCore.next_decision`."""
        standing = self.standing.get(trial_id)
        if standing is None or not hasattr(self.core, "next_decision"):
            return 0
        if standing.decision.action is not Action.CONTINUE:  # it trains again up to there, where this is repeated
            return standing.seen
        return self.core.next_decision(trial_id)

    def advance(self, source_finished: bool, room: int) -> Moves:
        """Lets the core decide about the paused trials."""
        moves = self.core.advance(source_finished, room)
        if moves is not NO_MOVES:
            self.reasons.update(moves.reasons or {})
            self.promoted.update((trial_id, moves.clones.get(trial_id)) for trial_id in moves.promote)
            self.losers.update(dict.fromkeys(moves.stop))
            self.moved(moves, source_finished, room)
        return moves

    def start(self, trial_id: str) -> Clone | None:
        """A promoted trial goes on; gives as whose clone."""
        self.standing[trial_id].decision = CONTINUE
        return self.promoted.pop(trial_id)

    def cloned(self, trial_id: str, clone: Clone, config: Mapping[str, Any], resource: int, loss: float | None) -> None:
        """A trial goes on from a checkpoint and under a configuration that were not its own.

        Args:
            trial_id: the trial.
            clone: what was decided.
            config: its configuration from now on.
            resource: that of the checkpoint.
            loss: what was reported there, if the checkpoint is another trial's.
        """
        self.core.cloned(trial_id, clone.source, config, resource, loss)  # type: ignore[attr-defined]  # it clones
        standing = self.standing[trial_id]
        standing.seen = resource
        standing.loss = standing.loss if loss is None else loss

    def end(self, trial_id: str, loss: float | None) -> None:
        """A trial is over, with its last loss; None if it failed, or had lost already."""
        if self.standing.pop(trial_id, None) is None:
            return
        self.core.end(trial_id, None if trial_id in self.losers else loss)
        self.core.forget(trial_id)
        for known in (self.promoted, self.losers, self.reasons):
            known.pop(trial_id, None)

    def observe(self, event: Event) -> None:
        """Takes the next event of a log into account.

        Raises:
            StudyError: the core decides otherwise than the log says.
        """
        if isinstance(event, TrialAdded):
            self.add(event.trial_id, event.config)
        elif isinstance(event, Reported):
            names = (self._metric, *self._metrics)
            if bad := next((name for name in names if not _finite(event.metrics.get(name))), None):
                self.standing[event.trial_id].broken = f"{bad} is {event.metrics.get(bad)} at {event.resource}"
            else:
                self.report(event.trial_id, event.resource, self._loss(event.metrics))
        elif isinstance(event, Moved):
            moves = self.advance(event.source_finished, event.room)
            _check(event, (list(moves.promote), list(moves.stop)), (list(event.promote), list(event.stop)))
        elif isinstance(event, Decided):
            self._decided(event)
        elif isinstance(event, TrialEnded):
            standing = self.standing.get(event.trial_id)
            self.end(event.trial_id, None if event.state == "failed" or standing is None else standing.loss)
        elif isinstance(event, StudyStarted):
            self._metric, self._metrics = event.metric, tuple(event.metrics)
            self._sign = -1.0 if event.mode == "max" else 1.0

    def _decided(self, event: Decided) -> None:
        if event.action == "pause":
            _check(event, self.standing[event.trial_id].decision.action.value, "pause")
            return
        _check(event, event.trial_id in self.promoted, True)
        clone = self.start(event.trial_id)
        if event.action == "promote":
            return
        _check(event, None if clone is None else dict(clone.config), event.config)
        assert clone is not None and event.config is not None
        loss = None if event.metrics is None else self._loss(event.metrics)
        self.cloned(event.trial_id, clone, event.config, int(event.resource or 0), loss)

    def _loss(self, metrics: Mapping[str, Any]) -> float:
        return self._sign * float(metrics[self._metric])


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _check(event: Event, decides: Any, logged: Any) -> None:
    if decides != logged:
        raise StudyError(f"the log says {event}, but its scheduler, fed the log up to there, decides {decides}")
