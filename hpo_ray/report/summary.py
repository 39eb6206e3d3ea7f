"""What is printed when a study has ended, and by `report`: the best configuration, where it lies, what to type next."""

from __future__ import annotations

import html
import shlex
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpo_ray.best import CHECKPOINT_FOLDER
from hpo_ray.commands import python, report_command, resume_command, short
from hpo_ray.results import BEST_FOLDER, REPORT_FILE, TRIALS_FILE, StudyResult, StudyState
from hpo_ray.trials import TrialRecord, flat, split_error
from hpo_ray.view import ENDED, clean, clock, config_text, count, incumbent, last_line, spent, table, virtual_clock

if TYPE_CHECKING:
    from hpo_ray.study import Draft


def summary(result: StudyResult, draft: Draft, next_command: str, report: Path | None = None) -> str:
    """What is printed at the end: the best configuration, where it lies, how to load it, what to type next."""
    state, unit = result.state, draft.task.unit
    counts = [f"{state.states[name]} {name}" for name in ENDED if state.states[name]]
    if unfinished := state.states["running"] + state.states["paused"]:
        counts.append(f"{unfinished} left unfinished")
    ended, took = state.ended, ""
    lines = ["", f"{ended.state}: {ended.reason}" if ended else "not finished: it is running, or was killed"]
    if ended is not None:
        took = f", {clock(ended.time)}"
        if simulation := ended.simulation:
            workers = count(simulation["workers"], "worker")
            took = f", {virtual_clock(ended.time)} on {workers} (virtual; {simulation['wall_seconds']:.1f} s here)"
    lines.append(f"{count(len(state.trials), 'trial')} ({', '.join(counts)}), {spent(state.trained, draft)}{took}")
    best = result.best
    folder = short(result.path)
    store = [f"store      {result.store_note}"] if result.store_note else []
    shown = _report_line(result, report or result.path / REPORT_FILE)
    store += [f"tracker    {result.tracker_note}"] if result.tracker_note else []
    go_on = [*([f"next       {next_command}"] if next_command else []), shown]
    started = state.started
    if (ended is None or ended.state == "interrupted") and started is not None and started.source is None:
        go_on = [shown, f"resume     {resume_command(result.path)}"]
    if state.states["failed"]:
        lines += _failed_table(result)
    if best is None:
        return "\n".join([*lines, f"log        {folder}", *store, *go_on])
    lines.append(f"best       {incumbent(best, draft)}")
    if result.test_metrics:
        test = ", ".join(f"{name} {value:.6g}" for name, value in result.test_metrics.items())
        lines.append(f"test       {test} (computed for this trial only)")
    if result.test_error:
        lines.append(f"test       could not be computed: {result.test_error}")
    lines += [clean(line) for line in _config_lines(best, draft)]
    if ended and ended.model:
        lines.append(f"model      {_model_text(ended.model, draft)}")
    if draft.task.metrics:
        lines += _front_table(result, draft)
    if state.best_seen is not None and ended and "budget.target" in ended.reason:
        seen, resource, value = state.best_seen
        lines.append(f"best seen  {draft.task.metric} {value:.6g} at {unit} {resource} (trial {seen.number})")
        lines.append(f"  {config_text(seen.config)}")
    if ended and ended.simulation:
        lines += _simulation_table(state, draft)
    lines.append(f"all of it  {folder}")
    checkpoint = result.path / BEST_FOLDER / CHECKPOINT_FOLDER
    if checkpoint.is_dir():
        lines.append(f"load it    {load_command(result.path)}")
    return "\n".join([*lines, *store, *go_on])


def _report_line(result: StudyResult, path: Path) -> str:
    """Where the report lies; where there is none, what writes it."""
    if result.report_note is not None:
        return f"report     {result.report_note}"
    return f"report     {short(path) if path.is_file() else report_command(result.path)}"


def _config_lines(best: TrialRecord, draft: Draft) -> list[str]:
    """The best configuration, a name a line; of what the trial itself moved where that is now, and where it started."""
    moved, lines = dict(best.hyperparameters), []
    for name, value in draft.space.flatten(dict(best.config)).items():
        if name in moved:
            lines.append(f"  {name}: {moved.pop(name)} (by gradient, from {value})")
        elif f"{name}.mean" in moved:
            low, high = (moved.pop(f"{name}.{key}") for key in ("min", "max"))
            mean, spread = (moved.pop(f"{name}.{key}") for key in ("mean", "std"))
            lines.append(f"  {name}: {low:.4g} to {high:.4g}, mean {mean:.4g}, std {spread:.4g} (from {value})")
        else:
            lines.append(f"  {name}: {value}")
    return lines


