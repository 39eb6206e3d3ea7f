"""Clusters: where the processes of a study run. Loaded when they are first named."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpo_ray.lazy import lazy

if TYPE_CHECKING:
    from hpo_ray.clusters.base import Attach, Local

__all__ = ["Attach", "Local"]

__getattr__ = lazy(__name__, {"Attach": "base", "Local": "base"})
