"""The integers of successive halving and Hyperband: the tables of Algorithm 1, its laws, and what is refused."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpo_ray.errors import ConfigError
from hpo_ray.schedulers import (
    Bracket,
    Budget,
    FIFOCore,
    HyperbandCore,
    Plan,
    Rung,
    SuccessiveHalvingCore,
    halving_bracket,
    hyperband_brackets,
)
from hpo_ray.schedulers.brackets import most_halvings

deterministic = settings(deadline=None, derandomize=True, max_examples=200)


def table(brackets: list[Bracket]) -> dict[int, list[tuple[int, int]]]:
    return {bracket.s: [(rung.n, rung.r) for rung in bracket.rungs] for bracket in brackets}


# Tables ----------------------------------------------------------------------------------------------------------

# Li et al., JMLR 2018: n = ceil((s_max+1)/(s+1) eta^s), r = R eta^-s, n_i = floor(n eta^-i), r_i = r eta^i.
ALGORITHM_1 = {
    (81, 3, 1): {
        4: [(81, 1), (27, 3), (9, 9), (3, 27), (1, 81)],
        3: [(34, 3), (11, 9), (3, 27), (1, 81)],
        2: [(15, 9), (5, 27), (1, 81)],
        1: [(8, 27), (2, 81)],
        0: [(5, 81)],
    },
    (9, 3, 1): {2: [(9, 1), (3, 3), (1, 9)], 1: [(5, 3), (1, 9)], 0: [(3, 9)]},
    (16, 4, 1): {2: [(16, 1), (4, 4), (1, 16)], 1: [(6, 4), (1, 16)], 0: [(3, 16)]},
    (16, 2, 1): {
        4: [(16, 1), (8, 2), (4, 4), (2, 8), (1, 16)],
        3: [(10, 2), (5, 4), (2, 8), (1, 16)],
        2: [(7, 4), (3, 8), (1, 16)],
        1: [(5, 8), (2, 16)],
        0: [(5, 16)],
    },
    # The least resource cuts the most exploratory brackets off; s_max is then 2.
    (81, 3, 9): {2: [(9, 9), (3, 27), (1, 81)], 1: [(5, 27), (1, 81)], 0: [(3, 81)]},
    # 10 * 3^2 = 90 > 81: it starts at 27, the first rung of at least 10.
    (81, 3, 10): {1: [(3, 27), (1, 81)], 0: [(2, 81)]},
    (5, 7, 1): {0: [(1, 5)]},
    (1, 2, 1): {0: [(1, 1)]},
    (81, 3, 81): {0: [(1, 81)]},
}


@pytest.mark.parametrize(("geometry", "expected"), ALGORITHM_1.items(), ids=str)
def test_the_brackets_are_those_of_algorithm_1_in_its_order(geometry, expected):
    max_resource, eta, min_resource = geometry
    brackets = hyperband_brackets(max_resource, eta, min_resource)
    assert table(brackets) == expected
    assert [bracket.s for bracket in brackets] == sorted(expected, reverse=True)


def test_the_totals_of_81_3():
    brackets = hyperband_brackets(81)
    assert sum(bracket.rungs[0].n for bracket in brackets) == 81 + 34 + 15 + 8 + 5 == 143
    # s=4: 81*1 + 27*2 + 9*6 + 3*18 + 1*54; s=3: 34*3 + 11*6 + 3*18 + 54; s=2: 15*9 + 5*18 + 54; s=1: 8*27 + 2*54; 5*81
    assert [bracket.resource for bracket in brackets] == [297, 276, 279, 324, 405]
    assert [bracket.resource_restarting for bracket in brackets] == [405, 363, 351, 378, 405]
    plan = HyperbandCore(81).plan(Budget())
    assert (plan.trials, plan.total_resource, plan.total_resource_restarting) == (143, 1581, 1902)
    assert plan.full_trainings == 1581 / 81


def test_resources_that_are_no_powers_of_eta_round_down_and_end_at_the_maximum():
    brackets = hyperband_brackets(1000)
    assert [rung.r for rung in brackets[0].rungs] == [1, 4, 12, 37, 111, 333, 1000]
    # One ladder for all: bracket s is its upper s + 1 rungs.
    for bracket in brackets:
        assert [rung.r for rung in bracket.rungs] == [1, 4, 12, 37, 111, 333, 1000][6 - bracket.s :]


@pytest.mark.parametrize(("max_resource", "eta", "s_max"), [(729, 3, 6), (49, 7, 2)])
def test_the_most_exploratory_bracket_is_there_where_a_float_of_its_resource_falls_below_1(max_resource, eta, s_max):
    # R * eta ** -s as floats is 0.999..., so Ray's scheduler drops the bracket: see test_in_own_tuner.
    assert int(max_resource * float(eta) ** -s_max) == 0
    brackets = hyperband_brackets(max_resource, eta)
    assert [bracket.s for bracket in brackets] == list(range(s_max, -1, -1))
    assert brackets[0].rungs[0] == Rung(max_resource, 1)


def test_no_bracket_is_lost_where_a_float_logarithm_falls_below_a_whole_number():
    assert math.floor(math.log(243) / math.log(3)) == 4
    brackets = hyperband_brackets(243)
    assert [bracket.s for bracket in brackets] == [5, 4, 3, 2, 1, 0]
    assert brackets[0].rungs == tuple(Rung(243 // 3**i, 3**i) for i in range(6))


def test_s_max_is_exact_beyond_the_range_of_floats():
    for exponent in (1, 40, 700):
        assert most_halvings(3**exponent, 1, 3) == exponent
        assert most_halvings(3**exponent - 1, 1, 3) == exponent - 1
        assert most_halvings(5 * 3**exponent, 5, 3) == exponent


@pytest.mark.parametrize(
    ("arguments", "s", "rungs"),
    [
        ((81, 3, 1, None), 4, [(81, 1), (27, 3), (9, 9), (3, 27), (1, 81)]),
        ((81, 3, 1, 100), 4, [(100, 1), (33, 3), (11, 9), (3, 27), (1, 81)]),
        # Fewer than 81 start at a higher rung, and still train one to the end.
        ((81, 3, 1, 80), 3, [(80, 3), (26, 9), (8, 27), (2, 81)]),
        ((81, 3, 1, 27), 3, [(27, 3), (9, 9), (3, 27), (1, 81)]),
        ((81, 3, 1, 10), 2, [(10, 9), (3, 27), (1, 81)]),
        ((81, 3, 1, 2), 0, [(2, 81)]),
        ((81, 3, 1, 1), 0, [(1, 81)]),
        ((81, 3, 9, 81), 2, [(81, 9), (27, 27), (9, 81)]),
        ((16, 4, 1, None), 2, [(16, 1), (4, 4), (1, 16)]),
    ],
)
def test_one_halving_starts_higher_rather_than_ending_lower(arguments, s, rungs):
    assert halving_bracket(*arguments) == Bracket(s, tuple(Rung(*rung) for rung in rungs))


# Laws ------------------------------------------------------------------------------------------------------------


@st.composite
def geometries(draw: st.DrawFn) -> tuple[int, int, int]:
    max_resource = draw(st.one_of(st.integers(1, 100), st.integers(1, 10**6)))
    return max_resource, draw(st.integers(2, 10)), draw(st.integers(1, max_resource))


def check_ladder(bracket: Bracket, max_resource: int, eta: int, min_resource: int) -> None:
    rungs, s = bracket.rungs, bracket.s
    assert len(rungs) == s + 1
    assert [rung.r for rung in rungs] == [max_resource // eta ** (s - i) for i in range(s + 1)]
    assert [rung.n for rung in rungs] == [rungs[0].n // eta**i for i in range(s + 1)]
    assert min(rung.n for rung in rungs) >= 1
    assert rungs[0].r >= min_resource and rungs[-1].r == max_resource
    for below, above in pairwise(rungs):
        assert below.r < above.r
        assert eta * below.r <= above.r < eta * (below.r + 1)
        assert above.n == below.n // eta


def units_trained(bracket: Bracket) -> int:
    """Counts, trial by trial and unit by unit, what a bracket trains when trials go on from where they were."""
    reached = [0] * bracket.rungs[0].n
    trained = 0
    for rung in bracket.rungs:
        for trial in range(rung.n):
            while reached[trial] < rung.r:
                reached[trial] += 1
                trained += 1
    return trained


@deterministic
@given(geometries())
def test_laws_of_hyperband_brackets(geometry):
    max_resource, eta, min_resource = geometry
    brackets = hyperband_brackets(max_resource, eta, min_resource)
    s_max = len(brackets) - 1
    assert min_resource * eta**s_max <= max_resource < min_resource * eta ** (s_max + 1)
    assert [bracket.s for bracket in brackets] == list(range(s_max, -1, -1))
    for bracket in brackets:
        check_ladder(bracket, max_resource, eta, min_resource)
        # ceil((s_max + 1) eta^s / (s + 1)), without a division
        size, share = bracket.rungs[0].n, (s_max + 1) * eta**bracket.s
        assert (size - 1) * (bracket.s + 1) < share <= size * (bracket.s + 1)
    assert brackets[0].rungs[0].n == eta**s_max
    assert brackets[-1].rungs == (Rung(s_max + 1, max_resource),)


@deterministic
@given(geometries(), st.integers(1, 1000))
def test_laws_of_one_halving(geometry, n):
    max_resource, eta, min_resource = geometry
    bracket = halving_bracket(max_resource, eta, min_resource, n)
    check_ladder(bracket, max_resource, eta, min_resource)
    assert bracket.rungs[0].n == n
    # It halves as often as both sides allow.
    deeper = bracket.s + 1
    assert eta**deeper > n or min_resource * eta**deeper > max_resource
    default = halving_bracket(max_resource, eta, min_resource)
    assert default.rungs == hyperband_brackets(max_resource, eta, min_resource)[0].rungs


@deterministic
@given(st.integers(1, 60), st.integers(2, 5), st.integers(1, 60), st.integers(1, 40))
def test_resource_is_what_is_trained(max_resource, eta, min_resource, n):
    min_resource = min(min_resource, max_resource)
    for bracket in [
        *hyperband_brackets(max_resource, eta, min_resource),
        halving_bracket(max_resource, eta, min_resource, n),
    ]:
        assert bracket.resource == units_trained(bracket)
        assert bracket.resource_restarting == sum(len(range(rung.n)) * rung.r for rung in bracket.rungs)
        assert bracket.resource <= bracket.resource_restarting


# What is refused -------------------------------------------------------------------------------------------------

BAD_GEOMETRIES = [
    ("max_resource", {"max_resource": 0}, "0"),
    ("max_resource", {"max_resource": -3}, "-3"),
    ("max_resource", {"max_resource": 81.0}, "81.0"),
    ("max_resource", {"max_resource": True}, "True"),
    ("max_resource", {"max_resource": "abc"}, "'abc'"),
    ("max_resource", {"max_resource": None}, "None"),
    ("min_resource", {"min_resource": 0}, "0"),
    ("min_resource", {"min_resource": 1.5}, "1.5"),
    ("min_resource", {"min_resource": True}, "True"),
    ("min_resource", {"min_resource": 10}, "10"),
    ("eta", {"eta": 1}, "1"),
    ("eta", {"eta": -3}, "-3"),
    ("eta", {"eta": 3.0}, "3.0"),
    ("eta", {"eta": True}, "True"),
    ("eta", {"eta": "abc"}, "'abc'"),
    ("eta", {"eta": None}, "None"),
]


@pytest.mark.parametrize("target", [hyperband_brackets, halving_bracket, HyperbandCore, SuccessiveHalvingCore])
@pytest.mark.parametrize(("name", "arguments", "shown"), BAD_GEOMETRIES)
def test_bad_numbers_are_refused_by_name_and_value(target, name, arguments, shown):
    with pytest.raises(ConfigError, match=rf"^scheduler\.{name}={re.escape(shown)}(:| )") as caught:
        target(**{"max_resource": 9, **arguments})
    assert caught.value.key == f"scheduler.{name}"


def test_too_high_a_minimum_names_both_sides():
    with pytest.raises(ConfigError) as caught:
        hyperband_brackets(9, 3, 10)
    assert "scheduler.min_resource=10" in str(caught.value) and "scheduler.max_resource=9" in str(caught.value)


@pytest.mark.parametrize("size", [0, -1, 2.0, True, "abc"])
def test_bad_bracket_sizes_are_refused(size):
    for build in (
        lambda: halving_bracket(9, n=size),
        lambda: SuccessiveHalvingCore(9, bracket_size=size),
    ):
        with pytest.raises(ConfigError, match=rf"^scheduler\.bracket_size={re.escape(repr(size))}: ") as caught:
            build()
        assert caught.value.key == "scheduler.bracket_size"


@pytest.mark.parametrize("max_resource", [0, 1.0, True, "abc"])
def test_fifo_refuses_a_bad_maximum(max_resource):
    with pytest.raises(ConfigError, match=rf"^scheduler\.max_resource={re.escape(repr(max_resource))}: "):
        FIFOCore(max_resource)


# Plans -----------------------------------------------------------------------------------------------------------


def plan_of(core, given_budget: dict) -> tuple[int | None, int | None, int | None, int | None]:
    plan = core.plan(Budget(**given_budget))
    assert isinstance(plan, Plan) and plan.max_resource == 9
    return plan.trials, plan.rounds, plan.total_resource, plan.total_resource_restarting


# (trials, rounds, total_resource, total_resource_restarting) by what the budget names. R = 9, eta = 3:
#   Hyperband, one round: 9 + 5 + 3 = 17 trials; (9 + 3*2 + 6) + (5*3 + 6) + 3*9 = 69; (9+9+9) + (15+9) + 27 = 78.
#   SuccessiveHalving, one bracket: 9 trials; 21; 27.
PLANS = [
    (FIFOCore, {}, (20, 1, 180, 180)),
    (FIFOCore, {"trials": 18}, (18, 1, 162, 162)),
    (FIFOCore, {"rounds": 2}, "budget.rounds"),
    (FIFOCore, {"time_s": 5.0}, (None, 1, None, None)),
    (FIFOCore, {"trials": 18, "rounds": 2}, "budget.rounds"),
    (FIFOCore, {"trials": 18, "time_s": 5.0}, (18, 1, 162, 162)),
    (FIFOCore, {"rounds": 2, "time_s": 5.0}, "budget.rounds"),
    (FIFOCore, {"trials": 18, "rounds": 2, "time_s": 5.0}, "budget.rounds"),
    (SuccessiveHalvingCore, {}, (9, 1, 21, 27)),
    (SuccessiveHalvingCore, {"trials": 18}, (18, 2, 42, 54)),
    (SuccessiveHalvingCore, {"rounds": 3}, (27, 3, 63, 81)),
    (SuccessiveHalvingCore, {"time_s": 5.0}, (None, None, None, None)),
    (SuccessiveHalvingCore, {"trials": 18, "rounds": 2}, "budget.rounds"),
    (SuccessiveHalvingCore, {"trials": 18, "time_s": 5.0}, (18, 2, 42, 54)),
    (SuccessiveHalvingCore, {"rounds": 3, "time_s": 5.0}, (27, 3, 63, 81)),
    (SuccessiveHalvingCore, {"trials": 18, "rounds": 2, "time_s": 5.0}, "budget.rounds"),
    (HyperbandCore, {}, (17, 1, 69, 78)),
    (HyperbandCore, {"trials": 18}, "budget.trials"),
    (HyperbandCore, {"rounds": 2}, (34, 2, 138, 156)),
    (HyperbandCore, {"time_s": 5.0}, (None, None, None, None)),
    (HyperbandCore, {"trials": 18, "rounds": 2}, "budget.trials"),
    (HyperbandCore, {"trials": 18, "time_s": 5.0}, "budget.trials"),
    (HyperbandCore, {"rounds": 2, "time_s": 5.0}, (34, 2, 138, 156)),
    (HyperbandCore, {"trials": 18, "rounds": 2, "time_s": 5.0}, "budget.trials"),
]


@pytest.mark.parametrize(("core", "budget", "expected"), PLANS)
def test_plans(core, budget, expected):
    if not isinstance(expected, str):
        assert plan_of(core(9), budget) == expected
        return
    with pytest.raises(ConfigError) as caught:
        core(9).plan(Budget(**budget))
    assert caught.value.key == expected
    assert f"{expected}={budget[expected.removeprefix('budget.')]}" in str(caught.value)


def test_a_plan_that_only_time_ends_has_no_number_of_full_trainings():
    assert HyperbandCore(9).plan(Budget(time_s=1.0)).full_trainings is None
    assert HyperbandCore(9).plan(Budget(rounds=3)).full_trainings == 3 * 69 / 9
    assert FIFOCore(9).plan(Budget(trials=4)).full_trainings == 4


def test_a_plan_shows_one_round_of_brackets():
    assert HyperbandCore(9).plan(Budget(rounds=4)).brackets == tuple(hyperband_brackets(9))
    assert SuccessiveHalvingCore(9, bracket_size=10).plan(Budget()).brackets == (halving_bracket(9, n=10),)
    assert FIFOCore(9).plan(Budget()).brackets == ()


def test_hyperband_says_how_many_trials_a_round_has_when_trials_are_asked_for():
    with pytest.raises(ConfigError, match=r"budget\.trials=100: .*143 a round.*budget\.rounds"):
        HyperbandCore(81).plan(Budget(trials=100))


@pytest.mark.parametrize(
    ("trials", "advice"),
    [(28, "use 27 or 36"), (35, "use 27 or 36"), (10, "use 9 or 18"), (8, "use 9$"), (1, "use 9$")],
)
def test_trials_that_leave_a_bracket_half_full_are_refused_with_the_nearest_that_do_not(trials, advice):
    with pytest.raises(
        ConfigError, match=rf"^budget\.trials={trials}: .*scheduler\.bracket_size=9.*{advice}"
    ) as caught:
        SuccessiveHalvingCore(9).plan(Budget(trials=trials))
    assert caught.value.key == "budget.trials"
    assert SuccessiveHalvingCore(9, bracket_size=trials).plan(Budget(trials=trials)).rounds == 1
