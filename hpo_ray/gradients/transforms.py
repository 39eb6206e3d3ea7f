"""Bounded hyperparameters as free numbers, which a gradient step may move anywhere."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


class Transform(ABC):
    """A map between the values of a hyperparameter and free numbers, element by element."""

    @abstractmethod
    def to_free(self, value: Tensor) -> Tensor:
        """The free number of a value within the bounds."""

    @abstractmethod
    def to_value(self, free: Tensor) -> Tensor:
        """The value of a free number, differentiable."""

    @abstractmethod
    def project(self, free: Tensor) -> Tensor:
        """The nearest free number whose value is within the bounds."""


@dataclass(frozen=True)
class Positive(Transform):
    """exp(u) for a value between two positive bounds, where u is stopped at their logarithms.

    So a gradient step multiplies, and near a bound the gradient doesn't vanish as it would in a sigmoid.

    Args:
        low: the least value, above 0.
        high: the largest.
    """

    low: float
    high: float

    def to_free(self, value: Tensor) -> Tensor:
        """log(value)."""
        return value.log()

    def to_value(self, free: Tensor) -> Tensor:
        """exp(free)."""
        return free.exp()

    def project(self, free: Tensor) -> Tensor:
        """The nearest in [log(low), log(high)]."""
        return free.clamp(math.log(self.low), math.log(self.high))


@dataclass(frozen=True)
class Bounded(Transform):
    """low + (high - low) sigmoid(u).

    Args:
        low: the least value, reached at minus infinity.
        high: the largest.
        margin: how near to a bound, in shares of the range, a start may lie: at the bound itself no gradient is left.
    """

    low: float
    high: float
    margin: float = 1e-3

    def to_free(self, value: Tensor) -> Tensor:
        """The logit of the value's place in the range."""
        return torch.logit((value - self.low) / (self.high - self.low), eps=self.margin)

    def to_value(self, free: Tensor) -> Tensor:
        """The value, inside of the bounds for every free number."""
        return self.low + (self.high - self.low) * torch.sigmoid(free)

    def project(self, free: Tensor) -> Tensor:
        """As it is."""
        return free
