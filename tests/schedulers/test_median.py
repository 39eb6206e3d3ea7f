"""Who ends early by the median stopping rule: numbers by hand, an independent rule beside it, failures, Ray's rule."""

from __future__ import annotations

import math
import random
import statistics
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.tune.schedulers import MedianStoppingRule
from test_adapter import OneTrial, start

from hpo_ray.errors import ConfigError
from hpo_ray.schedulers import Budget, MedianStopping, MedianStoppingCore
from hpo_ray.schedulers.core import NO_MOVES, Action
from hpo_ray.testing import run_study

CONTINUE, STOP = Action.CONTINUE, Action.STOP


def filled(*curves, max_resource=9, **arguments):
    """A core in which trials "0", "1", ... have reported these losses at 1, 2, ... and ended."""
    core = MedianStoppingCore(max_resource, **arguments)
    for number, losses in enumerate(curves):
        core.add(str(number))
        for resource, loss in enumerate(losses, 1):
            core.report(str(number), resource, loss)
        core.end(str(number), losses[-1])
        core.forget(str(number))
    return core


def actions(core, losses, trial_id="new"):
    core.add(trial_id)
    return [core.report(trial_id, resource, loss).action for resource, loss in losses]


def test_the_best_so_far_against_the_median_of_running_averages():
    core = filled([8, 6, 1], [6, 2, 1], [4, 4, 4], min_trials=3)
    # Averages at 1: 8, 6, 4, median 6. At 2: 7, 4, 4, median 4. At 3: 5, 3, 4, median 4.
    assert actions(core, [(1, 6.0), (2, 5.0)]) == [CONTINUE, STOP]  # 6 ties; the best of 6 and 5 is worse than 4
    assert actions(core, [(1, 6.5)], "another") == [STOP]
    # The best so far counts, not the last: 4 at 1, then whatever.
    assert actions(core, [(1, 4.0), (2, 9.0), (3, 9.0), (4, 9.0)], "lucky") == [CONTINUE] * 4


def test_of_an_even_number_the_two_in_the_middle():
    core = filled([1], [2], [4], [9], min_trials=4)
    assert actions(core, [(1, 3.0)], "tie") == [CONTINUE]
    assert core.report("tie", 2, 3.0).action is CONTINUE, "nobody has got to 2"
    assert actions(core, [(1, 3.0001)], "worse") == [STOP]
    assert core.report("worse", 1, 3.0).action is CONTINUE, "the same report again decides nothing"


def test_those_that_were_stopped_take_part_as_far_as_they_got():
    core = filled([1, 1, 1], [3], [5, 5], min_trials=2)
    core.add("a")
    decision = core.report("a", 1, 3.5)  # 1, 3, 5: 3
    assert (decision.action, decision.reason) == (STOP, "worse than the median of 3 completed trials at 1")
    core.add("b")
    assert core.report("b", 2, 3.0).action is CONTINUE  # 1 and 5: 3
    assert core.report("b", 3, 9.0).action is CONTINUE  # trial 0 alone is too few


def test_those_that_run_or_failed_do_not_take_part():
    core = filled([1.0], min_trials=2)
    actions(core, [(1, 1.0)], "running")
    assert actions(core, [(1, 9.0)], "a") == [CONTINUE]
    core.end("running", None)
    assert actions(core, [(1, 9.0)], "b") == [CONTINUE]
    core.end("a", 9.0)
    assert actions(core, [(1, 6.0)], "c") == [STOP]  # 1 and 9: 5
    for loss in (math.nan, math.inf):
        assert actions(core, [(1, 0.0), (2, loss)], f"failed {loss}") == [CONTINUE, STOP]
        core.end(f"failed {loss}", loss)
    core.end("never added", 1.0)
    assert actions(core, [(1, 5.0)], "d") == [CONTINUE] and actions(core, [(1, 5.1)], "e") == [STOP]


