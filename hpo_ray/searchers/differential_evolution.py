"""Differential evolution, of one population or of one for each rung of a scheduler: DE and DEHB.

Sources:
    Storn and Price, "Differential Evolution - A Simple and Efficient Heuristic for Global Optimization over Continuous
    Spaces", Journal of Global Optimization 11 (1997).
    Awad, Mallik and Hutter, "DEHB: Evolutionary Hyperband for Scalable, Robust and Efficient Hyperparameter
    Optimization", IJCAI 2021.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpo_ray.schedulers.brackets import Ladder
from hpo_ray.searchers.core import Observation, Proposal
from hpo_ray.searchers.genes import UntriedCore, check_choice, check_number, check_whole, gene_of
from hpo_ray.space import Space

STRATEGIES = ("rand1bin", "best1bin")

LEAST = 4
"""A target and the three others that a mutant is made of."""

SINGLE = 10
"""The population where all trials are compared at one resource: small, as budgets of trainings are."""

_ATTEMPTS = 8
"""How often a vector is made again that gives a configuration which was tried, before a random one takes its place."""

Vector = NDArray[np.float64]


class DECore(UntriedCore):
    """Differential evolution. See `hpo_ray.searchers.DESearcher`, also for the arguments.

    There is a sub-population for each resource of the ladder. The k-th trial that starts at a resource has place
    k modulo size in its sub-population; who holds this place is its target, and it takes the place when its own loss
    there is not higher (Storn and Price, Section 2). It does so as soon as it reports: as in DEHB's asynchronous DE no
    one waits for the end of a generation.

    Of the lowest resource the first trials, as many as the sub-population has places, are random, and then mutants
    are made of its own members. Of a higher one mutants are made of the best of the next lower, as many as it has
    places itself (Awad et al.: the parent pool), filled up with members of all others where these are too
    few; the target of an empty place is a random vector. Without four members in all, configurations are random.

    Deviations from DEHB: there an offspring is made for every place of every rung, and trained from the start. Here
    only those that start a bracket are offspring. Who moves up goes on from its checkpoint with the configuration that
    it has; it takes an empty place in the next sub-population, or that of the worst there if its loss is not higher.
    A vector is known by its configuration alone (see `hpo_ray.searchers.genes`), and one that gives a configuration
    which was tried is made again.

    Without a ladder there is one population, of the trials that are over; one that went further counts as better.

    Raises:
        ConfigError: an argument is out of its range.
    """

    def __init__(
        self,
        space: Space,
        seed: int = 0,
        initial: Sequence[Mapping[str, Any]] = (),
        ladder: Ladder | None = None,
        strategy: str = "best1bin",
        f: float = 0.5,
        cr: float = 0.5,
        population: int | None = None,
    ) -> None:
        super().__init__(space, seed, initial, ladder)
        check_choice("searcher.strategy", strategy, STRATEGIES)
        check_number("searcher.f", f, 0.0, 2.0, above=True)
        check_number("searcher.cr", cr, 0.0, 1.0)
        if population is not None:
            check_whole("searcher.population", population, LEAST, " (a target and three others), or null")
        self.strategy = strategy
        self.f = f
        self.cr = cr
        self.population = population
        self.sizes = sizes_of(ladder.resources if ladder else (0,), population, ladder.eta if ladder else None)
        """Places in the sub-population of each resource; of the one without a ladder the resource is 0."""
        self._members: dict[int, list[int | None]] = {r: [None] * size for r, size in self.sizes.items()}
        self._fitness: dict[tuple[int, int], tuple[int, float]] = {}
        """Of the members, by resource and number: how far it went (only without a ladder), turned, and its loss."""
        self._places: list[tuple[int, int]] = []
        """Where the trials start: the resource, and how many started there before."""
        self._started = dict.fromkeys(self.sizes, 0)

    def propose(self, number: int) -> Proposal:
        """A trial vector; a random configuration until there are members to make it of."""
        start, count = self._place(number)
        size = self.sizes[start]
        rng = self.rng(number)
        units = rng.random(len(self.space)).tolist()
        target = self._members[start][count % size]
        pool = self._pool(start, target) if count >= size or start != min(self.sizes) else []
        generation, targets = count // size, [] if target is None else [target]
        if len(pool) < LEAST - 1 or not self.free:
            return Proposal(self.untried(units, rng), {"generation": generation, "parents": []})
        x = self._vector(target) if target is not None else self._free(units)
        for _ in range(_ATTEMPTS):
            chosen = self._three(pool, start, target, rng)
            a, b, c = (self._vector(number) for number in chosen)
            vector = trial_vector(x, a, b, c, self.f, self.cr, rng)
            config = self.space.from_units(self._whole(vector))
            if not self.is_tried(config):
                return Proposal(config, {"generation": generation, "parents": [*targets, *chosen]})
        return Proposal(self.untried(units, rng), {"generation": generation, "parents": []})

    def reported(self, trial: Observation) -> None:
        """It competes in the sub-population of the resource that it reported, if there is one."""
        if self.ladder is not None and trial.resource in self.sizes:
            self._compete(trial, trial.resource, (0, trial.loss))

    def ended(self, trial: Observation) -> None:
        """One that failed loses its places. One that ended by itself competes where it was heading, with its last loss.

        So does Hyperband with trials that end between two rungs.
        """
        if trial.state == "failed":
            self._remove(trial.number)
        elif not trial.curve:
            return
        elif self.ladder is None:
            self._compete(trial, 0, (-trial.resource, trial.loss))
        elif trial.state == "completed" and trial.resource not in self.sizes:
            ahead = [r for r in self.sizes if r > trial.resource]
            if ahead:
                self._compete(trial, max(ahead[0], self._place(trial.number)[0]), (0, trial.loss))

    def _place(self, number: int) -> tuple[int, int]:
        """The resource at which a trial is first compared, and how many before it are first compared there."""
        while len(self._places) <= number:
            start = self.ladder.start(len(self._places)) if self.ladder is not None else 0
            self._places.append((start, self._started[start]))
            self._started[start] += 1
        return self._places[number]

    def _compete(self, trial: Observation, resource: int, fitness: tuple[int, float]) -> None:
        members = self._members[resource]
        start, count = self._place(trial.number)
        if resource == start:
            place = count % len(members)
        elif None in members:
            place = members.index(None)
        else:
            place = max(range(len(members)), key=lambda i: self._key(resource, members[i]))
        rival = members[place]
        if rival is None or fitness <= self._fitness[resource, rival]:
            if rival is not None:
                del self._fitness[resource, rival]
            members[place] = trial.number
            self._fitness[resource, trial.number] = fitness

    def _remove(self, number: int) -> None:
        for resource, members in self._members.items():
            if self._fitness.pop((resource, number), None) is not None:
                members[members.index(number)] = None

    def _key(self, resource: int, number: int | None) -> tuple[int, float, int]:
        """Sorts the better member first."""
        assert number is not None
        return (*self._fitness[resource, number], number)

    def _ranked(self, resource: int) -> list[int]:
        members = [number for number in self._members[resource] if number is not None]
        return sorted(members, key=lambda number: self._key(resource, number))

    def _pool(self, start: int, target: int | None) -> list[int]:
        """Those that mutants are made of, without the target; the first is the best."""
        resources = list(self.sizes)
        level = resources.index(start)
        if level == 0:
            pool = self._ranked(start)
        else:
            pool = self._ranked(resources[level - 1])[: self.sizes[start]]
        pool = [number for number in pool if number != target]
        if len(pool) < LEAST - 1:
            # From above, where what is good is best known.
            others = [number for resource in reversed(resources) for number in self._ranked(resource)]
            pool = [number for number in dict.fromkeys([*pool, *others]) if number != target]
        return pool

    def _three(self, pool: Sequence[int], start: int, target: int | None, rng: np.random.Generator) -> list[int]:
        """The base of a mutant and the two that it is moved by: different ones.

        The base of `best1bin` is the best that is known of those that the pool comes from; it may be the target.
        """
        order = [pool[i] for i in rng.permutation(len(pool))[: LEAST - 1]]
        if self.strategy == "rand1bin":
            return order
        best = pool[0]
        if target is not None and start == min(self.sizes):
            best = min(best, target, key=lambda number: self._key(start, number))
        return [best, *[number for number in order if number != best][:2]]

    def _vector(self, number: int) -> Vector:
        """The genes of a trial. Those that its configuration leaves open are draws of its own number."""
        units = self.rng(number).random(len(self.space)).tolist()
        flat = self.space.flatten(self.trials[number].config)
        for i, (name, domain) in enumerate(self.space.domains.items()):
            if name in flat:
                units[i] = gene_of(domain, flat[name], units[i])
        return self._free(units)

    def _free(self, units: Sequence[float]) -> Vector:
        """The coordinates of names that can take more than one value."""
        free = set(self.free)
        return np.array([unit for name, unit in zip(self.space.names, units, strict=True) if name in free])

    def _whole(self, vector: Vector) -> list[float]:
        """All coordinates; 0.5 of a name that has only one value."""
        of = dict(zip(self.free, vector.tolist(), strict=True))
        return [of.get(name, 0.5) for name in self.space.names]


def trial_vector(
    target: Vector, a: Vector, b: Vector, c: Vector, f: float, cr: float, rng: np.random.Generator
) -> Vector:
    """The vector that challenges `target`: the mutant a + f (b - c), crossed with it.

    Storn and Price, Section 2: a coordinate is the mutant's where a uniform number is not above `cr`, and in
    one random coordinate in any case; elsewhere it is the target's. A mutant's coordinate outside of [0, 1] is drawn
    anew, as in DEHB.

    Args:
        target: vector in the unit cube, of shape (n,), as are `a`, `b` and `c`.
        a: the base.
        b: it is moved towards this one,
        c: and away from this one.
        f: how far, as a factor of the difference.
        cr: crossover rate.
        rng: gives n uniform numbers (new coordinates), n more (crossover), and a whole number below n.
    """
    mutant = a + f * (b - c)
    redrawn = rng.random(len(target))
    mutant = np.where((mutant < 0.0) | (mutant > 1.0), redrawn, mutant)
    crossed = rng.random(len(target)) <= cr
    crossed[int(rng.integers(len(target)))] = True
    return np.where(crossed, mutant, target)


def sizes_of(resources: Sequence[int], population: int | None = None, eta: int | None = None) -> dict[int, int]:
    """The places in the sub-population of each resource, at least four.

    As in DEHB these are as many as the most trials that a bracket of Hyperband brings there: those of the bracket that
    starts there, ceil((s_max + 1) eta^s / (s + 1)), s being the number of resources above (Li et al., JMLR 2018,
    Algorithm 1, line 2).

    Args:
        resources: in rising order, the last being full resource.
        population: how many places the lowest has, the others in proportion; None for Hyperband's numbers, and for
            `SINGLE` where there is one resource.
        eta: of each resource 1/eta go on to the next; None for the ratio of the last two, which is near to it.
    """
    if len(resources) == 1:
        return {resources[0]: population or SINGLE}
    eta = eta or resources[-1] // resources[-2]
    levels = len(resources)
    sizes = [-(-levels * eta**s // (s + 1)) for s in range(levels - 1, -1, -1)]
    if population is not None:
        sizes = [-(-population * size // sizes[0]) for size in sizes]
    return {resource: max(LEAST, size) for resource, size in zip(resources, sizes, strict=True)}


__all__ = ["LEAST", "SINGLE", "STRATEGIES", "DECore", "sizes_of", "trial_vector"]
