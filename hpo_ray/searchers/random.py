"""Random search: every configuration drawn on its own.

Bergstra and Bengio, "Random Search for Hyper-Parameter Optimization", JMLR 13 (2012).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from hpo_ray.errors import ConfigError
from hpo_ray.schedulers.brackets import Ladder
from hpo_ray.searchers.core import Proposal, SearcherCore
from hpo_ray.space import Space


class RandomCore(SearcherCore):
    """Draws each configuration from the space. See `hpo_ray.searchers.RandomSearcher`."""

    learns: ClassVar[bool] = False

    def __init__(
        self,
        space: Space,
        seed: int = 0,
        initial: Sequence[Mapping[str, Any]] = (),
        ladder: Ladder | None = None,
        middle_first: bool = False,
    ) -> None:
        super().__init__(space, seed, initial, ladder)
        if not isinstance(middle_first, bool):
            raise ConfigError(f"searcher.middle_first={middle_first!r}: must be true or false", "searcher.middle_first")
        self.middle_first = middle_first

    def propose(self, number: int) -> Proposal:
        """The number-th draw; with `middle_first` the first of them is the middle of all domains."""
        if self.middle_first and number == len(self.initial):
            return Proposal(self.space.from_units([0.5] * len(self.space)))
        return Proposal(self.sample(number))
