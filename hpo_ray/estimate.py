"""How long a study still takes: what is left to train, at the speed of the last minute."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from hpo_ray.results import StudyState
from hpo_ray.schedulers.brackets import Bracket, Budget, Plan

WINDOW_S = 60.0
MARK_EVERY_S = 1.0
FIRST_SAID_AFTER_S = 3.0


@dataclass(frozen=True)
class Stretch:
    """Units that have to be trained before any of the next stretch can be: a rung, or a study without rungs.

    Attributes:
        units: of all its trials.
        longest: of the trial that has most of them left, which no number of workers makes faster.
    """

    units: int
    longest: int


@dataclass(frozen=True)
class Work:
    """What is left to train.

    Attributes:
        units: in all.
        chains: stretches that follow one another; of different chains they may run at the same time.
    """

    units: int
    chains: tuple[tuple[Stretch, ...], ...] = ()


class _Mark(NamedTuple):
    """Where the study was: the clock, units trained, seconds of steps, reports heard, and the study's own clock."""

    at_s: float
    trained: int
    seconds: float
    reports: int
    elapsed_s: float


class Estimate:
    """Estimates the time that a study still takes.

    Speed is units per second over the last `WINDOW_S`, or over two reports of each trial in training if that is
    longer: so it holds what a step takes, how many trials train at a time, and what goes by between steps. It is the
    speed since somebody started to look, so a study that stood still and goes on is not taken for slow.

    Args:
        plan: what the scheduler will do.
        budget: what ends the study otherwise.
        virtual: whether trials are simulated, one step after another, so that none has to wait for its own.
    """

    def __init__(self, plan: Plan, budget: Budget, virtual: bool = False) -> None:
        self._plan, self._budget, self._virtual = plan, budget, virtual
        self._marks: deque[_Mark] = deque()
        self._last: _Mark | None = None

    def observe(self, state: StudyState, at_s: float, elapsed_s: float) -> None:
        """Takes note of where the study is. Called after each step of the loop, so it must be quick.

        Args:
            state: what is known of it.
            at_s: seconds on the clock that the estimate is for: that of whoever waits.
            elapsed_s: seconds on the study's clock.
        """
        if self._last is not None and state.trained == self._last.trained:
            return
        reports = 0 if self._last is None else self._last.reports + 1
        if reports == 1 and not self._virtual:  # what went by before its step began was the start of the workers
            first = self._marks[0]
            began_s = at_s - (state.seconds - first.seconds)
            self._marks[0] = first._replace(at_s=max(first.at_s, began_s))
        self._last = _Mark(at_s, state.trained, state.seconds, reports, elapsed_s)
        if not self._marks or at_s - self._marks[-1].at_s >= MARK_EVERY_S:
            self._marks.append(self._last)
        enough = 2 * self._at_a_time(state)
        while (
            len(self._marks) > 2
            and at_s - self._marks[1].at_s >= WINDOW_S
            and reports - self._marks[1].reports >= enough
        ):
            self._marks.popleft()

    def left_s(self, state: StudyState, at_s: float, elapsed_s: float) -> float | None:
        """Seconds until the study ends, on the clock of `at_s`; None as long as nothing can be said.

        Nothing is said before each trial in training has reported, or three seconds have passed, nor where the plan
        only says what is spent at most.
        """
        ends = [self._until_trained(state, at_s), self._until_time_is_up(at_s, elapsed_s)]
        return min((end for end in ends if end is not None), default=None)

    def _at_a_time(self, state: StudyState) -> int:
        return 1 if self._virtual else max(1, state.states["running"])

    def _until_trained(self, state: StudyState, at_s: float) -> float | None:
        work = work_left(state, self._plan)
        if work is None or not self._marks or self._last is None:
            return None
        first, last = self._marks[0], self._last
        reports = last.reports - first.reports
        if reports < self._at_a_time(state) or at_s - first.at_s < FIRST_SAID_AFTER_S:
            return None
        # Between two reports the end stands still. When the next is late it moves away, and the speed falls.
        now_s = max(last.at_s, at_s - (last.at_s - first.at_s) / reports)
        trained = last.trained - first.trained
        if trained <= 0 or now_s <= first.at_s:
            return None
        speed = trained / (now_s - first.at_s)
        step_s = 0.0 if self._virtual else (last.seconds - first.seconds) / trained
        chains = [sum(max(part.units / speed, part.longest * step_s) for part in chain) for chain in work.chains]
        return max(0.0, max([work.units / speed, *chains]) - (at_s - now_s))

    def _until_time_is_up(self, at_s: float, elapsed_s: float) -> float | None:
        if self._budget.time_s is None:
            return None
        left = max(0.0, self._budget.time_s - elapsed_s)
        if not self._virtual:
            return left
        if not self._marks or at_s - self._marks[0].at_s < FIRST_SAID_AFTER_S:
            return None
        first = self._marks[0]
        return left * (at_s - first.at_s) / (elapsed_s - first.elapsed_s) if elapsed_s > first.elapsed_s else None


