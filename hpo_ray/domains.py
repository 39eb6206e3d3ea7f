"""What one hyperparameter ranges over: a float, an integer, one of some choices, or one fixed value.

A domain maps the unit interval onto its values (`from_unit`), so that every sampler, random or quasi-random,
draws from the same measure, and one uniform number makes one value.
"""

from __future__ import annotations

import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from fractions import Fraction
from typing import Any, ClassVar, TypeAlias

from hpo_ray.errors import ConfigError

Scalar: TypeAlias = bool | int | float | str | None

KEYWORDS = ("low", "high", "log", "step", "choices", "ordered", "value", "when")


class SpaceError(ConfigError):
    """A search space, or a configuration of it, that cannot be: says which key, its value, and the fix."""


@dataclass(frozen=True, repr=False)
class Domain(ABC):
    """The values that one hyperparameter can take, and when it has one at all.

    Attributes:
        when: The conditions under which the hyperparameter is active, `{other_name: value or list of values}`;
            all must hold. Stored with a tuple of values per name; None is unconditional.
    """

    when: Mapping[str, Any] | None = field(default=None, kw_only=True, hash=False)

    def __post_init__(self) -> None:
        _set(self, when=_conditions(self.when))

    @property
    def conditions(self) -> Mapping[str, tuple[Scalar, ...]]:
        """`when`, with an empty mapping for none."""
        return self.when or {}

    def from_unit(self, u: float) -> Scalar:
        """The value at quantile `u` of the domain's distribution.

        Args:
            u: A number in [0, 1). 1 itself is taken too, since single-precision generators round up to it.

        Raises:
            ValueError: `u` lies outside of the unit interval.
        """
        if not 0.0 <= u <= 1.0:
            raise ValueError(f"u={u!r} is not in the unit interval [0, 1)")
        return self._quantile(float(u))

    @property
    @abstractmethod
    def size(self) -> int | None:
        """How many values there are; None for floats without a grid."""

    def to_unit(self, value: Any) -> float:
        """The middle of the quantiles that `from_unit` maps to `value`; of a float without a grid, the quantile.

        Raises:
            SpaceError: The domain does not contain `value`.
        """
        return self._unit(self.coerce(value))

    def coerce(self, value: Any) -> Scalar:
        """The domain's own form of `value`: the float of an int, the grid point, the choice as declared.

        Raises:
            SpaceError: The domain does not contain `value`; says what it contains.
        """
        if not self.contains(value):
            raise SpaceError(f"{value!r} is not {self.describe()}{self._nearest(value)}")
        return self._own(value)

    @abstractmethod
    def contains(self, value: Any) -> bool:
        """Whether the hyperparameter can take `value`. A bool is not a number."""

    @abstractmethod
    def describe(self) -> str:
        """What is allowed, in words: `a float in [0.0, 1.0]`."""

    @abstractmethod
    def to_config(self) -> Any:
        """The domain as a YAML file would say it."""

    @abstractmethod
    def _quantile(self, u: float) -> Scalar: ...

    @abstractmethod
    def _own(self, value: Any) -> Scalar: ...

    @abstractmethod
    def _unit(self, value: Any) -> float: ...

    def _nearest(self, value: Any) -> str:
        return ""

    def _keywords(self, **entries: Any) -> dict[str, Any]:
        """A domain mapping of these entries and the conditions."""
        if self.when:
            entries["when"] = {name: list(v) if len(v) > 1 else v[0] for name, v in self.conditions.items()}
        return entries

    def __repr__(self) -> str:
        own = sorted(fields(self), key=lambda f: f.name == "when")
        said = [f"{f.name}={getattr(self, f.name)!r}" for f in own if getattr(self, f.name) != f.default]
        return f"{type(self).__name__}({', '.join(said)})"


