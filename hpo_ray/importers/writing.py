"""What was read elsewhere, as small values, and the folder of a study that is written from them."""

from __future__ import annotations

import os
import re
import shutil
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpo_ray.best import CONFIG_FILE, save_config
from hpo_ray.config import load
from hpo_ray.domains import Domain, Scalar
from hpo_ray.errors import ConfigError
from hpo_ray.events import (
    FILE_NAME,
    Decided,
    Event,
    Reported,
    StudyEnded,
    StudyStarted,
    TrialAdded,
    TrialEnded,
    from_line,
    to_line,
)
from hpo_ray.importers.spaces import as_texts, conditions, infer, plain, space_of, text
from hpo_ray.results import REPORT_FILE, RESULT_FILE, TRIALS_FILE, StudyResult, fold
from hpo_ray.study import NAME, draft
from hpo_ray.view import count

METHOD = "imported"
_FILES = (CONFIG_FILE, FILE_NAME, TRIALS_FILE, RESULT_FILE)


@dataclass(frozen=True)
class Change:
    """A trial goes on under another configuration.

    Attributes:
        config: from then on, by dotted name.
        resource: what it goes on from.
        parent: the trial whose weights it goes on with; None: its own.
        metrics: what that one had reported there; None if it is not known.
    """

    config: Mapping[str, Any]
    resource: int
    parent: int | None = None
    metrics: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Report:
    """What a trial reported.

    Attributes:
        resource: what it had reached.
        metrics: by name.
        seconds: that the step took.
        time: when it came, in seconds since the epoch; None if that is not known.
        change: what changed before it.
        trained: units that it cost; None: since the highest resource below it that the trial had come to.
    """

    resource: int
    metrics: Mapping[str, Any]
    seconds: float = 0.0
    time: float | None = None
    change: Change | None = None
    trained: int | None = None


@dataclass(frozen=True)
class ImportedTrial:
    """A trial.

    Attributes:
        trial_id: its id where it comes from.
        config: what it started with, by dotted name.
        reports: in the order in which they came.
        state: `completed`, `stopped` or `failed`; None: it was left unfinished.
        reason: why it ended.
        error: what it failed with.
        tags: what else is known of it.
        start: when it started, in seconds since the epoch; None if that is not known.
        end: when it ended, the same way.
    """

    trial_id: str
    config: Mapping[str, Any]
    reports: Sequence[Report] = ()
    state: str | None = None
    reason: str = ""
    error: str | None = None
    tags: Mapping[str, Any] = field(default_factory=dict)
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class Imported:
    """A study of another program.

    Attributes:
        source: which one it is, in words: program, and where it lies.
        name: what it is called there.
        task: what was tuned.
        metric: the value that counts.
        mode: `min` or `max`.
        max_resource: the highest resource that a trial can come to.
        unit: what one unit of it is called.
        trials: by number.
        domains: those that are on record, by dotted name; what else there is in configurations is inferred.
        metrics: what is optimised when that is more than one metric: `min` or `max` by name.
        constraints: bounds, as of a task.
        time_attr: what counts the resource.
        seed: of the study.
        command: what imports it again; None if that can't be typed.
    """

    source: str
    name: str
    task: str
    metric: str
    mode: str
    max_resource: int
    unit: str
    trials: Sequence[ImportedTrial]
    domains: Mapping[str, Domain] = field(default_factory=dict)
    metrics: Mapping[str, str] = field(default_factory=dict)
    constraints: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    time_attr: str = "training_iteration"
    seed: int = 0
    command: str | None = None


def write(imported: Imported, root: str | Path, name: str | None = None) -> Path:
    """Writes the folder of an imported study, or brings the one that is there up to what its source has now.

    Args:
        imported: what was read.
        root: the folder that studies lie in.
        name: of the study; by default what it is called where it comes from, or the next free one of `NAME-2`,
            `NAME-3`, ….

    Returns:
        The study's folder.

    Raises:
        ConfigError: there is something else under the name that was given, the study has no hyperparameters, or the
            folder can't be written.
    """
    folder = _folder(imported, Path(root), name)
    config, events = _study(imported, folder)
    state = fold(events)
    aside = folder.parent / f".{folder.name}.{os.getpid()}"
    try:
        aside.mkdir(parents=True)
        try:
            save_config(aside, config)
            (aside / FILE_NAME).write_text("".join(to_line(event) for event in events), encoding="utf-8")
            StudyResult(aside, state).write()
            if not folder.exists():
                aside.rename(folder)
            elif any(_content(aside / file) != _content(folder / file) for file in _FILES):
                (folder / REPORT_FILE).unlink(missing_ok=True)  # of what it was before
                for file in _FILES:
                    (aside / file).replace(folder / file)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise ConfigError(f"study.root={root}: can't be written: {error.strerror}", key="study.root") from None
    return folder


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


