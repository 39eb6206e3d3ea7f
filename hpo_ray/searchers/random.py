"""Random search: every configuration drawn on its own.

Bergstra and Bengio, "Random Search for Hyper-Parameter Optimization", JMLR 13 (2012).
"""

from __future__ import annotations

from typing import ClassVar

from hpo_ray.searchers.core import Proposal, SearcherCore


class RandomCore(SearcherCore):
    """Draws each configuration from the space. See `hpo_ray.searchers.RandomSearcher`."""

    learns: ClassVar[bool] = False

    def propose(self, number: int) -> Proposal:
        """The number-th draw."""
        return Proposal(self.sample(number))
