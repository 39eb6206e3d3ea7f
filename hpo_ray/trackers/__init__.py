"""Experiment trackers: a run of theirs per trial, the study as its parent or group, written from the study's log.

One process of its own follows the log (`following`), whatever the tracker; what differs is how a trial is told, one
small module each. Those are loaded when they are first named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpo_ray.lazy import lazy
from hpo_ray.trackers.base import Point, Session, Tracked, Tracker, TrialNews

if TYPE_CHECKING:
    from hpo_ray.trackers.aim import AimTracker
    from hpo_ray.trackers.mlflow import MLflowTracker
    from hpo_ray.trackers.tensorboard import TensorBoardTracker
    from hpo_ray.trackers.wandb import WandbTracker

__all__ = [
    "AimTracker",
    "MLflowTracker",
    "Point",
    "Session",
    "TensorBoardTracker",
    "Tracked",
    "Tracker",
    "TrialNews",
    "WandbTracker",
]

__getattr__ = lazy(
    __name__,
    {
        "AimTracker": "aim",
        "MLflowTracker": "mlflow",
        "TensorBoardTracker": "tensorboard",
        "WandbTracker": "wandb",
    },
)
