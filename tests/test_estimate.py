"""How long a study still takes, against closed forms: units left / units a second, and the longest trial."""

from __future__ import annotations

from functools import cache

import pytest

from hpo_ray.config import load
from hpo_ray.estimate import Estimate, Stretch, Work, work_left
from hpo_ray.events import Decided, Event, Reported, StudyStarted, TrialAdded, TrialEnded
from hpo_ray.results import StudyState, fold
from hpo_ray.study import Draft, draft
from hpo_ray.view import estimate_for


@cache
def drafted(*overrides: str) -> Draft:
    return draft(load(["task=parabola", "task.max_resource=9", *overrides]))


START = StudyStarted("s", "random", "parabola", "loss", "min", 0, 9, 0.0)


def added(number: int, bracket: int | None = None) -> TrialAdded:
    return TrialAdded(str(number), number, {"x": 1.0}, {} if bracket is None else {"bracket": bracket}, 0.0)


def reported(number: int, resource: int, at_s: float = 0.0, seconds: float = 1.0, trained: int = 1) -> Reported:
    return Reported(str(number), resource, trained, {"loss": 1.0 + number}, seconds, at_s)


def ended(number: int, state: str = "completed") -> TrialEnded:
    return TrialEnded(str(number), state, "", "no" if state == "failed" else None, 0.0)


class Watched:
    """A study that is looked at after each event."""

    def __init__(self, study: Draft, *before: Event) -> None:
        self.estimate, self.state = estimate_for(study), fold([START, *before])

    def hear(self, at_s: float, *events: Event, elapsed_s: float | None = None) -> None:
        for event in events:
            self.state.apply(event)
            self.estimate.observe(self.state, at_s, at_s if elapsed_s is None else elapsed_s)
        self.estimate.observe(self.state, at_s, at_s if elapsed_s is None else elapsed_s)

    def left_s(self, at_s: float, elapsed_s: float | None = None) -> float | None:
        return self.estimate.left_s(self.state, at_s, at_s if elapsed_s is None else elapsed_s)


def two_at_a_time() -> Watched:
    """Four trials of 9 steps of a second, two at a time: 2 units a second."""
    watched = Watched(drafted("method=random", "budget.trials=4"), added(0), added(1))
    watched.hear(0.0)
    for t in range(1, 6):
        watched.hear(t, reported(0, t), reported(1, t))
    return watched


def test_units_left_over_units_a_second() -> None:
    watched = two_at_a_time()
    assert work_left(watched.state, drafted("method=random", "budget.trials=4").plan) == Work(26, ((Stretch(26, 9),),))
    assert watched.left_s(5.0) == pytest.approx(26 / 2)


def test_between_two_reports_it_counts_down_and_when_the_next_is_late_it_stops_to() -> None:
    watched = two_at_a_time()
    assert watched.left_s(5.5) == pytest.approx(13.0 - 0.5)
    # 10 reports in 5 s: one each 0.5 s. At 6 s the last half second goes into the speed: 10 units in 5.5 s.
    assert watched.left_s(6.0) == pytest.approx(26 * 5.5 / 10 - 0.5)


def test_the_last_trial_takes_its_own_steps_however_many_trained_before() -> None:
    watched = two_at_a_time()
    for t in range(6, 10):
        watched.hear(t, reported(0, t), reported(1, t))
    watched.hear(9.0, ended(0), ended(1), added(2), added(3))
    for t in range(10, 12):
        watched.hear(t, reported(2, t - 9), reported(3, t - 9))
    watched.hear(11.0, ended(3))
    assert watched.left_s(11.0) == pytest.approx(7.0)  # and not 7 / 2