def work_left(state: StudyState, plan: Plan) -> Work | None:
    """What a study still trains; None if that is not known, or no more than a bound of it.

    Where the results decide how many trials move up, it is what was expected of all less what is spent, and nothing
    once that is passed.
    """
    spent, total = state.trained - state.again, plan.total_resource
    if plan.at_most or total is None:
        return None
    if not plan.exact or plan.trials is None:
        return Work(total - spent) if total > spent else None
    if plan.brackets and plan.rounds is not None:
        work = _of_brackets(state, plan.brackets, plan.rounds)
    else:
        work = _of_trials(state, plan.trials, plan.max_resource)
    if plan.limit is not None and work.units > plan.limit - spent:
        work = Work(max(0, plan.limit - spent))
    return work if work.units else None


def _of_trials(state: StudyState, trials: int, full: int) -> Work:
    lacking = [max(0, full - trial.position) for trial in state.trials.unfinished()]
    to_come = max(0, trials - len(state.trials))
    units = sum(lacking) + to_come * full
    return Work(units, ((Stretch(units, full if to_come else max(lacking, default=0)),),))


def _of_brackets(state: StudyState, brackets: tuple[Bracket, ...], rounds: int) -> Work:
    reached = by_bracket(state)
    live: dict[int, dict[int, int]] = {}
    places = Counter((trial.tags.get("bracket"), trial.position) for trial in state.trials.unfinished())
    for (bracket_index, at), n in places.items():
        if bracket_index is not None:
            live.setdefault(bracket_index, {})[at] = n
    begun = Counter(index % len(brackets) for index in reached)
    units, chains = 0, []
    for i, bracket in enumerate(brackets):
        if (fresh := rounds - begun[i]) > 0:
            chain = _of_bracket(bracket, {}, {})
            units += fresh * sum(part.units for part in chain)
            chains.append(chain)
    last = max(reached, default=-1)
    for index, counts in reached.items():
        if index not in live and index != last:  # over: the next ones have begun
            continue
        chain = _of_bracket(brackets[index % len(brackets)], counts, live.get(index, {}))
        units += sum(part.units for part in chain)
        chains.append(chain)
    return Work(units, tuple(chain for chain in chains if chain))


def _of_bracket(bracket: Bracket, reached: Mapping[int, int], live: Mapping[int, int]) -> tuple[Stretch, ...]:
    """The rungs of a bracket that are not over.

    Args:
        bracket: which.
        reached: how many of its trials have reached which resource.
        live: the same of those that haven't ended: places of the others are not filled, where they failed.
    """
    to_come = max(0, bracket.rungs[0].n - sum(reached.values()))
    left, below = [], 0
    for rung in bracket.rungs:
        size = rung.r - below
        lacking = [(rung.r - max(at, below), n) for at, n in live.items() if at < rung.r]
        lacking += [(size, to_come)] if to_come else []
        planned = rung.n * size - sum(n * min(max(at - below, 0), size) for at, n in reached.items())
        if units := min(max(planned, 0), sum(units * n for units, n in lacking)):
            left.append(Stretch(units, max(units for units, _ in lacking)))
        below = rung.r
    return tuple(left)


def by_bracket(state: StudyState) -> dict[int, dict[int, int]]:
    """How many trials of each bracket that has begun have reached which resource, and no higher one."""
    found: dict[int, dict[int, int]] = {}
    for (index, resource), trials in state.reached.items():
        if index is not None:
            counts = found.setdefault(index, {})
            if trials:
                counts[resource] = trials
    return dict(sorted(found.items()))
