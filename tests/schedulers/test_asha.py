"""Who moves up in ASHA: scripted rungs, an independent Algorithm 2 beside it, failures, brackets, both variants."""

from __future__ import annotations

import math
import random
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpo_ray.errors import ConfigError
from hpo_ray.schedulers import ASHACore, Budget, hyperband_brackets
from hpo_ray.schedulers.core import NO_MOVES, Action

CONTINUE, PAUSE, STOP = Action.CONTINUE, Action.PAUSE, Action.STOP


def filled(losses, max_resource=9, **settings):
    """A core in whose rung 0 these losses were reported, by trials "0", "1", ..."""
    core = ASHACore(max_resource, **settings)
    for number, loss in enumerate(losses):
        core.add(str(number))
        core.report(str(number), 1, loss)
    return core


def promoted(core, room=sys.maxsize, finished=False):
    return list(core.advance(finished, room).promote)


def test_a_third_of_the_rung_may_move_up_rounded_down():
    core = ASHACore(9)
    seen = []
    for number in range(9):  # rising quality: each new trial is the best
        core.add(str(number))
        assert core.report(str(number), 1, -number).action is PAUSE
        seen.append(promoted(core))
    # floor(3 / 3) = 1: trial 2. At four and five still one, which is now trial 3, then 4. So it goes on.
    assert seen == [[], [], ["2"], ["3"], ["4"], ["5"], ["6"], ["7"], ["8"]]


def test_falling_quality_promotes_one_of_three():
    core = ASHACore(9)
    seen = []
    for number in range(9):
        core.add(str(number))
        core.report(str(number), 1, number)
        seen.append(promoted(core))
    assert seen == [[], [], ["0"], [], [], ["1"], [], [], ["2"]]


def test_the_top_rung_comes_first_and_the_best_of_a_rung():
    core = filled([5, 3, 4, 1, 2, 0, 6, 7, 8], max_resource=27)
    assert promoted(core) == ["5", "3", "4"]
    for trial_id, loss in (("5", 0.2), ("3", 0.1), ("4", 0.3)):
        assert core.report(trial_id, 3, loss).action is PAUSE
    for number in (9, 10, 11):
        core.add(str(number))
        core.report(str(number), 1, 0.5)
    # Of three in rung 1 one may go. Of twelve in rung 0 four: 5, which has gone, and 9, 10 and 11 (0.5), by number.
    assert promoted(core, room=1) == ["3"]
    assert promoted(core, room=1) == ["9"]
    assert promoted(core) == ["10", "11"]


def test_no_more_than_there_is_room_for_and_what_comes_meanwhile_counts():
    core = filled([0, 1, 2, 3, 4, 5])
    assert promoted(core, room=0) == []
    assert promoted(core, room=1) == ["0"]
    core.add("6")
    core.report("6", 1, 0.5)  # better than trial 1, which would have been next
    assert promoted(core, room=5) == ["6"]


def test_ties_go_to_the_lower_number_whoever_reports_first():
    core = ASHACore(9)
    for number in range(3):
        core.add(str(number))
    for number in (2, 1, 0):
        core.report(str(number), 1, 7.0)
    assert promoted(core) == ["0"]


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_ends_the_trial_and_ranks_last(loss):
    core = filled([2.0, loss, 3.0])
    assert core.report("2", 1, 3.0).action is PAUSE
    # It counts among the three, so one may go on; it is never that one.
    assert promoted(core) == ["0"]
    only = filled([loss, loss, loss])
    assert promoted(only) == [] and only.advance(True, 1) is NO_MOVES


def test_a_failed_trial_counts_in_the_rung_that_it_trained_for():
    core = filled([1.0, 2.0])
    core.add("2")
    assert promoted(core) == []
    core.end("2", None)
    assert promoted(core) == ["0"]
    core.end("0", None)  # promoted, then failed on the way to rung 1: rung 0 remains what it was
    assert promoted(core) == []
    moves = core.advance(True, 1)
    assert moves.stop == ("1",) and moves.reasons["1"] == "rank 2 of 3 in rung 0 of bracket 0, 1 go on"


