"""The first configuration of a schedule, for a replay of population-based training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from hpo_ray.schedulers.brackets import Ladder
from hpo_ray.schedulers.population import read_schedule
from hpo_ray.searchers.core import Proposal, SearcherCore
from hpo_ray.space import Space


class ScheduleCore(SearcherCore):
    """What the best trial of a population began with. See `hpo_ray.searchers.ScheduleSearcher`."""

    learns: ClassVar[bool] = False

    def __init__(
        self,
        space: Space,
        seed: int = 0,
        initial: Sequence[Mapping[str, Any]] = (),
        ladder: Ladder | None = None,
        path: str | None = None,
    ) -> None:
        super().__init__(space, seed, initial, ladder)
        self._first = dict(read_schedule(path, space)[0][1])

    def propose(self, number: int) -> Proposal:
        """The same for each."""
        return Proposal(dict(self._first))
