"""Running small studies and comparing what they did.

def test_my_scheduler(tmp_path):
    a = run_study(["task=parabola", "scheduler._target_=mine.Scheduler", "executor=inprocess"], tmp_path / "a")
    b = run_study(["task=parabola", "scheduler._target_=mine.Scheduler", "executor=ray"], tmp_path / "b")
    check_same_events(a, b)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from hpo_ray.config import load
from hpo_ray.events import FILE_NAME, Event, StudyStarted, read
from hpo_ray.results import StudyResult
from hpo_ray.study import build, draft

_CLOCKS = ("time", "seconds")


def run_study(overrides: Sequence[str], root: Path, config_dir: str | None = None) -> StudyResult:
    """Runs a study without a view.

    Args:
        overrides: as typed on the command line.
        root: where its folder is made.
        config_dir: a folder with configurations of your own.

    Raises:
        ConfigError: the configuration can't be.
        StudyError: the study failed.
    """
    study = build(draft(load([*overrides, f"study.root={root}"], config_dir)))
    from hpo_ray.executors.loop import run
    from hpo_ray.view import View

    return run(study, View())


def timeless(result: StudyResult) -> list[dict[str, Any]]:
    """The events of a study without what two equal runs differ in: times and the study's name."""
    return [_timeless(event) for event in read(result.path / FILE_NAME)]


def check_same_events(first: StudyResult, second: StudyResult) -> None:
    """Law: with one worker and one seed, every executor records the same events, but for times.

    Raises:
        AssertionError: the message shows the first event that differs.
    """
    a, b = timeless(first), timeless(second)
    for number, (x, y) in enumerate(zip(a, b, strict=False), 1):
        if x != y:
            raise AssertionError(f"line {number} differs:\n  {first.path}: {x}\n  {second.path}: {y}")
    if len(a) != len(b):
        raise AssertionError(f"{first.path} has {len(a)} events, {second.path} has {len(b)}")


def _timeless(event: Event) -> dict[str, Any]:
    left_out = (*_CLOCKS, "study") if isinstance(event, StudyStarted) else _CLOCKS
    kept = {field.name: getattr(event, field.name) for field in fields(event) if field.name not in left_out}
    return {"event": event.kind, **kept}
