"""Why the winner won: its place on the way, its margin, where it comes from, and whether that may be chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Any

from hpo_ray.report.parts import Part, Section, Table, Words
from hpo_ray.report.population import paths
from hpo_ray.report.words import listed, ordinal, value_text
from hpo_ray.trials import HYPERPARAMETER, TrialRecord, flat
from hpo_ray.view import count

if TYPE_CHECKING:
    from hpo_ray.report.subject import Subject

RUNNERS_UP = 2
FEW = 5
"""With fewer trials that have a value the report warns that there are few."""
NEIGHBOURS = 5
"""Over how many of its last steps it is looked at how much a trial's value varies."""
MOST_METRICS, MOST_MOVED, MOST_LEVELS = 8, 4, 12


def ranking(subject: Subject) -> list[TrialRecord]:
    """The trials that can be best, the best first: by resource, then value, then number, as the study chooses.

    Left out are failed ones, those that don't keep the constraints, and copies that haven't trained on their own.
    """
    best = subject.result.best
    able = [
        trial
        for trial in subject.trials
        if trial.value is not None and trial.state != "failed" and trial.feasible is not False and not trial.copied
    ]
    rest = [trial for trial in able if best is None or trial.number != best.number]
    rest.sort(key=lambda trial: (-trial.resource, subject.sign * (trial.value or 0.0), trial.number))
    return rest if best is None else [best, *rest]


def places(subject: Subject, trial: TrialRecord) -> list[tuple[int, int, int]]:
    """(resource, place, of how many) of a trial at each rung, among all that reported there by the end.

    Without rungs, or where it reported at none of them: at its first report, each that lies three times as far as
    the one before, and the last. Failed trials don't count; trials with the same value share the better place.
    """
    values = [
        (other, _at(other)) for other in subject.trials if other.state != "failed" and other.feasible is not False
    ]
    own = _at(trial)
    found = []
    for resource in _levels(subject, own):
        there = [value[resource] for _, value in values if resource in value]
        better = sum(subject.sign * value < subject.sign * own[resource] for value in there)
        found.append((resource, 1 + better, len(there)))
    return found


@dataclass(frozen=True)
class Rival:
    """The best of those that the winner was compared with at the highest resource where there were any.

    Attributes:
        number: of the trial.
        resource: where both reported.
        own: what the winner had there.
        value: what it had itself.
        of: how many had reported there, the winner among them.
    """

    number: int
    resource: int
    own: float
    value: float
    of: int

    @property
    def margin(self) -> float:
        """How far apart they are."""
        return abs(self.own - self.value)


def rival(subject: Subject, best: TrialRecord) -> Rival | None:
    """The winner's nearest rival; None if no other trial reported where it did.

    At the winner's own resource that is the second of the study's ranking, below it whoever was best there.
    """
    own = _at(best)
    if best.value is not None:
        own[best.resource] = best.value
    there: dict[int, list[tuple[float, int, float]]] = {}
    for trial in ranking(subject)[1:]:
        values = _at(trial)
        if trial.value is not None:
            values[trial.resource] = trial.value
        for resource, value in values.items():
            if resource in own:
                there.setdefault(resource, []).append((subject.sign * value, trial.number, value))
    if not there:
        return None
    resource = max(there)
    _, number, value = min(there[resource])
    return Rival(number, resource, own[resource], value, 1 + len(there[resource]))


def jitter(trial: TrialRecord) -> float | None:
    """How much neighbouring reports of a trial differ by: the median over its last steps; None with too few."""
    values = [value for _, value in trial.history if math.isfinite(value)][-NEIGHBOURS - 1 :]
    return median(abs(b - a) for a, b in pairwise(values)) if len(values) > 2 else None


def section(subject: Subject) -> Section | None:
    """The winner in words, and in a table beside those who came after it."""
    best = subject.result.best
    if best is None or best.value is None:
        return None
    ranked = ranking(subject)
    words = [
        _of_several(subject),
        _won(subject, best, ranked),
        _on_the_way(subject, best),
        _seen(subject, best),
        _lineage(subject, best),
        _moved(best),
        _doubts(subject, best, ranked),
        _tested(subject),
    ]
    parts: list[Part] = [Words(text) for text in words if text]
    title = "The best in one metric" if subject.started.metrics else "Why the winner won"
    return Section("winner", title, (*parts, _table(subject, ranked[: 1 + RUNNERS_UP])))


