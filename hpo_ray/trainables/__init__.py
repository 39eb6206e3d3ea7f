"""Trainables: one unit of training, and a checkpoint.

The classes are loaded when they are first named, so that importing this package needs neither Ray nor torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hpo_ray.trainables.context import TrialContext, get_context

if TYPE_CHECKING:
    from hpo_ray.trainables.torch import TorchTrainable

__all__ = ["TorchTrainable", "TrialContext", "get_context"]


def __getattr__(name: str) -> Any:
    if name == "TorchTrainable":
        return importlib.import_module("hpo_ray.trainables.torch").TorchTrainable
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
