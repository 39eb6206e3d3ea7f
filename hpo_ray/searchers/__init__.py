"""Searchers: which configuration comes next. Loaded when they are first named."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpo_ray.searchers.base import SpaceSearcher
    from hpo_ray.searchers.random import RandomSearcher

__all__ = ["RandomSearcher", "SpaceSearcher"]

_MODULES = {"SpaceSearcher": "base", "RandomSearcher": "random"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"hpo_ray.searchers.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
