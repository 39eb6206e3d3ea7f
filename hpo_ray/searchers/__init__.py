"""Searchers: which configuration comes next.

The algorithms (`NameCore`) know no Ray. The classes that Ray Tune runs, `NameSearcher`, are loaded when they are first
named, so that planning a study stays quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpo_ray.lazy import lazy
from hpo_ray.searchers.core import Observation, Proposal, SearcherCore
from hpo_ray.searchers.differential_evolution import DECore
from hpo_ray.searchers.evolution import EvolutionCore
from hpo_ray.searchers.grid import GridCore
from hpo_ray.searchers.optuna import OptunaCore
from hpo_ray.searchers.random import RandomCore
from hpo_ray.searchers.schedule import ScheduleCore
from hpo_ray.searchers.sobol import SobolCore

if TYPE_CHECKING:
    from hpo_ray.searchers.adapter import (
        DESearcher,
        EvolutionSearcher,
        GridSearcher,
        OptunaSearcher,
        RandomSearcher,
        ScheduleSearcher,
        SobolSearcher,
        SpaceSearcher,
    )

__all__ = [
    "DECore",
    "DESearcher",
    "EvolutionCore",
    "EvolutionSearcher",
    "GridCore",
    "GridSearcher",
    "Observation",
    "OptunaCore",
    "OptunaSearcher",
    "Proposal",
    "RandomCore",
    "RandomSearcher",
    "ScheduleCore",
    "ScheduleSearcher",
    "SearcherCore",
    "SobolCore",
    "SobolSearcher",
    "SpaceSearcher",
]

__getattr__ = lazy(
    __name__,
    dict.fromkeys(
        [
            "DESearcher",
            "EvolutionSearcher",
            "GridSearcher",
            "OptunaSearcher",
            "RandomSearcher",
            "ScheduleSearcher",
            "SobolSearcher",
            "SpaceSearcher",
        ],
        "adapter",
    ),
)
