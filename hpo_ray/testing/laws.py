"""Running small studies and comparing what they did.

def test_my_scheduler(tmp_path):
    a = run_study(["task=parabola", "scheduler._target_=mine.Scheduler", "executor=inprocess"], tmp_path / "a")
    b = run_study(["task=parabola", "scheduler._target_=mine.Scheduler", "executor=ray"], tmp_path / "b")
    check_same_events(a, b)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from hpo_ray.best import load_config
from hpo_ray.config import load
from hpo_ray.errors import StudyError
from hpo_ray.events import (
    FILE_NAME,
    CheckpointSaved,
    Event,
    Moved,
    StudyStarted,
    TrialAdded,
    read,
)
from hpo_ray.results import StudyResult, load_study
from hpo_ray.resume import reopen
from hpo_ray.schedulers.adapter import CoreScheduler
from hpo_ray.searchers.adapter import SpaceSearcher
from hpo_ray.study import build, draft

_CLOCKS = ("time", "seconds", "simulation", "room")  # and how many workers were free


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


def resume_study(
    folder: str | Path, overrides: Sequence[str] = (), config_dir: str | None = None, root: str | Path = "outputs"
) -> StudyResult:
    """Goes on with a study where its log ends, without a view.

    Args:
        folder: the study's folder, or its URI.
        overrides: what changes, as typed on the command line.
        config_dir: a folder with configurations of your own.
        root: the folder that the study of a URI is brought into.

    Raises:
        ConfigError: there is no study, or the changes make it another one.
        StudyError: its log is damaged, or the study failed.
    """
    reopened = reopen(str(folder), overrides, config_dir, root)
    if reopened.done:
        return load_study(reopened.folder)
    study = build(reopened.draft)
    from hpo_ray.executors.loop import run
    from hpo_ray.view import View

    return run(study, View(), reopened.folder)


def outcomes(result: StudyResult) -> list[tuple[Any, ...]]:
    """What a study came to: (number, configuration, state, final resource, value) of each trial."""
    return [(t.number, dict(t.config), t.state, t.resource, t.value) for t in result.records]


def check_resumes(undisturbed: StudyResult, resumed: StudyResult) -> None:
    """Law: a study that was cut off and taken up, however often, comes to what it would have come to.

    To the digit, with one worker and a trainable that gives the same again from the same checkpoint.

    Raises:
        AssertionError: the message shows the first trial that differs.
    """
    a, b = outcomes(undisturbed), outcomes(resumed)
    for x, y in zip(a, b, strict=False):
        if x != y:
            raise AssertionError(f"trial {x[0]} differs:\n  {undisturbed.path}: {x}\n  {resumed.path}: {y}")
    if len(a) != len(b):
        raise AssertionError(f"{undisturbed.path} has {len(a)} trials, {resumed.path} has {len(b)}")


def timeless(result: StudyResult) -> list[dict[str, Any]]:
    """The events of a study without what two equal runs differ in: times, the study's name, who ran it and where."""
    return [_timeless(event) for event in read(result.path / FILE_NAME)]


def check_same_events(first: StudyResult, second: StudyResult) -> None:
    """Law: with one worker and one seed, every executor records the same events, but for times.

    Raises:
        AssertionError: the message shows the first event that differs.
    """
    _check_same(first, second, timeless(first), timeless(second))


def _check_same(
    first: StudyResult, second: StudyResult, a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]
) -> None:
    for number, (x, y) in enumerate(zip(a, b, strict=False), 1):
        if x != y:
            raise AssertionError(f"line {number} differs:\n  {first.path}: {x}\n  {second.path}: {y}")
    if len(a) != len(b):
        raise AssertionError(f"{first.path} has {len(a)} events, {second.path} has {len(b)}")


def check_same_decisions(first: StudyResult, second: StudyResult) -> None:
    """Law: as `check_same_events`, but for checkpoints and questions: a simulated cluster has those in memory.

    And another moment in which it asks its scheduler; what comes of it is the same.

    Raises:
        AssertionError: the message shows the first event that differs.
    """
    left_out = (CheckpointSaved.kind, Moved.kind)
    a, b = ([event for event in timeless(r) if event["event"] not in left_out] for r in (first, second))
    for event in (*a, *b):
        event.pop("checkpoint", None)
    _check_same(first, second, a, b)


def check_same_proposals(first: StudyResult, second: StudyResult) -> None:
    """Law: more workers never change which configurations a seeded source proposes first.

    For searchers that don't look at results. The shorter study's configurations are the first of the longer one's.

    Raises:
        AssertionError: the message shows the first configuration that differs.
    """
    # From the log: a population changes configurations later.
    added = ([e for e in read(study.path / FILE_NAME) if isinstance(e, TrialAdded)] for study in (first, second))
    for a, b in zip(*added, strict=False):
        if a.config != b.config:
            raise AssertionError(f"trial {a.number} differs:\n  {first.path}: {a.config}\n  {second.path}: {b.config}")


def check_time_never_goes_back(result: StudyResult) -> None:
    """Law: the clock of a study, real or virtual, never goes back.

    Raises:
        AssertionError: the message names the line of the log.
    """
    times = [event.time for event in read(result.path / FILE_NAME)[1:]]
    for line, (before, after) in enumerate(zip([0.0, *times], times, strict=False), 2):
        if not before <= after < math.inf:
            raise AssertionError(f"{result.path / FILE_NAME}, line {line}: at {after} s, after {before} s")


def _timeless(event: Event) -> dict[str, Any]:
    left_out = (*_CLOCKS, "study", "command", "workers") if isinstance(event, StudyStarted) else _CLOCKS
    kept = {field.name: getattr(event, field.name) for field in fields(event) if field.name not in left_out}
    return {"event": event.kind, **kept}


def check_searcher_is_a_fold(result: StudyResult, cuts: Sequence[int] = (0, 5, 12)) -> None:
    """Law: what a searcher suggests is a function of the log, the seed and the number, so it can be taken up anywhere.

    A fresh searcher hears the log of a study up to the cut-th trial, and from then on has to suggest what the study's
    own did.

    Args:
        result: a study with a searcher of ours.
        cuts: numbers of trials.

    Raises:
        AssertionError: the message shows the first suggestion that differs.
    """
    drafted = draft(OmegaConf.create(load_config(result.path)))
    for cut in cuts:
        searcher = build(drafted).searcher
        assert isinstance(searcher, SpaceSearcher), f"{type(searcher).__name__} is none of ours"
        searcher.follows_log = True
        for event in read(result.path / FILE_NAME):
            if isinstance(event, TrialAdded) and event.number >= cut:
                config = searcher.suggest(event.trial_id)
                if config != event.config:
                    raise AssertionError(
                        f"{result.path}, taken up at trial {cut}: trial {event.number} was {event.config}, is {config}"
                    )
            searcher.observe(event)


def check_scheduler_is_a_fold(result: StudyResult) -> None:
    """Law: a scheduler's decisions are a function of the log.

    A fresh core hears the log of a study, and at each event has to decide what the study's own did. So a core that has
    heard the log up to any point goes on as the one that was there.

    Args:
        result: a study with a scheduler of ours.

    Raises:
        AssertionError: the message shows the first decision that differs.
    """
    scheduler = build(draft(OmegaConf.create(load_config(result.path)))).scheduler
    assert isinstance(scheduler, CoreScheduler), f"{type(scheduler).__name__} is none of ours"
    for line, event in enumerate(read(result.path / FILE_NAME), 1):
        try:
            scheduler.fold.observe(event)
        except StudyError as error:
            raise AssertionError(f"{result.path / FILE_NAME}, line {line}: {error}") from None
