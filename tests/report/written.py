"""Studies written by hand: a log of a few events, as a report reads it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpo_ray.events import (
    Decided,
    Event,
    EventLog,
    Reported,
    StudyEnded,
    StudyStarted,
    TrialAdded,
    TrialEnded,
)
from hpo_ray.report.parts import Listing, Plot, Section, Table, Words
from hpo_ray.report.subject import Subject


def started(mode: str = "min", max_resource: int = 9, workers: int | None = None, metric: str = "loss") -> StudyStarted:
    return StudyStarted("s", "m", "t", metric, mode, 0, max_resource, 0.0, workers=workers)


def added(number: int, config: Mapping[str, Any] | None = None, **tags: Any) -> TrialAdded:
    return TrialAdded(str(number), number, {"x": number} if config is None else config, tags, 0.0)


def reported(number: int, resource: int, value: Any, end: float = 0.0, seconds: float = 0.0, **more: Any) -> Reported:
    metrics = {"loss": value, **{name.replace("__", "/"): metric for name, metric in more.items()}}
    return Reported(str(number), resource, 1, metrics, seconds, end)


def curve(number: int, values: Sequence[Any], **more: Any) -> list[Event]:
    """Reports at 1, 2, and so on."""
    return [reported(number, resource, value, **more) for resource, value in enumerate(values, 1)]


def copied(number: int, parent: int, resource: int, config: Mapping[str, Any], value: float = 0.5) -> Decided:
    return Decided(
        str(number), "exploit", "", {"parent": parent, "exploits": 1}, 0.0, config, resource, {"loss": value}
    )


def ended(number: int, state: str = "completed", error: str | None = None) -> TrialEnded:
    return TrialEnded(str(number), state, "", error, 0.0)


def finished(time: float = 0.0, **more: Any) -> StudyEnded:
    return StudyEnded("finished", "", time, **more)


def study(folder: Path, *events: Event, config_of: Path | None = None) -> Subject:
    """A study with these events; with `config_of` it has the configuration, and so the plan, of that one."""
    folder.mkdir(parents=True, exist_ok=True)
    log = EventLog(folder / "events.jsonl")
    for event in events:
        log.append(event)
    log.close()
    if config_of is not None:
        shutil.copy(config_of / "config.yaml", folder)
    return Subject.of(folder)


def words(section: Section | None) -> list[str]:
    assert section is not None
    return [part.text for part in section.parts if isinstance(part, Words)]


def tables(section: Section | None) -> list[Table]:
    assert section is not None
    return [part for part in section.parts if isinstance(part, Table)]


def plots(section: Section | None) -> list[Plot]:
    assert section is not None
    return [part for part in section.parts if isinstance(part, Plot)]


def listings(section: Section | None) -> list[Listing]:
    assert section is not None
    return [part for part in section.parts if isinstance(part, Listing)]
