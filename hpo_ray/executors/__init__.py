"""Executors: where trials run. Loaded when they are first named."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpo_ray.executors.inprocess import InProcessExecutor
    from hpo_ray.executors.ray import RayExecutor

__all__ = ["InProcessExecutor", "RayExecutor"]

_MODULES = {"InProcessExecutor": "inprocess", "RayExecutor": "ray"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"hpo_ray.executors.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
