"""Populations: who copied whom while training, under which schedules; and generations of evolutionary searchers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hpo_ray.events import Decided
from hpo_ray.report.lines import MOST_PANELS, chosen, panels, value_axis
from hpo_ray.report.parts import Plot, Section
from hpo_ray.report.theme import BLUE, GREY, MOST_POINTS, ORANGE, SEQUENTIAL, escaped, faded, figure, thinned
from hpo_ray.report.words import listed, shortened
from hpo_ray.trials import TrialRecord, flat
from hpo_ray.view import count

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from hpo_ray.report.subject import Subject

MOST_ARROWS = 500
MOST_MEMBERS = 200


@dataclass(frozen=True)
class Copy:
    """A member of a population goes on with another one's weights.

    Attributes:
        number: the member.
        parent: whose weights it has from then on.
        resource: what these were trained to.
    """

    number: int
    parent: int
    resource: int


def copies(subject: Subject) -> list[Copy]:
    """All copies in the order of the log."""
    if not any(trial.lineage for trial in subject.trials):
        return []
    numbers = {trial.trial_id: trial.number for trial in subject.trials}
    return [
        Copy(numbers[event.trial_id], event.tags["parent"], event.resource)
        for event in subject.events
        if isinstance(event, Decided) and event.action == "exploit" and event.resource is not None
    ]


def paths(subject: Subject) -> dict[int, list[tuple[int, int]]]:
    """Whose the weights of each member were that has copied another: (from which resource, member), the first at 0."""
    found: dict[int, list[tuple[int, int]]] = {}
    for copy in copies(subject):
        before = found.get(copy.parent, [(0, copy.parent)])
        found[copy.number] = [*(part for part in before if part[0] < copy.resource), (copy.resource, copy.number)]
    return found


def lineage(subject: Subject) -> Figure | None:
    """The members of a population against resource, coloured by the metric, with an arrow for each copy.

    Args:
        subject: the study.

    Returns:
        None if no trial has copied another.
    """
    import plotly.graph_objects as go

    copied = copies(subject)
    if not copied:
        return None
    best = subject.result.best
    members = sorted({trial.number for trial in subject.trials if trial.schedule is not None and trial.history})
    height = min(900, 150 + 26 * len(members))
    made = figure(xaxis_title=escaped(subject.unit), yaxis_title="trial", hovermode="closest", height=height)
    if best is not None:
        x, y = _way(paths(subject).get(best.number, [(0, best.number)]), best.resource)
        made.add_trace(
            go.Scatter(
                x=x,
                y=y,
                name="the winner's way",
                mode="lines",
                line={"color": faded(ORANGE, 0.75), "width": 7},
                hoverinfo="skip",
            )
        )
    arrows = [copied[i] for i in thinned(len(copied), MOST_ARROWS)]
    made.add_trace(
        go.Scatter(
            x=[x for copy in arrows for x in (copy.resource, copy.resource, None)],
            y=[y for copy in arrows for y in (copy.parent, copy.number, None)],
            name="copied by",
            mode="lines+markers",
            line={"color": faded(GREY, 0.7), "width": 1},
            marker={
                "symbol": "arrow",
                "angleref": "previous",
                "size": [0, 9, 0] * len(arrows),
                "color": GREY,
                "opacity": 1,
            },
            hoverinfo="skip",
        )
    )
    most = max(2, MOST_POINTS // max(1, len(members)))
    points = [
        (trial.history[i][0], trial.number, trial.history[i][1])
        for trial in subject.trials
        if trial.schedule is not None
        for i in thinned(len(trial.history), most)
        if math.isfinite(trial.history[i][1])
    ]
    if points:
        values = [value for *_, value in points]
        log = value_axis(values).get("type") == "log"
        made.add_trace(
            go.Scatter(
                x=[resource for resource, *_ in points],
                y=[number for _, number, _ in points],
                customdata=values,
                showlegend=False,
                mode="markers",
                marker={
                    "size": 7,
                    "color": [math.log10(v) if log else v for v in values],
                    **_scale(subject, values, log),
                },
                hovertemplate=f"trial %{{y}} at {escaped(subject.unit)} %{{x}}<br>%{{customdata:.6g}}<extra></extra>",
            )
        )
    every = {"dtick": 1} if len(members) <= 24 else {}
    made.update_yaxes(autorange="reversed", **every)
    return made


def _way(path: Sequence[tuple[int, int]], end: int) -> tuple[list[int], list[int]]:
    """The corners of a way through the members."""
    x: list[int] = []
    y: list[int] = []
    for (start, number), until in zip(path, [*(start for start, _ in path[1:]), end], strict=True):
        x += [start, max(start, until)]
        y += [number, number]
    return x, y


def _scale(subject: Subject, values: Sequence[float], log: bool) -> dict[str, Any]:
    """Colours of the metric, the brighter the better, with a bar that says so."""
    bar: dict[str, Any] = {"title": {"text": escaped(shortened(subject.started.metric, 16))}, "thickness": 12}
    if log:
        low, high = (math.log10(value) for value in (min(values), max(values)))
        ticks = [low + (high - low) * i / 4 for i in range(5)]
        bar |= {"tickvals": ticks, "ticktext": [f"{10**tick:.2g}" for tick in ticks]}
    shown = sorted(values)
    cut = len(shown) // 20
    span = {} if log else {"cmin": shown[cut], "cmax": shown[-1 - cut]}
    line = {"width": 0.5, "color": GREY}
    return {"colorscale": SEQUENTIAL, "reversescale": subject.sign > 0, "colorbar": bar, "line": line, **span}


def schedule(subject: Subject) -> Figure | None:
    """Under which hyperparameters the weights of each member were trained: a panel for each that changes or differs.

    Args:
        subject: the study.

    Returns:
        None if no trial has changed its configuration while it trained.
    """
    import plotly.graph_objects as go

    names, members = _scheduled(subject)
    if not names:
        return None
    best = subject.result.best
    made = panels(names[:MOST_PANELS], subject.unit)
    for row, name in enumerate(names[:MOST_PANELS], 1):
        own = best is not None and best.schedule is not None
        entries = {trial.number: _entries(trial, name) for trial in members}
        every = [value for found in entries.values() for _, value in found]
        numeric = all(_is_number(value) for value in every)
        rest = [trial for trial in members if not (own and best is not None and trial.number == best.number)]
        for trials, label, colour, width in (
            (rest, "members", faded(GREY, 0.55), 1.2),
            ([best] if own and best is not None else [], "the winner", ORANGE, 3.0),
        ):
            x: list[int | None] = []
            y: list[Any] = []
            numbers: list[int] = []
            for trial in trials:
                found = entries[trial.number]
                x += [*(resource for resource, _ in found), None]
                y += [*(value if numeric else escaped(value) for _, value in found), None]
                numbers += [trial.number] * (len(found) + 1)
            if x:
                made.add_trace(
                    go.Scatter(
                        x=x,
                        y=y,
                        customdata=numbers,
                        name=label,
                        legendgroup=label,
                        showlegend=row == 1,
                        mode="lines",
                        line={"shape": "hv", "color": colour, "width": width},
                        hovertemplate="trial %{customdata}<br>from %{x}: %{y}<extra></extra>",
                    ),
                    row=row,
                    col=1,
                )
        made.update_yaxes(**(value_axis(every) if numeric else _categories(every)), row=row, col=1)
    return made


def _categories(values: Sequence[Any]) -> dict[str, Any]:
    """An axis of values that are no numbers; long ones are cut on it, but stay apart."""
    names = list(dict.fromkeys(str(value) for value in values))
    ticks = [escaped(shortened(name, 16)) for name in names]
    return {"type": "category", "tickvals": [escaped(name) for name in names], "ticktext": ticks}


def _scheduled(subject: Subject) -> tuple[list[str], list[TrialRecord]]:
    """The hyperparameters that change in a schedule or differ between members, and the members that are drawn."""
    best = subject.result.best
    with_schedule = [trial for trial in subject.trials if trial.schedule is not None]
    if not any(len(trial.schedule or ()) > 1 for trial in with_schedule):
        return [], []
    seen: dict[str, set[str]] = {}
    for trial in with_schedule:
        for _, config in trial.schedule or ():
            for name, value in flat(config).items():
                seen.setdefault(name, set()).add(repr(value))
    names = [name for name, values in seen.items() if len(values) > 1]
    return names, chosen(with_schedule, MOST_MEMBERS, lambda t: int(best is None or t.number != best.number))


def _entries(trial: TrialRecord, name: str) -> list[tuple[int, Any]]:
    """(resource, value from there on), and the last value once more at the end; without those that lack the name."""
    found = [(resource, flat(config).get(name)) for resource, config in trial.schedule or ()]
    if found:
        found.append((max(trial.resource, found[-1][0]), found[-1][1]))
    return [(resource, value) for resource, value in found if value is not None]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def generations(subject: Subject) -> Figure | None:
    """The values of an evolutionary search by generation, with lines from the winner's ancestors to their children.

    Only trials at the highest resource that any reached: values of others don't compare.

    Args:
        subject: the study.

    Returns:
        None if trials tell no generation, or all are of the same one.
    """
    import plotly.graph_objects as go

    trials = _of_generations(subject)
    if not trials:
        return None
    metric = subject.started.metric
    made = figure(xaxis_title="generation", yaxis_title=escaped(metric), hovermode="closest", height=400)
    place = _places(trials)
    values = {trial.number: float(trial.value or 0.0) for trial in trials}
    made.update_yaxes(**value_axis(values.values()))
    best = subject.result.best
    lines = _ancestry(subject, best) if best is not None else []
    lines = [(parent, child) for parent, child in lines if parent in place and child in place]
    if lines:
        lines = [lines[i] for i in thinned(len(lines), MOST_ARROWS)]
        made.add_trace(
            go.Scatter(
                x=[x for parent, child in lines for x in (place[parent], place[child], None)],
                y=[y for parent, child in lines for y in (values[parent], values[child], None)],
                name="the winner's ancestors",
                mode="lines",
                line={"color": faded(ORANGE, 0.5), "width": 1.2},
                hoverinfo="skip",
            )
        )
    shown = [trials[i] for i in thinned(len(trials), MOST_POINTS)]
    made.add_trace(
        go.Scatter(
            x=[place[trial.number] for trial in shown],
            y=[values[trial.number] for trial in shown],
            customdata=[trial.number for trial in shown],
            name="trials",
            mode="markers",
            marker={"size": 6, "color": faded(BLUE, 0.7)},
            hovertemplate="trial %{customdata}<br>%{y:.6g}<extra></extra>",
        )
    )
    tops: dict[int, float] = {}
    for trial in trials:
        generation, value = trial.tags["generation"], values[trial.number]
        tops[generation] = min(tops.get(generation, value), value, key=lambda v: subject.sign * v)
    made.add_trace(
        go.Scatter(
            x=list(tops),
            y=list(tops.values()),
            name="best of its generation",
            mode="lines",
            line={"color": BLUE, "width": 2},
            hovertemplate="generation %{x}: %{y:.6g}<extra></extra>",
        )
    )
    if best is not None and best.number in place:
        made.add_trace(
            go.Scatter(
                x=[place[best.number]],
                y=[values[best.number]],
                name=f"trial {best.number}, the winner",
                mode="markers",
                marker={"symbol": "star", "size": 14, "color": ORANGE},
                hovertemplate="%{y:.6g}<extra></extra>",
            )
        )
    if len(tops) <= 24:
        made.update_xaxes(dtick=1)
    return made


def _of_generations(subject: Subject) -> list[TrialRecord]:
    """Trials at the highest resource that tell their generation, by generation; none if there is only one."""
    best = subject.result.best
    found = [
        trial
        for trial in subject.trials
        if best is not None
        and isinstance(trial.tags.get("generation"), int)
        and trial.value is not None
        and trial.resource == best.resource
        and trial.state != "failed"
    ]
    found.sort(key=lambda trial: (trial.tags["generation"], trial.number))
    return found if len({trial.tags["generation"] for trial in found}) > 1 else []


def _places(trials: Sequence[TrialRecord]) -> dict[int, float]:
    """Where on the axis of generations a trial stands: the trials of one lie side by side around it, by number."""
    sizes: dict[int, list[int]] = {}
    for trial in trials:
        sizes.setdefault(trial.tags["generation"], []).append(trial.number)
    return {
        number: generation + (0.7 * ((i + 0.5) / len(numbers) - 0.5) if len(numbers) > 1 else 0.0)
        for generation, numbers in sizes.items()
        for i, number in enumerate(numbers)
    }


def _ancestry(subject: Subject, best: TrialRecord) -> list[tuple[int, int]]:
    """(parent, child) for the winner and all that it descends from, the nearest first."""
    parents = {trial.number: trial.tags.get("parents") or () for trial in subject.trials}
    found, waiting, met = [], [best.number], {best.number}
    for number in waiting:
        for parent in dict.fromkeys(parents.get(number, ())):
            found.append((parent, number))
            if parent not in met:
                met.add(parent)
                waiting.append(parent)
    return found


def _arrows(copied: int) -> str:
    if copied > MOST_ARROWS:
        return f"arrows ({MOST_ARROWS} of {copied}) lead"
    return "an arrow leads" if copied == 1 else f"{copied} arrows lead"


def section(subject: Subject) -> Section | None:
    """Lineage and schedules of a population that trains, or the generations of one that is searched."""
    parts = []
    if (made := lineage(subject)) is not None:
        made_of = copies(subject)
        caption = (
            f"Each row is a trial, each dot one of its reports, the brighter the better; {_arrows(len(made_of))} from "
            f"a trial to the one that copied its weights there. The broad line follows the winner's weights back to "
            f"where they come from."
        )
        parts.append(Plot(made, caption, "lineage"))
    if (made := schedule(subject)) is not None:
        names, members = _scheduled(subject)
        left = len(names) - MOST_PANELS
        more = f" Not drawn: {listed(names[MOST_PANELS:], 8)}." if left > 0 else ""
        everyone = sum(trial.schedule is not None for trial in subject.trials)
        of = f" {len(members)} of {everyone} members are drawn." if len(members) < everyone else ""
        caption = (
            f"The hyperparameters that the weights of each trial were trained with; what was trained and then dropped "
            f"for a copy is not in it.{more}{of}"
        )
        parts.append(Plot(made, caption, "schedule"))
    if (made := generations(subject)) is not None:
        shown = len(_of_generations(subject))
        best = subject.result.best
        assert best is not None
        caption = (
            f"The {shown} of {count(len(subject.trials), 'trial')} that reached {subject.unit} {best.resource}, those "
            f"of a generation side by side."
        )
        parts.append(Plot(made, caption, "generations"))
    title = "Population" if any(part.name != "schedule" for part in parts) else "Schedule"
    return Section("population", title, tuple(parts)) if parts else None
