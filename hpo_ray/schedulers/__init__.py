"""Schedulers: which trials go on.

The algorithms (`brackets`, `fifo`, `halving`, `asha`, `median`) know neither Ray nor torch. The classes that Ray Tune
runs are loaded when they are first named, so that planning a study stays quick. Each of these `Name` has its algorithm
beside it as `NameCore`, with the same numbers in its constructor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpo_ray.lazy import lazy
from hpo_ray.schedulers.asha import ASHACore
from hpo_ray.schedulers.brackets import Bracket, Budget, Plan, Rung, halving_bracket, hyperband_brackets
from hpo_ray.schedulers.fifo import FIFOCore
from hpo_ray.schedulers.halving import HyperbandCore, SuccessiveHalvingCore
from hpo_ray.schedulers.median import MedianStoppingCore

if TYPE_CHECKING:
    from hpo_ray.schedulers.adapter import ASHA, FIFO, Hyperband, MedianStopping, SuccessiveHalving

__all__ = [
    "ASHA",
    "FIFO",
    "ASHACore",
    "Bracket",
    "Budget",
    "FIFOCore",
    "Hyperband",
    "HyperbandCore",
    "MedianStopping",
    "MedianStoppingCore",
    "Plan",
    "Rung",
    "SuccessiveHalving",
    "SuccessiveHalvingCore",
    "halving_bracket",
    "hyperband_brackets",
]

__getattr__ = lazy(
    __name__, dict.fromkeys(["ASHA", "FIFO", "Hyperband", "MedianStopping", "SuccessiveHalving"], "adapter")
)