def test_one_that_fails_while_it_is_paused_ranks_last_and_leaves_its_place():
    core = filled([0.0, 1.0, 2.0])
    core.end("0", None)
    assert promoted(core) == ["1"]


def test_a_sparse_report_is_recorded_only_at_the_highest_rung_that_it_reaches():
    core = ASHACore(81)
    for number in range(4):
        core.add(str(number))
    assert core.report("0", 40, -100.0).action is PAUSE
    assert core.tags("0") == {"bracket": 0, "rung": 3}
    for number in (1, 2):
        core.report(str(number), 1, number)
    # Two in rung 0, not three: the loss at 40 epochs is not compared with those at 1.
    assert promoted(core) == []
    core.report("3", 1, 3.0)
    assert promoted(core) == ["1"]
    assert core.report("1", 2, 0.0).action is CONTINUE and core.report("1", 4, 0.0).action is PAUSE
    assert core.tags("1")["rung"] == 1


def test_a_trial_that_ends_by_itself_takes_up_places_for_as_long_as_it_is_among_the_best():
    core = filled([1.0, 2.0, 3.0, 4.0], max_resource=27)
    core.add("4")
    core.end("4", 0.0)  # after some reports below the rung, with its last loss
    core.forget("4")
    core.add("5")
    core.report("5", 1, 5.0)
    assert promoted(core) == ["0"]  # two places; the other is trial 4's
    core.report("0", 3, 1.0)
    for number in (6, 7, 8):
        core.add(str(number))
        core.report(str(number), 1, 0.5)
    assert promoted(core) == ["6", "7"]  # of nine three: again trial 4 is one of them
    core.report("6", 3, 0.5)
    # Three in rung 1: 4 (0.0), 6 and 0. The one place there is trial 4's, which has nothing left to train.
    assert promoted(core) == []
    for trial_id in ("0", "6", "7"):
        core.end(trial_id, None)
        core.forget(trial_id)
    assert core.advance(True, 1).stop == ("1", "2", "3", "5", "8")


def test_a_retried_trial_is_recorded_once():
    core = filled([1.0, 2.0])
    core.add("0")  # it failed while it was saved, and reports its rung again
    decision = core.report("0", 1, 0.5)
    assert decision.action is PAUSE and promoted(core) == []
    core.add("2")
    core.report("2", 1, 3.0)
    assert promoted(core) == ["0"]
    core.add("0")  # and again, on its way up: what lies below its next rung decides nothing
    assert core.report("0", 1, 0.5).action is CONTINUE and core.report("0", 3, 0.5).action is PAUSE


def test_when_no_more_come_it_runs_what_it_can_and_then_stops_the_rest():
    core = filled(range(9), max_resource=9)
    assert promoted(core, finished=True) == ["0", "1", "2"]
    assert core.advance(True, 9) is NO_MOVES  # three are running
    for trial_id in ("0", "1"):
        core.report(trial_id, 3, float(trial_id))
        assert core.advance(True, 9) is NO_MOVES
    core.report("2", 3, 2.0)
    assert promoted(core, finished=True) == ["0"]
    assert core.report("0", 9, 0.0).action is STOP
    core.end("0", 0.0)
    assert core.advance(True, 9).stop == ("1", "2", "3", "4", "5", "6", "7", "8")
    for number in range(9):
        core.end(str(number), None)
        core.forget(str(number))
    assert core.advance(True, 9) is NO_MOVES and core.waits_for() == "" and not core._members


def test_nothing_is_stopped_while_more_may_come():
    core = filled(range(9))
    assert core.advance(False, 9).stop == ()
    for trial_id in "012":
        core.end(trial_id, None)
    assert core.advance(False, 9) is NO_MOVES and "6 paused trials wait" in core.waits_for()