def test_what_a_retried_trial_reports_again_counts_once():
    core = filled([4, 2, 1], [4, 2, 1], min_trials=2)  # averages 4, 3, 7/3
    assert actions(core, [(1, 4.0), (2, 3.0)]) == [CONTINUE, CONTINUE]
    core.add("new")  # goes on from its checkpoint at 1, and is worse this time
    assert [core.report("new", r, 9.0).action for r in (1, 2)] == [CONTINUE, CONTINUE]
    assert core.report("new", 3, 9.0).action is STOP  # 3 is worse than 7/3
    core.end("new", 9.0)
    # Its average at 2 is (4 + 3) / 2 = 3.5, the median of 3, 3, 3.5 still 3.
    assert actions(core, [(2, 3.0)], "a") == [CONTINUE] and actions(core, [(2, 3.1)], "b") == [STOP]


def test_sparse_reports():
    core = MedianStoppingCore(9, min_trials=2)
    for trial_id, losses in (("0", {2: 4.0, 6: 2.0}), ("1", {3: 8.0, 5: 6.0})):
        core.add(trial_id)
        for resource, loss in losses.items():
            assert core.report(trial_id, resource, loss).action is CONTINUE
        core.end(trial_id, loss)
    # At 2 trial 0 alone; at 4: 4 (of trial 0's report at 2) and 8, median 6; at 5: 4 and 7; at 6 trial 0 alone.
    assert actions(core, [(2, 9.0)], "a") == [CONTINUE] and actions(core, [(6, 9.0)], "b") == [CONTINUE]
    assert actions(core, [(4, 6.0), (5, 6.0)], "c") == [CONTINUE, STOP]
    core.end("c", 6.0)
    # A resource that is judged at for the first time later: at 3 trial 0 (4) and 1 (8), and not c, which began at 4.
    assert actions(core, [(3, 6.0)], "d") == [CONTINUE] and actions(core, [(3, 6.1)], "e") == [STOP]


def test_grace_and_the_end():
    core = filled([1] * 9, [1] * 9, min_resource=3, min_trials=2)
    assert actions(core, [(1, 5.0), (2, 5.0), (3, 5.0)]) == [CONTINUE, CONTINUE, STOP]
    core.add("good")
    decision = core.report("good", 9, 0.5)
    assert (decision.action, decision.reason) == (STOP, "reached max_resource 9")
    assert core.advance(True, 9) is NO_MOVES and core.waits_for() == "" and core.tags("good") == {}
    assert not core.pauses


def by_rule(curves, losses, resource, min_trials):
    """The rule as it is written, from all that was reported."""
    reached = [curve for curve in curves if max(curve) >= resource and min(curve) <= resource]
    if len(reached) < min_trials:
        return False
    averages = [statistics.fmean(loss for r, loss in curve.items() if r <= resource) for curve in reached]
    return min(losses.values()) > statistics.median(averages)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.integers(2, 12), st.integers(1, 30), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**32))
def test_it_is_the_rule_and_a_fold(max_resource, trials, workers, min_trials, seed):
    draw = random.Random(seed)
    core, log, completed = MedianStoppingCore(max_resource, min_trials=min_trials), [], []

    def tell(method, *arguments):
        log.append((method, arguments, getattr(core, method)(*arguments)))
        return log[-1][2]

    running: dict[str, dict[int, float]] = {}
    added = 0
    while running or added < trials:
        if added < trials and len(running) < workers:
            running[str(added)] = {}
            tell("add", str(added))
            added += 1
            continue
        trial_id = draw.choice(sorted(running))
        losses = running[trial_id]
        resource = max(losses, default=0) + draw.choice([1, 1, 1, 2])
        # Whole numbers, whose averages over a power of two are exact; others differ by their last digit at most.
        losses[resource] = loss = float(draw.randrange(0, 1000))
        action = tell("report", trial_id, resource, loss).action
        assert action is (
            STOP if resource >= max_resource or by_rule(completed, losses, resource, min_trials) else CONTINUE
        )
        if action is STOP or draw.random() < 0.1:
            failed = draw.random() < 0.2
            tell("end", trial_id, None if failed else loss)
            tell("forget", trial_id)
            completed += [] if failed else [losses]
            del running[trial_id]
    fresh = MedianStoppingCore(max_resource, min_trials=min_trials)
    assert all(getattr(fresh, method)(*arguments) == answer for method, arguments, answer in log)
    assert fresh.__dict__ == core.__dict__ and not core._live


