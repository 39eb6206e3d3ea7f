"""Population-based training: trials that copy each other's weights while they train. Without Ray.

Sources:
    Jaderberg, Dalibard, Osindero, Czarnecki et al., "Population Based Training of Neural Networks", arXiv:1711.09846
    (2017): Algorithm 1; truncation selection and perturbation in section 4 and appendix A.
    Parker-Holder, Nguyen and Roberts for PB2: see `pb2`.
"""

from __future__ import annotations

import copy
import heapq
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hpo_ray.errors import ConfigError
from hpo_ray.schedulers.brackets import Budget, Ladder, Plan, check_geometry
from hpo_ray.schedulers.core import CONTINUE, NO_MOVES, Action, Clone, Decision, Moves
from hpo_ray.schedulers.explore import FACTORS, check_movable, crossover, explore
from hpo_ray.space import Space, SpaceError
from hpo_ray.trainables.context import SCHEDULER, stream

RESULT_FILE = "result.json"  # as `hpo_ray.results` writes it


@dataclass
class Member:
    """A living trial of the population."""

    number: int
    config: Mapping[str, Any]
    target: int
    """The resource of its next interval point."""
    resource: int = 0
    """That of its last report."""
    waiting: bool = False
    points: int = 0
    """How many interval points it has reached: its how-manieth decision the next one is."""
    exploits: int = 0
    parent: int | None = None
    judged: int = 0
    """The last interval point at which it was ranked, counted from 1."""
    replaced: int = 0
    """The last one at which it was among the last, and copied another."""
    scores: list[tuple[int, float]] = field(default_factory=list)
    """(resource, loss) at its interval points, those of the weights that it copied included."""

    @property
    def saved(self) -> int:
        """The resource of its last interval point, where its last checkpoint is."""
        return self.scores[-1][0] if self.scores else 0

    def score_below(self, resource: int) -> tuple[int, float] | None:
        """Its last score at a resource below this one."""
        return next((score for score in reversed(self.scores) if score[0] < resource), None)


