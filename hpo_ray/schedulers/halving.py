"""Synchronous halving over brackets: the algorithm of SuccessiveHalving and Hyperband.

Trials fill the brackets in order; a rung waits until every trial of its bracket has reported there, has ended or has
failed; then the best n_{i+1} go on and the others end. Sources: see `brackets`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hpo_ray.errors import ConfigError
from hpo_ray.schedulers.brackets import (
    Bracket,
    Budget,
    Ladder,
    Plan,
    check_geometry,
    halving_bracket,
    hyperband_brackets,
    rounds_of,
)
from hpo_ray.schedulers.core import CONTINUE, NO_MOVES, Action, Decision, Moves

FAILED = math.inf


@dataclass
class _Ladder:
    """One bracket while it runs."""

    index: int
    bracket: Bracket
    rung: int = 0
    size: int = 0
    """Trials that started in it: `bracket.rungs[0].n` unless the source finished before."""
    members: dict[str, None] = field(default_factory=dict)
    """Ids in the current rung, in the order in which they were added: ties go to the lower trial number."""
    losses: dict[str, float] = field(default_factory=dict)
    """Losses in the current rung; `FAILED` for a trial that has none."""
    ended: dict[str, float] = field(default_factory=dict)
    """Last losses of members that ended by themselves and can't go on."""
    closed: bool = False

    @property
    def last(self) -> bool:
        return self.rung == len(self.bracket.rungs) - 1

    @property
    def target(self) -> int:
        return self.bracket.rungs[self.rung].r

    def places(self, eta: int) -> int:
        """How many go on to the next rung: floor(n eta^-(i+1)), n being what the bracket started with.

        At least one, so that a bracket that the source could not fill still trains its best to the end; in a
        full bracket the floor is never 0.
        """
        share: int = eta ** (self.rung + 1)
        return max(1, self.size // share)


class HalvingCore:
    """Synchronous halving over an endless cycle of brackets.

    Args:
        brackets: one round of brackets; after the last the first comes again.
        max_resource: R, the resource of the last rung of each bracket.
        eta: see `brackets`.
    """

    pauses = True
    ranks = True

    def __init__(self, brackets: Sequence[Bracket], max_resource: int, eta: int) -> None:
        self.brackets = tuple(brackets)
        self.max_resource = max_resource
        self.eta = eta
        starts = [bracket.rungs[0].r for bracket in self.brackets for _ in range(bracket.rungs[0].n)]
        resources = {rung.r for bracket in self.brackets for rung in bracket.rungs}
        self.ladder = Ladder(tuple(sorted(resources)), lambda number: starts[number % len(starts)], eta)
        self._ladders: dict[int, _Ladder] = {}
        """Those that are open, by index."""
        self._filling: _Ladder | None = None
        self._of: dict[str, _Ladder] = {}
        """Trials that are not forgotten."""
        self._rung_of: dict[str, int] = {}
        self._started = 0
        self._changed: dict[int, None] = {}
        """Indices of the ladders in which something happened since the last `advance`, in order."""

    def add(self, trial_id: str, config: Mapping[str, Any] | None = None) -> None:
        """Puts a new trial into the bracket that is being filled."""
        if trial_id in self._of:
            return
        ladder = self._filling
        if ladder is None or ladder.size >= ladder.bracket.rungs[0].n or ladder.rung > 0 or ladder.closed:
            index, self._started = self._started, self._started + 1
            ladder = self._filling = _Ladder(index, self.brackets[index % len(self.brackets)])
            self._ladders[index] = ladder
        ladder.size += 1
        ladder.members[trial_id] = None
        self._of[trial_id] = ladder
        self._rung_of[trial_id] = 0

    def report(self, trial_id: str, resource: int, loss: float) -> Decision:
        """Pauses a trial at its rung, stops it at the last rung, and ends it if the loss is not finite."""
        ladder = self._of[trial_id]
        if not math.isfinite(loss):
            self.end(trial_id, None)
            return Decision(Action.STOP, f"reported {loss} at {resource}")
        if trial_id not in ladder.members:  # its rung closed while it was retried
            return Decision(Action.STOP, f"lost in rung {self._rung_of[trial_id]} of bracket {ladder.index}")
        if resource < ladder.target:
            return CONTINUE
        if trial_id not in ladder.losses:
            self._record(ladder, trial_id, loss)
        if ladder.last:
            return Decision(Action.STOP, f"reached max_resource {self.max_resource}")
        return Decision(Action.PAUSE, f"waits at rung {ladder.rung} of bracket {ladder.index}")

    def next_decision(self, trial_id: str) -> int:
        """The current rung of its bracket."""
        ladder = self._of[trial_id]
        return ladder.target if trial_id in ladder.members else 0

    def end(self, trial_id: str, loss: float | None) -> None:
        """A trial that ended by itself ranks with its last loss; one that failed ranks last.

        The first keeps its place in the rungs above as long as its loss is among the best: it is a configuration
        like the others, only that there is nothing left to train.
        """
        ladder = self._of[trial_id]
        if trial_id not in ladder.members or trial_id in ladder.ended or ladder.closed:
            return
        if loss is None or not math.isfinite(loss):
            self._record(ladder, trial_id, FAILED)
            return
        known = ladder.losses.get(trial_id)
        if known is None:
            self._record(ladder, trial_id, loss)
        ladder.ended[trial_id] = loss

    def forget(self, trial_id: str) -> None:
        """Drops its tags."""
        self._of.pop(trial_id, None)
        self._rung_of.pop(trial_id, None)

    def advance(self, source_finished: bool, room: int) -> Moves:
        """Closes each rung whose trials have all reported, ended or failed."""
        if source_finished and self._filling is not None:
            self._changed[self._filling.index] = None
        if not self._changed:
            return NO_MOVES
        promote: list[str] = []
        stop: list[str] = []
        reasons: dict[str, str] = {}
        changed, self._changed = self._changed, {}
        moved = False
        for index in changed:
            ladder = self._ladders.get(index)
            if ladder is None:
                continue
            rung = ladder.rung
            while self._close_rung(ladder, source_finished, promote, stop, reasons):
                pass
            moved = moved or ladder.closed or ladder.rung > rung
            if ladder.closed:
                del self._ladders[index]
                self._filling = None if ladder is self._filling else self._filling
        return Moves(tuple(promote), tuple(stop), reasons) if moved else NO_MOVES

    def waits_for(self) -> str:
        """Names the rung that waits for trials which have not been added yet."""
        for ladder in self._ladders.values():
            missing = ladder.bracket.rungs[0].n - ladder.size
            if not ladder.closed and ladder.rung == 0 and missing > 0:
                return (
                    f"rung 0 of bracket {ladder.index} (s={ladder.bracket.s}) waits for {missing} more of its "
                    f"{ladder.bracket.rungs[0].n} trials"
                )
        return ""

    def may_promote(self) -> int:
        """How many trials the open rungs can still move up, at most."""
        return sum(ladder.places(self.eta) for ladder in self._ladders.values() if not (ladder.last or ladder.closed))

    def tags(self, trial_id: str) -> Mapping[str, int]:
        """The trial's bracket (numbered from 0 in the order of filling) and the highest rung that it entered."""
        return {"bracket": self._of[trial_id].index, "rung": self._rung_of[trial_id]}

    def _record(self, ladder: _Ladder, trial_id: str, loss: float) -> None:
        ladder.losses[trial_id] = loss
        self._changed[ladder.index] = None

    def _close_rung(
        self,
        ladder: _Ladder,
        source_finished: bool,
        promote: list[str],
        stop: list[str],
        reasons: dict[str, str],
    ) -> bool:
        """Closes the ladder's current rung if it is complete; True if the next one could be complete, too."""
        filled = ladder.rung > 0 or ladder.size >= ladder.bracket.rungs[0].n or source_finished
        if ladder.closed or not filled or len(ladder.losses) < len(ladder.members):
            return False
        if ladder.last:
            ladder.closed = True
            return False
        ranked = sorted(ladder.members, key=ladder.losses.__getitem__)  # stable: ties by trial number
        places = ladder.places(self.eta)
        up = {member for member in ranked[:places] if ladder.losses[member] < FAILED}
        where = f"rung {ladder.rung} of bracket {ladder.index}"
        for rank, member in enumerate(ranked, 1):
            if member in ladder.ended or ladder.losses[member] >= FAILED:
                continue
            reasons[member] = f"rank {rank} of {len(ranked)} in {where}, {places} go on"
            (promote if member in up else stop).append(member)
        ladder.members = {member: None for member in ladder.members if member in up}
        ladder.ended = {member: loss for member, loss in ladder.ended.items() if member in up}
        ladder.losses = dict(ladder.ended)
        ladder.rung += 1
        for member in ladder.members:
            if member in self._rung_of:
                self._rung_of[member] = ladder.rung
        ladder.closed = not ladder.members
        return not ladder.closed


class HyperbandCore(HalvingCore):
    """Hyperband: a grid search over how early to halve. See `hpo_ray.schedulers.Hyperband`."""

    def __init__(self, max_resource: int, min_resource: int = 1, eta: int = 3) -> None:
        super().__init__(hyperband_brackets(max_resource, eta, min_resource), max_resource, eta)

    def plan(self, budget: Budget) -> Plan:
        """`budget.rounds` (1) times the brackets."""
        if budget.trials is not None:
            size = sum(bracket.rungs[0].n for bracket in self.brackets)
            raise ConfigError(
                f"budget.trials={budget.trials}: Hyperband decides the number of trials ({size} a round for "
                f"max_resource={self.max_resource}, eta={self.eta}); use budget.rounds, or another max_resource",
                key="budget.trials",
            )
        rounds, trials = rounds_of(self.brackets, budget)
        return Plan(self.max_resource, trials, self.brackets, rounds, limit=budget.resource)


class SuccessiveHalvingCore(HalvingCore):
    """One ladder, over and over. See `hpo_ray.schedulers.SuccessiveHalving`."""

    def __init__(self, max_resource: int, min_resource: int = 1, eta: int = 3, bracket_size: int | None = None) -> None:
        check_geometry(max_resource, min_resource, eta)
        bracket = halving_bracket(max_resource, eta, min_resource, bracket_size)
        super().__init__([bracket], max_resource, eta)

    def plan(self, budget: Budget) -> Plan:
        """`budget.trials` configurations (in brackets of `bracket_size`), or `budget.rounds` brackets."""
        size = self.brackets[0].rungs[0].n
        rounds, trials = rounds_of(self.brackets, budget)
        if budget.trials is None:
            return Plan(self.max_resource, trials, self.brackets, rounds, limit=budget.resource)
        if budget.rounds is not None:
            raise ConfigError(
                f"budget.trials={budget.trials} and budget.rounds={budget.rounds}: give one of them; "
                f"a round is scheduler.bracket_size={size} trials",
                key="budget.rounds",
            )
        if budget.trials % size:
            below = budget.trials // size * size
            raise ConfigError(
                f"budget.trials={budget.trials}: must be a multiple of scheduler.bracket_size={size}, so that "
                f"every bracket is full; use {f'{below} or ' if below else ''}{below + size}",
                key="budget.trials",
            )
        return Plan(self.max_resource, budget.trials, self.brackets, budget.trials // size, limit=budget.resource)
