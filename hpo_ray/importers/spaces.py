"""The space of trials that were run elsewhere: names and values that a `Space` can hold, and domains that fit them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hpo_ray.domains import KEYWORDS, Categorical, Domain, Fixed, Float, Int, Scalar, SpaceError
from hpo_ray.space import Space

_DECADES = 2
"""Positive numbers that span so many are taken to be searched on a logarithmic scale."""
_LARGEST_INT = 2**53


def plain(value: Any) -> Scalar:
    """A value of a configuration as a space can hold it: what is no scalar becomes its JSON, as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str):
        return value.replace("${", "$ {")  # which a configuration file takes for one of its own names
    if isinstance(value, Scalar):
        return value
    return json.dumps(value, default=str)


def as_texts(values: Iterable[Scalar]) -> bool:
    """Whether the values of a hyperparameter are told apart as texts only: true and 1 are equal otherwise."""
    kinds = {type(value) for value in values}
    return bool in kinds and bool({int, float} & kinds)


def text(value: Scalar) -> str:
    """A scalar as text: true, 1, 1.0 are three."""
    return value if isinstance(value, str) else json.dumps(value)


def infer(values: Sequence[Scalar]) -> Domain:
    """The domain of a hyperparameter that nobody has put down, from the values that were tried.

    One value is fixed; numbers range from the least to the largest, on a logarithmic scale where all are positive and
    span two decades; anything else is a choice among what was tried.

    >>> infer([0.001, 0.1, 1.0]), infer([4, 8]), infer(["adam", "sgd", "adam"]), infer([3, 3])
    (Float(low=0.001, high=1.0, log=True), Int(low=4, high=8), Categorical(choices=('adam', 'sgd')), Fixed(value=3))
    """
    tried = list(dict.fromkeys(values))
    if len(tried) == 1:
        return Fixed(tried[0])
    numbers = [value for value in tried if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) < len(tried):
        return Categorical(tuple(tried))
    low, high = min(numbers), max(numbers)
    log = low > 0 and high / low >= 10**_DECADES
    if all(isinstance(number, int) for number in numbers):
        if max(abs(low), abs(high)) > _LARGEST_INT:
            return Categorical(tuple(tried))
        return Int(int(low), int(high), log)
    return Float(float(low), float(high), log)


def conditions(domains: Mapping[str, Domain], configs: Sequence[Mapping[str, Scalar]]) -> dict[str, Domain]:
    """The domains, with a condition for each name that only some configurations have.

    The condition is read off: of the names that more configurations have, the one with the fewest values that are
    others where the name is there than where it isn't. A name that no other one explains stays without.
    """
    had = {name: {i for i, config in enumerate(configs) if name in config} for name in domains}
    return {
        name: domain if domain.conditions else dataclasses.replace(domain, when=_when(name, domains, configs, had))
        for name, domain in domains.items()
    }


def _when(
    name: str, domains: Mapping[str, Domain], configs: Sequence[Mapping[str, Scalar]], had: Mapping[str, set[int]]
) -> dict[str, list[Scalar]] | None:
    if len(had[name]) in (0, len(configs)):
        return None
    found: list[list[Scalar]] = []
    parents: list[str] = []
    for parent, domain in domains.items():
        if isinstance(domain, Float | Fixed) or not had[name] < had[parent]:
            continue
        there = list(dict.fromkeys(configs[i][parent] for i in sorted(had[name])))
        elsewhere = {configs[i][parent] for i in had[parent] - had[name]}
        # A whole number that is another one in each trial would explain anything.
        if not elsewhere & {*there} and 2 * len(elsewhere | {*there}) <= len(had[parent]):
            found.append(there)
            parents.append(parent)
    if not found:
        return None
    best = min(range(len(found)), key=lambda i: len({config[parents[i]] for config in configs if parents[i] in config}))
    return {parents[best]: found[best]}


def space_of(domains: Mapping[str, Domain]) -> tuple[Space, dict[str, str]]:
    """The space, and for each name what it is called there.

    A name that is a keyword of domains gets an underscore: `step_`. If names can't be nested at their dots as a space
    nests them (`a` beside `a.b`, `lr.low`), all dots become slashes.
    """
    for dot in (".", "/"):
        names: dict[str, str] = {}
        for name in domains:
            called = name.replace(".", dot)
            while called in KEYWORDS or called in names.values():
                called += "_"
            names[name] = called
        try:
            return Space({names[name]: _renamed(domain, names) for name, domain in domains.items()}), names
        except SpaceError:
            if dot == "/":
                raise
    raise AssertionError("one of the two returns or raises")


def _renamed(domain: Domain, names: Mapping[str, str]) -> Domain:
    when = {names[parent]: values for parent, values in domain.conditions.items()}
    return dataclasses.replace(domain, when=when or None)
