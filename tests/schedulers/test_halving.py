"""Who goes on and who ends: the synchronous cores under scripted runs, failures in every place, any interleaving."""

from __future__ import annotations

import itertools
import math
import random
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpo_ray.schedulers import HyperbandCore, SuccessiveHalvingCore, hyperband_brackets
from hpo_ray.schedulers.core import NO_MOVES, Action, Moves
from hpo_ray.schedulers.halving import HalvingCore

deterministic = settings(deadline=None, derandomize=True, max_examples=200)

Table = Callable[[int, int], float]
"""Loss of a trial, by number, at a resource."""


@dataclass(frozen=True)
class Fate:
    """What befalls a trial besides training.

    Attributes:
        fails_at: it raises instead of reporting at this resource.
        finishes_at: it ends by itself with its report at this resource.
        fails_paused: it fails while it is paused in this rung: at once if `early`, else when it is drawn.
        retried_at: it fails before it can report at this resource, once, and starts again from its last pause.
        early: see `fails_paused`.
    """

    fails_at: int | None = None
    finishes_at: int | None = None
    fails_paused: int | None = None
    retried_at: int | None = None
    early: bool = True


@dataclass
class Trial:
    number: int
    resource: int = 0
    saved: int = 0
    rung: int = 0
    status: str = "running"
    retried: bool = False

    @property
    def id(self) -> str:
        return f"t{self.number:03d}"


@dataclass
class Run:
    """Trains `trials` trials as Ray does, `workers` at a time; `draw` says whose turn it is.

    The notes that it takes (promotions, failures, resources) come from the core's answers alone.
    """

    core: HalvingCore
    table: Table
    trials: int
    workers: int = 1
    fates: Mapping[int, Fate] = field(default_factory=dict)
    draw: random.Random = field(default_factory=lambda: random.Random(0))
    calls: list[tuple[str, tuple[Any, ...], Any]] = field(default_factory=list)
    all: list[Trial] = field(default_factory=list)
    waiting: list[Trial] = field(default_factory=list)
    failed_in: dict[int, int] = field(default_factory=dict)
    """Rung in which a trial failed, by number."""

    def call(self, method: str, *arguments: Any) -> Any:
        answer = getattr(self.core, method)(*arguments)
        self.calls.append((method, arguments, answer))
        return answer

    def run(self) -> Run:
        while self.turn():
            pass
        assert {trial.status for trial in self.all} <= {"failed", "completed", "lost", "finished"}, "stuck"
        assert self.core.waits_for() == ""
        return self

    def turn(self) -> bool:
        """One event; False when nothing can happen any more."""
        self.fill()
        choices = [trial for trial in self.all if trial.status == "running" or self.dies_paused(trial)]
        if choices:
            self.step(self.draw.choice(choices))
        finished = len(self.all) == self.trials
        moves = self.call("advance", finished, sys.maxsize)
        self.carry_out(moves)
        assert self.call("advance", finished, sys.maxsize) is NO_MOVES
        return bool(choices or self.waiting) or not finished

    def fill(self) -> None:
        """Promoted trials first, then new ones, as long as there are workers."""
        for _ in range(self.workers - sum(trial.status == "running" for trial in self.all)):
            if self.waiting:
                self.waiting.pop(0).status = "running"
            elif len(self.all) < self.trials:
                self.all.append(Trial(len(self.all)))
                self.call("add", self.all[-1].id)

    def fate(self, trial: Trial) -> Fate:
        return self.fates.get(trial.number, Fate())

    def dies_paused(self, trial: Trial) -> bool:
        return trial.status == "paused" and self.fate(trial).fails_paused == trial.rung

    def fail(self, trial: Trial) -> None:
        self.call("end", trial.id, None)
        self.failed_in[trial.number] = trial.rung
        trial.status = "failed"

    def step(self, trial: Trial) -> None:
        fate = self.fate(trial)
        if trial.status == "paused":
            self.fail(trial)
            return
        trial.resource += 1
        loss = self.table(trial.number, trial.resource)
        if trial.resource == fate.retried_at and not trial.retried:
            trial.retried, trial.resource = True, trial.saved
            self.call("add", trial.id)
        elif trial.resource == fate.fails_at:
            trial.resource -= 1
            self.fail(trial)
        elif trial.resource == fate.finishes_at:
            self.call("end", trial.id, loss)
            trial.status = "finished"
        else:
            self.decided(trial, loss, self.call("report", trial.id, trial.resource, loss))

    def decided(self, trial: Trial, loss: float, decision: Any) -> None:
        if decision.action is Action.STOP:
            # Ray tells that a trial is complete after each STOP, with its last result.
            self.call("end", trial.id, loss)
            trial.status = "completed" if math.isfinite(loss) else "failed"
            if trial.status == "failed":
                self.failed_in[trial.number] = trial.rung
        elif decision.action is Action.PAUSE:
            trial.status, trial.saved = "paused", trial.resource
            if self.dies_paused(trial) and self.fate(trial).early:
                self.fail(trial)

    def carry_out(self, moves: Moves) -> None:
        by_id = {trial.id: trial for trial in self.all}
        assert len({*moves.promote, *moves.stop}) == len(moves.promote) + len(moves.stop)
        assert set(moves.reasons or {}) == {*moves.promote, *moves.stop}
        for trial_id in moves.stop:
            assert by_id[trial_id].status == "paused"
            by_id[trial_id].status = "lost"
            self.call("end", trial_id, None)  # Ray: on_trial_remove
        for trial_id in moves.promote:
            trial = by_id[trial_id]
            assert trial.status == "paused"
            trial.status, trial.rung = "promoted", trial.rung + 1
            self.waiting.append(trial)

    def resources(self) -> dict[int, int]:
        """How many trials trained up to which resource and no further."""
        return dict(sorted(Counter(trial.resource for trial in self.all).items()))

    def reached(self, resource: int) -> list[int]:
        return [trial.number for trial in self.all if trial.resource >= resource]

    def highest(self) -> dict[int, tuple[int, int]]:
        return {t.number: (self.core.tags(t.id)["bracket"], self.core.tags(t.id)["rung"]) for t in self.all}


