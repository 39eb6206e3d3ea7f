"""The first configuration of a schedule, for a replay of population-based training."""

from __future__ import annotations

from typing import Any

from hpo_ray.schedulers.population import read_schedule
from hpo_ray.searchers.base import SpaceSearcher
from hpo_ray.space import Space


class ScheduleSearcher(SpaceSearcher):
    """Proposes what the best trial of a population began with; the scheduler `PBTReplay` brings the rest.

    Args:
        space: see `SpaceSearcher`.
        path: the folder of the study whose best trial is replayed.
        metric: see `SpaceSearcher`.
        mode: see `SpaceSearcher`.

    Raises:
        ConfigError: there is no such study, or it holds no schedule in this space.
    """

    def __init__(
        self, space: Space, path: str | None = None, metric: str | None = None, mode: str | None = None
    ) -> None:
        super().__init__(space, metric, mode)
        self._first = read_schedule(path, space)[0][1]

    def propose(self, number: int) -> dict[str, Any]:
        """The same for each."""
        return dict(self._first)
