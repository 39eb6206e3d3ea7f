"""Studies whose log is written by hand, so that every number in them is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpo_ray.events import Event, EventLog, Reported, StudyEnded, StudyStarted, TrialAdded, TrialEnded
from hpo_ray.report.subject import Subject


@dataclass(frozen=True)
class Trial:
    """A trial: its configuration, and at each resource a value, or all metrics.

    Attributes:
        ended: `completed`, `stopped`, `failed`; None if it is running.
    """

    config: Mapping[str, Any]
    curve: Mapping[int, float | Mapping[str, Any]] = field(default_factory=dict)
    ended: str | None = "completed"
    tags: Mapping[str, Any] = field(default_factory=dict)


def study(
    folder: Path,
    trials: Sequence[Trial],
    state: str | None = "finished",
    more: Iterable[Event] = (),
    **started: Any,
) -> Subject:
    """A study with these trials, one after the other, a second and a unit of resource a report.

    Args:
        folder: where to; made.
        trials: its trials.
        state: how it ended; None if it has not.
        more: events that come before its end.
        started: fields of its first event that are not `loss`, `min`, seed 0, full resource 1.
    """
    folder.mkdir(parents=True)
    first = {
        "study": folder.name,
        "method": "random",
        "task": "hand_made",
        "metric": "loss",
        "mode": "min",
        "seed": 0,
        "max_resource": 1,
        "time": 0.0,
    }
    events: list[Event] = [StudyStarted(**{**first, **started})]
    now = 0.0
    for number, trial in enumerate(trials):
        events.append(TrialAdded(str(number), number, trial.config, trial.tags, now))
        for resource, value in trial.curve.items():
            now += 1.0
            metrics = value if isinstance(value, Mapping) else {started.get("metric", "loss"): value}
            events.append(Reported(str(number), resource, 1, metrics, 1.0, now))
        if trial.ended is not None:
            error = "ValueError: no" if trial.ended == "failed" else None
            events.append(TrialEnded(str(number), trial.ended, "", error, now))
    events += more
    if state is not None:
        events.append(StudyEnded(state, "" if state == "finished" else "a signal", now))
    log = EventLog(folder / "events.jsonl")
    for event in events:
        log.append(event)
    log.close()
    return Subject.of(folder)


def at_once(configs: Iterable[Mapping[str, Any]], values: Iterable[Any]) -> list[Trial]:
    """Trials of one report each."""
    return [Trial(config, {1: value}) for config, value in zip(configs, values, strict=True)]