def test_it_is_silent_until_each_trial_in_training_has_reported() -> None:
    watched = Watched(drafted("method=random", "budget.trials=2"), added(0), added(1))
    watched.hear(0.0)
    assert watched.left_s(100.0) is None
    watched.hear(100.0, reported(0, 1, seconds=100.0))
    assert watched.left_s(100.0) is None, "the other one is as far, but has said nothing yet"
    watched.hear(101.0, reported(1, 1, seconds=101.0))
    assert watched.left_s(101.0) == pytest.approx(max(16 * 101 / 2, 8 * 201 / 2))


def test_it_is_silent_for_three_seconds() -> None:
    watched = two_at_a_time()
    assert watched.left_s(2.9) is None and watched.left_s(3.0) is not None


def test_the_start_of_the_workers_is_no_part_of_the_speed() -> None:
    watched = Watched(drafted("method=random", "budget.trials=1"), added(0))
    watched.hear(0.0)
    for t in range(1, 6):
        watched.hear(20.0 + t, reported(0, t))
    assert watched.left_s(25.0) == pytest.approx(4.0)


def test_the_speed_is_that_of_the_last_minute() -> None:
    watched = Watched(drafted("method=random", "budget.trials=1", "task.max_resource=1000"), added(0))
    watched.hear(0.0)
    for t in range(1, 101):  # a step a second, then four
        watched.hear(t, reported(0, t))
    assert watched.left_s(100.0) == pytest.approx(900.0)
    for i in range(1, 301):
        watched.hear(100 + i / 4, reported(0, 100 + i, seconds=0.25))
    assert watched.left_s(175.0) == pytest.approx(600 / 4)


