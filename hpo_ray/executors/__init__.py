"""Executors: where trials run. Loaded when they are first named."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from hpo_ray.lazy import lazy

if TYPE_CHECKING:
    from hpo_ray.executors.inprocess import InProcessExecutor
    from hpo_ray.executors.ray import RayExecutor
    from hpo_ray.executors.simulated import SimulatedExecutor

# Trainables keep the working directory, so that relative paths in a user's code mean what they say. Ray reads this in
# the driver and in each worker, which inherits it.
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
if "ray" not in sys.modules and "RAY_ADDRESS" not in os.environ:  # of a cluster that may have none
    # Ray turns tokens on for a local cluster anyway, and warns. It doesn't when they are asked for before its import.
    os.environ.setdefault("RAY_AUTH_MODE", "token")

__all__ = ["InProcessExecutor", "RayExecutor", "SimulatedExecutor"]

__getattr__ = lazy(__name__, {"InProcessExecutor": "inprocess", "RayExecutor": "ray", "SimulatedExecutor": "simulated"})