@dataclass(frozen=True, repr=False)
class Range(Domain):
    """What `Float` and `Int` have in common: numbers between two bounds, maybe on a grid."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    def describe(self) -> str:
        """What is allowed, in words."""
        grid = f" in steps of {self.step}" if self.step else ""
        return f"{self._article} in [{self.low}, {self.high}]{grid}"

    def to_config(self) -> dict[str, Any]:
        """`{low: …, high: …}` and what differs from the defaults."""
        differing = {"log": self.log or None, "step": self.step}
        return self._keywords(low=self.low, high=self.high, **{key: v for key, v in differing.items() if v is not None})

    def _nearest(self, value: Any) -> str:
        if not _is_number(value) or not math.isfinite(value):
            return ""
        return f"; nearest: {self._own(min(max(value, self.low), self.high))!r}"

    _article: ClassVar[str]

    def spread(self, points: int) -> tuple[Scalar, ...]:
        """Some values, evenly spread over the range (over its logarithm with `log`), from `low` to `high`.

        Args:
            points: How many; 1 gives the middle. Where the range has fewer values, these are all of them.
        """
        places = [0.5] if points == 1 else [i / (points - 1) for i in range(points)]
        if self.log:
            values = [math.pow(self.low, 1.0 - u) * math.pow(self.high, u) for u in places]
        else:
            values = [self.low * (1.0 - u) + self.high * u for u in places]
        return tuple(dict.fromkeys(self._own(min(max(value, self.low), self.high)) for value in values))


@dataclass(frozen=True, repr=False)
class Float(Range):
    """Real numbers from `low` to `high`, both included: uniform, log-uniform, or uniform on a grid.

    With `step` the values are `low + k * step`, and `high` becomes the largest of them that is not above
    it: as in Optuna, but without its warning. The grid is that of the decimal numbers as they are written,
    each rounded to a float once: `Float(0, 1, step=0.1)` takes 0.3, never 0.30000000000000004.

    Raises:
        SpaceError: A bound is not a finite number, low >= high, log with low <= 0, log together with step,
            or a step that is not positive, larger than the range, or too small for floats to tell its
            points apart.
    """

    _article = "a float"

    @property
    def size(self) -> int | None:
        """How many points the grid has; None without one."""
        return None if self.step is None else self._place(self.step, self.high) + 1

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = _finite("low", self.low), _finite("high", self.high)
        _check_range(low, high, self.log, self.step)
        _set(self, low=low, high=high)
        if self.step is not None:
            step = _finite("step", self.step)
            ulp = math.ulp(max(abs(low), abs(high)))
            if 0 < step < 4 * ulp:
                raise SpaceError(f"step={step!r} is too small for floats near {high!r}; leave it out")
            # A last grid point that was rounded down, as it was stored, must still count when it is read back.
            count = _steps(_exact(low), _exact(high) + Fraction(ulp), _exact(step), self)
            _set(self, step=step, high=min(float(_exact(low) + count * _exact(step)), high))

    def contains(self, value: Any) -> bool:
        """Whether `value` is a number of the range, and with a step within 1e-8 steps of the grid."""
        if not _is_number(value) or not self.low <= value <= self.high:
            return False
        return self.step is None or abs(self._own(value) - float(value)) <= 1e-8 * self.step

    def _quantile(self, u: float) -> float:
        if self.step is not None:
            return self._point(self.step, _index(u, self._place(self.step, self.high) + 1))
        if self.log:
            value = math.pow(self.low, 1.0 - u) * math.pow(self.high, u)
        else:
            value = self.low * (1.0 - u) + self.high * u
        return min(max(value, self.low), self.high)

    def _unit(self, value: Any) -> float:
        if self.step is not None:
            return (self._place(self.step, value) + 0.5) / (self._place(self.step, self.high) + 1)
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return float((value - self.low) / (self.high - self.low))

    def _own(self, value: Any) -> float:
        return float(value) if self.step is None else self._point(self.step, self._place(self.step, value))

    def _place(self, step: float, value: Any) -> int:
        return round((_exact(float(value)) - _exact(self.low)) / _exact(step))

    def _point(self, step: float, k: int) -> float:
        return min(float(_exact(self.low) + k * _exact(step)), self.high)


@dataclass(frozen=True, repr=False)
class Int(Range):
    """Integers from `low` to `high`, both included: uniform, log-uniform, or uniform on a grid.

    Log-uniform, as in Optuna, is log-uniform on the reals of [low - 0.5, high + 0.5], rounded: k has the
    probability log((k + 0.5) / (k - 0.5)) / log((high + 0.5) / (low - 0.5)), also at the end points.
    With `step` the values are `low + k * step`, and `high` becomes the largest of them that is not above
    it. A step of 1 is no step.

    Raises:
        SpaceError: A bound is not an integer or beyond 2**53, low >= high, log with low <= 0, log together
            with step, or a step that is not a positive integer, or larger than the range.
    """

    low: int
    high: int
    log: bool = False
    step: int | None = None

    _article = "an integer"

    @property
    def size(self) -> int:
        """How many integers the range has."""
        return (self.high - self.low) // (self.step or 1) + 1

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = _integer("low", self.low), _integer("high", self.high)
        step = None if self.step is None else _integer("step", self.step)
        step = None if step == 1 else step
        _check_range(low, high, self.log, step)
        if step is not None:
            high = low + step * _steps(low, high, step, self)
        _set(self, low=low, high=high, step=step)

    def contains(self, value: Any) -> bool:
        """Whether `value` is an integer of the range and of the grid; 3.0 is not an integer."""
        return _is_integer(value) and self.low <= value <= self.high and value == self._own(value)

    def _quantile(self, u: float) -> int:
        if self.log:
            value = math.floor(math.pow(self.low - 0.5, 1.0 - u) * math.pow(self.high + 0.5, u) + 0.5)
            return min(max(value, self.low), self.high)
        step = self.step or 1
        return self.low + step * _index(u, (self.high - self.low) // step + 1)

    def _unit(self, value: Any) -> float:
        if self.log:
            # The middle of [value - 0.5, value + 0.5] on the logarithmic scale.
            middle = 0.5 * (math.log(value - 0.5) + math.log(value + 0.5))
            return (middle - math.log(self.low - 0.5)) / (math.log(self.high + 0.5) - math.log(self.low - 0.5))
        step = self.step or 1
        return float(((value - self.low) // step + 0.5) / ((self.high - self.low) // step + 1))

    def _own(self, value: Any) -> int:
        step = self.step or 1
        return self.low + step * round(Fraction(float(value) - self.low) / step)


@dataclass(frozen=True, repr=False)
class Categorical(Domain):
    """One of some scalars, each as likely as another.

    Attributes:
        choices: None, bools, numbers and strings, no two of them equal (as 1 and True and 1.0 are).
        ordered: Whether neighbours in `choices` are alike (an ordinal), for searchers that can use it.

    Raises:
        SpaceError: No choices, a choice that is not a scalar, or two that are equal.
    """

    choices: tuple[Scalar, ...]
    ordered: bool = False

    @property
    def size(self) -> int:
        """How many choices there are."""
        return len(self.choices)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_list(self.choices):
            raise SpaceError(f"choices={self.choices!r} is not a list; write [{self.choices!r}, …]")
        choices = tuple(self.choices)
        if not choices:
            raise SpaceError("choices=[] is empty; list one choice or more")
        for place, choice in enumerate(choices):
            _check_scalar("choice", choice, "give each choice a name, a string, and map it to the object in your code")
            if choice in choices[:place]:
                twin = choices[choices.index(choice)]
                raise SpaceError(f"choice {choice!r} equals choice {twin!r}; list it once")
        _check_bool("ordered", self.ordered)
        _set(self, choices=choices)

    def contains(self, value: Any) -> bool:
        """Whether `value` equals a choice; True does not equal 1 here."""
        return is_one_of(value, self.choices)

    def describe(self) -> str:
        """What is allowed, in words."""
        return f"one of {list(self.choices)!r}"

    def to_config(self) -> Any:
        """A list, or `{choices: […]}` when there is more to say."""
        if self.ordered:
            return self._keywords(choices=list(self.choices), ordered=True)
        return self._keywords(choices=list(self.choices)) if self.when else list(self.choices)

    def _quantile(self, u: float) -> Scalar:
        return self.choices[_index(u, len(self.choices))]

    def _unit(self, value: Any) -> float:
        return (self.choices.index(value) + 0.5) / len(self.choices)

    def _own(self, value: Any) -> Scalar:
        return self.choices[self.choices.index(value)]

    def _nearest(self, value: Any) -> str:
        return nearest(str(value), [c for c in self.choices if isinstance(c, str)])


@dataclass(frozen=True, repr=False)
class Fixed(Domain):
    """One value, which no searcher changes.

    Raises:
        SpaceError: The value is not None, a bool, a number or a string.
    """

    value: Scalar

    @property
    def size(self) -> int:
        """One."""
        return 1

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_scalar("value", self.value, "to choose among values, list them as choices; constants go to task.args")

    def contains(self, value: Any) -> bool:
        """Whether `value` equals the fixed one; True does not equal 1 here."""
        return is_one_of(value, (self.value,))

    def describe(self) -> str:
        """What is allowed, in words."""
        return f"its fixed value {self.value!r}"

    def to_config(self) -> Any:
        """The scalar, or `{value: …, when: …}`."""
        return self._keywords(value=self.value) if self.when else self.value

    def _quantile(self, u: float) -> Scalar:
        return self.value

    def _unit(self, value: Any) -> float:
        return 0.5

    def _own(self, value: Any) -> Scalar:
        return self.value

    def _nearest(self, value: Any) -> str:
        return "; leave it out"


def flatten(config: Mapping[str, Any], where: str, is_leaf: Callable[[Mapping[str, Any]], bool]) -> dict[str, Any]:
    """Nested mappings as one mapping of dotted names, in order; an empty mapping is a leaf.

    Raises:
        SpaceError: A key is not a name, or a name is given both nested and dotted.
    """
    flat: dict[str, Any] = {}

    def walk(node: Mapping[str, Any], prefix: str) -> None:
        for key, value in node.items():
            if not isinstance(key, str) or not all(key.split(".")):
                key_of = f"{where}{prefix}"
                raise SpaceError(f"{key_of}: {key!r} is not a name; write a string without empty parts", key_of)
            name = f"{prefix}.{key}"
            if isinstance(value, Mapping) and value and not is_leaf(value):
                walk(value, name)
            elif name[1:] in flat:
                both = f"{flat[name[1:]]!r} and {value!r}"
                raise SpaceError(f"{where}{name}: given twice, {both}; remove one", f"{where}{name}")
            else:
                flat[name[1:]] = value

    walk(config, "")
    return flat


def is_one_of(value: Any, allowed: Iterable[Scalar]) -> bool:
    """Whether a scalar equals one of the allowed ones, where True and 1 differ, 1 and 1.0 do not."""
    if not isinstance(value, Scalar):
        return False
    return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in allowed)


def is_list(value: Any) -> bool:
    """Whether `value` is a list or a tuple, or OmegaConf's kind of list."""
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def nearest(name: str, names: Iterable[str]) -> str:
    """` (nearest: 'low')`, or nothing where no name is like it."""
    close = get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" (nearest: {close[0]!r})" if close else ""


