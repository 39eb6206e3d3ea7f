"""Clusters: where the processes of a study run. Loaded when they are first named."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpo_ray.lazy import lazy

if TYPE_CHECKING:
    from hpo_ray.clusters.base import Attach, Local
    from hpo_ray.clusters.kuberay import KubeRay
    from hpo_ray.clusters.launcher import Launcher
    from hpo_ray.clusters.ray_job import RayJob

__all__ = ["Attach", "KubeRay", "Launcher", "Local", "RayJob"]

__getattr__ = lazy(
    __name__,
    {
        "Attach": "base",
        "KubeRay": "kuberay",
        "Launcher": "launcher",
        "Local": "base",
        "RayJob": "ray_job",
    },
)
