"""What a searcher is, without Ray: a fold over what happened to the trials, and a proposal for the next one.

A core hears `add`, `report` and `end`, and answers `suggest(number)`. A suggestion is a function of what it has heard,
of the seed and of the number: it holds no generator whose state could get lost, so feeding it the same history again
gives the same continuation. Values are *losses*: the caller has turned the sign where more is better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from hpo_ray.schedulers.brackets import Ladder
from hpo_ray.space import Space
from hpo_ray.trainables.context import SEARCHER, stream


@dataclass(frozen=True)
class Proposal:
    """A configuration, and what the searcher says of it (generation, parents), which goes into the study's log."""

    config: dict[str, Any]
    tags: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Observation:
    """A trial as a searcher sees it.

    Attributes:
        number: the trial's number, from 0.
        config: its configuration, nested.
        tags: what the searcher said of it.
        curve: losses at each resource that it reported, in rising order; a tuple has one loss for each metric.
        constraints: how far its last report is beyond each bound; 0 or less keeps it.
        state: `running` (or paused), `completed` (trained in full, or ended by itself), `stopped` or `failed`.
    """

    number: int
    config: dict[str, Any]
    tags: Mapping[str, Any] = field(default_factory=dict)
    curve: dict[int, tuple[float, ...]] = field(default_factory=dict)
    constraints: tuple[float, ...] = ()
    state: str = "running"

    @property
    def resource(self) -> int:
        """The highest resource that it reported; 0 before the first report."""
        return next(reversed(self.curve), 0)

    @property
    def loss(self) -> float:
        """The (first) loss at its highest resource; infinite if it failed or has not reported."""
        return self.curve[self.resource][0] if self.curve and self.state != "failed" else float("inf")

    @property
    def rank_key(self) -> tuple[int, float, int]:
        """Sorts the better trial first: a higher resource, then a lower loss, then the lower number.

        Losses of different resources are never compared: a trial gets further because it was among the best below.
        """
        return (-self.resource if self.loss < float("inf") else 0, self.loss, self.number)


class SearcherCore:
    """The algorithm of a searcher. Subclasses write `propose`, and the hooks `added`, `reported`, `ended` they need.

    Args:
        space: what to search.
        seed: the study's seed. Same seed and history, same suggestions.
        initial: known configurations to suggest first.
        ladder: the resources at which the scheduler compares trials; None: only those at the highest resource that any
            trial has reached are of one kind.

    Attributes:
        learns: whether suggestions depend on results.
        several: whether it optimises several metrics; otherwise it takes one.
        size: how many configurations it has; None for no end.
        trials: what it has heard, by number; only if it learns.

    Raises:
        ConfigError: a configuration of `initial` does not lie in the space, or the searcher can't do the space.
    """

    learns: ClassVar[bool] = True
    several: ClassVar[bool] = False

    def __init__(
        self,
        space: Space,
        seed: int = 0,
        initial: Sequence[Mapping[str, Any]] = (),
        ladder: Ladder | None = None,
    ) -> None:
        self.space = space
        self.seed = seed
        self.initial = [space.check(config, where=f"searcher.initial[{i}]") for i, config in enumerate(initial)]
        self.ladder = ladder
        self.size: int | None = None
        self.trials: dict[int, Observation] = {}
        self._journal: list[list[Any]] = []

    def propose(self, number: int) -> Proposal | None:
        """The number-th suggestion, `initial` included in the count; None when there are no more."""
        raise NotImplementedError(f"{type(self).__name__} must define propose(self, number) -> Proposal")

    def added(self, trial: Observation) -> None:
        """Hook: a trial was added."""

    def reported(self, trial: Observation) -> None:
        """Hook: a trial has reported at `trial.resource`."""

    def ended(self, trial: Observation) -> None:
        """Hook: a trial is over, with `trial.state`."""

    def explain(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """What its model says, of a configuration (the incumbent); empty without a model."""
        return {}

    def prepare(self) -> None:
        """Imports what it needs; raises `ConfigError` where that is missing, or refuses its settings."""

    def check_budget(self, trials: int | None) -> None:
        """Raises `ConfigError` if it can't do with this number of trials (None: no limit)."""

    def suggest(self, number: int) -> Proposal | None:
        """The number-th configuration: first the initial ones."""
        if number < len(self.initial):
            return Proposal(self.initial[number])
        return self.propose(number)

    def rng(self, number: int) -> np.random.Generator:
        """The random stream of the number-th suggestion."""
        return np.random.default_rng(stream(self.seed, SEARCHER, number))

    def sample(self, number: int) -> dict[str, Any]:
        """The number-th configuration of random search."""
        return self.space.sample(self.rng(number))

    def add(self, number: int, config: Mapping[str, Any], tags: Mapping[str, Any] | None = None) -> None:
        """A trial was added. Adding it again (a retry) changes nothing."""
        if not self.learns or number in self.trials:
            return
        trial = self.trials[number] = Observation(number, dict(config), dict(tags or {}))
        self._journal.append(["add", number, trial.config, trial.tags])
        self.added(trial)

    def report(self, number: int, resource: int, losses: Sequence[float], constraints: Sequence[float] = ()) -> None:
        """A trial reported finite losses at a resource. What lies at or below what it has reported changes nothing."""
        trial = self.trials.get(number)
        if trial is None or trial.state != "running" or resource <= trial.resource:
            return
        trial.curve[resource] = tuple(losses)
        trial.constraints = tuple(constraints)
        self._journal.append(["report", number, resource, list(losses), list(constraints)])
        self.reported(trial)

    def end(self, number: int, state: str) -> None:
        """A trial is over: `completed`, `stopped` or `failed`."""
        trial = self.trials.get(number)
        if trial is None or trial.state != "running":
            return
        trial.state = state
        self._journal.append(["end", number, state])
        self.ended(trial)

    @property
    def journal(self) -> Sequence[Sequence[Any]]:
        """All that it has heard, as JSON has it."""
        return self._journal

    def replay(self, journal: Iterable[Sequence[Any]]) -> None:
        """Hears again what another one has heard, in the same order."""
        hear: dict[str, Callable[..., None]] = {"add": self.add, "report": self.report, "end": self.end}
        for what, *arguments in journal:
            hear[what](*arguments)
