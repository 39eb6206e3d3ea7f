"""Random search: every configuration drawn on its own.

Bergstra and Bengio, "Random Search for Hyper-Parameter Optimization", JMLR 13 (2012).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hpo_ray.searchers.base import SpaceSearcher
from hpo_ray.trainables.context import SEARCHER, stream


class RandomSearcher(SpaceSearcher):
    """Draws each configuration from the space: uniform, log-uniform, conditions honoured.

    The number-th configuration depends on the seed and the number alone. Arguments: see `SpaceSearcher`.
    """

    def propose(self, number: int) -> dict[str, Any]:
        """The number-th draw."""
        return self.space.sample(np.random.default_rng(stream(self.seed, SEARCHER, number)))
