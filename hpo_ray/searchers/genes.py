"""What the evolutionary searchers share: values as genes on the unit interval, and never the same configuration twice.

A study's log holds configurations, not the vectors that they came from. So that the log alone gives a searcher's state
again, the gene of a value is computed from the value, and that of a hyperparameter which is inactive is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from hpo_ray.domains import Categorical, Domain, Fixed, Int, Scalar
from hpo_ray.errors import ConfigError
from hpo_ray.schedulers.brackets import Ladder
from hpo_ray.searchers.core import Observation, SearcherCore
from hpo_ray.space import Space

_DRAWS = 16
"""How often a random configuration is drawn again while it is one that was tried."""


class UntriedCore(SearcherCore):
    """A searcher that gives no configuration twice, as long as it finds others.

    Only active hyperparameters count: two points of the unit cube that differ in others are one configuration, and a
    second trial of it would be wasted.
    """

    def __init__(
        self,
        space: Space,
        seed: int = 0,
        initial: Sequence[Mapping[str, Any]] = (),
        ladder: Ladder | None = None,
    ) -> None:
        super().__init__(space, seed, initial, ladder)
        self.free = tuple(name for name, domain in space.domains.items() if domain.size != 1)
        """Names that can take more than one value."""
        self._tried: set[Hashable] = set()

    def added(self, trial: Observation) -> None:
        """Notes the configuration."""
        self._tried.add(self._identity(trial.config))

    def is_tried(self, config: Mapping[str, Any]) -> bool:
        """Whether a trial has, or had, this configuration, failed ones included."""
        return self._identity(config) in self._tried

    def untried(self, units: Sequence[float], rng: np.random.Generator) -> dict[str, Any]:
        """The configuration at a point, or random ones until there is one that was not tried."""
        config = self.space.from_units(units)
        for _ in range(_DRAWS):
            if not self.is_tried(config):
                break
            config = self.space.sample(rng)
        return config

    def _identity(self, config: Mapping[str, Any]) -> Hashable:
        return frozenset(self.space.flatten(config).items())


def is_ordered(domain: Domain) -> bool:
    """Whether neighbours are alike, so that it makes sense to mix two values, or to move one a little."""
    return domain.ordered if isinstance(domain, Categorical) else not isinstance(domain, Fixed)


def neighbour(domain: Domain, value: Scalar, up: bool) -> Scalar:
    """The next value above or below; at an end the one on the other side. Of an ordered domain with a grid."""
    if isinstance(domain, Int) and domain.log:
        assert isinstance(value, int)
        beside = value + 1 if up else value - 1
        return beside if domain.contains(beside) else 2 * value - beside
    values = domain.size
    assert values is not None
    unit, width = domain.to_unit(value), 1.0 / values
    beyond = unit + width > 1.0 if up else unit - width < 0.0
    return domain.from_unit(unit + width if up != beyond else unit - width)


def gene_of(domain: Domain, value: Scalar, draw: float) -> float:
    """A point of the unit interval that `from_unit` maps to `value`.

    Of a value that owns an interval of its own (an integer, a choice) it is a random point of this interval: were it
    always the middle, sums and differences of genes would fall on the borders between two values, which belong to
    the upper one.

    Args:
        domain: of the value.
        value: one of the domain.
        draw: a uniform number in [0, 1).
    """
    unit = domain.to_unit(value)
    if isinstance(domain, Int) and domain.log:
        assert isinstance(value, int)
        ends = [math.log(x) for x in (domain.low - 0.5, value - 0.5, value + 0.5, domain.high + 0.5)]
        low, high = ((end - ends[0]) / (ends[3] - ends[0]) for end in ends[1:3])
    else:
        values = domain.size
        half = 0.0 if values is None else 0.5 / values
        low, high = unit - half, unit + half
    gene = min(max(low + (high - low) * draw, 0.0), 1.0)
    return gene if low == high or domain.from_unit(gene) == value else unit


def reflect(unit: float) -> float:
    """A point that lies beyond an end of the unit interval, mirrored at this end."""
    unit = abs(unit) % 2.0
    return 2.0 - unit if unit > 1.0 else unit


def check_number(key: str, value: Any, low: float, high: float = math.inf, *, above: bool = False) -> None:
    """Raises `ConfigError` unless low <= value <= high (low < value with `above`)."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not low <= value <= high or (above and value == low):
        least = f"{'>' if above else '>='} {low:g}"
        bounds = least if high == math.inf else f"{least} and <= {high:g}"
        raise ConfigError(f"{key}={value!r}: must be a number {bounds}", key=key)


def check_whole(key: str, value: Any, least: int, why: str = "") -> None:
    """Raises `ConfigError` unless `value` is a whole number and not below `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{key}={value!r}: must be a whole number >= {least}{why}", key=key)


def check_choice(key: str, value: Any, choices: Iterable[str]) -> None:
    """Raises `ConfigError` unless `value` is one of the choices."""
    if value not in choices:
        raise ConfigError(f"{key}={value}: must be one of {', '.join(choices)}", key=key)
