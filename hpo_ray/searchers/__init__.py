"""Searchers: which configuration comes next. Loaded when they are first named."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpo_ray.lazy import lazy

if TYPE_CHECKING:
    from hpo_ray.searchers.base import SpaceSearcher
    from hpo_ray.searchers.random import RandomSearcher
    from hpo_ray.searchers.schedule import ScheduleSearcher

__all__ = ["RandomSearcher", "ScheduleSearcher", "SpaceSearcher"]

__getattr__ = lazy(__name__, {"SpaceSearcher": "base", "RandomSearcher": "random", "ScheduleSearcher": "schedule"})
