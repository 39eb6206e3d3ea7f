"""Where trials ended: how many came to each rung and went on from it, as planned and as it was."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hpo_ray.report.parts import Plot, Section, Table
from hpo_ray.report.theme import BLUE, GREEN, GREY, ORANGE, PINK, YELLOW, escaped, figure
from hpo_ray.view import count

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from hpo_ray.report.subject import Subject

UP, FULL, STOPPED, FAILED, OPEN = "went up", "completed", "stopped", "failed", "unfinished"
FATES = {UP: BLUE, FULL: GREEN, STOPPED: GREY, FAILED: PINK, OPEN: YELLOW}
"""What became of a trial that reported at a rung, and its colour."""
MOST_BARS = 60


@dataclass
class RungFlow:
    """A rung of the brackets of one kind, all rounds together.

    Attributes:
        s: of the brackets.
        resource: where trials report.
        planned: how many trials were to report there.
        up: how many of them were to go on; None at the highest rung.
        fates: what became of those that reported there, by `FATES`.
        lost: how many failed on the way there.
    """

    s: int
    resource: int
    planned: int
    up: int | None
    fates: Counter[str] = field(default_factory=Counter)
    lost: int = 0

    @property
    def reported(self) -> int:
        """How many trials reported there."""
        return sum(self.fates.values())


def flow(subject: Subject) -> list[RungFlow]:
    """The rungs of each bracket in the order of the plan, the brackets of all rounds with the same s as one.

    A study that only time or resource end plans no number of rounds: then it is what the brackets that were begun
    would hold. Empty for schedulers without rungs.
    """
    plan = subject.draft.plan if subject.draft is not None else None
    if plan is None or not any(len(bracket.rungs) > 1 for bracket in plan.brackets):
        return []
    kinds = len(plan.brackets)
    begun = {trial.tags["bracket"] for trial in subject.trials if isinstance(trial.tags.get("bracket"), int)}
    rounds = [plan.rounds or max(1, sum(b % kinds == kind for b in begun)) for kind in range(kinds)]
    rows = [
        [
            RungFlow(bracket.s, rung.r, rung.n * rounds[kind], above.n * rounds[kind] if above else None)
            for rung, above in zip(bracket.rungs, (*bracket.rungs[1:], None), strict=True)
        ]
        for kind, bracket in enumerate(plan.brackets)
    ]
    for trial in subject.trials:
        bracket, rung = trial.tags.get("bracket"), trial.tags.get("rung", 0)
        if not isinstance(bracket, int) or not isinstance(rung, int):
            continue
        for i, row in enumerate(rows[bracket % kinds][: rung + 1]):
            if trial.resource < row.resource:
                row.lost += trial.state == "failed"
                break
            row.fates[UP if rung > i else _FATE.get(trial.state, OPEN)] += 1
    return [row for bracket_rows in rows for row in bracket_rows]


_FATE = {"completed": FULL, "stopped": STOPPED, "failed": FAILED}


def rung_flow(subject: Subject) -> Figure | None:
    """A bar a rung: what became of the trials that reported there, beside what was planned.

    Args:
        subject: the study.

    Returns:
        None if its scheduler has no rungs, or no trial came to one.
    """
    import plotly.graph_objects as go

    rows = flow(subject)
    if not any(row.reported for row in rows):
        return None
    exact = subject.draft is not None and subject.draft.plan.exact
    x = [[f"s={row.s}" for row in rows], [str(row.resource) for row in rows]]
    made = figure(barmode="stack", height=400, yaxis_title="trials", bargap=0.25)
    made.update_xaxes(title_text=f"bracket, and {escaped(subject.unit)} of the rung", tickangle=0, showgrid=False)
    for fate, colour in FATES.items():
        if any(row.fates[fate] for row in rows):
            made.add_trace(
                go.Bar(
                    x=x,
                    y=[row.fates[fate] for row in rows],
                    name=fate,
                    marker={"color": colour},
                    hovertemplate=f"%{{y}} {fate}<extra></extra>",
                )
            )
    made.add_trace(
        go.Scatter(
            x=x,
            y=[row.planned for row in rows],
            name="planned" if exact else "expected",
            mode="markers",
            marker={"symbol": "line-ew-open", "size": 16, "color": ORANGE, "line": {"width": 2}},
            hovertemplate="%{y} planned<extra></extra>" if exact else "%{y} expected<extra></extra>",
        )
    )
    return made


def stopping(subject: Subject) -> Figure | None:
    """How many trials were stopped early, by the resource that they had reached.

    Args:
        subject: the study.

    Returns:
        None if its scheduler has rungs (see `rung_flow`), or none was stopped.
    """
    import plotly.graph_objects as go

    ends = _stopped_at(subject)
    if flow(subject) or not ends:
        return None
    made = figure(height=320, yaxis_title="trials stopped", xaxis_title=escaped(subject.unit), bargap=0.1)
    width = _bin(max(ends))
    binned: Counter[int] = Counter()
    for resource, trials in ends.items():
        binned[(resource - 1) // width] += trials
    x = sorted(binned)
    spans = [f"{i * width + 1} to {(i + 1) * width}" if width > 1 else f"{i + 1}" for i in x]
    made.add_trace(
        go.Bar(
            x=[i * width + (1 + width) / 2 for i in x],
            y=[binned[i] for i in x],
            width=width * 0.9,
            text=spans,
            textposition="none",
            marker={"color": BLUE},
            hovertemplate=f"%{{y}} stopped at {escaped(subject.unit)} %{{text}}<extra></extra>",
        )
    )
    made.update_xaxes(range=[0.5, max(subject.started.max_resource, max(ends)) + 0.5])
    return made


def section(subject: Subject) -> Section | None:
    """The flow through the rungs, or how many trials were stopped where."""
    made = rung_flow(subject)
    if made is None:
        return _stopping_section(subject)
    assert subject.draft is not None
    plan, unit = subject.draft.plan, subject.unit
    rounds = "" if plan.rounds == 1 else " Brackets of all rounds with the same s stand in one."
    word = "planned" if plan.exact else "expected"
    rows = flow(subject)
    lost = any(row.lost for row in rows)
    head = ["s of the bracket", f"rung at {unit}", "trials", word, "went up", word]
    table = [
        [
            str(row.s),
            str(row.resource),
            str(row.reported),
            str(row.planned),
            "" if row.up is None else str(row.fates[UP]),
            "" if row.up is None else str(row.up),
            *([str(row.lost)] if lost else []),
        ]
        for row in rows
    ]
    caption = (
        f"What became of the trials that reported at each rung; a line across is what was {word}. In a bracket s the "
        f"trials are compared s times before they are trained to the end.{rounds}"
    )
    return Section(
        "rungs",
        "Brackets and rungs",
        (
            Plot(made, caption, "rung_flow"),
            Table([*head, *(["failed on the way"] if lost else [])], table, tuple(range(len(head) + lost))),
        ),
    )


def _stopping_section(subject: Subject) -> Section | None:
    made = stopping(subject)
    if made is None:
        return None
    stopped = sum(_stopped_at(subject).values())
    saved = sum(max(0, subject.started.max_resource - t.resource) for t in subject.trials if t.state == "stopped")
    caption = (
        f"{stopped} of {count(len(subject.trials), 'trial')} {'was' if stopped == 1 else 'were'} stopped before "
        f"{subject.unit} {subject.started.max_resource}, which saved {count(saved, subject.unit)} at most."
    )
    return Section("rungs", "Early stopping", (Plot(made, caption, "stopping"),))


def _stopped_at(subject: Subject) -> Counter[int]:
    full = subject.started.max_resource
    return Counter(trial.resource for trial in subject.trials if trial.state == "stopped" and 0 < trial.resource < full)


def _bin(most: int) -> int:
    return max(1, -(-most // MOST_BARS))
