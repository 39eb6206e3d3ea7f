"""A search space: the hyperparameters by dotted name, their domains, and which of them are active when.

    Space({"lr": Float(1e-4, 0.3, log=True), "optimizer": ["sgd", "adam"],
           "momentum": Float(0.0, 0.99, when={"optimizer": "sgd"}), "dropout": 0.1})

It says the same as a `space:` section of YAML, reads and writes that, and Optuna's distributions. Nothing
here needs more than the standard library; Optuna is imported by the two methods that name it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from hpo_ray.domains import (
    KEYWORDS,
    Categorical,
    Domain,
    Fixed,
    Float,
    Int,
    Range,
    Scalar,
    SpaceError,
    flatten,
    is_list,
    is_one_of,
    nearest,
)

if TYPE_CHECKING:
    import numpy
    from optuna.distributions import BaseDistribution

__all__ = ["KEYWORDS", "Categorical", "Domain", "Fixed", "Float", "Int", "Range", "Scalar", "Space", "SpaceError"]


_LOOKALIKES = {
    **dict.fromkeys(("lo", "min", "minimum", "lower", "start", "from"), "low"),
    **dict.fromkeys(("hi", "max", "maximum", "upper", "stop", "to"), "high"),
    **dict.fromkeys(("values", "options", "choice", "categories"), "choices"),
}


class Space:
    """Hyperparameters by dotted name, in declaration order, those of a nested space together.

    An entry is a domain, a mapping of domain keywords (`{"low": 1, "high": 8}`: both bounds ints is an `Int`,
    any bound a float is a `Float`), a list (`Categorical`), a scalar (`Fixed`), or a mapping without domain
    keywords: a nested space, whose names are joined by dots.

    A condition (`when`) names another hyperparameter by its full dotted name, or, inside a nested space, by
    the name that it has there; a full name wins. A hyperparameter is active only if each parent is active and
    takes an allowed value. Under a `Fixed` parent a condition may name any value, so that fixing a choice
    needs no other change; where it names others only, the hyperparameter is never active.

    Args:
        entries: The hyperparameters. An empty space is a space.
        where: What a message calls the space, before the hyperparameter's name.

    Raises:
        SpaceError: A domain that cannot be, a name that is a domain keyword or both a hyperparameter and a
            nested space, or a condition on an unknown name, a value that its parent cannot take, or in a cycle.
    """

    def __init__(self, entries: Mapping[str, Any] | None = None, *, where: str = "space") -> None:
        domains: dict[str, Domain] = {}
        for name, entry in flatten(entries or {}, where, lambda m: any(k in m for k in KEYWORDS)).items():
            key = f"{where}.{name}"
            if keyword := next((part for part in name.split(".") if part in KEYWORDS), None):
                fix = f"rename it, or put it under a hyperparameter, {where}.<name>.{keyword}"
                raise _error(key, f"{keyword!r} is a keyword of domains, not a name; {fix}")
            if isinstance(entry, Mapping) and not entry:
                raise _error(key, f"{{}} is neither a domain nor a nested space; remove it, ~{key}")
            try:
                domains[name] = _to_domain(entry)
            except SpaceError as error:
                raise _error(key, str(error)) from None
        _check_lookalikes(domains, where)
        for name in domains:
            if inner := next((other for other in domains if other.startswith(f"{name}.")), None):
                raise _error(f"{where}.{name}", f"the nested space of {inner!r} has this name too; rename one")
        names = flatten(_nest(domains), where, lambda _: False)
        self._domains = {name: _with_full_names(name, domains, where) for name in names}
        self._order = _parents_first(self._domains, where)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str = "space") -> Space:
        """The space that a resolved `space:` section says; the inverse of `to_config`."""
        return cls(config, where=where)

    @property
    def domains(self) -> Mapping[str, Domain]:
        """The domain of each dotted name, in declaration order, conditions by full names."""
        return MappingProxyType(self._domains)

    @property
    def names(self) -> tuple[str, ...]:
        """The dotted names, in declaration order."""
        return tuple(self._domains)

    @property
    def order(self) -> tuple[str, ...]:
        """The names with parents before children, otherwise in declaration order."""
        return self._order

    def is_active(self, name: str, flat: Mapping[str, Any]) -> bool:
        """Whether a hyperparameter has a value, given those of the others by dotted name."""
        return all(
            parent in flat and is_one_of(flat[parent], allowed) and self.is_active(parent, flat)
            for parent, allowed in self._domains[name].conditions.items()
        )

    def sample(self, rng: numpy.random.Generator) -> dict[str, Any]:
        """A random configuration: nested, of Python scalars, inactive names absent.

        Takes one uniform double per name in declaration order, also for those inactive or fixed: fixing a
        value or adding a condition leaves the other draws as they were.
        """
        return self.from_units(rng.random(len(self)).tolist())

    def from_units(self, units: Sequence[float]) -> dict[str, Any]:
        """The configuration at a point of the unit cube, one coordinate per name in declaration order."""
        unit = dict(zip(self._domains, units, strict=True))
        flat: dict[str, Any] = {}
        for name in self._order:
            if self.is_active(name, flat):
                flat[name] = self._domains[name].from_unit(unit[name])
        return self.nest(flat)

    def to_units(self, config: Mapping[str, Any]) -> list[float]:
        """A point of the unit cube that `from_units` maps to this configuration; 0.5 for names that it has not."""
        flat = self.flatten(config)
        return [domain.to_unit(flat[name]) if name in flat else 0.5 for name, domain in self._domains.items()]

    def nest(self, flat: Mapping[str, Any]) -> dict[str, Any]:
        """Values by dotted name as the nested configuration that a trainable gets, in declaration order."""
        for name, value in flat.items():
            self._check_name(name, value, "config")
        return _nest({name: flat[name] for name in self._domains if name in flat})

    def flatten(self, config: Mapping[str, Any], where: str = "config") -> dict[str, Any]:
        """A nested, dotted or mixed configuration as values by dotted name; the inverse of `nest`."""
        return flatten(config, where, lambda _: False)

    def check(self, config: Mapping[str, Any], where: str = "config") -> dict[str, Any]:
        """A user's own configuration, made whole: nested, fixed values filled in, each value its domain's.

        Args:
            config: A value for each active hyperparameter, nested or by dotted name. Fixed ones may be left
                out; an int for a `Float` becomes a float.
            where: What a message calls the configuration: `searcher.initial[0]`.

        Raises:
            SpaceError: An unknown name, a missing or an inactive one, or a value outside of its domain.
        """
        given = self.flatten(config, where)
        for name, value in given.items():
            self._check_name(name, value, where)
        flat: dict[str, Any] = {}
        for name in self._order:
            key, domain = f"{where}.{name}", self._domains[name]
            if not self.is_active(name, flat):
                if name in given:
                    raise _error(key, f"{given[name]!r} is not used: {self._why(name, flat)}; remove it")
            elif name in given:
                try:
                    flat[name] = domain.coerce(given[name])
                except SpaceError as error:
                    raise _error(key, str(error)) from None
            elif isinstance(domain, Fixed):
                flat[name] = domain.value
            else:
                raise _error(key, f"missing; add {name}, {domain.describe()}")
        return self.nest(flat)

    def to_config(self) -> dict[str, Any]:
        """The space as a plain nested `space:` section; the inverse of `from_config`."""
        return self.nest({name: domain.to_config() for name, domain in self._domains.items()})

    def to_optuna(self) -> dict[str, BaseDistribution]:
        """Optuna's distribution of each name that is not fixed.

        Optuna has no word for conditions, for fixed values and for the order of choices: these are left out.
        """
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        distributions: dict[str, BaseDistribution] = {}
        for name, domain in self._domains.items():
            if isinstance(domain, Float):
                # Optuna's constructor drops the last point of a grid that is no short decimal, and warns.
                grid = FloatDistribution(domain.low, domain.high, domain.log)
                grid.step = domain.step
                distributions[name] = grid
            elif isinstance(domain, Int):
                distributions[name] = IntDistribution(domain.low, domain.high, domain.log, domain.step or 1)
            elif isinstance(domain, Categorical):
                distributions[name] = CategoricalDistribution(domain.choices)
        return distributions

    @classmethod
    def from_optuna(cls, distributions: Mapping[str, BaseDistribution]) -> Space:
        """The space of some Optuna distributions; a number's range of one value becomes `Fixed`.

        Raises:
            SpaceError: A distribution with choices that are not scalars, or of a kind unknown here.
        """
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        entries: dict[str, Any] = {}
        for name, distribution in distributions.items():
            if isinstance(distribution, CategoricalDistribution):
                entries[name] = list(distribution.choices)
            elif not isinstance(distribution, (FloatDistribution, IntDistribution)):
                raise SpaceError(f"space.{name}: {distribution!r} is not one of Optuna's float, int, categorical")
            elif distribution.low == distribution.high:
                entries[name] = distribution.low
            else:
                keys = ("low", "high", "log", "step")
                entries[name] = {key: getattr(distribution, key) for key in keys}
        return cls(entries)

    def __len__(self) -> int:
        return len(self._domains)

    def __iter__(self) -> Iterator[str]:
        return iter(self._domains)

    def __eq__(self, other: object) -> bool:
        """The same names with the same domains, in the same order: they make the same samples."""
        return isinstance(other, Space) and list(self._domains.items()) == list(other._domains.items())

    def __hash__(self) -> int:
        return hash(tuple(self._domains.items()))

    def __repr__(self) -> str:
        return f"Space({self._domains!r})"

    def _check_name(self, name: str, value: Any, where: str) -> None:
        if name not in self._domains:
            known = f"the space has {', '.join(self._domains)}" if self._domains else "the space is empty"
            hint = nearest(name, self._domains)
            raise _error(f"{where}.{name}", f"{value!r} is of no hyperparameter{hint}; {known}")

    def _why(self, name: str, flat: Mapping[str, Any]) -> str:
        """The first condition of an inactive name that fails, in words."""
        for parent, allowed in self._domains[name].conditions.items():
            if parent not in flat:
                return f"its parent {parent!r} is inactive"
            if not is_one_of(flat[parent], allowed):
                return f"it needs {parent!r} to be one of {list(allowed)!r}, here {flat[parent]!r}"
        raise AssertionError(f"{name} is active")


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = {}
    for name, value in flat.items():
        *path, last = name.split(".")
        node = config
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return config


def _error(key: str, problem: str) -> SpaceError:
    return SpaceError(f"{key}: {problem}", key)


def _check_lookalikes(domains: Mapping[str, Domain], where: str) -> None:
    """A nested space of constants alone, named like the keywords of a domain, was meant as a domain."""
    nested: dict[str, dict[str, Domain]] = {}
    for name, domain in domains.items():
        outer, _, last = name.rpartition(".")
        nested.setdefault(outer, {})[last] = domain
    for outer, inner in nested.items():
        wrong = next((name for name in inner if name in _LOOKALIKES), None)
        if outer and wrong and all(isinstance(domain, Fixed) for domain in inner.values()):
            raise _error(
                f"{where}.{outer}",
                f"unknown keyword {wrong!r} (nearest: {_LOOKALIKES[wrong]!r}); a domain takes {', '.join(KEYWORDS)}",
            )


def _with_full_names(name: str, domains: Mapping[str, Domain], where: str) -> Domain:
    """The domain with its conditions by full dotted names, and their values as the parents have them."""
    conditions: dict[str, tuple[Scalar, ...]] = {}
    outer = name.split(".")[:-1]
    scopes = ["", *(".".join(outer[:depth]) + "." for depth in range(len(outer), 0, -1))]
    for short, values in domains[name].conditions.items():
        key = f"{where}.{name}.when.{short}"
        parent = next((scope + short for scope in scopes if scope + short in domains), None)
        if parent is None:
            others = [other for other in domains if other != name]
            known = f"the other names are {', '.join(others)}" if others else "there is no other name"
            raise _error(key, f"{short!r} is no hyperparameter{nearest(short, others)}; {known}")
        domain = domains[parent]
        if isinstance(domain, Float) and domain.step is None:
            why = f"{parent!r} is {domain.describe()}, and would never be one of {list(values)!r}"
            raise _error(key, f"{why}; give it a step or choices")
        if not isinstance(domain, Fixed):
            try:
                values = tuple(domain.coerce(value) for value in values)
            except SpaceError as error:
                raise _error(key, f"{error}; remove the value, or add it to {where}.{parent}") from None
        if parent in conditions:
            raise _error(key, f"{parent!r} is named twice; remove one")
        conditions[parent] = values
    return dataclasses.replace(domains[name], when=conditions)


def _parents_first(domains: Mapping[str, Domain], where: str) -> tuple[str, ...]:
    order: dict[str, None] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            cycle = " -> ".join([*path[path.index(name) :], name])
            raise _error(f"{where}.{name}.when", f"a cycle of conditions, {cycle}; remove one of them")
        if name not in order:
            for parent in domains[name].conditions:
                visit(parent, (*path, name))
            order[name] = None

    for name in domains:
        visit(name, ())
    return tuple(order)


def _to_domain(entry: Any) -> Domain:
    """The domain that one entry of a space says: a domain, a mapping of keywords, a list, or a scalar.

    Raises:
        SpaceError: It says none. The message does not name the hyperparameter: the caller does.
    """
    if isinstance(entry, Domain):
        return entry
    if isinstance(entry, Mapping):
        return _from_keywords(entry)
    if is_list(entry):
        return Categorical(tuple(entry))
    return Fixed(entry)


def _from_keywords(entry: Mapping[str, Any]) -> Domain:
    kinds: dict[str, tuple[str, ...]] = {
        "range": ("low", "high", "log", "step"),
        "choice": ("choices", "ordered"),
        "fixed value": ("value",),
    }
    for key in entry:
        if key not in KEYWORDS:
            reason = next((f" (which '{k}' makes it)" for k in entry if k in KEYWORDS), "")
            hint = nearest(str(key), KEYWORDS)
            raise SpaceError(f"unknown keyword {key!r}{hint}; a domain{reason} takes {', '.join(KEYWORDS)}")
    said = [kind for kind, keys in kinds.items() if any(key in entry for key in keys)]
    if len(said) != 1:
        has = f"{dict(entry)!r} " + (f"is both a {' and a '.join(said)}" if said else "says no values")
        raise SpaceError(f"{has}; give low and high, or choices, or value")
    if "value" in entry:
        return Fixed(**entry)
    needed = ("choices",) if said == ["choice"] else ("low", "high")
    if missing := [key for key in needed if entry.get(key) is None]:
        raise SpaceError(f"{dict(entry)!r} lacks {' and '.join(missing)}; add {'it' if len(missing) == 1 else 'them'}")
    if "choices" in entry:
        return Categorical(**entry)
    numbers_said = {key: _number_of(entry[key]) for key in ("low", "high", "step") if key in entry}
    is_float = any(isinstance(numbers_said[key], float) for key in ("low", "high"))
    return (Float if is_float else Int)(**{**entry, **numbers_said})


def _number_of(bound: Any) -> Any:
    """A bound as written; YAML 1.1 reads 1e-4 as a string, which is meant as a float."""
    if isinstance(bound, str):
        try:
            return float(bound)
        except ValueError:
            return bound
    return bound
