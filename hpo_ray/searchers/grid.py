"""Grid search: every combination of some values of each hyperparameter.

A combination has values of the active hyperparameters only. So conditions make the grid smaller, and no two trials
differ in nothing but a name that neither uses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from hpo_ray.errors import ConfigError
from hpo_ray.schedulers.brackets import Ladder
from hpo_ray.searchers.core import Proposal, SearcherCore
from hpo_ray.space import Categorical, Fixed, Range, Scalar, Space


class GridCore(SearcherCore):
    """All points of a grid, in the order of the space's names. See `hpo_ray.searchers.GridSearcher`."""

    learns: ClassVar[bool] = False

    def __init__(
        self,
        space: Space,
        seed: int = 0,
        initial: Sequence[Mapping[str, Any]] = (),
        ladder: Ladder | None = None,
        grid_points: int | Mapping[str, int] = 3,
        sample: bool = False,
    ) -> None:
        super().__init__(space, seed, initial, ladder)
        if not isinstance(sample, bool):
            raise ConfigError(f"searcher.sample={sample!r}: must be true or false", key="searcher.sample")
        self.shuffled = sample
        self._values = {name: self._values_of(name, grid_points) for name in space.names}
        self._check_names(grid_points)
        self._counts: dict[tuple[int, tuple[tuple[str, Scalar], ...]], int] = {}
        self._parents = {parent for domain in space.domains.values() for parent in domain.conditions}
        self.points = self._count(0, {})
        self.size = len(self.initial) + self.points
        self._order: np.ndarray[Any, Any] | None = None

    def propose(self, number: int) -> Proposal | None:
        """The next point of the grid; with `sample` in random order."""
        index = number - len(self.initial)
        if index >= self.points:
            return None
        if self.shuffled:
            index = self._shuffled(index)
        return Proposal(self.point(index))

    def point(self, index: int) -> dict[str, Any]:
        """The index-th combination; the last name changes fastest."""
        if not 0 <= index < self.points:
            raise IndexError(f"the grid has {self.points} points, there is none {index}")
        flat: dict[str, Scalar] = {}
        for depth, name in enumerate(self.space.order):
            if not self.space.is_active(name, flat):
                continue
            for value in self._values[name]:
                below = self._count(depth + 1, {**flat, name: value})
                if index < below:
                    flat[name] = value
                    break
                index -= below
        return self.space.nest(flat)

    def check_budget(self, trials: int | None) -> None:
        """Refuses a number of trials that would leave out a part of the grid, unless told to sample.

        Raises:
            ConfigError: the message says how many points there are, and what to do.
        """
        assert self.size is not None
        if trials is not None and trials < self.size and not self.shuffled:
            raise ConfigError(
                f"searcher.sample=false: the grid has {self.size} points and there will be {trials} trials, the first "
                f"of which would be a corner of it; give a budget for {self.size} trials, fewer searcher.grid_points, "
                f"or searcher.sample=true to draw {trials} points at random",
                key="searcher.sample",
            )

    def _shuffled(self, index: int) -> int:
        """The index-th of all points in random order, each once."""
        if self.points <= 1_000_000:
            if self._order is None:
                self._order = self.rng(0).permutation(self.points)
            return int(self._order[index])
        # Of so many points the next that was not drawn before: the draws before are made again.
        if self._drawn is None:
            self._drawn = ([], set(), self.rng(0))
        drawn, known, rng = self._drawn
        while len(drawn) <= index:
            point = int(rng.integers(self.points))
            if point not in known:
                known.add(point)
                drawn.append(point)
        return drawn[index]

    _drawn: tuple[list[int], set[int], np.random.Generator] | None = None

    def _count(self, depth: int, flat: Mapping[str, Scalar]) -> int:
        """How many combinations there are of the names from this depth on, given the values of those before."""
        if depth == len(self.space.order):
            return 1
        key = (depth, tuple((name, flat.get(name)) for name in self.space.order[:depth] if name in self._parents))
        if key not in self._counts:
            name = self.space.order[depth]
            if not self.space.is_active(name, flat):
                self._counts[key] = self._count(depth + 1, flat)
            elif name in self._parents:
                self._counts[key] = sum(self._count(depth + 1, {**flat, name: v}) for v in self._values[name])
            else:
                self._counts[key] = len(self._values[name]) * self._count(depth + 1, flat)
        return self._counts[key]

    def _values_of(self, name: str, grid_points: int | Mapping[str, int]) -> tuple[Scalar, ...]:
        """All choices; of a range `grid_points` values from one bound to the other, or all if it has no more."""
        domain = self.space.domains[name]
        if isinstance(domain, Fixed):
            return (domain.value,)
        if isinstance(domain, Categorical):
            return domain.choices
        points = grid_points.get(name, 3) if isinstance(grid_points, Mapping) else grid_points
        if not isinstance(points, int) or isinstance(points, bool) or points < 1:
            where = f"searcher.grid_points.{name}" if isinstance(grid_points, Mapping) else "searcher.grid_points"
            raise ConfigError(f"{where}={points!r}: must be a whole number >= 1", key=where)
        assert isinstance(domain, Range)
        return domain.spread(points)

    def _check_names(self, grid_points: int | Mapping[str, int]) -> None:
        for name in grid_points if isinstance(grid_points, Mapping) else ():
            if name not in self._values:
                raise ConfigError(
                    f"searcher.grid_points.{name}: {name!r} is no hyperparameter; the space has "
                    f"{', '.join(self.space.names)}",
                    key=f"searcher.grid_points.{name}",
                )
