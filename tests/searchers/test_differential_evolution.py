"""Differential evolution and DEHB: vectors and selection by hand, sub-populations, and whole studies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
import pytest
from histories import MIXED, check_continuation, mixed_loss, play, play_hyperband

from hpo_ray.config import load
from hpo_ray.errors import ConfigError
from hpo_ray.events import FILE_NAME, read
from hpo_ray.results import StudyResult
from hpo_ray.schedulers import ASHACore, HyperbandCore, SuccessiveHalvingCore
from hpo_ray.schedulers.brackets import Ladder
from hpo_ray.searchers import DECore, DESearcher, Proposal
from hpo_ray.searchers.differential_evolution import STRATEGIES, sizes_of, trial_vector
from hpo_ray.space import Categorical, Float, Int, Space
from hpo_ray.study import draft
from hpo_ray.testing import run_study

LINE = Space({"x": Float(0.0, 1.0)})


class Table:
    """A generator that gives the draws of a table."""

    def __init__(self, uniform: Sequence[Sequence[float]], whole: int) -> None:
        self.rows, self.whole = list(uniform), whole

    def random(self, size: int) -> np.ndarray[Any, Any]:
        row = np.array(self.rows.pop(0))
        assert len(row) == size
        return row

    def integers(self, high: int) -> int:
        assert self.whole < high
        return self.whole


def vector(uniform: Sequence[Sequence[float]], whole: int, f: float = 0.5, cr: float = 0.5) -> list[float]:
    target, a, b, c = (np.array(x) for x in ([0.1, 0.2, 0.3, 0.4], [0.5] * 4, [0.9, 0.2, 1.0, 0.6], [0.1, 0.8, 0, 0.6]))
    rng = cast("np.random.Generator", Table(uniform, whole))
    return [float(x) for x in trial_vector(target, a, b, c, f, cr, rng)]


def core(space: Space = MIXED, **settings: Any) -> DECore:
    return DECore(space, **{"ladder": Ladder.single(1), "population": 4, **settings})


def suggested(it: DECore, number: int) -> Proposal:
    proposal = it.suggest(number)
    assert proposal is not None
    return proposal


def told(it: DECore, number: int, *reports: tuple[int, float], x: float | None = None, end: str = "") -> None:
    """A trial that reported losses at resources, and is over if `end` says how."""
    it.add(number, {"x": number / 100 if x is None else x} if it.space is LINE else it.sample(number))
    for resource, loss in reports:
        it.report(number, resource, [loss])
    if end:
        it.end(number, end)


# Vectors


def test_trial_vector() -> None:
    """The mutant is 0.5 + 0.5 (0.8, -0.6, 1, 0) = (0.9, 0.2, 1, 0.5)."""
    nothing = [0.0] * 4
    assert vector([nothing, [0.4, 0.6, 0.5, 0.9]], 0) == pytest.approx([0.9, 0.2, 1.0, 0.4]), "where the draw is <= cr"
    assert vector([nothing, [0.9, 0.9, 0.9, 0.9]], 3) == pytest.approx([0.1, 0.2, 0.3, 0.5]), "one in any case"
    assert vector([nothing, [0.1, 0.1, 0.1, 0.1]], 0, cr=0.0) == pytest.approx([0.9, 0.2, 0.3, 0.4])
    assert vector([nothing, [0.9, 0.9, 0.9, 0.9]], 0, cr=1.0) == pytest.approx([0.9, 0.2, 1.0, 0.5])


def test_coordinates_beyond_the_cube_are_drawn_anew() -> None:
    """With f = 1 the mutant is (1.3, -0.1, 1.5, 0.5)."""
    made = vector([[0.11, 0.12, 0.13, 0.14], [0.0] * 4], 0, f=1.0)
    assert made == pytest.approx([0.11, 0.12, 0.13, 0.5])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_vector_is_made_of_three_others(strategy: str) -> None:
    it = core(LINE, strategy=strategy, population=6, f=0.3, cr=1.0)
    for number, loss in enumerate([5.0, 4.0, 0.0, 3.0, 2.0, 1.0]):
        told(it, number, (1, loss), x=(number + 5) / 16)
    for number in range(6, 12):
        target, a, b, c = suggested(it, number).tags["parents"]
        assert target == number - 6
        assert len({a, b, c}) == 3 and not {b, c} & {target}
        assert a == 2 if strategy == "best1bin" else a != target
        x = {n: it.trials[n].config["x"] for n in (a, b, c)}
        assert suggested(it, number).config["x"] == pytest.approx(x[a] + 0.3 * (x[b] - x[c]))


def test_values_without_numbers_are_decoded() -> None:
    """Genes of the first choice lie in [0, 1/3), of the second in [1/3, 2/3)."""
    space = Space({"a": ["p", "q", "r"], "n": Int(1, 4), "s": Categorical((1, 10, 100), ordered=True), "k": "fixed"})
    it = core(space, population=8)
    proposals = play(it, lambda c: float(c["n"]), 36)
    assert len({tuple(p.config.values()) for p in proposals[:18]}) == 18, "of 36 there are"
    assert all(space.check(p.config) == p.config for p in proposals)
    for number in range(8):
        genes = it._vector(number)
        assert len(genes) == 3
        assert it.space.from_units(it._whole(genes)) == it.trials[number].config


def test_genes_of_inactive_names_are_those_of_random_search() -> None:
    it = core(MIXED)
    number = next(n for n in range(50) if it.sample(n)["optimizer"] == "adam")
    it.add(number, it.sample(number))
    place = it.free.index("momentum")
    assert it._vector(number)[place] == it.rng(number).random(len(MIXED))[MIXED.names.index("momentum")]


# Selection


def test_the_better_takes_the_place_and_a_tie_too() -> None:
    it = core(LINE)
    for number, loss in enumerate([3.0, 3.0, 3.0, 3.0]):
        told(it, number, (1, loss), end="completed")
    assert it._members == {1: [0, 1, 2, 3]}
    told(it, 4, (1, 2.0), end="completed")
    told(it, 5, (1, 3.0), end="completed")
    told(it, 6, (1, 3.5), end="completed")
    told(it, 7, end="failed")
    assert it._members == {1: [4, 5, 2, 3]}
    assert suggested(it, 8).tags["parents"][0] == 4 and suggested(it, 8).tags["generation"] == 2
    told(it, 8, (1, 1.0))
    assert it._members == {1: [8, 5, 2, 3]}
    it.end(8, "failed")
    assert it._members == {1: [None, 5, 2, 3]}, "what fails after all leaves its place"
    assert set(it._fitness) == {(1, 5), (1, 2), (1, 3)}
    for number in (9, 10, 11):
        told(it, number, end="failed")
    proposal = suggested(it, 12)
    assert sorted(proposal.tags["parents"]) == [2, 3, 5], "an empty place has a random target"
    told(it, 12, (1, 9.0))
    assert it._members == {1: [12, 5, 2, 3]}


def test_the_first_are_random() -> None:
    it = core(population=6)
    proposals = play(it, mixed_loss, 12, failing={1, 2, 3, 4})
    assert [p.config for p in proposals[:6]] == [it.sample(n) for n in range(6)]
    assert all(p.tags == {"generation": 0, "parents": []} for p in proposals[:6])
    assert [p.config for p in proposals[6:8]] == [it.sample(6), it.sample(7)], "there are two members, then three"
    assert proposals[9].tags["parents"], "there are four"


def test_more_workers_than_places() -> None:
    it = core(population=5)
    proposals = play(it, mixed_loss, 60, workers=9)
    assert all(not p.tags["parents"] for p in proposals[:9])
    assert sum(bool(p.tags["parents"]) for p in proposals) > 40
    assert all(n < number - 8 for number, p in enumerate(proposals) for n in p.tags["parents"])


def test_what_ends_by_itself_competes_where_it_was_heading() -> None:
    it = core(LINE, ladder=HyperbandCore(9).ladder, population=4)
    told(it, 0, (1, 3.0), (2, 1.0), end="completed")
    assert it._members[3][0] == 0 and it._fitness[3, 0] == (0, 1.0) and it._members[9][0] is None
    alone = core(LINE, ladder=Ladder.single(9))
    told(alone, 0, (1, 3.0), (2, 1.0), end="completed")
    assert alone._members == {9: [0, None, None, None]}
    told(alone, 1, (1, 3.0), (2, 1.0), end="stopped")
    told(alone, 2, end="completed")
    assert alone._members == {9: [0, None, None, None]}


def test_without_a_ladder_the_further_is_the_better() -> None:
    it = core(LINE, ladder=None)
    told(it, 0, (1, 0.0), (3, 2.0), end="stopped")
    for number in (1, 2, 3):
        told(it, number, (9, 5.0), end="completed")
    told(it, 4, (9, 5.0))
    assert it._members == {0: [0, 1, 2, 3]}, "it counts when it is over"
    it.end(4, "completed")
    told(it, 5, (3, 0.0), end="stopped")
    assert it._members == {0: [4, 1, 2, 3]}


# Sub-populations


def test_sizes_are_the_most_that_a_bracket_brings() -> None:
    for max_resource in (9, 27, 81, 100, 243):
        for eta in (2, 3, 4):
            it = HyperbandCore(max_resource, eta=eta)
            most: dict[int, int] = {}
            for bracket in it.brackets:
                for rung in bracket.rungs:
                    most[rung.r] = max(most.get(rung.r, 0), rung.n)
            assert sizes_of(it.ladder.resources) == {r: max(4, n) for r, n in sorted(most.items())}
    assert sizes_of((1, 3, 9, 27)) == {1: 27, 3: 12, 9: 6, 27: 4}
    assert sizes_of((1, 3, 9, 27), 54) == {1: 54, 3: 24, 9: 12, 27: 8}
    assert sizes_of((1, 3, 9, 27), 4) == {1: 4, 3: 4, 9: 4, 27: 4}
    assert sizes_of((27,)) == {27: 10} and sizes_of((27,), 5) == {27: 5}


def test_sub_populations_of_a_round_of_hyperband() -> None:
    """R = 9: 9 trials start at 1, of which 3 come to 3 and 1 to 9; 5 start at 3, 1 comes to 9; 3 start at 9."""
    it = DECore(LINE, ladder=HyperbandCore(9).ladder)
    assert it.sizes == {1: 9, 3: 5, 9: 4}
    proposals = play_hyperband(it, lambda config, fidelity: abs(config["x"] - 0.5) + 1 - fidelity, 9)
    assert len(proposals) == 17
    assert [p.config for p in proposals[:9]] == [it.sample(n) for n in range(9)], "the first bracket is random"
    assert it._members[1] == list(range(9))
    ranked = sorted(range(9), key=lambda n: it.trials[n].curve[1])
    parents = [p.tags["parents"] for p in proposals[9:]]
    for place, chosen in enumerate(parents[:5]):
        # Three places are taken by those that came from below.
        assert chosen[:-3] == ranked[place : place + 1] * (place < 3), "the others have a random target"
        assert set(chosen[-3:]) <= set(ranked[:6]), "the best five of the rung below, without the target"
    assert all(p.tags["parents"] for p in proposals[14:])
    assert it._members[9][:2] != [None, None]


def test_who_moves_up_takes_an_empty_place_or_that_of_the_worst() -> None:
    it = DECore(LINE, ladder=HyperbandCore(9).ladder, population=4)
    assert it.sizes == {1: 4, 3: 4, 9: 4}
    for number, loss in enumerate([4.0, 2.0, 3.0, 1.0]):
        told(it, number, (1, 0.0), (3, loss))
    assert it._members[3] == [0, 1, 2, 3]
    told(it, 4, (1, 0.0), (3, 4.5))
    assert it._members[3] == [0, 1, 2, 3], "worse than the worst"
    told(it, 5, (1, 0.0), (3, 4.0))
    assert it._members[3] == [5, 1, 2, 3], "a tie"
    told(it, 6, (1, 0.0), (3, 0.5))
    assert it._members[3] == [6, 1, 2, 3]
    for number in (7, 8):
        told(it, number)
    told(it, 9, (3, 3.9))  # the first that starts at 3: its target is in place 0
    told(it, 10, (3, 2.0))
    assert it._members[3] == [6, 10, 2, 3]
    assert it._members[9] == [None] * 4


def test_too_few_below_are_filled_up_with_the_others() -> None:
    it = DECore(LINE, ladder=HyperbandCore(9).ladder)
    for number in range(9):
        told(it, number, *(((1, 1.0), (3, 1.0)) if number in (1, 4) else ()), end="" if number in (1, 4) else "failed")
    assert suggested(it, 9).tags["parents"] == []
    told(it, 9, (3, 2.0))
    told(it, 10, (3, 2.0))
    told(it, 11, (3, 2.0))
    assert it._members[3] == [1, 4, 11, None, None], "9 and 10 were worse than their targets"
    assert sorted(suggested(it, 12).tags["parents"]) == [1, 4, 11], "of the two below and the three here"


@pytest.mark.parametrize("scheduler", [ASHACore(27, brackets=3), SuccessiveHalvingCore(27)])
def test_any_ladder(scheduler: Any) -> None:
    it = DECore(MIXED, ladder=scheduler.ladder, population=6)
    for number in range(120):
        proposal = suggested(it, number)
        it.add(number, proposal.config, proposal.tags)
        for resource in range(scheduler.ladder.start(number), 28 if number % 3 == 0 else 4):
            it.report(number, resource, [mixed_loss(proposal.config, resource / 27)])
        it.end(number, "completed" if number % 3 == 0 else "stopped")
    assert all(member is not None for members in it._members.values() for member in members)
    assert bool(suggested(it, 120).tags["parents"])


# Configurations and laws


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_all_values_are_inside_and_none_comes_twice(strategy: str) -> None:
    it = core(population=6, strategy=strategy, seed=3)
    proposals = play(it, mixed_loss, 90, workers=2)
    assert all(MIXED.check(p.config) == p.config for p in proposals)
    flat = [tuple(sorted(MIXED.flatten(p.config).items())) for p in proposals]
    assert len(set(flat)) == 90
    assert sum(bool(p.tags["parents"]) for p in proposals) > 70


def test_a_space_of_one_configuration() -> None:
    assert [p.config for p in play(core(Space({"x": 3})), lambda c: 1.0, 9)] == [{"x": 3}] * 9


def test_known_configurations_come_first_and_are_members() -> None:
    it = core(LINE, initial=[{"x": 0.5}, {"x": 0.25}])
    proposals = play(it, lambda c: abs(c["x"] - 0.3), 5)
    assert [p.config for p in proposals[:2]] == [{"x": 0.5}, {"x": 0.25}]
    assert proposals[2].config == it.sample(2)
    assert proposals[4].tags["parents"][0] == 0


@pytest.mark.parametrize("workers", [1, 5])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_law_of_continuation(strategy: str, workers: int) -> None:
    it = core(strategy=strategy, seed=5)
    play(it, mixed_loss, 40, workers=workers, failing={2, 9, 10, 11})
    check_continuation(lambda: core(strategy=strategy, seed=5), it.journal)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_law_of_continuation_under_hyperband(strategy: str) -> None:
    def make() -> DECore:
        return DECore(MIXED, seed=1, strategy=strategy, ladder=HyperbandCore(9).ladder)

    it = make()
    play_hyperband(it, mixed_loss, 9, rounds=3, failing={0, 3, 7, 12})
    check_continuation(make, it.journal)


def test_another_seed_other_configurations() -> None:
    first, again, other = (play(core(seed=seed), mixed_loss, 20) for seed in (1, 1, 2))
    assert first == again
    assert all(a.config != b.config for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(
    ("setting", "value"),
    [("population", 3), ("population", 4.5), ("strategy", "rand2bin"), ("f", 0), ("f", 2.5), ("cr", -0.1)],
)
def test_what_can_not_be(setting: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"searcher.{setting}={value}") as error:
        core(**{setting: value})
    assert error.value.key == f"searcher.{setting}"


# Studies


def best(result: StudyResult) -> float:
    assert result.best is not None
    return result.best.value


@pytest.mark.slow
def test_better_than_random_on_hartmann6(folder: Path) -> None:
    """The median of three seeds."""
    common = ["task=hartmann6", "budget.trials=150", "executor=inprocess", "task.max_resource=1"]
    methods = ("method=random", *(f"method=de searcher.strategy={strategy}" for strategy in STRATEGIES))
    random, *others = (
        median(best(run_study([*method.split(), *common, f"seed={s}"], folder)) for s in range(3)) for method in methods
    )
    assert all(other < random - 0.2 for other in others)


@pytest.mark.slow
def test_dehb_is_better_than_hyperband_on_hartmann6(folder: Path) -> None:
    """The median of three seeds."""
    common = ["task=hartmann6", "budget.rounds=3", "executor=inprocess"]
    dehb, hyperband = (
        median(best(run_study([f"method={method}", *common, f"seed={s}"], folder)) for s in range(3))
        for method in ("dehb", "hyperband")
    )
    assert dehb < hyperband - 0.2


def test_the_log_gives_the_state_again(folder: Path) -> None:
    overrides = ["method=dehb", "task=hartmann6", "budget.rounds=2", "executor=inprocess", "executor.workers=3"]
    result = run_study(overrides, folder)
    assert sum(bool(trial.tags["parents"]) for trial in result.records) > 49
    drafted = draft(load(overrides))

    def make() -> DESearcher:
        return DESearcher(drafted.space, metric="loss", mode="min", ladder=drafted.ladder, strategy="rand1bin")

    searcher = make()
    for event in read(result.path / FILE_NAME):
        searcher.observe(event)
    check_continuation(lambda: make().core, searcher.core.journal)


def test_proposals_for_a_perceptron() -> None:
    drafted = draft(load(["method=dehb", "task=digits_mlp"]))
    it = DECore(drafted.space, ladder=drafted.ladder)
    play_hyperband(it, lambda config, fidelity: config["lr"] + 1 - fidelity, drafted.max_resource, rounds=6)
    configs = [trial.config for trial in it.trials.values()]
    assert all(drafted.space.check(config) == config for config in configs)
    first, last = configs[:49], configs[-49:]
    assert median(config["lr"] for config in last) < 0.5 * median(config["lr"] for config in first)
