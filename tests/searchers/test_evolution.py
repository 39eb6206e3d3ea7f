"""The genetic algorithm: its operators by hand, who becomes a parent, and whole studies."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from histories import MIXED, check_continuation, mixed_loss, play, play_hyperband

from hpo_ray.config import load
from hpo_ray.errors import ConfigError
from hpo_ray.events import FILE_NAME, read
from hpo_ray.results import StudyResult
from hpo_ray.schedulers import HyperbandCore
from hpo_ray.schedulers.brackets import Ladder
from hpo_ray.searchers import EvolutionCore, EvolutionSearcher
from hpo_ray.searchers.evolution import CROSSOVERS, MUTATIONS, blx, polynomial, sbx, sbx_spread, winner
from hpo_ray.space import Categorical, Float, Int, Space
from hpo_ray.study import draft
from hpo_ray.testing import run_study

LINE = Space({"x": Float(0.0, 1.0)})


def core(space: Space = MIXED, **settings: Any) -> EvolutionCore:
    return EvolutionCore(space, **{"ladder": Ladder.single(1), "population": 4, **settings})


def told(it: EvolutionCore, losses: dict[int, float | None], config: dict[str, Any] | None = None) -> EvolutionCore:
    """Trials that are over, with these losses; None for one that failed."""
    for number, loss in losses.items():
        it.add(number, config or it.sample(number))
        if loss is not None:
            it.report(number, 1, [loss])
        it.end(number, "failed" if loss is None else "completed")
    return it


# Operators


def test_spread_factor() -> None:
    """With eta = 1 the density is beta up to 1 and 1 / beta^3 above: half of the children are nearer than parents."""
    assert sbx_spread(1.0, 0.5) == 1.0
    assert sbx_spread(1.0, 0.125) == 0.5  # the integral of beta up to 0.5 is 1/8
    assert sbx_spread(1.0, 0.875) == 2.0  # that of 1 / beta^3 from 2 on is 1/8
    assert sbx_spread(2.0, 4 / 54) == pytest.approx((8 / 54) ** (1 / 3))
    assert sbx_spread(20.0, 0.3) > sbx_spread(2.0, 0.3)


def test_sbx_children_have_the_mean_of_their_parents() -> None:
    assert sbx(0.2, 0.6, 1.0, 0.125) == pytest.approx(0.5 * (1.5 * 0.2 + 0.5 * 0.6))
    for draw in (0.0, 0.1, 0.5, 0.7):
        assert sbx(0.4, 0.6, 2.0, draw) + sbx(0.6, 0.4, 2.0, draw) == pytest.approx(1.0)
    assert sbx(0.1, 0.5, 1.0, 0.875) == pytest.approx(0.1), "-0.1, mirrored at 0"


def test_blx_interval() -> None:
    assert blx(0.4, 0.6, 0.5, 0.0) == pytest.approx(0.3) == blx(0.6, 0.4, 0.5, 0.0)
    assert blx(0.4, 0.6, 0.5, 0.5) == pytest.approx(0.5)
    assert blx(0.4, 0.6, 0.5, 1.0) == pytest.approx(0.7)
    assert [blx(0.1, 0.9, 0.5, draw) for draw in (0.0, 0.25, 1.0)] == [0.0, 0.25, 1.0], "cut off at the ends"
    assert blx(0.4, 0.6, 0.0, 1.0) == 0.6


def test_polynomial_mutation() -> None:
    assert [polynomial(1.0, draw) for draw in (0.0, 0.125, 0.5, 0.875)] == [-1.0, -0.5, 0.0, 0.5]
    assert abs(polynomial(20.0, 0.1)) < abs(polynomial(5.0, 0.1))


def test_the_best_of_a_tournament_wins() -> None:
    rng = np.random.default_rng(0)
    assert {winner(5, 5, rng) for _ in range(20)} == {0} == {winner(5, 9, rng) for _ in range(20)}
    wins = [winner(5, 3, rng) for _ in range(2000)]
    assert set(wins) == {0, 1, 2}, "two of five are never the best of three"
    # Of the 10 triples of five 6 have the best one, 3 the next without it, 1 neither.
    assert [wins.count(i) / 2000 for i in range(3)] == pytest.approx([0.6, 0.3, 0.1], abs=0.03)
    assert {winner(3, 1, rng) for _ in range(50)} == {0, 1, 2}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_mutation_changes_the_value_and_stays_inside(mutation: str) -> None:
    it, rng = core(mutation=mutation, sigma=0.001, eta_m=1000.0), np.random.default_rng(1)
    for name in set(MIXED.names) - {"epochs"}:
        domain = MIXED.domains[name]
        for u in (0.0, 0.3, 0.5, 0.9999):
            value = domain.from_unit(u)
            changed = it._changed(domain, value, rng)
            assert changed != value and domain.contains(changed)
            if mutation != "uniform" and isinstance(domain, Int):
                assert changed in (value - (domain.step or 1), value + (domain.step or 1)), "the smallest step"


@pytest.mark.parametrize("crossover", CROSSOVERS)
def test_a_child_has_nothing_but_its_parents_values_where_they_agree(crossover: str) -> None:
    it = core(crossover=crossover, mutation_probability=0.0)
    first = MIXED.flatten(it.sample(0))
    other = {**first, "lr": 0.01 if first["lr"] != 0.01 else 0.02}
    for seed in range(20):
        child = it._cross([first, other], {}, np.random.default_rng(seed))
        assert {name for name in child if child[name] != first[name]} <= {"lr"}
        if crossover in ("uniform", "none"):
            assert child["lr"] in (first["lr"], other["lr"])


def test_choices_without_order_come_from_either_parent() -> None:
    space = Space({"a": ["p", "q", "r", "s", "t"], "b": Categorical(tuple(range(9)), ordered=True)})
    it = core(space, crossover="blx")
    children = [it._cross([{"a": "p", "b": 2}, {"a": "t", "b": 6}], {}, np.random.default_rng(s)) for s in range(60)]
    assert {child["a"] for child in children} == {"p", "t"}
    assert {child["b"] for child in children} > {1, 2, 3, 4, 5, 6, 7}, "ordered ones are mixed like numbers"


def test_a_gene_of_one_parent_only_is_inherited() -> None:
    it = core(crossover="sbx")
    adam = {"lr": 0.1, "dropout": 0.0, "layers": 1, "units": 16, "batch": 32, "size": "s", "optimizer": "adam"}
    sgd = {**adam, "optimizer": "sgd", "momentum": 0.123, "nesterov": True}
    for seed in range(20):
        child = it._cross([adam, sgd], {"epochs": 7}, np.random.default_rng(seed))
        assert ("momentum" in child) == (child["optimizer"] == "sgd")
        assert child.get("momentum", 0.123) == 0.123
    # The mutation activates what the other parent has.
    it = core(mutation_probability=1.0)
    spare = {**MIXED.flatten(it.sample(0)), "momentum": 0.5, "nesterov": False}
    changed = [it._mutate(adam, spare, np.random.default_rng(s), forced=False) for s in range(20)]
    assert {child["momentum"] for child in changed if child["optimizer"] == "sgd"} == {0.5}


# Parents


def test_generations_and_parents_are_recorded() -> None:
    it = core()
    proposals = play(it, mixed_loss, 20)
    assert [p.tags["generation"] for p in proposals] == [n // 4 for n in range(20)]
    assert all(p.tags["parents"] == [] for p in proposals[:4])
    assert [p.config for p in proposals[:4]] == [it.sample(n) for n in range(4)], "the first are those of random search"
    for number, proposal in enumerate(proposals[4:], 4):
        parents = proposal.tags["parents"]
        assert 1 <= len(parents) <= 2 and len(set(parents)) == len(parents)
        generation = number // 4
        best = sorted((it.trials[n] for n in range(4 * generation)), key=lambda trial: trial.rank_key)[:2]
        allowed = {*range(4 * generation - 4, 4 * generation), *(trial.number for trial in best)}
        assert set(parents) <= allowed


def test_elites_stay_among_the_parents() -> None:
    it = told(core(tournament=8), {0: 5.0, 1: 1.0, 2: 2.0, **{n: 9.0 for n in range(3, 40)}})
    parents = [it.suggest(number).tags["parents"] for number in range(40, 44)]  # type: ignore[union-attr]
    assert all(set(p) <= {1, 2} for p in parents), "the tournament takes all: the two best of all win"
    alone = told(core(tournament=8, elites=0), {0: 5.0, 1: 1.0, 2: 2.0, **{n: 9.0 for n in range(3, 40)}})
    assert set(alone.suggest(40).tags["parents"]) <= {36, 37, 38, 39}  # type: ignore[union-attr]


def test_an_elite_that_fails_makes_room_for_the_next() -> None:
    ladder = HyperbandCore(9).ladder
    it = EvolutionCore(LINE, population=4, elites=1, tournament=9, crossover="none", ladder=ladder)
    for number in range(30):
        it.add(number, {"x": number / 30})
        it.report(number, ladder.start(number), [float(number)])
    best = min(it.trials.values(), key=lambda trial: trial.rank_key)
    assert it.suggest(30).tags["parents"] == [best.number]  # type: ignore[union-attr]
    it.end(best.number, "failed")
    next_best = min((t for t in it.trials.values() if t is not best), key=lambda trial: trial.rank_key)
    assert it.suggest(30).tags["parents"] == [next_best.number]  # type: ignore[union-attr]
    assert it._best == sorted(t.rank_key for t in it.trials.values() if t is not best)[:5]


def test_who_failed_is_no_parent() -> None:
    it = core(population=8)
    failing = {1, 3, 4, 9, 10, 11, 12, 13, 14, 15, 21}
    proposals = play(it, mixed_loss, 48, failing=failing)
    parents = {n for p in proposals for n in p.tags["parents"]}
    assert parents and not parents & failing
    # Of generation 1 only trial 8 can be a parent: those of generation 2 come from the best of all.
    assert {n for p in proposals[16:24] for n in p.tags["parents"]} & {0, 2, 5, 6, 7}


def test_all_failed() -> None:
    it = core()
    proposals = play(it, mixed_loss, 12, failing=range(12))
    assert [p.config for p in proposals] == [it.sample(n) for n in range(12)]


def test_more_workers_than_a_generation_has() -> None:
    it = core(population=4)
    proposals = play(it, mixed_loss, 60, workers=13)
    assert all(not p.tags["parents"] for p in proposals[:14]), "two have to be over first"
    assert all(p.tags["parents"] for p in proposals[15:])
    assert all(n < number - 12 for number, p in enumerate(proposals) for n in p.tags["parents"])


def test_paused_trials_are_parents_once_they_were_compared() -> None:
    ladder = HyperbandCore(9).ladder
    it = EvolutionCore(MIXED, population=4, ladder=ladder)
    for number in range(4):
        it.add(number, it.sample(number))
    assert it.suggest(4).tags["parents"] == []  # type: ignore[union-attr]
    for number in range(4):
        it.report(number, 1, [float(number)])
    assert it.suggest(4).tags["parents"]  # type: ignore[union-attr]
    full = EvolutionCore(MIXED, population=4, ladder=Ladder.single(9))
    for number in range(4):
        full.add(number, full.sample(number))
        full.report(number, 1, [float(number)])
    assert full.suggest(4).tags["parents"] == [], "they are compared at 9"  # type: ignore[union-attr]


def test_losses_of_different_resources_are_not_compared() -> None:
    it = EvolutionCore(LINE, population=4, elites=0, tournament=9, crossover="none", ladder=HyperbandCore(9).ladder)
    for number, (resource, loss) in enumerate([(1, 0.0), (3, 5.0), (9, 8.0), (9, 7.0)]):
        it.add(number, {"x": number / 4})
        it.report(number, resource, [loss])
        it.end(number, "stopped")
    assert it.suggest(4).tags["parents"] == [3]  # type: ignore[union-attr]


# Configurations


@pytest.mark.parametrize("crossover", CROSSOVERS)
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_all_values_are_inside_and_none_comes_twice(crossover: str, mutation: str) -> None:
    it = core(population=6, crossover=crossover, mutation=mutation, seed=3)
    proposals = play(it, mixed_loss, 90, workers=2)
    for proposal in proposals:
        assert MIXED.check(proposal.config) == proposal.config
    flat = [tuple(sorted(MIXED.flatten(p.config).items())) for p in proposals]
    assert len(set(flat)) == 90


def test_inactive_names_make_no_other_configuration() -> None:
    """48 configurations, of which 32 have an inactive name: each comes once, then there is nothing else."""
    space = Space({"a": Int(1, 16), "kind": ["p", "q"], "b": Categorical(("u", "v"), when={"kind": "q"})})
    proposals = play(core(space, population=8), lambda c: float(c["a"]), 48)
    seen = [tuple(sorted(p.config.items())) for p in proposals]
    assert len(set(seen[:24])) == 24, "there is enough left to be found"
    assert len(set(seen)) >= 44


def test_without_parents_values_a_child_changes_at_least_one() -> None:
    it = told(core(LINE, crossover="none", mutation_probability=0.0), {n: float(n) for n in range(4)})
    for number in range(4, 8):
        proposal = it.suggest(number)
        assert proposal is not None and len(proposal.tags["parents"]) == 1
        parent = it.trials[proposal.tags["parents"][0]]
        assert proposal.config["x"] != parent.config["x"]


def test_a_space_of_one_configuration() -> None:
    assert [p.config for p in play(core(Space({"x": 3})), lambda c: 1.0, 9)] == [{"x": 3}] * 9


def test_known_configurations_come_first_and_become_parents() -> None:
    it = core(LINE, initial=[{"x": 0.5}, {"x": 0.25}], tournament=9, elites=2)
    proposals = play(it, lambda c: abs(c["x"] - 0.3), 8)
    assert [p.config for p in proposals[:2]] == [{"x": 0.5}, {"x": 0.25}]
    assert proposals[2].config == it.sample(2) and proposals[2].tags["generation"] == 0
    assert any(1 in p.tags["parents"] for p in proposals[4:])


# Laws


@pytest.mark.parametrize("workers", [1, 5])
@pytest.mark.parametrize("crossover", CROSSOVERS)
def test_law_of_continuation(crossover: str, workers: int) -> None:
    it = core(crossover=crossover, seed=5)
    play(it, mixed_loss, 40, workers=workers, failing={2, 9, 10, 11})
    check_continuation(lambda: core(crossover=crossover, seed=5), it.journal)


def test_law_of_continuation_under_hyperband() -> None:
    def make() -> EvolutionCore:
        return EvolutionCore(MIXED, population=6, seed=1, ladder=HyperbandCore(9).ladder)

    it = make()
    play_hyperband(it, mixed_loss, 9, rounds=3, failing={0, 3, 7, 12})
    check_continuation(make, it.journal)


def test_another_seed_other_configurations() -> None:
    first, again, other = (play(core(seed=seed), mixed_loss, 20) for seed in (1, 1, 2))
    assert first == again
    assert all(a.config != b.config for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("population", 3),
        ("population", 4.0),
        ("elites", -1),
        ("tournament", 0),
        ("crossover", "two_point"),
        ("crossover_probability", 1.1),
        ("eta_c", -1),
        ("alpha", -0.1),
        ("mutation", "swap"),
        ("mutation_probability", 2),
        ("sigma", 0.0),
        ("eta_m", -2),
    ],
)
def test_what_can_not_be(setting: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"searcher.{setting}={value}") as error:
        core(**{setting: value})
    assert error.value.key == f"searcher.{setting}"


# Studies


def best(result: StudyResult) -> float:
    assert result.best is not None
    return result.best.value


def test_better_than_random_on_branin(folder: Path) -> None:
    """The median of five seeds."""
    common = ["task=branin", "budget.trials=64", "executor=inprocess", "task.max_resource=1"]
    values = {
        method: [best(run_study([f"method={method}", *common, f"seed={s}"], folder)) for s in range(5)]
        for method in ("evolution", "random")
    }
    assert median(values["evolution"]) < 1.0 < median(values["random"])


@pytest.mark.slow
def test_better_than_random_under_hyperband(folder: Path) -> None:
    common = ["method=hyperband", "task=hartmann6", "budget.rounds=3", "executor=inprocess"]
    values = {
        searcher: [best(run_study([*common, f"searcher={searcher}", f"seed={s}"], folder)) for s in range(3)]
        for searcher in ("evolution", "random")
    }
    assert median(values["evolution"]) < median(values["random"]) - 0.2


def test_the_log_gives_the_state_again(folder: Path) -> None:
    overrides = ["method=hyperband", "searcher=evolution", "task=hartmann6", "executor=inprocess", "executor.workers=3"]
    result = run_study(overrides, folder)
    assert any(trial.tags["parents"] for trial in result.records)
    drafted = draft(load(overrides))

    def make() -> EvolutionSearcher:
        return EvolutionSearcher(drafted.space, metric="loss", mode="min", ladder=drafted.ladder)

    searcher = make()
    for event in read(result.path / FILE_NAME):
        searcher.observe(event)
    check_continuation(lambda: make().core, searcher.core.journal)


def test_proposals_for_a_perceptron() -> None:
    drafted = draft(load(["method=evolution", "task=digits_mlp"]))
    it = EvolutionCore(drafted.space, ladder=drafted.ladder)
    proposals = play(it, lambda config: config["lr"], 80, resource=drafted.max_resource)
    assert all(drafted.space.check(p.config) == p.config for p in proposals)
    assert median(p.config["lr"] for p in proposals[64:]) < median(p.config["lr"] for p in proposals[:16])