def test_plan_is_an_upper_bound():
    plan = MedianStoppingCore(27).plan(Budget(trials=50))
    assert (plan.trials, plan.total_resource, plan.exact, plan.at_most) == (50, 50 * 27, False, True)
    assert plan.about == "at most "
    assert MedianStoppingCore(27).plan(Budget()).trials == 20
    assert MedianStoppingCore(27).plan(Budget(resource=100)).total_resource == 100
    with pytest.raises(ConfigError, match=r"budget\.rounds=2"):
        MedianStoppingCore(27).plan(Budget(rounds=2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_trials": 0}, r"scheduler\.min_trials=0: must be a whole number >= 1"),
        ({"min_trials": 2.5}, r"scheduler\.min_trials=2\.5"),
        ({"min_trials": True}, r"scheduler\.min_trials=True"),
        ({"min_resource": 10}, r"scheduler\.min_resource=10 is above scheduler\.max_resource=9"),
        ({"min_resource": 0}, r"scheduler\.min_resource=0"),
    ],
)
def test_numbers_out_of_range_are_errors(arguments, message):
    with pytest.raises(ConfigError, match=message):
        MedianStoppingCore(9, **arguments)


def test_more_is_better_with_mode_max():
    controller = start(4, MedianStopping(9, min_trials=2, metric="loss", mode="max"))
    first, second, good, bad = controller.trials
    for trial, value in ((first, 0.2), (second, 0.6)):
        controller.report(trial, 1, value)
        controller.scheduler.on_trial_complete(controller, trial, {"training_iteration": 1, "loss": value})
    # The median of 0.2 and 0.6 is 0.4.
    assert controller.report(good, 1, 0.5) == "CONTINUE" and controller.report(bad, 1, 0.3) == "STOP"
    assert controller.scheduler.reason(bad.trial_id) == "worse than the median of 2 completed trials at 1"
    assert controller.choose() is None


class HashableTrial(OneTrial):
    __hash__ = object.__hash__


def test_where_ray_differs():
    """Ray's rule also compares with trials that still run; by the paper there is nothing to compare with yet."""
    ours = start(4, MedianStopping(9, min_trials=3, metric="loss", mode="min"))
    rays = MedianStoppingRule("training_iteration", "loss", "min", grace_period=1, min_samples_required=3)
    trials = [HashableTrial(str(number)) for number in range(4)]
    theirs = [rays.on_trial_result(ours, t, {"training_iteration": 1, "loss": n}) for n, t in enumerate(trials)]
    assert [ours.report(trial, 1, n) for n, trial in enumerate(ours.trials)] == ["CONTINUE"] * 4
    assert theirs == ["CONTINUE"] * 3 + ["STOP"]


def test_a_study(folder: Path) -> None:
    typed = ["method=median", "task=branin", "budget.trials=20", "scheduler.max_resource=9", "executor=inprocess"]
    result = run_study(typed, folder)
    # Branin is the same at each step, and so are its averages: at each step those count that got there.
    before: list[tuple[float, int]] = []
    for trial in result.records:
        value = trial.history[-1][1]
        for resource in range(1, 10):
            reached = [other for other, last in before if last >= resource]
            if len(reached) >= 5 and value > statistics.median(reached):
                break
        assert (trial.state, trial.resource) == ("stopped" if resource < 9 else "completed", resource)
        before.append((value, resource))
    assert len({resource for _, resource in before}) > 2
    assert result.state.trained == sum(resource for _, resource in before)