def _of_several(subject: Subject) -> str:
    """Of several metrics none is the winner: what follows is of the first one."""
    names = list(subject.started.metrics)
    if not names:
        return ""
    front = len(subject.result.pareto_front())
    none_beats = "one trial that no other beats" if front == 1 else f"{front} trials that no other beats"
    return (
        f"The study trades off {listed(names)}: the Pareto front has {none_beats} in all. What follows is about "
        f"{subject.started.metric} alone."
    )


def _won(subject: Subject, best: TrialRecord, ranked: Sequence[TrialRecord]) -> str:
    state, unit, metric = subject.state, subject.unit, subject.started.metric
    over = state.ended is not None and state.ended.state == "finished"
    verb = "won:" if over else "leads so far:"
    if subject.started.metrics:
        verb = "has the best"
    text = f"Trial {best.number} {verb} {metric} {value_text(best.value)} at {unit} {best.resource}"
    if len(ranked) == 1:
        return f"{text}. No other trial has a value to compare it with."
    second = rival(subject, best)
    if second is None or second.resource < best.resource:
        text += f". No other trial got to {unit} {best.resource}, so it is first whatever its value"
        if second is None:
            return f"{text}; none reported where it did, either."
        if second.own == second.value:
            return f"{text}; at {unit} {second.resource} trial {second.number} had the same value."
        ahead = "ahead of" if subject.sign * second.own < subject.sign * second.value else "behind"
        return (
            f"{text}. At {unit} {second.resource}, the last at which there were others, it had "
            f"{value_text(second.own)}, {second.margin:.3g} {ahead} trial {second.number} "
            f"({value_text(second.value)})."
        )
    text += f", the best of the {second.of} trials that got there"
    if not second.margin:
        return f"{text}. Trial {second.number} has the same value: the lower number goes first."
    return f"{text}, {second.margin:.3g} ahead of trial {second.number} ({value_text(second.value)})."


def _on_the_way(subject: Subject, best: TrialRecord) -> str:
    on_the_way = [place for place in places(subject, best) if place[2] > 1]
    if not on_the_way:
        return ""
    (resource, place, of), *others = on_the_way[-MOST_LEVELS:]
    first = f"{ordinal(place)} of {of} at {subject.unit} {resource}"
    told = ", ".join([first, *(f"{ordinal(place)} of {of} at {resource}" for resource, place, of in others)])
    return f"On the way, among all trials that reported at the same {subject.unit}, it was {told}."


def _seen(subject: Subject, best: TrialRecord) -> str:
    seen = subject.state.best_seen
    assert best.value is not None
    if seen is None or subject.sign * seen[2] >= subject.sign * best.value:
        return ""
    trial, resource, value = seen
    where = f"{value_text(value)} at {subject.unit} {resource}"
    if trial.number == best.number:
        return f"It has been better itself, {where}, and got worse from there; what counts is the last value."
    return (
        f"The best value of all was another trial's: {where} (trial {trial.number}). It did not win because the "
        f"winner is chosen at the highest {subject.unit} that any trial reached."
    )


def _lineage(subject: Subject, best: TrialRecord) -> str:
    if best.schedule is None:
        return ""
    path = paths(subject).get(best.number, [(0, best.number)])
    changes = len(best.schedule) - 1
    if changes < 1 and len(path) == 1:
        return ""
    under = f"Its weights were trained under {count(changes + 1, 'configuration')}"
    under += ", the last of which the table shows" if changes else ""
    if len(path) == 1:
        return f"{under}; they are all its own."
    ends = [start for start, _ in path[1:]]
    ways = [f"trial {number} up to {subject.unit} {end}" for (_, number), end in zip(path, ends, strict=False)]
    if len(ways) > MOST_MOVED:
        ways = [ways[0], f"{len(ways) - 2} copies in between", ways[-1]]
    return f"{under}. They come from {listed(ways)}, and are trial {path[-1][1]}'s own from there."