_LONGEST = 100
"""Characters of a folder's name."""


def _folder(imported: Imported, root: Path, name: str | None) -> Path:
    """Where the study goes: a folder that is not there yet, or that holds what was imported from the same source."""
    if name is not None:
        if not re.fullmatch(NAME, name):
            raise ConfigError(
                f"study.name={name!r}: must be a plain folder name of letters, digits and _ - . + =; where it lies is "
                f"study.root (root= in Python)",
                key="study.name",
            )
        path = root / name
        if path.exists() and not _is_import_of(path, imported):
            raise ConfigError(
                f"study.name={name}: {path} is there already, and is no import of {imported.source} by "
                f"{imported.metric} ({imported.mode}); choose another name or root",
                key="study.name",
            )
        return path
    base = re.sub(r"[^\w.+=-]+", "_", imported.name).lstrip(".+=-")[:_LONGEST] or METHOD
    number = 1
    while (path := root / (base if number == 1 else f"{base}-{number}")).exists():
        if _is_import_of(path, imported):
            break
        number += 1
    return path


def _is_import_of(folder: Path, imported: Imported) -> bool:
    try:
        with (folder / FILE_NAME).open(encoding="utf-8") as file:
            started = from_line(file.readline())
    except (OSError, ValueError):
        return False
    ours = imported.source, imported.metric, imported.mode
    return isinstance(started, StudyStarted) and (started.source, started.metric, started.mode) == ours


def _study(imported: Imported, folder: Path) -> tuple[Mapping[str, Any], list[Event]]:
    """The configuration and the log."""
    shape = _Shape(imported)
    events = _events(imported, folder.name, shape)
    config = load(["task=custom", "method=random"])
    config.seed = imported.seed
    config.study.name, config.study.root = folder.name, str(folder.parent)
    config.method.name = METHOD
    config.task.name, config.task.trainable, config.task.args = imported.task, METHOD, {"source": imported.source}
    config.task.metric, config.task.mode, config.task.unit = imported.metric, imported.mode, imported.unit
    config.task.metrics, config.task.constraints = dict(imported.metrics), dict(imported.constraints)
    config.task.max_resource, config.scheduler.time_attr = imported.max_resource, imported.time_attr
    config.space = shape.space.to_config()
    config.budget.trials = max(1, len(imported.trials))
    config.budget.resource = sum(event.trained for event in events if isinstance(event, Reported)) or None
    return draft(config).config, events


