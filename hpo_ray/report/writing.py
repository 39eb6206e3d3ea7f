"""Writes `report.html`: of one study, or of several."""

from __future__ import annotations

import math
from pathlib import Path

from hpo_ray.report.page import Head, page
from hpo_ray.report.sections import sections
from hpo_ray.report.subject import Subject
from hpo_ray.results import REPORT_FILE, StudyResult, write_whole
from hpo_ray.view import ENDED, clock, virtual_clock


def write_report(result: StudyResult, path: Path | None = None) -> Path:
    """Writes the report of a study, whole or not at all.

    Args:
        result: the study.
        path: the file; by default `report.html` in its folder.

    Returns:
        The file.

    Raises:
        LogError: its log can't be read.
        OSError: the file can't be written.
    """
    subject = Subject(result)
    target = path or result.path / REPORT_FILE
    write_whole(target, page(head(subject), sections(subject)))
    return target


def head(subject: Subject) -> Head:
    """What stands above the sections of a study: what it was, and the figures that one looks for first."""
    started, state, ended = subject.started, subject.state, subject.state.ended
    virtual = ended is not None and bool(ended.simulation)
    lines = [f"{started.method} on {started.task}, {started.mode}imising {started.metric}, seed {started.seed}"]
    if ended is None:
        lines.append("It was running when this was written, or its process has died.")
    elif ended.reason:
        lines.append(f"{ended.state}: {ended.reason.strip().splitlines()[0]}")
    cards = []
    if (best := state.best) is not None and best.value is not None:
        cards.append(
            (f"best {started.metric}", f"{best.value:.6g}", f"trial {best.number} at {subject.unit} {best.resource}")
        )
    if subject.result.test_metrics:
        for name, value in list(subject.result.test_metrics.items())[:2]:
            cards.append((f"test {name}", f"{value:.6g}", "of the best trial only"))
    counts = ", ".join(f"{state.states[name]} {name}" for name in ENDED if state.states[name])
    cards.append(("trials", str(len(state.trials)), counts or "none has ended"))
    cards.append((f"{subject.unit}s trained", str(state.trained), _planned(subject)))
    took = virtual_clock(subject.seconds) if virtual else clock(subject.seconds)
    busy = f"{state.seconds:.3g} s of training" if math.isfinite(state.seconds) else ""
    cards.append(("virtual time" if virtual else "time", took, busy))
    return Head(subject.name, lines, ended.state if ended else "not finished", cards)


def _planned(subject: Subject) -> str:
    total = subject.draft.plan.total_resource if subject.draft is not None else None
    return f"of {subject.draft.plan.about}{total} planned" if subject.draft is not None and total else ""