def _model_text(model: Mapping[str, Any], draft: Draft) -> str:
    """The searcher's model in one line."""
    parts = [f"{model['sampler']}, {model['results']} results at {draft.task.unit} {model['resource']}"]
    if "kernel" in model:
        parts.append(f"kernel {model['kernel']}; acquisition {model['acquisition']}")
    if "mean" in model:
        name, mean, deviation = draft.task.metric, model["mean"], model["deviation"]
        parts.append(f"predicts {name} {mean:.6g} for the best trial, standard deviation {deviation:.3g}")
    return "; ".join(parts)


def _front_table(result: StudyResult, draft: Draft) -> list[str]:
    """The Pareto front, and its hypervolume."""
    names, most = list(draft.task.metrics), 12
    front = result.pareto_front()
    rows = [["", "trial", *(f"{name} ({mode})" for name, mode in draft.task.metrics.items())]]
    rows += [["", str(t.number), *(f"{t.metrics[name]:.6g}" for name in names)] for t in front[:most]]
    volume = result.hypervolume()
    if volume is None:
        lacks = next((name for name in names if name not in draft.task.reference), "a value for each metric")
        said = f"no hypervolume: task.reference lacks {lacks}"
    else:
        reference = ", ".join(f"{name} {draft.task.reference[name]:.6g}" for name in names)
        said = f"hypervolume {volume:.6g} against {reference}"
    more = [f"  and {len(front) - most} more in result.json"] if len(front) > most else []
    trials = f"{len(front)} trials" if len(front) != 1 else "1 trial"
    return [f"front      {trials} that no other beats in all; {said}", *table(rows), *more]


def _failed_table(result: StudyResult) -> list[str]:
    """The first trials that failed: why, and where their output lies."""
    failed, most = result.state.states["failed"], 3
    rows = []
    for trial in islice((trial for trial in result.state.trials.values() if trial.state == "failed"), most):
        error = trial.error or ""
        output = split_error(error)[1]
        rows.append(["", f"trial {trial.number}", last_line(error), str(short(result.path / output) if output else "")])
    more = [f"  and {failed - most} more in {TRIALS_FILE}"] if failed > most else []
    return [f"failed     {failed} of {len(result.state.trials)} trials", *table(rows), *more]


def _simulation_table(state: StudyState, draft: Draft) -> list[str]:
    """What a simulated cluster did in each fifth of the virtual time."""
    assert state.ended is not None and state.ended.simulation is not None
    simulation, end = state.ended.simulation, state.ended.time
    rows = [["", "virtual", "workers busy", draft.task.metric]]
    before = 0.0
    for fifth in range(1, 6):
        until = end * fifth / 5
        busy = [share for t, share in simulation["utilisation_over_time"] if before < t <= until + 1e-9]
        best = next((i for i in reversed(state.incumbents) if i.time <= until + 1e-9), None)
        known = "" if best is None else f"{best.value:.6g} at {draft.task.unit} {best.resource}"
        rows.append(["", virtual_clock(until), f"{sum(busy) / len(busy):.0%}" if busy else "", known])
        before = until
    lost = f", {simulation['lost_workers']} lost" if simulation["lost_workers"] else ""
    head = f"simulated  {simulation['workers']} workers{lost}, {simulation['utilisation']:.0%} busy; "
    return [head + simulation["cost"], *table(rows)]


def as_html(result: StudyResult) -> str:
    """A study in a notebook: how it ended, its best trial, and where its report lies. All texts are escaped."""
    state, started, best = result.state, result.state.started, result.best
    assert started is not None
    ended = f"{state.ended.state}: {state.ended.reason.strip().splitlines()[0]}" if state.ended else "not finished"
    counts = ", ".join(f"{state.states[name]} {name}" for name in ENDED if state.states[name])
    rows = [("state", ended), ("trials", f"{len(state.trials)} ({counts})"), ("resource", str(state.trained))]
    if best is not None:
        rows.append((f"best {started.metric}", f"{best.value:.6g} (trial {best.number}, resource {best.resource})"))
        rows += [
            (name, f"{value:.6g}" if isinstance(value, float) else str(value))
            for name, value in flat(best.config).items()
        ]
    report = result.path / REPORT_FILE
    rows.append(("report", str(short(report) if report.is_file() else report_command(result.path))))
    cells = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in rows)
    title = f"{html.escape(started.study)}: {html.escape(started.method)} on {html.escape(started.task)}"
    return f"<table><caption>{title}</caption>{cells}</table>"


def load_command(folder: Path) -> str:
    """What loads the best trial of a study."""
    code = f'import hpo_ray; best = hpo_ray.load_best("{short(folder)}")'
    return shlex.join([python(), "-c", code])