class PBTCore:
    """Population-based training. See `hpo_ray.schedulers.PBT`."""

    pauses = True
    ranks = True
    searcher_may_learn: ClassVar[bool] = False
    """A trial's value comes from several configurations, so that no searcher could learn from it."""

    def __init__(
        self,
        space: Space,
        max_resource: int,
        population: int = 8,
        interval: int = 3,
        quantile: float = 0.25,
        factors: Sequence[float] = FACTORS,
        resample_probability: float = 0.25,
        crossover: float = 0.0,
        synchronous: bool = False,
        frozen: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        check_geometry(max_resource, 1, 2)
        _check_whole("population", population, 4, "fewer have no quarter to copy from and no quarter to replace")
        _check_whole("interval", interval, 1, "units of training between two decisions")
        if interval >= max_resource:
            raise ConfigError(
                f"scheduler.interval={interval}: must be below scheduler.max_resource={max_resource}, or nothing is "
                f"ever copied; a ninth of it is usual",
                key="scheduler.interval",
            )
        _check_share("quantile", quantile, 0.5, positive=True)
        _check_share("resample_probability", resample_probability, 1.0)
        _check_share("crossover", crossover, 1.0)
        if not isinstance(synchronous, bool):
            raise ConfigError(
                f"scheduler.synchronous={synchronous!r}: must be true or false", key="scheduler.synchronous"
            )
        if frozen is None or isinstance(frozen, str) or not all(isinstance(name, str) for name in frozen):
            raise ConfigError(
                f"scheduler.frozen={frozen!r}: must be a list of names, 'scheduler.frozen=[units, layers]'",
                key="scheduler.frozen",
            )
        self.space = space
        self.max_resource = max_resource
        self.ladder = Ladder.single(max_resource)
        self.population = population
        self.interval = interval
        self.quantile = quantile
        self.factors = factors
        self.resample_probability = resample_probability
        self.crossover = crossover
        self.synchronous = synchronous
        self.frozen = tuple(frozen)
        self.seed = seed
        self._check_space()
        self._members: dict[str, Member] = {}
        """Living trials, by number."""
        self._known: dict[str, Member] = {}
        """Trials that are not forgotten."""
        self._size = 0
        """Trials that were added."""
        self._board: dict[int, dict[str, float]] = {}
        """The losses at each interval point, by id: of the weights that a trial had there, also if it has copied
        another since. Otherwise those that copied would leave the last places to the next ones."""

    def plan(self, budget: Budget) -> Plan:
        """`population` trainings. Asynchronously the copies decide how many units each trains itself."""
        if budget.trials is not None:
            raise ConfigError(
                f"budget.trials={budget.trials}: population-based training trains scheduler.population="
                f"{self.population} trials from start to end; set that",
                key="budget.trials",
            )
        if budget.rounds is not None:
            raise ConfigError(
                f"budget.rounds={budget.rounds}: this scheduler has no brackets to repeat; set scheduler.population",
                key="budget.rounds",
            )
        return Plan(self.max_resource, self.population, exact=self.synchronous, limit=budget.resource)

    def add(self, trial_id: str, config: Mapping[str, Any] | None = None) -> None:
        """A new member, with its configuration."""
        if trial_id in self._known:
            return
        member = Member(self._size, copy.deepcopy(dict(config or {})), self._after(0))
        self._size += 1
        self._members[trial_id] = self._known[trial_id] = member

    def report(self, trial_id: str, resource: int, loss: float) -> Decision:
        """Pauses a trial at or beyond its next interval point, and stops it at `max_resource`."""
        if not math.isfinite(loss):
            self.end(trial_id, None)
            return Decision(Action.STOP, f"reported {loss} at {resource}")
        member = self._members.get(trial_id)
        if member is None:
            return Decision(Action.STOP, f"reached max_resource {self.max_resource}")
        if member.waiting and resource != member.resource:
            self._go_on(member)  # it failed while it was saved, and was retried; or this is a log that is fed again
        member.resource = resource
        if resource >= self.max_resource:
            self._scored(member, resource, loss)
            self._board.setdefault(resource // self.interval, {})[trial_id] = loss
            del self._members[trial_id]  # nothing is left to train for one that copied it
            return Decision(Action.STOP, f"reached max_resource {self.max_resource}")
        if resource < member.target:
            return CONTINUE
        if not member.waiting:
            member.waiting = True
            member.points += 1
            self._scored(member, resource, loss)
            self._board.setdefault(resource // self.interval, {})[trial_id] = loss
        return Decision(Action.PAUSE, f"waits {'for its population ' if self.synchronous else ''}at {resource}")

    def next_decision(self, trial_id: str) -> int:
        """Its next interval point."""
        member = self._members.get(trial_id)
        return 0 if member is None else member.target

    def end(self, trial_id: str, loss: float | None) -> None:
        """A trial that ended or failed leaves the population: there is nothing of it to copy or to train."""
        self._members.pop(trial_id, None)

    def forget(self, trial_id: str) -> None:
        """Drops what is known of a trial that ended."""
        self._members.pop(trial_id, None)
        self._known.pop(trial_id, None)

    def advance(self, source_finished: bool, room: int) -> Moves:
        """Decides about waiting members, once all of the population have been added.

        Synchronously it decides about all when all wait; those that copy come first, before the ones that they copy
        have gone on. Asynchronously it decides about as many as there is room for, those with the least resource
        first.
        """
        if room <= 0 and not self.synchronous:  # before all members are walked: it is asked at each step
            return NO_MOVES
        waiting = [trial_id for trial_id, member in self._members.items() if member.waiting]
        if not waiting or not (source_finished or self._size >= self.population):
            return NO_MOVES
        if self.synchronous:
            if len(waiting) < len(self._members):
                return NO_MOVES
        else:
            # Ties by number, as if sorted.
            waiting = heapq.nsmallest(room, waiting, key=lambda trial_id: self._members[trial_id].resource)
        clones: dict[str, Clone] = {}
        reasons: dict[str, str] = {}
        for trial_id in waiting:
            clone, reasons[trial_id] = self._decide(trial_id)
            if clone is not None:
                clones[trial_id] = clone
        for trial_id in waiting:
            self._go_on(self._members[trial_id])
        first = [trial_id for trial_id in waiting if trial_id in clones]
        return Moves((*first, *(i for i in waiting if i not in clones)), (), reasons, clones) if waiting else NO_MOVES

    def cloned(
        self, trial_id: str, source_id: str, config: Mapping[str, Any], resource: int, loss: float | None = None
    ) -> None:
        """A trial got another one's checkpoint and a new configuration: its score is now the other's.

        Args:
            trial_id: the trial.
            source_id: the one whose checkpoint it is.
            config: the trial's configuration from now on.
            resource: that of the checkpoint.
            loss: that of the checkpoint; by default the source's score there.
        """
        member, source = self._known[trial_id], self._known.get(source_id)
        if loss is None and source is not None:
            loss = (source.score_below(resource + 1) or (0, None))[1]
        before = [] if source is None else [score for score in source.scores if score[0] < resource]
        member.scores = before if loss is None else [*before, (resource, loss)]
        member.config = copy.deepcopy(dict(config))
        member.resource = resource
        member.replaced = member.judged
        member.judged = max(member.judged, resource // self.interval)  # what it has got is among the first there
        member.exploits += 1
        member.parent = None if source is None else source.number
        self._go_on(member)

    def waits_for(self) -> str:
        """Names the population that is not complete."""
        missing = self.population - self._size
        if missing <= 0 or not any(member.waiting for member in self._members.values()):
            return ""
        return f"the population waits for {missing} more of its {self.population} trials"

    def tags(self, trial_id: str) -> Mapping[str, int]:
        """How often a trial has copied another, and whom last."""
        member = self._known[trial_id]
        parent = {} if member.parent is None else {"parent": member.parent}
        return {**parent, "exploits": member.exploits}

    def _check_space(self) -> None:
        """Raises `ConfigError` for a space that can't be explored."""
        check_movable(self.space, self.factors, self.frozen)

    def _explore(self, trial_id: str, config: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """The configuration of a trial that has copied one with `config`."""
        return explore(
            self.space,
            config,
            rng,
            frozen=self.frozen,
            factors=self.factors,
            resample_probability=self.resample_probability,
        )

    def _scored(self, member: Member, resource: int, loss: float) -> None:
        """A member has reached an interval point, or the end."""
        member.scores = [score for score in member.scores if score[0] < resource]  # a retried one comes here again
        member.scores.append((resource, loss))

    def _decide(self, trial_id: str) -> tuple[Clone | None, str]:
        """Truncation selection: whom a trial copies, if any, and why.

        Of n members that are compared, the last ceil(n quantile), at most half of them, copy one of as many first,
        chosen uniformly: asynchronously among those that have not been replaced since and that are nearest in age, but
        not younger if there is a choice.
        """
        member = self._members[trial_id]
        at = self._judged_at(trial_id, member)
        if at is None:
            return None, f"among the first at {member.resource}, goes on"
        member.judged = at
        losses = {i: self._board[at][i] for i in self._members if i in self._board[at]}
        ranked = sorted(losses, key=losses.__getitem__)  # stable: ties by number
        rank, n = ranked.index(trial_id) + 1, len(ranked)
        where = f"rank {rank} of {n} at {at * self.interval}"
        size = min(math.ceil(Fraction(str(self.quantile)) * n), n // 2)
        if rank <= n - size:
            return None, f"{where}, goes on"
        first = {i: place for place, i in enumerate(ranked[:size], 1) if self._members[i].replaced < at}
        if not first:
            return None, f"{where}, but the first have been replaced since; goes on"
        ages = {self._members[i].saved for i in first}
        age = min((age for age in ages if age >= member.saved), default=max(ages))
        peers = [i for i in first if self._members[i].saved == age]
        rng = np.random.default_rng(stream(self.seed, SCHEDULER, member.number, member.points))
        source = peers[int(rng.integers(len(peers)))]
        start = donated = self._members[source].config
        others = [i for i in first if i != source]
        if self.crossover and others:
            second = others[int(rng.integers(len(others)))]
            start = crossover(self.space, start, self._members[second].config, rng, self.crossover, self.frozen)
        clone = Clone(source, self._explore(trial_id, start, rng), donated)
        return clone, f"{where}, copies trial {self._members[source].number} (rank {first[source]})"

    def _judged_at(self, trial_id: str, member: Member) -> int | None:
        """At which interval point a member is ranked now; None if it goes on without.

        Asynchronously not all have got as far, and who has trained for longer must not win by that alone. So it is the
        last point that the member has reached, that at least half of the population have reached, and at which it was
        not ranked before: each is ranked once at each point, the first ones an interval later.
        """
        for point in range(member.saved // self.interval, member.judged, -1):
            known = self._board.get(point, {})
            if trial_id in known and 2 * sum(i in known for i in self._members) >= len(self._members):
                return point
        return None

    def _go_on(self, member: Member) -> None:
        member.waiting = False
        member.target = self._after(member.resource)

    def _after(self, resource: int) -> int:
        """The first interval point beyond a resource."""
        return min((resource // self.interval + 1) * self.interval, self.max_resource)


class PBTReplayCore:
    """One training by the schedule that a population found. See `hpo_ray.schedulers.PBTReplay`."""

    pauses = True
    ranks = True
    searcher_may_learn: ClassVar[bool] = False

    def __init__(self, space: Space, max_resource: int, path: str | None = None) -> None:
        check_geometry(max_resource, 1, 2)
        self.max_resource = max_resource
        self.ladder = Ladder.single(max_resource)
        self.schedule = read_schedule(path, space)
        self._members: dict[str, Member] = {}
        self._known: dict[str, Member] = {}
        self._size = 0

    def plan(self, budget: Budget) -> Plan:
        """One full training."""
        for name in ("trials", "rounds"):
            if getattr(budget, name) is not None:
                raise ConfigError(
                    f"budget.{name}={getattr(budget, name)}: a replay trains one model; leave it out",
                    key=f"budget.{name}",
                )
        return Plan(self.max_resource, 1, limit=budget.resource)

    def add(self, trial_id: str, config: Mapping[str, Any] | None = None) -> None:
        """A trial, which starts with the schedule's first configuration."""
        if trial_id not in self._known:
            member = Member(self._size, self.schedule[0][1], self._after(0))
            self._size += 1
            self._members[trial_id] = self._known[trial_id] = member

    def report(self, trial_id: str, resource: int, loss: float) -> Decision:
        """Pauses where the schedule has another configuration."""
        member = self._members.get(trial_id)
        if member is None or resource >= self.max_resource:
            return Decision(Action.STOP, f"reached max_resource {self.max_resource}")
        if member.waiting and resource != member.resource:
            self._go_on(member)  # as in `PBTCore`
        member.resource = resource
        if resource < member.target:
            return CONTINUE
        member.waiting = True
        return Decision(Action.PAUSE, f"waits for its next configuration at {resource}")

    def next_decision(self, trial_id: str) -> int:
        """Its next interval point."""
        member = self._members.get(trial_id)
        return 0 if member is None else member.target

    def end(self, trial_id: str, loss: float | None) -> None:
        """It is over."""
        self._members.pop(trial_id, None)

    def forget(self, trial_id: str) -> None:
        """Drops what is known of it."""
        self._members.pop(trial_id, None)
        self._known.pop(trial_id, None)

    def advance(self, source_finished: bool, room: int) -> Moves:
        """Lets a waiting trial go on from its own checkpoint, with the last configuration up to its resource."""
        waiting = {trial_id: member for trial_id, member in self._members.items() if member.waiting}
        if not waiting:
            return NO_MOVES
        clones = {
            trial_id: Clone(
                trial_id, [config for at, config in self.schedule if at <= member.resource][-1], member.config
            )
            for trial_id, member in waiting.items()
        }
        for member in waiting.values():
            self._go_on(member)
        reasons = {trial_id: f"the schedule's configuration from {m.resource} on" for trial_id, m in waiting.items()}
        return Moves(tuple(waiting), (), reasons, clones)

    def cloned(
        self, trial_id: str, source_id: str, config: Mapping[str, Any], resource: int, loss: float | None = None
    ) -> None:
        """The trial has got its next configuration."""
        member = self._known[trial_id]
        member.config = config
        if member.waiting:
            self._go_on(member)

    def waits_for(self) -> str:
        """Never waits for another trial."""
        return ""

    def tags(self, trial_id: str) -> Mapping[str, int]:
        """None."""
        return {}

    def _go_on(self, member: Member) -> None:
        member.waiting = False
        member.target = self._after(member.resource)

    def _after(self, resource: int) -> int:
        return next((at for at, _ in self.schedule if at > resource), self.max_resource)


def read_schedule(path: str | None, space: Space) -> list[tuple[int, dict[str, Any]]]:
    """The schedule of a study's best trial: (resource, configuration from there on), the first at 0.

    Args:
        path: the study's folder.
        space: in which each configuration must lie.

    Raises:
        ConfigError: there is no such study, it has no schedule, or the schedule is of another space.
    """
    key = "scheduler.path"
    if path is not None and not isinstance(path, str):
        raise ConfigError(f"{key}={path!r}: must be the path of a study's folder", key=key)
    if path is None:
        raise ConfigError(
            f"{key} is not set: give the folder of a finished study, {key}=outputs/digits_mlp-pbt-1", key=key
        )
    file = Path(path) / RESULT_FILE
    try:
        best = json.loads(file.read_text(encoding="utf-8"))["best"]
    except OSError as error:
        raise ConfigError(
            f"{key}={path}: {file}: {error.strerror}; give the folder of a finished study", key=key
        ) from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{key}={path}: {file} is no result of a study", key=key) from None
    if best is None:
        raise ConfigError(f"{key}={path}: the study found no best trial to replay; choose another", key=key)
    schedule = best.get("schedule") or [[0, best["config"]]]  # one that kept its configuration
    try:
        return [
            (int(resource), space.check(config, where=f"schedule[{i}]"))
            for i, (resource, config) in enumerate(schedule)
        ]
    except SpaceError as error:
        raise ConfigError(
            f"{key}={path}: its schedule is of another space than this study's: {error}; choose the task and space "
            f"that it was found with",
            key=key,
        ) from None


def _check_whole(name: str, value: object, least: int, why: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        key = f"scheduler.{name}"
        raise ConfigError(f"{key}={value!r}: must be a whole number >= {least} ({why})", key=key)


def _check_share(name: str, value: object, most: float, positive: bool = False) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (0 < value if positive else 0 <= value) or not value <= most:  # type: ignore[operator]
        key, low = f"scheduler.{name}", "above 0" if positive else "0"
        raise ConfigError(f"{key}={value!r}: must be a number from {low} to {most:g}", key=key)
