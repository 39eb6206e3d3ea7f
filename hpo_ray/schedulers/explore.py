"""How population-based training changes a configuration: perturb, resample, cross. Every result lies in the space.

Source: Jaderberg, Dalibard, Osindero, Czarnecki et al., "Population Based Training of Neural Networks",
arXiv:1711.09846 (2017), section 3 and appendix A. The paper multiplies by 0.8 or 1.2 and lets values drift wherever
that leads, as Ray's `PopulationBasedTraining` does; here a step is clipped into the bounds and put back on the grid.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from hpo_ray.errors import ConfigError
from hpo_ray.space import Categorical, Domain, Fixed, Float, Int, Scalar, Space, SpaceError

FACTORS = (0.8, 1.2)


def explore(
    space: Space,
    config: Mapping[str, Any],
    rng: np.random.Generator,
    *,
    frozen: Collection[str] = (),
    factors: Sequence[float] = FACTORS,
    resample_probability: float = 0.25,
) -> dict[str, Any]:
    """A configuration near another one.

    Each hyperparameter is drawn anew with `resample_probability`, and else stepped: a number is multiplied by one of
    the factors (in a log domain that is a step in its logarithm), clipped into its bounds and put on its grid, where it
    moves by at least one point; an ordered choice goes to a neighbour, an unordered one is drawn anew. So is a number
    that no factor moves, zero. Where a condition holds after the change and did not before, the value is drawn; where
    it holds no more, the value is dropped.

    Args:
        space: in which the result lies.
        config: where to start, nested. What the space doesn't name is kept as it is.
        rng: draws three numbers per hyperparameter, whatever becomes of them.
        frozen: dotted names that are copied.
        factors: what a number is multiplied by, each as likely as another.
        resample_probability: how often a value is drawn from the whole domain instead.
    """
    units = dict(zip(space.names, rng.random((len(space), 3)).tolist(), strict=True))

    def value(name: str, before: Any) -> Scalar:
        domain, (resample, direction, fresh) = space.domains[name], units[name]
        if name in frozen or isinstance(domain, Fixed):
            return domain.coerce(before)
        stepped = None if resample < resample_probability else step(domain, before, direction, factors)
        return domain.from_unit(fresh) if stepped is None else stepped

    flat = _known(space, config)
    changed: dict[str, Any] = {}
    for name in space.order:
        if space.is_active(name, changed):
            changed[name] = value(name, flat[name]) if name in flat else space.domains[name].from_unit(units[name][2])
    return _with_unknown(space, config, changed)


def step(domain: Domain, value: Any, direction: float, factors: Sequence[float] = FACTORS) -> Scalar:
    """The next value in a direction; None where there is no next one, and it should be drawn.

    Args:
        domain: in which it lies.
        value: from where.
        direction: a number in [0, 1) that chooses among the factors, or the two neighbours of an ordered choice.
        factors: see `explore`.
    """
    if isinstance(domain, Categorical):
        if not domain.ordered or len(domain.choices) < 2:
            return None
        place, last = domain.choices.index(value), len(domain.choices) - 1
        up = place == 0 or (place < last and direction >= 0.5)
        return domain.choices[place + 1 if up else place - 1]
    assert isinstance(domain, Float | Int)
    factor = factors[min(int(direction * len(factors)), len(factors) - 1)]
    wanted = value * factor
    points = domain.size
    if points is None:
        return min(max(float(wanted), domain.low), domain.high) if value else None
    grid = float(domain.step or 1)
    place = round((value - domain.low) / grid)
    target = round((min(max(wanted, domain.low), domain.high) - domain.low) / grid)
    if target == place:
        rises = wanted > value if value else factor > 1
        target = min(max(place + (1 if rises else -1), 0), points - 1)
    return _point(domain, target, points)


def crossover(
    space: Space,
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    rng: np.random.Generator,
    probability: float,
    frozen: Collection[str] = (),
) -> dict[str, Any]:
    """A child of two configurations: each value of `a`, or with a probability that of `b`.

    Args:
        space: in which the result lies.
        a: the parent whose weights the child gets, nested.
        b: the other parent.
        rng: draws two numbers per hyperparameter, whatever becomes of them.
        probability: how often a value is that of `b`, where both have one.
        frozen: dotted names that stay those of `a`.
    """
    units = dict(zip(space.names, rng.random((len(space), 2)).tolist(), strict=True))
    own, other = _known(space, a), _known(space, b)
    child: dict[str, Any] = {}
    for name in space.order:
        if not space.is_active(name, child):
            continue
        crossed = name in other and name not in frozen and (name not in own or units[name][0] < probability)
        if crossed or name in own:
            child[name] = other[name] if crossed else own[name]
        else:  # active in neither parent: their conditions were mixed
            child[name] = space.domains[name].from_unit(units[name][1])
    return _with_unknown(space, a, child)


def replaced(
    space: Space, config: Mapping[str, Any], values: Mapping[str, Any], rng: np.random.Generator
) -> dict[str, Any]:
    """A configuration with some values set, whose conditions hold: what gets active is drawn, what isn't dropped."""
    units = dict(zip(space.names, rng.random(len(space)).tolist(), strict=True))
    wanted = {**_known(space, config), **values}
    flat: dict[str, Any] = {}
    for name in space.order:
        if space.is_active(name, flat):
            flat[name] = wanted[name] if name in wanted else space.domains[name].from_unit(units[name])
    return _with_unknown(space, config, flat)


