"""Trainables: one unit of training, and a checkpoint.

The classes are loaded when they are first named, so that importing this package needs neither Ray nor torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpo_ray.lazy import lazy
from hpo_ray.trainables.context import TrialContext, get_context

if TYPE_CHECKING:
    from hpo_ray.trainables.differentiable import DifferentiableTask
    from hpo_ray.trainables.hypergradient import HypergradientTrainable
    from hpo_ray.trainables.settings import Hypergradient
    from hpo_ray.trainables.torch import TorchTrainable

__all__ = [
    "DifferentiableTask",
    "Hypergradient",
    "HypergradientTrainable",
    "TorchTrainable",
    "TrialContext",
    "get_context",
]

__getattr__ = lazy(
    __name__,
    {
        "DifferentiableTask": "differentiable",
        "Hypergradient": "settings",
        "HypergradientTrainable": "hypergradient",
        "TorchTrainable": "torch",
    },
)
