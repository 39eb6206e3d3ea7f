"""A genetic algorithm: better configurations have more children, which mix their parents and differ a little.

Sources:
    Goldberg and Deb, "A Comparative Analysis of Selection Schemes Used in Genetic Algorithms", FOGA 1991 (tournaments).
    Deb and Agrawal, "Simulated Binary Crossover for Continuous Search Space", Complex Systems 9 (1995).
    Eshelman and Schaffer, "Real-Coded Genetic Algorithms and Interval-Schemata", FOGA 2, 1993 (BLX-alpha).
    Deb and Goyal, "A Combined Genetic Adaptive Search (GeneAS) for Engineering Design", Computer Science and
    Informatics 26 (1996) (polynomial mutation).
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping, Sequence
from heapq import nsmallest
from typing import Any

import numpy as np

from hpo_ray.domains import Categorical, Domain, Scalar
from hpo_ray.schedulers.brackets import Ladder
from hpo_ray.searchers.core import Observation, Proposal
from hpo_ray.searchers.genes import (
    UntriedCore,
    check_choice,
    check_number,
    check_whole,
    is_ordered,
    neighbour,
    reflect,
)
from hpo_ray.space import Space

CROSSOVERS = ("uniform", "sbx", "blx", "none")
MUTATIONS = ("gaussian", "polynomial", "uniform")

_ATTEMPTS = 8
"""How often a child that was tried already is mutated again, before a random configuration takes its place."""


class EvolutionCore(UntriedCore):
    """A genetic algorithm with tournaments and elites. See `hpo_ray.searchers.EvolutionSearcher`, also for arguments.

    The number-th trial is of generation number // population. Its parents come from the generation before, and from
    the `elites` best trials of all earlier ones. Where less than two of the generation before can be parents (many
    workers, failures), they come from the best of all, as many as population and elites together; before there are
    two of these, the configuration is random.

    A trial can be a parent when it is over and has not failed, or as soon as it was first compared: under Hyperband
    it may then wait for a long time. Without a ladder its first report is enough. Parents are ranked by
    `Observation.rank_key`.

    A gene that only one of two parents has (the other's is inactive) is this parent's; one that none has is drawn.

    Raises:
        ConfigError: an argument is out of its range.
    """

    def __init__(
        self,
        space: Space,
        seed: int = 0,
        initial: Sequence[Mapping[str, Any]] = (),
        ladder: Ladder | None = None,
        population: int = 8,
        elites: int = 2,
        tournament: int = 3,
        crossover: str = "sbx",
        crossover_probability: float = 0.9,
        eta_c: float = 5.0,
        alpha: float = 0.5,
        mutation: str = "gaussian",
        mutation_probability: float | None = None,
        sigma: float = 0.1,
        eta_m: float = 20.0,
    ) -> None:
        super().__init__(space, seed, initial, ladder)
        check_whole("searcher.population", population, 4, " (trials of a generation)")
        check_whole("searcher.elites", elites, 0, " (the best of all, which stay among the parents)")
        check_whole("searcher.tournament", tournament, 1, " (candidates, the best of which becomes a parent)")
        check_choice("searcher.crossover", crossover, CROSSOVERS)
        check_number("searcher.crossover_probability", crossover_probability, 0.0, 1.0)
        check_number("searcher.eta_c", eta_c, 0.0)
        check_number("searcher.alpha", alpha, 0.0)
        check_choice("searcher.mutation", mutation, MUTATIONS)
        if mutation_probability is not None:
            check_number("searcher.mutation_probability", mutation_probability, 0.0, 1.0)
        check_number("searcher.sigma", sigma, 0.0, above=True)
        check_number("searcher.eta_m", eta_m, 0.0)
        self.population = population
        self.elites = elites
        self.tournament = tournament
        self.crossover = crossover
        self.crossover_probability = crossover_probability
        self.eta_c = eta_c
        self.alpha = alpha
        self.mutation = mutation
        self.mutation_probability = mutation_probability
        self.sigma = sigma
        self.eta_m = eta_m
        self._best: list[tuple[int, float, int]] = []
        """Rank keys of the best trials that can be parents: so many that without a generation the elites are left."""

    def propose(self, number: int) -> Proposal:
        """A child of two trials; a random configuration as long as there are none."""
        generation = number // self.population
        rng = self.rng(number)
        units = rng.random(len(self.space)).tolist()
        parents = self._parents(generation, rng)
        child = self._child(parents, units, rng) if parents else None
        if child is None:
            return Proposal(self.untried(units, rng), {"generation": generation, "parents": []})
        return Proposal(child, {"generation": generation, "parents": [parent.number for parent in parents]})

    def reported(self, trial: Observation) -> None:
        """It may be a parent now."""
        self._rank(trial)

    def ended(self, trial: Observation) -> None:
        """A trial that failed is no parent any more."""
        if trial.state != "failed":
            self._rank(trial)
        elif any(key[2] == trial.number for key in self._best):
            # One that had to leave for it is among the best again.
            keys = (other.rank_key for other in self.trials.values() if self._is_fertile(other))
            self._best = nsmallest(self.elites + self.population, keys)

    def _rank(self, trial: Observation) -> None:
        if self._is_fertile(trial):
            self._best = [key for key in self._best if key[2] != trial.number]
            insort(self._best, trial.rank_key)
            del self._best[self.elites + self.population :]

    def _is_fertile(self, trial: Observation) -> bool:
        """Whether it can be a parent."""
        if trial.state == "failed" or not trial.curve:
            return False
        compared = self.ladder is None or trial.resource >= self.ladder.start(trial.number)
        return compared or trial.state != "running"

    def _pool(self, generation: int) -> list[Observation]:
        """The trials that parents of a generation are chosen from, best first; less than two: there are none."""
        if generation == 0:
            return []
        before = range((generation - 1) * self.population, generation * self.population)
        last = [self.trials[n] for n in before if n in self.trials and self._is_fertile(self.trials[n])]
        if len(last) < 2:
            return [self.trials[key[2]] for key in self._best]
        keys = {trial.rank_key for trial in last}
        keys.update([key for key in self._best if key[2] < before.stop][: self.elites])
        return [self.trials[key[2]] for key in sorted(keys)]

    def _parents(self, generation: int, rng: np.random.Generator) -> list[Observation]:
        """One or two different parents, each the winner of a tournament; none if there are less than two."""
        pool = self._pool(generation)
        if len(pool) < 2:
            return []
        first = pool.pop(winner(len(pool), self.tournament, rng))
        if self.crossover == "none" or rng.random() >= self.crossover_probability:
            return [first]
        return [first, pool[winner(len(pool), self.tournament, rng)]]

    def _child(
        self, parents: Sequence[Observation], units: Sequence[float], rng: np.random.Generator
    ) -> dict[str, Any] | None:
        """A child that was not tried; None if there is none to be found."""
        values = [self.space.flatten(parent.config) for parent in parents]
        drawn = {name: domain.from_unit(u) for (name, domain), u in zip(self.space.domains.items(), units, strict=True)}
        spare = {**drawn, **{name: value for flat in reversed(values) for name, value in flat.items()}}
        child = self._mutate(self._cross(values, spare, rng), spare, rng, forced=False)
        for _ in range(_ATTEMPTS):
            if not self.is_tried(child):
                return self.space.nest(child)
            child = self._mutate(child, spare, rng, forced=True)
        return None

    def _cross(
        self, parents: Sequence[Mapping[str, Scalar]], spare: Mapping[str, Scalar], rng: np.random.Generator
    ) -> dict[str, Scalar]:
        """Each value from the parents that have it, parents of conditions first: `spare` where none has it."""
        flat: dict[str, Scalar] = {}
        draws = iter(rng.random((len(self.space), 3)).tolist())
        for name in self.space.order:
            mixed, draw, side = next(draws)
            if not self.space.is_active(name, flat):
                continue
            values = [parent[name] for parent in parents if name in parent]
            if len(values) < 2 or values[0] == values[1]:
                flat[name] = values[0] if values else spare[name]
                continue
            domain, value = self.space.domains[name], values[0 if side < 0.5 else 1]
            # Deb and Agrawal recombine each variable with probability 1/2.
            if is_ordered(domain) and (self.crossover == "blx" or (self.crossover == "sbx" and mixed < 0.5)):
                x, y = (domain.to_unit(v) for v in (values if side < 0.5 else reversed(values)))
                unit = blx(x, y, self.alpha, draw) if self.crossover == "blx" else sbx(x, y, self.eta_c, draw)
                value = domain.from_unit(unit)
            flat[name] = value
        return flat

    def _mutate(
        self, child: Mapping[str, Scalar], spare: Mapping[str, Scalar], rng: np.random.Generator, *, forced: bool
    ) -> dict[str, Scalar]:
        """Changes some values; with `forced` at least one. What this activates has its value in `spare`."""
        genes = [name for name in self.free if name in child]
        if not genes:
            return dict(child)
        rate = 1.0 / len(genes) if self.mutation_probability is None else self.mutation_probability
        hit = {name for name in genes if rng.random() < rate}
        if forced and not hit:
            hit = {genes[int(rng.integers(len(genes)))]}
        flat: dict[str, Scalar] = {}
        for name in self.space.order:
            if self.space.is_active(name, flat):
                value = child[name] if name in child else spare[name]
                flat[name] = self._changed(self.space.domains[name], value, rng) if name in hit else value
        return flat

    def _changed(self, domain: Domain, value: Scalar, rng: np.random.Generator) -> Scalar:
        """Another value: a near one where there is an order, any other where there is none."""
        if isinstance(domain, Categorical) and not domain.ordered:
            others = [choice for choice in domain.choices if choice != value]
            return others[int(rng.integers(len(others)))]
        unit = domain.to_unit(value)
        if self.mutation == "gaussian":
            moved = reflect(unit + self.sigma * float(rng.standard_normal()))
        elif self.mutation == "polynomial":
            moved = reflect(unit + polynomial(self.eta_m, float(rng.random())))
        else:
            moved = float(rng.random())
        changed = domain.from_unit(moved)
        if changed != value or moved == unit:
            return changed
        return neighbour(domain, value, up=moved > unit)


def winner(size: int, tournament: int, rng: np.random.Generator) -> int:
    """The place of a tournament's winner among `size` candidates that are sorted, best first.

    Goldberg and Deb, Section 4: some candidates are drawn, each at most once, and the best of them wins.
    """
    return int(min(rng.choice(size, size=min(tournament, size), replace=False)))


def sbx_spread(eta: float, draw: float) -> float:
    """The spread factor beta of simulated binary crossover: how far apart children are, over how far their parents.

    Its density is 0.5 (eta + 1) beta^eta up to 1, and 0.5 (eta + 1) /
    beta^(eta + 2) above; this is its quantile function.

    Args:
        eta: the larger, the nearer to their parents children are.
        draw: a uniform number in [0, 1).
    """
    return float((2.0 * draw if draw <= 0.5 else 1.0 / (2.0 * (1.0 - draw))) ** (1.0 / (eta + 1.0)))


def sbx(x: float, y: float, eta: float, draw: float) -> float:
    """The child near `x` of simulated binary crossover, ((1 + beta) x + (1 - beta) y) / 2, mirrored at the ends."""
    beta = sbx_spread(eta, draw)
    return reflect(0.5 * ((1.0 + beta) * x + (1.0 - beta) * y))


def blx(x: float, y: float, alpha: float, draw: float) -> float:
    """BLX-alpha: uniform between the parents and `alpha` times their distance beyond, inside of [0, 1]."""
    beyond = alpha * abs(x - y)
    low, high = max(0.0, min(x, y) - beyond), min(1.0, max(x, y) + beyond)
    return low + (high - low) * draw


def polynomial(eta: float, draw: float) -> float:
    """How far polynomial mutation moves a gene, in (-1, 1): density 0.5 (eta + 1) (1 - |delta|)^eta (Deb and Goyal)."""
    power = 1.0 / (eta + 1.0)
    return float((2.0 * draw) ** power - 1.0 if draw < 0.5 else 1.0 - (2.0 * (1.0 - draw)) ** power)


__all__ = ["CROSSOVERS", "MUTATIONS", "EvolutionCore", "blx", "polynomial", "sbx", "sbx_spread", "winner"]