def test_slow_steps_are_averaged_over_two_of_each_trial() -> None:
    watched = Watched(drafted("method=random", "budget.trials=1"), added(0))
    watched.hear(0.0)
    for t, seconds in ((300, 300), (600, 300), (1000, 400), (1400, 400)):
        watched.hear(t, reported(0, t // 300, seconds=seconds))
    # The last two steps: 400 s each. 9 - 4 are left: the resource of the last report is 1400 // 300.
    assert watched.left_s(1400.0) == pytest.approx(5 * 400)


def test_what_was_before_it_was_looked_at_is_not_in_the_speed() -> None:
    """As when a study is resumed, or was run at another speed."""
    before = [added(0), *(reported(0, r, seconds=50.0) for r in range(1, 5))]
    watched = Watched(drafted("method=random", "budget.trials=1"), *before)
    watched.hear(1000.0)
    for t in range(1, 4):
        watched.hear(1000.0 + t, reported(0, 4 + t))
    assert watched.left_s(1003.0) == pytest.approx(2.0)


def test_steps_that_are_trained_again_bring_the_end_no_nearer() -> None:
    watched = Watched(drafted("method=random", "budget.trials=1"), added(0), reported(0, 1))
    watched.hear(0.0)
    watched.hear(1.0, reported(0, 2))
    again = Reported("0", 2, 1, {"loss": 1.0}, 1.0, 2.0, again=True)
    watched.hear(2.0, again)
    watched.hear(3.0, reported(0, 3))
    assert watched.left_s(3.0) == pytest.approx(6.0)


def test_a_virtual_clock_is_waited_for_on_the_wall() -> None:
    """Ten virtual seconds a second, one step after another: no trial has to wait for its own."""
    study = drafted("method=random", "budget.trials=3", "executor=simulated", "executor.workers=8")
    watched = Watched(study, *(added(n) for n in range(3)))
    watched.hear(0.0)
    for t in range(1, 7):
        watched.hear(t, reported(t % 3, 1 + (t - 1) // 3, seconds=100.0), elapsed_s=10.0 * t)
    assert watched.left_s(6.0, 60.0) == pytest.approx(21.0)
    timed = drafted("method=random", "budget.time_s=100", "executor=simulated", "executor.workers=8")
    watched = Watched(timed, added(0))
    watched.hear(0.0)
    assert watched.left_s(0.0) is None
    for t in range(1, 6):
        watched.hear(t, reported(0, t, seconds=10.0), elapsed_s=10.0 * t)
    assert watched.left_s(5.0, 50.0) == pytest.approx(5.0)


def test_a_budget_of_time_is_known_at_once_and_ends_what_would_take_longer() -> None:
    assert Watched(drafted("method=random", "budget.time_s=40")).left_s(10.0) == 30.0
    both = drafted("method=random", "budget.trials=4", "budget.time_s=15")
    watched = two_at_a_time()
    watched.estimate = Estimate(both.plan, both.budget)
    assert watched.left_s(5.0) == 10.0


def test_brackets_are_left_rung_by_rung() -> None:
    plan = drafted("method=hyperband").plan
    whole = ((9, 1), (6, 2), (6, 6)), ((15, 3), (6, 6)), ((27, 9),)
    chains = tuple(tuple(Stretch(*part) for part in chain) for chain in whole)
    assert work_left(fold([START]), plan) == Work(69, chains)
    state = fold([START, *(added(n, 0) for n in range(9)), *(reported(n, 1) for n in range(8))])
    later = chains[1:]
    rest = (Stretch(6, 2), Stretch(6, 6))
    assert work_left(state, plan) == Work(61, (*later, (Stretch(1, 1), *rest)))
    for event in (ended(8, "failed"), Decided("0", "promote", "", {"bracket": 0}, 0.0), reported(0, 2)):
        state.apply(event)
    # Nobody waits for the place of the trial that failed: of the rung, that is over, nothing is left.
    assert work_left(state, plan) == Work(59, (*later, (Stretch(5, 2), Stretch(6, 6))))
    for event in (*(reported(0, r) for r in range(3, 6)), *(ended(n, "stopped") for n in range(1, 8))):
        state.apply(event)
    assert work_left(state, plan) == Work(48 + 4, (*later, (Stretch(4, 4),)))


def test_a_bracket_takes_at_least_its_longest_trial_in_each_rung() -> None:
    """One trial alone in the top rung: 4 steps of a second, where there is room for a hundred."""
    study = drafted("method=successive_halving")
    state = fold([START, *(added(n, 0) for n in range(9))])
    estimate = estimate_for(study)
    estimate.observe(state, 0.0, 0.0)
    for i in range(8):  # nine trials in a second, one report every ninth of it
        state.apply(reported(i, 1))
        estimate.observe(state, (i + 1) / 9, 0.0)
    state.apply(reported(8, 1))
    estimate.observe(state, 1.0, 1.0)
    assert estimate.left_s(state, 1.0, 1.0) is None
    # A step takes a second: 2 in the second rung and 6 in the third, and not (3 * 2 + 1 * 6) / 9. At 3 s the next
    # report is late by all but the ninth of a second that one takes.
    assert estimate.left_s(state, 3.0, 3.0) == pytest.approx(8.0 - 1 / 9)


@pytest.mark.parametrize(
    ("overrides", "spent", "left"),
    [
        (["method=median"], 10, None),  # at most so many: how many is not known
        (["method=random", "budget.time_s=60"], 10, None),
        (["method=random", "budget.resource=100"], 30, 70),
        (["method=random", "budget.trials=4", "budget.resource=20"], 9, 11),
        (["method=random", "budget.trials=1"], 9, None),  # nothing left
    ],
)
def test_what_is_left(overrides: list[str], spent: int, left: int | None) -> None:
    state: StudyState = fold([START, added(0), reported(0, min(spent, 9), trained=spent)])
    work = work_left(state, drafted(*overrides).plan)
    assert (None if work is None else work.units) == left


def test_what_is_only_expected_is_left_until_it_is_passed() -> None:
    plan = drafted("method=asha").plan
    total = plan.total_resource
    assert total is not None and not plan.exact
    state = fold([START, added(0), reported(0, 9, trained=total - 1)])
    assert work_left(state, plan) == Work(1)
    state.trained = total
    assert work_left(state, plan) is None