class Reference:
    """Algorithm 2 as it is printed: dictionaries, sorted anew each time."""

    def __init__(self, max_resource, eta):
        self.eta, self.resources = eta, [1]
        while self.resources[-1] * eta <= max_resource:
            self.resources.append(self.resources[-1] * eta)
        self.rungs = [{} for _ in self.resources]
        self.promoted = [set() for _ in self.resources]

    def get_job(self):
        for k in range(len(self.rungs) - 2, -1, -1):
            ranked = sorted(self.rungs[k], key=lambda number: (self.rungs[k][number], number))
            for number in ranked[: len(ranked) // self.eta]:
                if number not in self.promoted[k]:
                    self.promoted[k].add(number)
                    return number
        return None


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.integers(2, 4), st.integers(1, 7), st.integers(1, 60), st.integers(0, 2**32))
def test_it_is_algorithm_2_for_any_number_of_workers_and_any_order(eta, workers, trials, seed):
    draw = random.Random(seed)
    max_resource = eta**3
    core, reference = ASHACore(max_resource, eta=eta), Reference(max_resource, eta)
    running: dict[int, int] = {}
    added, jobs = 0, []
    while True:
        while len(running) < workers:
            theirs = reference.get_job()
            ours = promoted(core, room=1, finished=added == trials)
            assert ours == ([] if theirs is None else [str(theirs)])
            if theirs is not None:
                running[theirs] = next(k for k, rung in enumerate(reference.rungs) if theirs not in rung)
            elif added < trials:
                core.add(str(added))
                running[added] = 0
                added += 1
            else:
                break
        if not running:
            break
        number = draw.choice(sorted(running))
        rung, loss = running.pop(number), float(draw.randrange(20))
        resource = reference.resources[rung]
        reference.rungs[rung][number] = loss
        jobs.append((number, rung))
        last = rung == len(reference.rungs) - 1
        assert core.report(str(number), resource, loss).action is (STOP if last else PAUSE)
        if last:
            core.end(str(number), loss)
    # Everything that could move up has: each rung fed the next with at least its best 1/eta.
    sizes = Counter(rung for _, rung in jobs)
    assert sizes[0] == trials and all(sizes[k + 1] >= sizes[k] // eta for k in range(3))


def test_rungs_are_those_of_hyperband():
    for max_resource, eta in ((81, 3), (1000, 3), (729, 3), (49, 7), (243, 3), (5, 2)):
        core = ASHACore(max_resource, eta=eta)
        assert [rung.r for rung in core.brackets[0].rungs] == [
            rung.r for rung in hyperband_brackets(max_resource, eta)[0].rungs
        ]


def test_trials_are_spread_over_brackets_in_proportion_to_hyperbands():
    core = ASHACore(81, brackets=5, seed=3)
    counts = Counter(core.bracket_of(number) for number in range(20_000))
    # 81, 34, 15, 8, 5 of 143. Standard deviations are at most sqrt(0.25 / 20000) = 0.0036; four of them.
    for bracket, n in enumerate((81, 34, 15, 8, 5)):
        assert abs(counts[bracket] / 20_000 - n / 143) < 0.0142
    assert [core.bracket_of(n) for n in range(50)] == [
        ASHACore(81, brackets=5, seed=3).bracket_of(n) for n in range(50)
    ]
    assert [core.bracket_of(n) for n in range(50)] != [
        ASHACore(81, brackets=5, seed=4).bracket_of(n) for n in range(50)
    ]


def test_trials_of_different_brackets_are_not_compared():
    core = ASHACore(3, brackets=2, seed=0)  # bracket 1 is one rung, at 3
    brackets = [core.bracket_of(number) for number in range(12)]
    low = [number for number in range(12) if brackets[number] == 0]
    assert 0 < len(low) < 12
    for number in range(12):
        core.add(str(number))
        assert core.tags(str(number)) == {"bracket": brackets[number], "rung": 0}
        action = core.report(str(number), 1, number).action
        assert action is (PAUSE if brackets[number] == 0 else CONTINUE)
    assert promoted(core) == [str(number) for number in low[: len(low) // 3]]


def test_of_several_brackets_the_rungs_next_to_the_top_come_first():
    core = ASHACore(9, brackets=2, seed=0)  # rungs at 1, 3, 9 and at 3, 9
    of = {bracket: [n for n in range(60) if core.bracket_of(n) == bracket][:9] for bracket in (0, 1)}
    for number in range(60):
        core.add(str(number))
    for number in of[0]:
        core.report(str(number), 1, number)
    for number in of[1][:3]:
        core.report(str(number), 3, number)
    assert promoted(core) == [str(number) for number in (of[1][0], *of[0][:3])]


def test_stopping_lets_the_first_eta_minus_one_go_on_and_then_the_best_third():
    core = ASHACore(9, variant="stopping")
    assert not core.pauses
    actions = []
    for number, loss in enumerate([5.0, 6.0, 7.0, 5.5, 4.0, 4.5, 5.0, 3.0]):
        core.add(str(number))
        actions.append(core.report(str(number), 1, loss).action)
    # Of 3, 4 and 5 one place: 7.0 is third, 5.5 second, 4.0 first. Of 6, 7, 8 two: 4.5 second; 5.0 ties with trial 0
    # for third; 3.0 first.
    assert actions == [CONTINUE, CONTINUE, STOP, STOP, CONTINUE, CONTINUE, STOP, CONTINUE]
    assert core.advance(True, 9) is NO_MOVES
    assert core.report("0", 2, 5.0).action is CONTINUE and core.report("0", 3, 5.0).action is CONTINUE
    assert core.report("0", 9, 5.0).action is STOP


def test_stopping_stops_ties_and_losses_that_are_not_finite():
    core = ASHACore(9, variant="stopping")
    actions = []
    for number, loss in enumerate([1.0, 1.0, 1.0, 1.0, math.nan]):
        core.add(str(number))
        actions.append(core.report(str(number), 1, loss).action)
    assert actions == [CONTINUE, CONTINUE, STOP, STOP, STOP]


def test_stopping_never_judges_a_sparse_report_in_a_rung_that_it_jumped_over():
    core = ASHACore(27, variant="stopping")
    for number in range(4):
        core.add(str(number))
        assert core.report(str(number), 1, number).action is (CONTINUE if number < 2 else STOP)
    core.add("4")
    assert core.report("4", 10, 100.0).action is CONTINUE  # the first in rung 2
    core.add("5")
    assert core.report("5", 1, 0.5).action is STOP  # second of five, and not of six


def test_plan():
    plan = ASHACore(81).plan(Budget())
    sizes = [rung.n for rung in plan.brackets[0].rungs]
    assert [rung.r for rung in plan.brackets[0].rungs] == [1, 3, 9, 27, 81]
    # At least what synchronous halving promotes, and not twice as many.
    assert sizes[0] == 81 and all(least <= n < 2 * least + 3 for n, least in zip(sizes, (81, 27, 9, 3, 1), strict=True))
    assert (plan.trials, plan.exact, plan.total_resource) == (81, False, plan.brackets[0].resource)
    assert plan == ASHACore(81).plan(Budget())
    assert plan.spread is not None and plan.spread[0] <= plan.total_resource <= plan.spread[1]
    # The best possible order trains what synchronous halving does.
    assert plan.spread[0] >= 81 + 27 * 2 + 9 * 6 + 3 * 18 + 1 * 54
    assert ASHACore(81).plan(Budget(trials=2000)).spread is None  # one order is no spread
    assert ASHACore(81).plan(Budget(trials=10_000)).trials == 10_000
    assert ASHACore(81).plan(Budget(time_s=9)).trials is None
    open_ended = ASHACore(81).plan(Budget(resource=500))
    assert (open_ended.trials, open_ended.total_resource) == (None, 500)
    several = ASHACore(81, brackets=5).plan(Budget())
    assert several.trials == 143 and sum(bracket.rungs[0].n for bracket in several.brackets) == 143


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"brackets": 0}, "brackets"),
        ({"brackets": 6}, "brackets=6: must be a whole number from 1 to 5"),
        ({"brackets": True}, "brackets"),
        ({"variant": "async"}, "variant='async': must be promotion or stopping"),
        ({"eta": 1}, "eta"),
        ({"min_resource": 82}, "min_resource"),
    ],
)
def test_numbers_out_of_range_are_errors(settings, key):
    with pytest.raises(ConfigError, match=rf"scheduler\.{key}"):
        ASHACore(81, **settings)


def test_rounds_are_an_error():
    with pytest.raises(ConfigError, match=r"budget\.rounds=2: ASHA has no rounds"):
        ASHACore(81).plan(Budget(rounds=2))
