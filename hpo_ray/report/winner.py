"""Why the winner won: its place on the way, its margin, where it comes from, and whether that may be chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
        _won(subject, best, ranked),
        _on_the_way(subject, best),
        _seen(subject, best),
        _lineage(subject, best),
        _moved(best),
        _doubts(subject, best, ranked),
        _tested(subject),
    ]
    parts: list[Part] = [Words(text) for text in words if text]
    return Section("winner", "Why the winner won", (*parts, _table(subject, ranked[: 1 + RUNNERS_UP])))


def _won(subject: Subject, best: TrialRecord, ranked: Sequence[TrialRecord]) -> str:
    state, unit, metric = subject.state, subject.unit, subject.started.metric
    over = state.ended is not None and state.ended.state == "finished"
    verb = "won" if over else "leads so far"
    text = f"Trial {best.number} {verb}: {metric} {value_text(best.value)} at {unit} {best.resource}"
    there = [trial for trial in ranked if trial.resource == best.resource]
    if len(ranked) == 1:
        return f"{text}. No other trial has a value to compare it with."
    if len(there) == 1:
        second = ranked[1]
        return (
            f"{text}. No other trial got as far, so it is first whatever its value; next is trial {second.number} "
            f"with {value_text(second.value)} at {unit} {second.resource}."
        )
    second = there[1]
    assert best.value is not None and second.value is not None
    text += f", the best of the {len(there)} trials that got there"
    if second.value == best.value:
        return f"{text}. Trial {second.number} has the same value: the lower number goes first."
    margin = value_text(abs(best.value - second.value))
    return f"{text}, {margin} ahead of trial {second.number} ({value_text(second.value)})."


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
    changes = max(0, len(best.schedule) - 1)
    under = f"Its weights were trained under {count(changes + 1, 'configuration')}, the last of which the table shows"
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
    told, varies = [], jitter(best)
    second = ranked[1] if len(ranked) > 1 and ranked[1].resource == best.resource else None
    if second is not None and second.value is not None and best.value is not None and varies is not None:
        margin = abs(best.value - second.value)
        if 0 < margin < varies:
            told.append(
                f"The margin is smaller than what neighbouring reports of the winner differ by (median "
                f"{value_text(varies)} over its last {subject.unit}s): which of the two is better may be noise."
            )
    if len(ranked) < FEW:
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
    rows += [[f"test {name}", value_text(value), *([""] * (len(shown) - 1))] for name, value in test.items()]
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
