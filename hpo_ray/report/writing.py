"""Writes `report.html`: of one study, or of several. What the verb `report` prints beside it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from hpo_ray.commands import short
from hpo_ray.compare import FILE as COMPARISON_FILE
from hpo_ray.errors import ConfigError
from hpo_ray.events import FILE_NAME
from hpo_ray.importers import replay_command
from hpo_ray.report.page import Head, page
from hpo_ray.report.sections import sections
from hpo_ray.report.several import groups, ranking, several
from hpo_ray.report.subject import Subject
from hpo_ray.report.summary import summary
from hpo_ray.results import REPORT_FILE, StudyResult, load_study, write_whole
from hpo_ray.view import ENDED, clock, table, virtual_clock


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


def write_several(results: Sequence[StudyResult], path: Path, title: str) -> Path:
    """Writes the report of several studies: their incumbents over one another, and who came first.

    Args:
        results: the studies.
        path: the file.
        title: of the page.

    Raises:
        LogError: a log can't be read.
        OSError: the file can't be written.
    """
    subjects = [Subject(result) for result in results]
    methods = dict.fromkeys(subject.started.method for subject in subjects)
    tasks = dict.fromkeys(subject.started.task for subject in subjects)
    lines = [f"{len(subjects)} studies: {', '.join(methods)} on {', '.join(tasks)}"]
    write_whole(path, page(Head(title, lines), several(subjects)))
    return path


def report(folders: Sequence[Path], output: Path | None = None) -> str:
    """Writes the report of one study or of several, and says what there is to say of it.

    Args:
        folders: of studies, or of comparisons, which stand for their studies.
        output: the file; by default `report.html` in the study's folder, or in the one that all of them lie in.

    Raises:
        ConfigError: a folder holds no study, or the file can't be written.
        LogError: a log can't be read.
    """
    found = [study for folder in folders for study in _studies(folder)]
    results = [load_study(study) for study in dict.fromkeys(study.resolve() for study in found)]
    try:
        if len(results) > 1:
            place = Path(os.path.commonpath([result.path for result in results]))
            path = write_several(results, output or place / REPORT_FILE, place.name)
            return "\n".join([*_ranks(results), f"report     {short(path.resolve())}"])
        path = write_report(results[0], output)
    except OSError as error:
        where = output or "where the studies lie"
        raise ConfigError(
            f"report: {where}: can't be written: {error.strerror}; say where to, --output FILE", key="--output"
        ) from None
    drafted = Subject(results[0]).draft
    if drafted is None:
        return f"report     {short(path.resolve())}"
    return summary(results[0], drafted, replay_command(results[0], drafted), path.resolve()).lstrip("\n")


def _ranks(results: Sequence[StudyResult]) -> list[str]:
    """The ranking of each group of studies that can be compared, as text."""
    lines = []
    for group in groups([Subject(result) for result in results]):
        ranked, best = ranking(group), len(("rank", "study", "method", "seed", "state", "best"))
        lines.append(f"{group.task}, {group.metric} ({group.mode})")
        lines += table([["", *row[:best]] for row in (list(ranked.head), *map(list, ranked.rows))])
    return lines


def _studies(folder: Path) -> list[Path]:
    """The studies of a folder: itself, or those of a comparison."""
    if (folder / FILE_NAME).is_file():
        return [folder]
    inside = sorted(place.parent for place in folder.glob(f"*/{FILE_NAME}"))
    if not (folder / COMPARISON_FILE).is_file() or not inside:
        which = f"; it holds the studies {', '.join(place.name for place in inside[:3])}, ..." if inside else ""
        raise ConfigError(f"report {folder}: is no study, it has no {FILE_NAME}{which}", key=str(folder))
    return inside


def head(subject: Subject) -> Head:
    """What stands above the sections of a study: what it was, and the figures that one looks for first."""
    started, state, ended = subject.started, subject.state, subject.state.ended
    virtual = ended is not None and bool(ended.simulation)
    aims = [f"{mode}imising {name}" for name, mode in (started.metrics or {started.metric: started.mode}).items()]
    lines = [f"{started.method} on {started.task}, {' and '.join(aims)}, seed {started.seed}"]
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