def _conditions(when: Any) -> dict[str, tuple[Scalar, ...]] | None:
    if when is None or when == {}:
        return None
    if not isinstance(when, Mapping):
        raise SpaceError(f"when={when!r} is not a mapping; write {{name: value}} or {{name: [values]}}")
    conditions = {}
    for name, allowed in flatten(when, "when", lambda _: False).items():
        values = tuple(allowed) if is_list(allowed) else (allowed,)
        if not values:
            raise SpaceError(f"when.{name}=[] can never hold; list the values of {name!r} that activate it")
        for value in values:
            _check_scalar(f"when.{name}:", value, "write a value, or a list of values")
        conditions[name] = values
    return conditions


def _check_range(low: float, high: float, log: bool, step: float | None) -> None:
    _check_bool("log", log)
    if low >= high:
        fix = "write the value alone to fix it" if low == high else "swap them"
        raise SpaceError(f"low={low!r} is not below high={high!r}; {fix}")
    if log and low <= 0:
        raise SpaceError(f"low={low!r} has no logarithm; with log=True low must be above 0: raise it, or drop log")
    if log and step is not None:
        raise SpaceError(f"step={step!r} cannot go with log=True; drop one, or list the values as choices")


def _steps(low: int | Fraction, high: int | Fraction, step: int | Fraction, of: Range) -> int:
    """How many whole steps the range holds."""
    if step <= 0:
        raise SpaceError(f"step={of.step!r} is not positive; give a step above 0, or leave it out")
    if low + step > high:
        raise SpaceError(f"step={of.step!r} is larger than the range from {of.low!r} to {of.high!r}; make it smaller")
    return math.floor((high - low) // step)


def _finite(name: str, value: Any) -> float:
    if not _is_number(value):
        raise SpaceError(f"{name}={value!r} is not a number; write a number such as 0.1")
    if not math.isfinite(value):
        raise SpaceError(f"{name}={value!r} is not finite; give the range an end")
    return float(value)


def _integer(name: str, value: Any) -> int:
    if not _is_integer(value):
        fix = "for a float range write low or high as a float (1.0)" if _is_number(value) else "write an integer"
        raise SpaceError(f"{name}={value!r} is not an integer; {fix}")
    if abs(value) > 2**53:
        raise SpaceError(f"{name}={value!r} is beyond 2**53, where floats skip integers; search its logarithm instead")
    return int(value)


def _check_scalar(what: str, value: Any, fix: str) -> None:
    if not isinstance(value, Scalar):
        raise SpaceError(f"{what} {value!r} is not None, a bool, a number or a string; {fix}")
    if value != value:
        raise SpaceError(f"{what} {value!r} equals nothing, itself included; write null")


def _check_bool(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise SpaceError(f"{name}={value!r} is neither true nor false; write one of them")


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _index(u: float, n: int) -> int:
    """floor(u * n), exactly for a u of 53 bits, where the float product would round up across an integer."""
    return min(int(u * 2**53) * n >> 53, n - 1)


def _exact(number: float) -> Fraction:
    """The decimal number as it is written, not the binary one that stands for it."""
    return Fraction(repr(number))


def _set(domain: Domain, **values: Any) -> None:
    for name, value in values.items():
        object.__setattr__(domain, name, value)