def explorable(space: Space, frozen: Collection[str]) -> list[str]:
    """The names that can change: neither frozen nor fixed, nor a choice of one."""
    return [
        name
        for name, domain in space.domains.items()
        if name not in frozen
        and not isinstance(domain, Fixed)
        and not (isinstance(domain, Categorical) and len(domain.choices) == 1)
    ]


def check_movable(space: Space, factors: Sequence[float], frozen: Collection[str]) -> None:
    """Raises `ConfigError` unless the factors can move what is to be explored.

    Bounds that are closer than the factors reach only ever give the bounds themselves: in [1.0, 1.1] every step by 0.8
    or 1.2 is clipped. A grid of two points is nothing but its bounds, and is let pass.
    """
    if not (
        isinstance(factors, Sequence)
        and len(factors) == 2
        and all(isinstance(f, int | float) and math.isfinite(f) and f > 0 for f in factors)
        and min(factors) < 1 < max(factors)
    ):
        raise ConfigError(
            f"scheduler.factors={list(factors) if isinstance(factors, Sequence) else factors!r}: must be two positive "
            f"numbers, one below 1 and one above it, for example [0.8, 1.2]",
            key="scheduler.factors",
        )
    names = explorable(space, frozen)
    if not names:
        raise ConfigError(
            f"scheduler.frozen=[{', '.join(frozen)}]: leaves nothing of space ({', '.join(space.names)}) to explore; "
            f"population-based training changes hyperparameters during training. Take a name out, or add one to space",
            key="scheduler.frozen",
        )
    for name in names:
        domain = space.domains[name]
        if not isinstance(domain, Float | Int) or domain.low <= 0 <= domain.high or domain.size == 2:
            continue
        least, most = sorted((abs(domain.low), abs(domain.high)))
        if least * max(factors) > most and most * min(factors) < least:
            raise ConfigError(
                f"space.{name}: [{domain.low}, {domain.high}] is so narrow that scheduler.factors={list(factors)} only "
                f"ever lead to its bounds; widen it, bring the factors closer to 1, write one value to fix it, or list "
                f"values as ordered choices",
                key=f"space.{name}",
            )


def _point(domain: Float | Int, place: int, points: int) -> Scalar:
    """A grid's value at a place, exactly as the domain writes it."""
    if isinstance(domain, Int):
        return domain.low + place * (domain.step or 1)
    return domain.from_unit((place + 0.5) / points)


def _known(space: Space, config: Mapping[str, Any]) -> dict[str, Any]:
    """The values by name that the space knows, each as its domain has it; one that lies outside is left out."""
    known: dict[str, Any] = {}
    for name, value in space.flatten(config).items():
        domain = space.domains.get(name)
        if isinstance(domain, Float | Int) and isinstance(value, int | float) and not isinstance(value, bool):
            value = min(max(value, domain.low), domain.high)
        try:
            if domain is not None:
                known[name] = domain.coerce(value)
        except SpaceError:
            continue
    return known


def _with_unknown(space: Space, config: Mapping[str, Any], flat: Mapping[str, Any]) -> dict[str, Any]:
    """The nested configuration, with what the space doesn't name: in a user's own `Tuner` there may be constants."""
    unknown = {name: value for name, value in space.flatten(config).items() if name not in space.domains}
    return _merged(space.nest(flat), unknown)


def _merged(nested: dict[str, Any], flat: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in flat.items():
        *path, last = name.split(".")
        node = nested
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return nested
