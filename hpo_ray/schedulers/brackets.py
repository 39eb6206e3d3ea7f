"""Rungs, brackets and what they cost: the integers of successive halving and Hyperband.

A *rung* (n, r) trains n configurations up to resource r each; a *bracket* is a ladder of rungs, in each of which the
best 1/eta of the rung below go on with eta times the resource. Everything here is exact integer arithmetic: a
logarithm in floating point loses rungs (log(243)/log(3) = 4.999...).

Sources:
    Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", AISTATS 2016.
    Li, Jamieson, DeSalvo, Rostamizadeh and Talwalkar, "Hyperband: A Novel Bandit-Based Approach to Hyperparameter
    Optimization", JMLR 18 (2018), Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hpo_ray.errors import ConfigError

DEFAULT_TRIALS = 20
"""How many configurations a method without brackets tries when the budget names neither trials nor time."""


@dataclass(frozen=True)
class Rung:
    """n configurations, each trained up to resource r (not r more)."""

    n: int
    r: int


@dataclass(frozen=True)
class Bracket:
    """A ladder of rungs. `s` is how many times it halves; s = 0 is one rung at full resource."""

    s: int
    rungs: tuple[Rung, ...]

    @property
    def resource(self) -> int:
        """Units trained when a configuration that moves up trains only the difference."""
        below = (0, *(rung.r for rung in self.rungs))
        return sum(rung.n * (rung.r - r) for rung, r in zip(self.rungs, below, strict=False))

    @property
    def resource_restarting(self) -> int:
        """Units trained when each rung trains from the start: the sum of n_i r_i that Algorithm 1 counts."""
        return sum(rung.n * rung.r for rung in self.rungs)


@dataclass(frozen=True)
class Ladder:
    """At which resources a scheduler compares trials: what a searcher has to know to never mix their values.

    Attributes:
        resources: in rising order; the last is full resource.
        start: the resource at which the number-th trial is first compared.
        eta: of each resource 1/eta of the trials go on to the next; None where there is one only.
    """

    resources: tuple[int, ...]
    start: Callable[[int], int] = field(compare=False)
    eta: int | None = None

    @property
    def full(self) -> int:
        """The resource of one full training."""
        return self.resources[-1]

    @classmethod
    def single(cls, resource: int) -> Ladder:
        """All trials are compared at one resource only."""
        return cls((resource,), lambda number: resource)


@dataclass(frozen=True)
class Budget:
    """What a study may spend. None: not limited by this.

    Attributes:
        trials: configurations to try; for schedulers that don't decide this themselves.
        rounds: how many times a scheduler with brackets goes through them.
        time_s: seconds of the study's clock, after which it ends.
        resource: units of training in all, after which the study ends.
        target: the study ends when a trial reports this value of the metric or a better one.
        concurrency: trials at a time; by default as many as the resources allow.
        trial_timeout_s: seconds without a report after which a trial has failed.
    """

    trials: int | None = None
    rounds: int | None = None
    time_s: float | None = None
    resource: int | None = None
    target: float | None = None
    concurrency: int | None = None
    trial_timeout_s: float | None = None

    @property
    def open_ended(self) -> bool:
        """Whether time or resource end the study, so that it needs no number of trials."""
        return self.time_s is not None or self.resource is not None


@dataclass(frozen=True)
class Plan:
    """What a scheduler will do with a budget, known before anything runs.

    Attributes:
        max_resource: the resource of one full training.
        trials: configurations in all; None when only time or resource end the study.
        brackets: one round of them; empty for a scheduler without.
        rounds: how many rounds; None when only time or resource end the study.
        exact: False when the results decide how many trials move up; the numbers are then what is expected.
        at_most: the results decide how many trials end early; the numbers are then the most that it can be.
        spread: where the total resource lies in nine of ten random orders, when it is not exact; None if not known.
        limit: units trained in all, after which the study ends (`budget.resource`).
    """

    max_resource: int
    trials: int | None
    brackets: tuple[Bracket, ...] = ()
    rounds: int | None = 1
    exact: bool = True
    spread: tuple[int, int] | None = None
    limit: int | None = None
    at_most: bool = False

    @property
    def about(self) -> str:
        """What to put before the numbers, so that they say no more than is known: nothing, `about ` or `at most `."""
        return "" if self.exact else "at most " if self.at_most else "about "

    @property
    def total_resource(self) -> int | None:
        """Units trained in all, when a configuration that moves up trains only the difference."""
        return self._total([bracket.resource for bracket in self.brackets])

    @property
    def total_resource_restarting(self) -> int | None:
        """Units trained in all, when each rung starts again: 1902 for Hyperband with R = 81, eta = 3."""
        return self._total([bracket.resource_restarting for bracket in self.brackets])

    @property
    def full_trainings(self) -> float | None:
        """`total_resource` in units of one full training."""
        return None if self.total_resource is None else self.total_resource / self.max_resource

    def _total(self, per_bracket: list[int]) -> int | None:
        if self.trials is None:
            return self.limit
        total = sum(per_bracket) * (self.rounds or 1) if self.brackets else self.trials * self.max_resource
        return total if self.limit is None else min(total, self.limit)


def check_geometry(max_resource: object, min_resource: object, eta: object) -> None:
    """Raises `ConfigError` unless 1 <= min_resource <= max_resource and eta >= 2, all of them whole numbers."""
    for name, value, least in (
        ("max_resource", max_resource, 1),
        ("min_resource", min_resource, 1),
        ("eta", eta, 2),
    ):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            hint = "eta times more resource for 1/eta of the trials" if name == "eta" else "units of training"
            raise ConfigError(
                f"scheduler.{name}={value!r}: must be a whole number >= {least} ({hint})", key=f"scheduler.{name}"
            )
    assert isinstance(max_resource, int) and isinstance(min_resource, int)
    if min_resource > max_resource:
        raise ConfigError(
            f"scheduler.min_resource={min_resource} is above scheduler.max_resource={max_resource}: "
            f"lower the first or raise the second",
            key="scheduler.min_resource",
        )


def most_halvings(max_resource: int, min_resource: int, eta: int) -> int:
    """s_max: the largest s with min_resource * eta^s <= max_resource."""
    s = 0
    while min_resource * eta ** (s + 1) <= max_resource:
        s += 1
    return s


def _bracket(n: int, s: int, max_resource: int, eta: int) -> Bracket:
    """Rung i of bracket s: n_i = floor(n eta^-i) configurations at r_i = floor(R eta^-(s-i))."""
    return Bracket(s, tuple(Rung(n // eta**i, max_resource // eta ** (s - i)) for i in range(s + 1)))


def hyperband_brackets(max_resource: int, eta: int = 3, min_resource: int = 1) -> list[Bracket]:
    """The brackets of Hyperband, from the most exploratory (s = s_max) to plain training (s = 0).

    Bracket s starts n = ceil((s_max + 1) eta^s / (s + 1)) configurations (Algorithm 1, line 2; the quotient B/R is
    s_max + 1). The table printed in the paper for R = 81, eta = 3 differs from the paper's own Algorithm 1 in some
    places; this is Algorithm 1.

    Args:
        max_resource: R, the most that a configuration may get, in whole units (epochs by default).
        eta: of each rung 1/eta of the configurations go on, with eta times the resource. At least 2.
        min_resource: the least resource that tells something about a configuration.

    Raises:
        ConfigError: an argument is not a whole number in its range.
    """
    check_geometry(max_resource, min_resource, eta)
    s_max = most_halvings(max_resource, min_resource, eta)
    return [_bracket(-(-(s_max + 1) * eta**s // (s + 1)), s, max_resource, eta) for s in range(s_max, -1, -1)]


def halving_bracket(max_resource: int, eta: int = 3, min_resource: int = 1, n: int | None = None) -> Bracket:
    """One successive halving of n configurations, the last of which are trained to `max_resource`.

    It halves as often as both sides allow: s is the largest with min_resource * eta^s <= max_resource and
    eta^s <= n. So few configurations start above `min_resource` rather than end below `max_resource`.

    Args:
        max_resource: R, as in `hyperband_brackets`.
        eta: as in `hyperband_brackets`.
        min_resource: as in `hyperband_brackets`.
        n: configurations at the bottom; by default eta^s_max, which leaves one at the top.

    Raises:
        ConfigError: an argument is not a whole number in its range.
    """
    check_geometry(max_resource, min_resource, eta)
    s = most_halvings(max_resource, min_resource, eta)
    if n is None:
        return _bracket(eta**s, s, max_resource, eta)
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise ConfigError(f"scheduler.bracket_size={n!r}: must be a whole number >= 1", key="scheduler.bracket_size")
    while eta**s > n:
        s -= 1
    return _bracket(n, s, max_resource, eta)


def rounds_of(brackets: Sequence[Bracket], budget: Budget) -> tuple[int | None, int | None]:
    """(rounds, trials) that a budget gives a scheduler with brackets; (None, None) when it is open-ended."""
    size = sum(bracket.rungs[0].n for bracket in brackets)
    if budget.rounds is None and budget.open_ended:
        return None, None
    rounds = 1 if budget.rounds is None else budget.rounds
    return rounds, rounds * size