class _Shape:
    """The space, and configurations as they lie in it.

    Raises:
        ConfigError: there are no hyperparameters.
    """

    def __init__(self, imported: Imported) -> None:
        whole = [trial for trial in imported.trials if trial.state in ("completed", "stopped")] or imported.trials
        tried: dict[str, list[Scalar]] = {}
        for config in _configs(imported.trials):
            for name, value in config.items():
                tried.setdefault(name, []).append(plain(value))
        self._texts = {name for name, values in tried.items() if as_texts(values)}
        domains = dict(imported.domains)
        self.inferred = [name for name in tried if name not in domains]
        for name in self.inferred:
            domains[name] = infer([self._value(name, value) for value in tried[name]])
        if not domains:
            raise ConfigError(f"{imported.source}: its trials have no hyperparameters, so there is no search to load")
        configs = [{name: self._value(name, value) for name, value in trial.config.items()} for trial in whole]
        self.space, self._names = space_of(conditions(domains, configs))

    def config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A configuration as a trainable of ours would get it."""
        return self.space.nest({self._names[name]: self._value(name, value) for name, value in config.items()})

    def _value(self, name: str, value: Any) -> Scalar:
        return text(plain(value)) if name in self._texts else plain(value)


def _configs(trials: Sequence[ImportedTrial]) -> Iterator[Mapping[str, Any]]:
    for trial in trials:
        yield trial.config
        yield from (report.change.config for report in trial.reports if report.change is not None)


def _events(imported: Imported, name: str, shape: _Shape) -> list[Event]:
    """The log, in the order of time."""
    first, begun = _starts(imported.trials)
    timed: list[tuple[float, Event]] = []
    for number in range(len(imported.trials)):
        timed += _of_trial(number, imported.trials[number], first, begun, shape)
    timed.sort(key=lambda entry: entry[0])  # stable: what a trial did stays in its order
    reason = f"imported from {imported.source}"
    if shape.inferred:
        which = f"the domains of {', '.join(shape.inferred)} are" if imported.domains else "its space is"
        reason += f"; {which} inferred from the values that were tried"
    started = StudyStarted(
        study=name,
        method=METHOD,
        task=imported.task,
        metric=imported.metric,
        mode=imported.mode,
        seed=imported.seed,
        max_resource=imported.max_resource,
        time=first,
        command=imported.command,
        metrics=imported.metrics,
        constraints=imported.constraints,
        source=imported.source,
    )
    over = {event.trial_id for _, event in timed if isinstance(event, TrialEnded)}
    if unfinished := sum(isinstance(event, TrialAdded) and event.trial_id not in over for _, event in timed):
        reason += f"; {count(unfinished, 'trial')} had not ended there"
    state = "interrupted" if unfinished else "finished"
    ended = StudyEnded(state, reason, max((time for time, _ in timed), default=0.0))
    return [started, *(event for _, event in timed), ended]


def _of_trial(
    number: int, trial: ImportedTrial, first: float, begun: Sequence[float], shape: _Shape
) -> Iterator[tuple[float, Event]]:
    """What one trial did, each event with its time. Time doesn't go back in it, whatever clocks said."""
    identity, now = trial.trial_id, begun[number]
    yield now, TrialAdded(identity, number, shape.config(trial.config), trial.tags, now)
    reached, furthest, exploits = [0], 0, 0
    """Each resource that it has come to, sorted; the highest of the weights that it has; how often it copied any."""
    for report in trial.reports:
        at = now + report.seconds if report.time is None else round(report.time - first, 6)
        if (change := report.change) is not None:
            now = max(now, round(at - report.seconds, 6))
            parent = change.parent
            # Nothing can be copied of a trial that the log doesn't know by then: Ray Tune tells whole seconds only.
            if parent is not None and (begun[parent], parent) >= (now, number):
                parent = None
            exploits += parent is not None
            yield (
                now,
                Decided(
                    identity,
                    "replay" if parent is None else "exploit",
                    "goes on under another configuration" if parent is None else f"copies trial {parent}",
                    {} if parent is None else {"parent": parent, "exploits": exploits},
                    now,
                    shape.config(change.config),
                    change.resource,
                    None if parent is None else change.metrics,
                ),
            )
            furthest = change.resource
            _add(reached, furthest)
        now = max(now, at)
        below = reached[bisect_left(reached, report.resource) - 1]
        trained = report.resource - below if report.trained is None else report.trained
        again = report.trained is None and report.resource <= furthest
        yield (
            now,
            Reported(identity, report.resource, trained, report.metrics, report.seconds, now, again),
        )
        furthest = max(furthest, report.resource)
        _add(reached, report.resource)
    if trial.state is not None:
        now = now if trial.end is None else max(now, round(trial.end - first, 6))
        yield now, TrialEnded(identity, trial.state, trial.reason, trial.error, now)


def _add(reached: list[int], resource: int) -> None:
    at = bisect_left(reached, resource)
    if at == len(reached) or reached[at] != resource:
        reached.insert(at, resource)


def _starts(trials: Sequence[ImportedTrial]) -> tuple[float, list[float]]:
    """When the first trial started, since the epoch, and when each is added, in seconds since then.

    In the order of their numbers: one that started before another of a lower number lets that one be added earlier.
    """
    known = [_start(trial) for trial in trials]
    first = min((start for start in known if start is not None), default=0.0)
    added: list[float] = []
    latest = max((start for start in known if start is not None), default=first)
    for start in reversed(known):
        latest = latest if start is None else min(latest, start)
        added.append(round(latest - first, 6))
    return first, added[::-1]


def _start(trial: ImportedTrial) -> float | None:
    if trial.start is not None or not trial.reports or trial.reports[0].time is None:
        return trial.start
    return round(trial.reports[0].time - trial.reports[0].seconds, 6)
