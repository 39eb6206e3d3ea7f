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
from hpo_ray.events import (
    FILE_NAME,
    CheckpointSaved,
    Decided,
    Event,
    Reported,
    StudyStarted,
    TrialAdded,
    TrialEnded,
    read,
)
from hpo_ray.results import StudyResult
from hpo_ray.schedulers.adapter import CoreScheduler
from hpo_ray.schedulers.core import Clone
from hpo_ray.schedulers.population import PBTCore, PBTReplayCore
from hpo_ray.searchers.adapter import SpaceSearcher
from hpo_ray.study import build, draft

_CLOCKS = ("time", "seconds", "simulation")


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
    """Law: as `check_same_events`, checkpoints left out: a simulated cluster keeps them in memory.

    Raises:
        AssertionError: the message shows the first event that differs.
    """
    a, b = ([event for event in timeless(r) if event["event"] != CheckpointSaved.kind] for r in (first, second))
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
    left_out = (*_CLOCKS, "study") if isinstance(event, StudyStarted) else _CLOCKS
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
        result: a study with a scheduler of ours. One of a population that doesn't wait has to have had one worker: with
            several, trials are decided about at the same moment.

    Raises:
        AssertionError: the message shows the first decision that differs.
    """
    drafted = draft(OmegaConf.create(load_config(result.path)))
    scheduler = build(drafted).scheduler
    assert isinstance(scheduler, CoreScheduler), f"{type(scheduler).__name__} is none of ours"
    core, sign = scheduler.core, -1.0 if drafted.task.mode == "max" else 1.0
    events = read(result.path / FILE_NAME)
    promoted: dict[str, Clone | None] = {}
    stopped: dict[str, None] = {}
    actions: dict[str, str] = {}
    added = 0
    last: dict[str, float] = {}

    def advance() -> None:
        moves = core.advance(drafted.plan.trials is not None and added >= drafted.plan.trials, 1)
        promoted.update({trial_id: moves.clones.get(trial_id) for trial_id in moves.promote})
        stopped.update(dict.fromkeys(moves.stop))

    for line, event in enumerate(events, 1):
        where = f"{result.path / FILE_NAME}, line {line}: {event}"
        if isinstance(event, TrialAdded):
            core.add(event.trial_id, event.config)
            added += 1
        elif isinstance(event, Reported):
            last[event.trial_id] = sign * float(event.metrics[drafted.task.metric])
            if math.isfinite(last[event.trial_id]):
                decision = core.report(event.trial_id, event.resource, last[event.trial_id])
                actions[event.trial_id] = decision.action.value
        elif isinstance(event, Decided) and event.action == "pause":
            assert actions.get(event.trial_id) == "pause", f"{where}; a fresh core says {actions.get(event.trial_id)}"
        elif isinstance(event, Decided):
            if event.trial_id not in promoted:
                advance()
            assert event.trial_id in promoted, f"{where}; a fresh core promotes {list(promoted)}"
            clone = promoted.pop(event.trial_id)
            assert (clone and clone.config) == event.config, f"{where}; a fresh core: {clone}"
            if clone is not None:
                assert isinstance(core, PBTCore | PBTReplayCore)
                loss = None if event.metrics is None else sign * float(event.metrics[drafted.task.metric])
                core.cloned(event.trial_id, clone.source, clone.config, int(event.resource or 0), loss)
        elif isinstance(event, TrialEnded):
            if event.state == "stopped" and actions.get(event.trial_id) == "pause":
                if event.trial_id not in stopped:
                    advance()
                assert event.trial_id in stopped, f"{where}; a fresh core stops {list(stopped)}"
            core.end(event.trial_id, None if event.state == "failed" else last.get(event.trial_id))
            core.forget(event.trial_id)