def by_rules(core: HalvingCore, table: Table, trials: int, fates: Mapping[int, Fate], failed_in: Mapping[int, int]):
    """(bracket, highest rung) of each trial, by the rules, from the table and the failures: no states, no calls."""
    highest: dict[int, tuple[int, int]] = {}
    first = 0
    for index in itertools.count():
        bracket = core.brackets[index % len(core.brackets)]
        members = list(range(first, min(first + bracket.rungs[0].n, trials)))
        if not members:
            return highest
        first += len(members)
        size = len(members)
        for i, rung in enumerate(bracket.rungs):
            highest.update({number: (index, i) for number in members})

            def value(number: int, i: int = i, r: int = rung.r) -> float:
                if failed_in.get(number) == i:
                    return math.inf
                end = fates.get(number, Fate()).finishes_at
                loss = table(number, r if end is None else min(r, end))
                return loss if math.isfinite(loss) else math.inf

            ranked = sorted(members, key=lambda number: (value(number), number))
            places = max(1, size // core.eta ** (i + 1))
            members = [number for number in ranked[:places] if math.isfinite(value(number))]


def losses(*values: float) -> Table:
    """The same loss at every resource; trials beyond the list get their number."""
    return lambda number, resource: values[number] if number < len(values) else 1000.0 + number


def halving(max_resource: int = 9, **arguments: Any) -> SuccessiveHalvingCore:
    return SuccessiveHalvingCore(max_resource, **arguments)


# Who goes on -----------------------------------------------------------------------------------------------------


def test_the_best_third_goes_on_and_the_others_end_where_they_are():
    run = Run(halving(), losses(7, 3, 9, 1, 8, 2, 6, 5, 4), 9).run()
    assert run.reached(3) == [1, 3, 5]
    assert run.reached(9) == [3]
    assert run.resources() == {1: 6, 3: 2, 9: 1}
    assert [run.highest()[number] for number in (0, 1, 3, 5)] == [(0, 0), (0, 1), (0, 2), (0, 1)]
    assert Counter(trial.status for trial in run.all) == {"lost": 8, "completed": 1}


def test_ranks_are_by_the_loss_at_the_rung_and_not_before_or_after():
    # Trial 8 is best at 1, worst at 3; trial 0 is worst until 2, and best from 3 on, which it never sees.
    def table(number: int, resource: int) -> float:
        if number == 8:
            return -1 if resource < 3 else 100
        return 50 if number == 0 and resource < 3 else number - 10 * (number == 0)

    run = Run(halving(), table, 9).run()
    assert run.reached(3) == [1, 2, 8] and run.reached(9) == [1]


@pytest.mark.parametrize("workers", [1, 2, 9])
def test_each_bracket_trains_exactly_what_hyperband_plans(workers):
    run = Run(HyperbandCore(81), lambda n, r: -n, 143, workers).run()
    # 1: 81-27; 3: 27-9 and 34-11; 9: 9-3, 11-3 and 15-5; 27: 3-1, 3-1, 5-1 and 8-2; 81: 1+1+1+2+5
    assert run.resources() == {1: 54, 3: 41, 9: 24, 27: 14, 81: 10}
    assert sum(trial.resource for trial in run.all) == 1581
    # Higher numbers are better here: of each bracket the last added go on.
    assert run.reached(81) == [80, 114, 129, 136, 137, 138, 139, 140, 141, 142]


def test_ties_go_to_the_lower_number_whoever_reports_first():
    for seed in range(20):
        run = Run(halving(), lambda n, r: 0.5, 9, workers=9, draw=random.Random(seed)).run()
        assert run.reached(3) == [0, 1, 2] and run.reached(9) == [0]


def test_the_order_in_which_workers_report_changes_nothing():
    quality = random.Random(3).sample(range(34), 34)
    for core in (HyperbandCore, halving):
        outcomes = {
            tuple(Run(core(9), lambda n, r: quality[n], 34, workers, draw=random.Random(seed)).run().highest().items())
            for workers in (1, 2, 5, 17, 34)
            for seed in range(5)
        }
        assert len(outcomes) == 1


def test_a_rung_promotes_the_best_first_and_says_why():
    core = halving()
    for number in range(9):
        core.add(str(number))
    for number in range(8):
        assert core.report(str(number), 1, (number * 5) % 9).reason == "waits at rung 0 of bracket 0"
        assert core.advance(True, sys.maxsize) is NO_MOVES
    core.report("8", 1, (8 * 5) % 9)
    moves = core.advance(True, sys.maxsize)  # losses 0 5 1 6 2 7 3 8 4
    assert moves.promote == ("0", "2", "4")
    assert moves.stop == ("6", "8", "1", "3", "5", "7")
    assert moves.reasons["4"] == "rank 3 of 9 in rung 0 of bracket 0, 3 go on"
    assert moves.reasons["7"] == "rank 9 of 9 in rung 0 of bracket 0, 3 go on"
    assert core.report("0", 2, 0.0).action is Action.CONTINUE
    assert core.report("0", 3, 0.0).reason == "waits at rung 1 of bracket 0"


def test_the_last_rung_stops_each_trial_by_itself():
    core = SuccessiveHalvingCore(4, eta=2, bracket_size=8)  # 8@1 4@2 2@4
    for number in range(8):
        core.add(str(number))
        core.report(str(number), 1, number)
    assert core.advance(True, sys.maxsize).promote == ("0", "1", "2", "3")
    for number in range(4):
        core.report(str(number), 2, number)
    assert core.advance(True, sys.maxsize).promote == ("0", "1")
    assert core.report("1", 3, 0.0).action is Action.CONTINUE
    decision = core.report("1", 4, 0.0)
    assert (decision.action, decision.reason) == (Action.STOP, "reached max_resource 4")


# Brackets --------------------------------------------------------------------------------------------------------


def test_brackets_fill_from_the_most_exploratory_and_the_first_comes_again():
    core = HyperbandCore(9)
    for number in range(2 * 17 + 1):
        core.add(str(number))
    sizes = Counter(core.tags(str(number))["bracket"] for number in range(35))
    assert sizes == {0: 9, 1: 5, 2: 3, 3: 9, 4: 5, 5: 3, 6: 1}
    assert [core.tags(str(number))["bracket"] for number in (0, 8, 9, 13, 14, 16, 17)] == [0, 0, 1, 1, 2, 2, 3]
    # The first report of each: bracket s waits at its own lowest rung.
    assert core.report("0", 1, 0.0).action is Action.PAUSE
    assert [core.report("9", r, 0.0).action for r in (1, 2, 3)] == [Action.CONTINUE, Action.CONTINUE, Action.PAUSE]
    assert [core.report("14", r, 0.0).action for r in (1, 3, 8, 9)] == [Action.CONTINUE] * 3 + [Action.STOP]
    assert core.report("17", 1, 0.0).action is Action.PAUSE


def test_rounds_repeat_the_same_ladder():
    run = Run(HyperbandCore(9), lambda n, r: n % 17, 34, workers=3).run()
    assert run.resources() == {1: 12, 3: 12, 9: 10}
    assert [number + 17 for number in run.reached(9) if number < 17] == [n for n in run.reached(9) if n >= 17]


def test_a_rung_waits_for_trials_that_were_not_added_yet():
    core = HyperbandCore(9)
    assert core.waits_for() == ""
    for number in range(7):
        core.add(str(number))
        core.report(str(number), 1, number)
    assert core.advance(False, sys.maxsize) is NO_MOVES
    assert core.waits_for() == "rung 0 of bracket 0 (s=2) waits for 2 more of its 9 trials"
    for number in (7, 8):
        core.add(str(number))
        assert core.waits_for() == ("" if number == 8 else "rung 0 of bracket 0 (s=2) waits for 1 more of its 9 trials")
        core.report(str(number), 1, number)
    assert core.advance(False, sys.maxsize).promote == ("0", "1", "2")
    core.add("9")
    assert core.waits_for() == "rung 0 of bracket 1 (s=1) waits for 4 more of its 5 trials"


@pytest.mark.parametrize(
    ("trials", "resources"),
    [
        # floor(trials/3) and floor(trials/9) go on, but at least one
        (1, {9: 1}),
        (2, {1: 1, 9: 1}),
        (5, {1: 4, 9: 1}),
        (6, {1: 4, 3: 1, 9: 1}),
        (8, {1: 6, 3: 1, 9: 1}),
        (9, {1: 6, 3: 2, 9: 1}),
        (11, {1: 7, 3: 2, 9: 2}),
    ],
)
@pytest.mark.parametrize("workers", [1, 4])
def test_an_underfull_bracket_closes_when_no_more_trials_come_and_trains_its_best_to_the_end(
    trials, resources, workers
):
    run = Run(halving(), lambda n, r: -n, trials, workers).run()
    assert run.resources() == resources
    assert run.reached(9)[-1] == trials - 1


def test_an_underfull_bracket_closes_late_if_the_source_finishes_after_the_last_report():
    core = halving()
    for number in range(4):
        core.add(str(number))
        core.report(str(number), 1, number)
    assert core.advance(False, sys.maxsize) is NO_MOVES and core.advance(False, sys.maxsize) is NO_MOVES
    assert core.advance(True, sys.maxsize).promote == ("0",)
    assert core.waits_for() == ""
    core.report("0", 3, 0.0)
    assert core.advance(True, sys.maxsize).promote == ("0",)
    assert core.report("0", 9, 0.0).action is Action.STOP


# Failures --------------------------------------------------------------------------------------------------------

RISING = losses(*range(9))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_ends_the_trial_and_ranks_last(bad):
    run = Run(halving(), lambda n, r: bad if n == 0 else n, 9).run()
    decision = next(answer for method, arguments, answer in run.calls if method == "report")
    assert (decision.action, decision.reason) == (Action.STOP, f"reported {bad} at 1")
    assert run.reached(3) == [1, 2, 3] and run.reached(9) == [1]
    assert run.resources() == {1: 6, 3: 2, 9: 1}


def test_a_loss_that_is_not_finite_ends_the_trial_by_itself():
    core = SuccessiveHalvingCore(3)
    for number in range(3):
        core.add(str(number))
    for number, loss in enumerate((math.nan, 1.0, 0.0)):
        core.report(str(number), 1, loss)
    assert core.advance(True, sys.maxsize).promote == ("2",)  # without waiting for anybody to end trial 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_never_promoted_even_if_all_others_failed(bad):
    fates = {number: Fate(fails_at=1) for number in range(1, 9)}
    run = Run(halving(), lambda n, r: bad, 9, fates=fates).run()
    assert run.resources() == {0: 8, 1: 1}


def test_a_loss_that_stops_being_finite_later_does_not_count_with_its_earlier_value():
    run = Run(halving(), lambda n, r: math.nan if n == 0 and r == 2 else n, 9).run()
    assert run.resources() == {1: 6, 2: 1, 3: 1, 9: 1}
    assert run.reached(9) == [1]


@pytest.mark.parametrize("last", [False, True], ids=["among the others", "last of its rung"])
@pytest.mark.parametrize(
    ("fate", "resources"),
    [
        # Trial 0 is the best of 9 as long as it lives; 3 go on, and then 1 of those.
        (Fate(fails_at=1), {0: 1, 1: 5, 3: 2, 9: 1}),
        (Fate(fails_paused=0), {1: 6, 3: 2, 9: 1}),
        (Fate(fails_at=2), {1: 7, 3: 1, 9: 1}),
        (Fate(fails_at=3), {1: 6, 2: 1, 3: 1, 9: 1}),
        (Fate(fails_paused=1), {1: 6, 3: 2, 9: 1}),
        (Fate(fails_at=4), {1: 6, 3: 3}),
        (Fate(fails_at=9), {1: 6, 3: 2, 8: 1}),
    ],
    ids=["before any report", "paused in rung 0", "between", "at a rung", "paused in rung 1", "promoted", "at the top"],
)
def test_a_failure_anywhere_leaves_the_bracket_running(fate, resources, last):
    class InTurn(random.Random):
        """One after the other, trial 0 at the very end or at the very beginning."""

        def choice(self, seq: Sequence[Trial]) -> Trial:
            return seq[-1 if last else 0]

    run = Run(halving(), RISING, 9, workers=9, fates={0: fate}, draw=InTurn()).run()
    assert run.resources() == resources
    assert run.all[0].status == "failed"
    over = fate in (Fate(fails_at=4), Fate(fails_at=9))  # nobody is promoted in its stead: it had its place
    assert [trial.number for trial in run.all if trial.status == "completed"] == ([] if over else [1])


def test_a_rung_whose_last_unfinished_trial_fails_closes():
    core = halving()
    for number in range(9):
        core.add(str(number))
        if number:
            core.report(str(number), 1, number)
    assert core.advance(True, sys.maxsize) is NO_MOVES
    core.end("0", None)
    moves = core.advance(True, sys.maxsize)
    assert moves.promote == ("1", "2", "3") and moves.stop == ("4", "5", "6", "7", "8")
    assert "0" not in moves.reasons


def test_a_bracket_in_which_all_fail_closes_and_the_next_one_starts():
    run = Run(HyperbandCore(9), RISING, 14, fates={number: Fate(fails_at=1) for number in range(9)}).run()
    assert run.resources() == {0: 9, 3: 4, 9: 1}
    assert run.highest()[0] == (0, 0) and run.highest()[9] == (1, 1)


def test_fewer_survivors_than_places_all_go_on():
    run = Run(halving(), RISING, 9, fates={number: Fate(fails_at=1) for number in range(2, 9)}).run()
    assert run.reached(3) == [0, 1] and run.reached(9) == [0]


# Trials that end by themselves -----------------------------------------------------------------------------------


def test_an_early_finisher_uses_up_a_place_as_long_as_its_last_loss_is_among_the_best():
    # 9@3 3@9 1@27. Trial 4 ends at 2 with the best loss: one of 3 places, and then the only one.
    run = Run(halving(27, min_resource=3), losses(0, 1, 2, 3, -1, 5, 6, 7, 8), 9, fates={4: Fate(finishes_at=2)}).run()
    assert run.resources() == {2: 1, 3: 6, 9: 2}
    assert run.reached(9) == [0, 1]
    assert run.highest()[4] == (0, 2)


def test_an_early_finisher_is_ranked_again_in_the_rungs_above():
    # Trial 4 is second of three in rung 0; in rung 1 its loss stays what it was, the others' have fallen below.
    def table(number: int, resource: int) -> float:
        return 0.5 if number == 4 else number - resource

    run = Run(halving(27, min_resource=3), table, 9, fates={4: Fate(finishes_at=1)}).run()
    # rung 0 at 3: losses -3, -2, -1, 0, 0.5 ...: not among 3
    assert run.reached(9) == [0, 1, 2] and run.highest()[4] == (0, 0)
    run = Run(halving(27, min_resource=3), table, 9, fates={n: Fate(finishes_at=1) for n in (1, 2, 3, 4)}).run()
    # losses at 3: trial 0: -3; at their end 1: 0, 2: 1, 3: 2, 4: 0.5; then 5: 2, 6: 3 ... : 0, 1 and 4 go on
    assert run.reached(9) == [0] and run.reached(27) == [0]
    assert [run.highest()[number] for number in (0, 1, 2, 3, 4)] == [(0, 2), (0, 1), (0, 0), (0, 0), (0, 1)]


def test_a_bracket_of_early_finishers_closes_at_once():
    core = halving()
    for number in range(9):
        core.add(str(number))
        core.end(str(number), number)
    moves = core.advance(True, sys.maxsize)
    assert (moves.promote, moves.stop) == ((), ()) and moves is not NO_MOVES, "its rungs have closed"
    assert [core.tags(str(number))["rung"] for number in range(9)] == [2, 1, 1, 0, 0, 0, 0, 0, 0]
    core.add("9")
    assert core.tags("9") == {"bracket": 1, "rung": 0}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_early_finisher_whose_loss_is_not_finite_counts_as_failed(bad):
    core = halving()
    core.add("0")
    core.end("0", bad)
    for number in range(1, 9):
        core.add(str(number))
        core.report(str(number), 1, number)
    assert core.advance(True, sys.maxsize).promote == ("1", "2", "3")
    assert core.tags("0")["rung"] == 0


# Second times ----------------------------------------------------------------------------------------------------


def test_a_second_report_at_a_resource_on_record_changes_nothing():
    core = halving()
    for number in range(9):
        core.add(str(number))
        core.report(str(number), 1, number)
    assert core.report("8", 1, -5.0).action is Action.PAUSE
    assert core.report("0", 1, 50.0).action is Action.PAUSE
    assert core.advance(True, sys.maxsize).promote == ("0", "1", "2")
    # A trial that goes on from an older checkpoint reports below its rung again.
    assert core.report("0", 1, 99.0).action is Action.CONTINUE
    for number in (1, 2, 0):
        core.report(str(number), 3, number)
        core.report(str(number), 3, -number)
    assert core.advance(True, sys.maxsize).promote == ("0",)


def test_a_loser_that_reports_again_is_stopped():
    # It was still being saved when its rung closed, the save failed, and it was started again.
    core = halving()
    for number in range(9):
        core.add(str(number))
        core.report(str(number), 1, number)
    assert "8" in core.advance(True, sys.maxsize).stop
    core.add("8")
    decision = core.report("8", 1, -5.0)
    assert (decision.action, decision.reason) == (Action.STOP, "lost in rung 0 of bracket 0")
    assert core.tags("8") == {"bracket": 0, "rung": 0}
    core.end("8", -5.0)
    assert core.advance(True, sys.maxsize) is NO_MOVES


def test_a_retried_trial_keeps_its_place():
    core = HyperbandCore(9)
    for number in range(9):
        core.add(str(number))
    core.add("0")
    core.add("3")
    core.add("9")
    assert [core.tags(str(number))["bracket"] for number in (0, 3, 8, 9)] == [0, 0, 0, 1]
    for number in range(9):
        core.report(str(number), 1, 0.5)
    core.add("8")
    assert core.advance(False, sys.maxsize).promote == ("0", "1", "2")


def test_a_retry_between_rungs_changes_no_outcome():
    fates = {0: Fate(retried_at=1), 1: Fate(retried_at=2), 2: Fate(retried_at=3), 5: Fate(retried_at=1)}
    assert Run(halving(), RISING, 9, fates=fates).run().highest() == Run(halving(), RISING, 9).run().highest()


def test_what_comes_after_the_end_changes_nothing():
    core = halving()
    for number in range(9):
        core.add(str(number))
        core.end(str(number), number)
        core.end(str(number), None)
    core.advance(True, sys.maxsize)
    assert core.tags("0")["rung"] == 2
    core.end("0", None)
    assert core.advance(True, sys.maxsize) is NO_MOVES and core.waits_for() == ""


# Laws ------------------------------------------------------------------------------------------------------------

resource_or_none = st.one_of(st.none(), st.integers(1, 9))
fates = st.builds(
    Fate,
    fails_at=resource_or_none,
    finishes_at=resource_or_none,
    fails_paused=st.one_of(st.none(), st.integers(0, 2)),
    retried_at=resource_or_none,
    early=st.booleans(),
)


@st.composite
def runs(draw: st.DrawFn) -> tuple[Callable[[], HalvingCore], Run]:
    make: Callable[[], HalvingCore] = draw(
        st.sampled_from(
            [
                lambda: HyperbandCore(9),
                lambda: HyperbandCore(8, eta=2),
                lambda: SuccessiveHalvingCore(9),
                lambda: SuccessiveHalvingCore(9, bracket_size=4),
                lambda: SuccessiveHalvingCore(8, eta=2, bracket_size=11),
                lambda: SuccessiveHalvingCore(9, min_resource=2),
            ]
        )
    )
    trials = draw(st.integers(1, 30))
    befallen = draw(st.dictionaries(st.integers(0, trials - 1), fates, max_size=trials))
    randomness = random.Random(draw(st.integers(0, 2**32)))
    values = randomness.choices([math.nan, math.inf, *range(12)], k=3 * trials)
    run = Run(
        make(),
        lambda number, resource: values[3 * number + resource % 3],
        trials,
        draw(st.integers(1, 6)),
        befallen,
        randomness,
    )
    return make, run


@deterministic
@given(runs())
def test_every_bracket_closes_and_the_right_trials_go_on(drawn):
    _, run = drawn
    run.run()  # fails if it gets stuck
    expected = by_rules(run.core, run.table, run.trials, run.fates, run.failed_in)
    assert run.highest() == expected
    # Who trained to the end: those in the last rung of their bracket that did neither fail nor end before.
    for trial in run.all:
        bracket, rung = expected[trial.number]
        top = run.core.brackets[bracket % len(run.core.brackets)].s == rung
        assert (trial.status == "completed") == (top and trial.status not in ("failed", "finished"))
        if trial.status == "completed":
            assert trial.resource == run.core.max_resource


@deterministic
@given(runs())
def test_feeding_what_happened_to_a_fresh_core_gives_the_same_decisions_and_tags(drawn):
    make, run = drawn
    run.run()
    fresh = make()
    for method, arguments, answer in run.calls:
        assert getattr(fresh, method)(*arguments) == answer
    assert [fresh.tags(trial.id) for trial in run.all] == [run.core.tags(trial.id) for trial in run.all]
    assert fresh.waits_for() == run.core.waits_for()


@deterministic
@given(runs(), st.integers(0, 2**32))
def test_when_rungs_are_closed_changes_no_outcome(drawn, seed):
    # Reports that come in one batch give what they give one by one: cores decide by what happened, not by when asked.
    make, run = drawn
    run.run()
    lazy, draw = make(), random.Random(seed)
    known: dict[str, None] = {}
    promoted: list[str] = []
    for method, arguments, answer in run.calls:
        if method == "advance":
            # It must be asked where the run depended on it: before a promoted trial goes on.
            if answer is not NO_MOVES or draw.random() < 0.2:
                promoted += lazy.advance(*arguments).promote
        else:
            known[arguments[0]] = None
            getattr(lazy, method)(*arguments)
    promoted += lazy.advance(True, sys.maxsize).promote
    assert {trial_id: lazy.tags(trial_id) for trial_id in known} == {t: run.core.tags(t) for t in known}
    assert Counter(promoted) == Counter(t for m, _, answer in run.calls if m == "advance" for t in answer.promote)


def test_every_interleaving_of_a_small_bracket_gives_the_same():
    # 3@1 1@3 with three workers: all orders in which one failure and two reports can come.
    for order in itertools.permutations(range(3)):
        core = SuccessiveHalvingCore(3)
        for number in range(3):
            core.add(str(number))
        moves = []
        for number in order:
            if number == 1:
                core.end("1", None)
            else:
                core.report(str(number), 1, 0.0)
            moves.append(core.advance(True, sys.maxsize))
        assert moves[:2] == [NO_MOVES, NO_MOVES]
        assert (moves[2].promote, moves[2].stop) == (("0",), ("2",))


def test_the_brackets_of_a_core_are_those_of_its_plan():
    assert HyperbandCore(81, 9, 3).brackets == tuple(hyperband_brackets(81, 3, 9))
    assert HyperbandCore(16, eta=2).max_resource == 16 and HyperbandCore(16, eta=2).pauses