def _moved(best: TrialRecord) -> str:
    start, now = flat(best.config), best.hyperparameters
    told = []
    for name, value in start.items():
        if name in now:
            told.append(f"{name} from {value_text(value)} to {value_text(now[name])}")
        elif f"{name}.mean" in now:
            low, mean, high = (value_text(now.get(f"{name}.{key}")) for key in ("min", "mean", "max"))
            told.append(f"{name} from {value_text(value)} to values from {low} to {high} (mean {mean})")
    return f"By gradient it moved {listed(told, MOST_MOVED)}." if told else ""


def _doubts(subject: Subject, best: TrialRecord, ranked: Sequence[TrialRecord]) -> str:
    told, varies, second = [], jitter(best), rival(subject, best)
    if second is not None and varies is not None and 0 < second.margin < varies:
        told.append(
            f"The margin is smaller than what neighbouring reports of the winner differ by (median "
            f"{varies:.3g} over its last {subject.unit}s): which of the two is better may be noise."
        )
    if 1 < len(ranked) < FEW:
        told.append(f"Only {count(len(ranked), 'trial')} can be compared, each trained once: the order may be chance.")
    return " ".join(told)


def _tested(subject: Subject) -> str:
    result = subject.result
    if result.test_metrics:
        test = ", ".join(f"{name} {value_text(value)}" for name, value in result.test_metrics.items())
        return f"On the test split, by which nothing was chosen: {test}."
    return f"Its test metrics could not be computed: {result.test_error}" if result.test_error else ""


def _table(subject: Subject, shown: Sequence[TrialRecord]) -> Table:
    """A column a trial: what it reached, its configuration, what else it reported."""
    metric = subject.started.metric
    configs = [_config(trial) for trial in shown]
    others = [
        {n: v for n, v in trial.metrics.items() if n != metric and not n.startswith(HYPERPARAMETER)} for trial in shown
    ]
    test = subject.result.test_metrics or {}
    rows = [[metric, *(value_text(trial.value) for trial in shown)]]
    rows.append([subject.unit, *(str(trial.resource) for trial in shown)])
    rows += [[name, *(config.get(name, "") for config in configs)] for name in _names(configs)]
    rows += [[name, *(value_text(metrics.get(name)) for metrics in others)] for name in _names(others)[:MOST_METRICS]]
    rows += [
        [f"test {name}", value_text(value), *([""] * (len(shown) - 1))]
        for name, value in test.items()
        if f"test_{name}" not in _names(others)
    ]
    head = ["", *(f"trial {trial.number}" for trial in shown)]
    left = len(_names(others)) - MOST_METRICS
    more = f"and {count(left, 'further metric')} in trials.jsonl" if left > 0 else ""
    return Table(head, rows, tuple(range(1, len(head))), more)


def _config(trial: TrialRecord) -> dict[str, str]:
    """A trial's hyperparameters as cells; of those that it has moved itself where they are now."""
    now, cells = trial.hyperparameters, {}
    for name, value in flat(trial.config).items():
        if name in now:
            cells[name] = f"{value_text(now[name])} (from {value_text(value)})"
        elif f"{name}.mean" in now:
            cells[name] = f"mean {value_text(now[f'{name}.mean'])} (from {value_text(value)})"
        else:
            cells[name] = value_text(value)
    return cells


def _names(found: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for one in found for name in one))


def _at(trial: TrialRecord) -> dict[int, float]:
    """A trial's last finite value at each resource."""
    return {resource: value for resource, value in trial.history if math.isfinite(value)}


def _levels(subject: Subject, own: dict[int, float]) -> list[int]:
    ladder = subject.draft.ladder.resources if subject.draft is not None else ()
    rungs = [resource for resource in ladder if resource in own]
    if len(ladder) > 1 and rungs:
        return rungs
    reports, levels = sorted(own), list[int]()
    for resource in reports:
        if not levels or resource >= 3 * levels[-1] or resource == reports[-1]:
            levels.append(resource)
    return levels
