"""Executors: where trials run. Loaded when they are first named."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpo_ray.executors.inprocess import InProcessExecutor
    from hpo_ray.executors.ray import RayExecutor

# Trainables keep the working directory, so that relative paths in a user's code mean what they say. Ray reads this in
# the driver and in each worker, which inherits it.
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
if "ray" not in sys.modules:
    # Ray turns tokens on for a local cluster anyway, and warns. It doesn't when they are asked for before its import.
    os.environ.setdefault("RAY_AUTH_MODE", "token")

__all__ = ["InProcessExecutor", "RayExecutor"]

_MODULES = {"InProcessExecutor": "inprocess", "RayExecutor": "ray"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"hpo_ray.executors.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
