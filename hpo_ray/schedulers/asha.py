"""Asynchronous successive halving: the algorithm of ASHA.

Li, Jamieson, Rostamizadeh, Gonina, Ben-tzur, Hardt, Recht and Talwalkar, "A System for Massively Parallel
Hyperparameter Tuning", MLSys 2020, Algorithm 2. When a worker is free, the rungs are scanned from the top down for a
trial among the best floor(|rung| / eta) that was not promoted yet; if there is none, a new trial starts at the bottom.
No rung waits for another trial, so workers are never idle.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np

from hpo_ray.errors import ConfigError
from hpo_ray.schedulers.brackets import Bracket, Budget, Ladder, Plan, Rung, hyperband_brackets
from hpo_ray.schedulers.core import CONTINUE, NO_MOVES, Action, Decision, Moves
from hpo_ray.trainables.context import SCHEDULER, stream

FAILED = math.inf
_PLANNED_TRIALS = 2000


@dataclass
class _Rung:
    """What was recorded at one resource. Tuples sort by loss, then by trial number."""

    index: int
    bracket: int
    resource: int
    recorded: list[tuple[float, int]] = field(default_factory=list)
    waiting: list[tuple[float, int, str]] = field(default_factory=list)
    """Those recorded that are neither promoted nor failed, with their ids."""

    @property
    def name(self) -> str:
        return f"rung {self.index} of bracket {self.bracket}"

    def places(self, eta: int) -> int:
        """How many of those recorded so far go on."""
        return len(self.recorded) // eta

    def rank(self, loss: float, number: int) -> int:
        """From 1, the best."""
        return bisect_left(self.recorded, (loss, number)) + 1


@dataclass
class _Member:
    """A trial that has not ended, or has ended by itself and may still move up.

    `rung` is the one that it trains for, or in which it is recorded (`loss` is then set) and waits.
    """

    number: int
    bracket: int
    rung: int = 0
    loss: float | None = None
    running: bool = True
    ended: bool = False
    done: bool = False
    """Nothing more is recorded for it: it was stopped, or it has failed."""
    forgotten: bool = False


class ASHACore:
    """Asynchronous successive halving. See `hpo_ray.schedulers.ASHA`, also for the arguments.

    Raises:
        ConfigError: a number is out of its range.
    """

    ranks = True

    def __init__(
        self,
        max_resource: int,
        min_resource: int = 1,
        eta: int = 3,
        brackets: int = 1,
        variant: str = "promotion",
        seed: int = 0,
    ) -> None:
        hyperband = hyperband_brackets(max_resource, eta, min_resource)
        if not isinstance(brackets, int) or isinstance(brackets, bool) or not 1 <= brackets <= len(hyperband):
            raise ConfigError(
                f"scheduler.brackets={brackets!r}: must be a whole number from 1 to {len(hyperband)}, which is what "
                f"max_resource={max_resource}, min_resource={min_resource} and eta={eta} have",
                key="scheduler.brackets",
            )
        if variant not in ("promotion", "stopping"):
            raise ConfigError(f"scheduler.variant={variant!r}: must be promotion or stopping", key="scheduler.variant")
        self._settings: dict[str, Any] = {
            "max_resource": max_resource,
            "min_resource": min_resource,
            "eta": eta,
            "brackets": brackets,
            "variant": variant,
            "seed": seed,
        }
        self.max_resource = max_resource
        self.eta = eta
        self.seed = seed
        self.brackets = tuple(hyperband[:brackets])
        self.pauses = variant == "promotion"
        resources = {rung.r for bracket in self.brackets for rung in bracket.rungs}
        self.ladder = Ladder(
            tuple(sorted(resources)), lambda number: self.brackets[self.bracket_of(number)].rungs[0].r, eta
        )
        sizes = list(accumulate(bracket.rungs[0].n for bracket in self.brackets))
        self._shares = [size / sizes[-1] for size in sizes]
        self._rungs = [
            [_Rung(i, b, rung.r) for i, rung in enumerate(bracket.rungs)] for b, bracket in enumerate(self.brackets)
        ]
        # The top rungs promote nothing; of the others those nearest to the top come first.
        depth = len(self._rungs[0])
        self._scan = [rungs[-1 - below] for below in range(1, depth) for rungs in self._rungs if below < len(rungs)]
        self._members: dict[str, _Member] = {}
        self._added = 0
        self._running = 0
        self._changed = False
        """Whether something was recorded since a scan found nothing to promote."""

    def plan(self, budget: Budget) -> Plan:
        """`budget.trials` configurations; by default as many as the same brackets of Hyperband have.

        How many of them move up depends on the order in which they report: at least n eta^-i reach rung i, if none
        fails, and early ones do that later turn out to be no good. The rungs of the plan are what comes out on average
        over random orders, with one worker.
        """
        if budget.rounds is not None:
            raise ConfigError(
                f"budget.rounds={budget.rounds}: ASHA has no rounds, its brackets are open; use budget.trials",
                key="budget.rounds",
            )
        trials = budget.trials
        if trials is None and budget.open_ended:
            return Plan(self.max_resource, None, exact=False, limit=budget.resource)
        if trials is None:
            trials = sum(bracket.rungs[0].n for bracket in self.brackets)
        runs = self._random_orders(trials)
        brackets = tuple(
            Bracket(
                bracket.s,
                tuple(
                    Rung(round(sum(run[b][i] for run in runs) / len(runs)), rung.r)
                    for i, rung in enumerate(bracket.rungs)
                ),
            )
            for b, bracket in enumerate(self.brackets)
        )
        spent = sorted(
            sum(
                Bracket(b.s, tuple(Rung(n, rung.r) for n, rung in zip(sizes, b.rungs, strict=True))).resource
                for b, sizes in zip(self.brackets, run, strict=True)
            )
            for run in runs
        )
        tail = len(spent) // 20
        spread = (spent[tail], spent[-1 - tail]) if tail else None
        return Plan(self.max_resource, trials, brackets, exact=False, spread=spread, limit=budget.resource)

    def bracket_of(self, number: int) -> int:
        """The bracket that the number-th trial starts in: a function of the seed and the number.

        Brackets are drawn in proportion to the number of configurations that Hyperband starts in each, so that each
        gets about the same share of the resource.
        """
        if len(self.brackets) == 1:
            return 0
        draw = np.random.default_rng(stream(self.seed, SCHEDULER, number)).random()
        return next(bracket for bracket, share in enumerate(self._shares) if draw < share)

    def _random_orders(self, trials: int) -> list[list[list[int]]]:
        """How many trials report in each rung of each bracket, for some random orders of how good they are."""
        runs = []
        for repeat in range(max(1, _PLANNED_TRIALS // trials)):
            losses = np.random.default_rng(repeat).random(trials)
            core = ASHACore(**self._settings)
            for _ in losses:
                todo = [str(core._added)]
                core.add(todo[0])
                while todo:
                    trial_id = todo.pop()
                    member = core._members[trial_id]
                    value = losses[member.number]
                    while core.report(trial_id, core._rungs[member.bracket][member.rung].resource, value) is CONTINUE:
                        pass
                    todo += core.advance(False, 1).promote
            runs.append([[len(rung.recorded) for rung in rungs] for rungs in core._rungs])
        return runs

    def add(self, trial_id: str, config: Mapping[str, Any] | None = None) -> None:
        """A new trial starts at the bottom of its bracket. Adding it again (a retry) changes nothing."""
        if trial_id in self._members:
            return
        self._members[trial_id] = _Member(self._added, self.bracket_of(self._added))
        self._added += 1
        self._running += 1

    def report(self, trial_id: str, resource: int, loss: float) -> Decision:
        """Records a trial at the highest rung that the report reaches, and pauses it there or decides at once.

        A report that jumps over a rung is not recorded in it: a loss at 40 epochs says nothing beside losses at 1.
        """
        member = self._members[trial_id]
        if member.done:
            return Decision(Action.STOP, "is over")
        if not math.isfinite(loss):
            self.end(trial_id, None)
            return Decision(Action.STOP, f"reported {loss} at {resource}")
        rungs = self._rungs[member.bracket]
        reached = next((i for i in range(len(rungs) - 1, member.rung - 1, -1) if rungs[i].resource <= resource), None)
        if reached is None:
            return CONTINUE
        rung = rungs[reached]
        again = member.loss is not None and reached == member.rung  # it was retried while it was saved for a pause
        if not again:
            member.rung = reached
            self._record(rung, member, loss)
        if reached == len(rungs) - 1:
            member.done = True
            return Decision(Action.STOP, f"reached max_resource {self.max_resource}")
        if not self.pauses:
            return self._go_on_or_stop(rung, member, loss)
        if not again:
            insort(rung.waiting, (loss, member.number, trial_id))
        self._running -= member.running
        member.running = False
        return Decision(Action.PAUSE, f"waits in {rung.name}")

    def next_decision(self, trial_id: str) -> int:
        """The rung of its bracket that it trains for."""
        member = self._members[trial_id]
        return 0 if member.done else self._rungs[member.bracket][member.rung].resource

    def end(self, trial_id: str, loss: float | None) -> None:
        """A trial that ended by itself ranks with its last loss; one that failed ranks last.

        The first moves up for as long as its loss is among the best, and takes up a place in each rung: it is a
        configuration like the others, only that there is nothing left to train.
        """
        member = self._members.get(trial_id)
        if member is None or member.ended:
            return
        self._running -= member.running
        member.running, member.ended = False, True
        rung = self._rungs[member.bracket][member.rung]
        failed = loss is None or not math.isfinite(loss)
        waits = member.loss is not None and not member.done
        if not failed and not member.done and self.pauses and rung.index < len(self._rungs[member.bracket]) - 1:
            assert loss is not None
            if not waits:
                self._record(rung, member, loss)
                insort(rung.waiting, (loss, member.number, trial_id))
            return
        if failed and waits:  # it was recorded already, and failed while it was saved
            assert member.loss is not None
            _remove(rung.recorded, (member.loss, member.number))
            if self.pauses:
                _remove(rung.waiting, (member.loss, member.number, trial_id))
        if not member.done:
            self._record(rung, member, FAILED if failed or loss is None else loss)
            member.done = True

    def forget(self, trial_id: str) -> None:
        """Drops the trial, unless it has ended by itself and may still take up places in the rungs above."""
        member = self._members.get(trial_id)
        if member is not None:
            member.forgotten = True
            self._drop(trial_id, member)

    def advance(self, source_finished: bool, room: int) -> Moves:
        """Promotes as many trials as there is room for; stops the paused ones when nothing can move up any more."""
        promote: list[str] = []
        reasons: dict[str, str] = {}
        while self._changed and len(promote) < room:
            rung = next((rung for rung in self._scan if self._best_can_go_on(rung)), None)
            if rung is None:
                self._changed = False
                break
            loss, number, trial_id = rung.waiting.pop(0)
            reasons[trial_id] = self._rank_text(rung, loss, number)
            if self._move_up(trial_id):
                promote.append(trial_id)
        stop: list[str] = []
        if source_finished and not self._running and not self._changed:
            stop = self._stop_waiting(reasons)
        return Moves(tuple(promote), tuple(stop), reasons) if reasons else NO_MOVES

    def waits_for(self) -> str:
        """More trials, to be compared with those that are paused."""
        waiting = sum(len(rung.waiting) for rung in self._scan)
        return f"{waiting} paused trials wait for others to be compared with" if waiting else ""

    def tags(self, trial_id: str) -> Mapping[str, int]:
        """The trial's bracket, and the highest rung that it entered."""
        member = self._members[trial_id]
        return {"bracket": member.bracket, "rung": member.rung}

    def _record(self, rung: _Rung, member: _Member, loss: float) -> None:
        member.loss = loss
        insort(rung.recorded, (loss, member.number))
        self._changed = True

    def _go_on_or_stop(self, rung: _Rung, member: _Member, loss: float) -> Decision:
        """The stopping variant: no pauses, the first eta - 1 trials of a rung go on whatever their loss.

        Klein, Tiao, Lienart, Archambeau and Seeger, "Model-based Asynchronous Hyperparameter and Neural Architecture
        Search", 2020, section 2.
        """
        if len(rung.recorded) < self.eta or rung.rank(loss, member.number) <= rung.places(self.eta):
            member.rung, member.loss = rung.index + 1, None
            return CONTINUE
        member.done = True
        return Decision(Action.STOP, self._rank_text(rung, loss, member.number))

    def _best_can_go_on(self, rung: _Rung) -> bool:
        return bool(rung.waiting) and rung.rank(*rung.waiting[0][:2]) <= rung.places(self.eta)

    def _move_up(self, trial_id: str) -> bool:
        """Puts a trial into the next rung; False if it has ended and there is nothing left to train."""
        member = self._members[trial_id]
        loss, member.rung, member.loss = member.loss, member.rung + 1, None
        if not member.ended:
            member.running = True
            self._running += 1
            return True
        assert loss is not None
        rungs = self._rungs[member.bracket]
        self._record(rungs[member.rung], member, loss)
        if member.rung < len(rungs) - 1:
            insort(rungs[member.rung].waiting, (loss, member.number, trial_id))
        else:
            member.done = True
            self._drop(trial_id, member)
        return False

    def _drop(self, trial_id: str, member: _Member) -> None:
        if member.forgotten and member.done:
            del self._members[trial_id]

    def _stop_waiting(self, reasons: dict[str, str]) -> list[str]:
        stopped: list[tuple[int, str]] = []
        for rung in self._scan:
            for loss, number, trial_id in rung.waiting:
                member = self._members[trial_id]
                member.done = True
                self._drop(trial_id, member)
                if not member.ended:
                    stopped.append((number, trial_id))
                    reasons[trial_id] = self._rank_text(rung, loss, number)
            rung.waiting.clear()
        return [trial_id for _, trial_id in sorted(stopped)]

    def _rank_text(self, rung: _Rung, loss: float, number: int) -> str:
        places = rung.places(self.eta)
        return f"rank {rung.rank(loss, number)} of {len(rung.recorded)} in {rung.name}, {places} go on"


def _remove(entries: list[Any], entry: tuple[Any, ...]) -> None:
    """Takes an entry out of a sorted list."""
    del entries[bisect_left(entries, entry)]
