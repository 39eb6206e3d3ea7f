"""Quasi-random search: the points of a scrambled Sobol sequence fill the space more evenly than random ones.

Sobol, "On the distribution of points in a cube and the approximate evaluation of integrals", USSR Computational
Mathematics and Mathematical Physics 7 (1967); the scrambling is Owen's, as in `scipy.stats.qmc.Sobol`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from hpo_ray.errors import ConfigError
from hpo_ray.schedulers.brackets import Ladder
from hpo_ray.searchers.core import Proposal, SearcherCore
from hpo_ray.space import Fixed, Space

MOST_DIMENSIONS = 21201
_BLOCK = 64


class SobolCore(SearcherCore):
    """The points of a scrambled Sobol sequence. See `hpo_ray.searchers.SobolSearcher`.

    Each hyperparameter that is not fixed has a coordinate of its own, also while it is inactive: whatever the others
    are, the values that it takes are evenly spread.
    """

    learns: ClassVar[bool] = False

    def __init__(
        self,
        space: Space,
        seed: int = 0,
        initial: Sequence[Mapping[str, Any]] = (),
        ladder: Ladder | None = None,
        scramble: bool = True,
    ) -> None:
        super().__init__(space, seed, initial, ladder)
        if not isinstance(scramble, bool):
            raise ConfigError(f"searcher.scramble={scramble!r}: must be true or false", key="searcher.scramble")
        self.scramble = scramble
        self._free = [not isinstance(domain, Fixed) for domain in space.domains.values()]
        if sum(self._free) > MOST_DIMENSIONS:
            raise ConfigError(
                f"searcher=sobol: the space has {sum(self._free)} hyperparameters, the sequence is known for "
                f"{MOST_DIMENSIONS}; use searcher=random",
                key="searcher",
            )
        self._block: tuple[int, Any] | None = None

    def propose(self, number: int) -> Proposal:
        """The point that comes after as many as were proposed before; the first one is number 0."""
        index = number - len(self.initial)
        point = iter(self._points(index // _BLOCK)[index % _BLOCK])
        units = [min(float(next(point)), 1.0) if free else 0.5 for free in self._free]
        return Proposal(self.space.from_units(units))

    def _points(self, block: int) -> Any:
        """A block of the sequence. Only the last one is kept: it can be made again."""
        if self._block is None or self._block[0] != block:
            from scipy.stats import qmc

            sequence = qmc.Sobol(max(1, sum(self._free)), scramble=self.scramble, rng=self.rng(0))
            if block:
                sequence.fast_forward(block * _BLOCK)
            self._block = block, sequence.random(_BLOCK)
        return self._block[1]
