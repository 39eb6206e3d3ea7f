"""Studies that die at any event, or in the middle of a line, and are taken up: they come to what they would have."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from methods import GRADIENT, METHODS, differentiable, learns, small

from hpo_ray.events import FILE_NAME, CheckpointSaved, EventLog, TrialAdded, read
from hpo_ray.results import StudyResult
from hpo_ray.testing import check_resumes, check_scheduler_is_a_fold, check_searcher_is_a_fold, resume_study, run_study

TRAINABLES = {"class": "mine.DictCheckpoint", "function": "mine.learns", "learns": "mine.Learns"}


class Died(BaseException):
    """As SIGKILL: nobody catches it, nothing is written after it."""


@contextmanager
def dies(monkeypatch: pytest.MonkeyPatch, events: int, part_of_line: float = 0.0) -> Iterator[None]:
    """The process dies after so many events, having written part of the next line."""
    write, left = EventLog._write, [events]

    def write_or_die(self: EventLog, file: int, data: bytes) -> None:
        if left[0] == 0:
            write(self, file, data[: int(part_of_line * len(data))])
        if left[0] <= 0:
            raise Died
        left[0] -= 1
        write(self, file, data)

    with monkeypatch.context() as patch:
        patch.setattr(EventLog, "_write", write_or_die)
        yield


def with_deaths(
    monkeypatch: pytest.MonkeyPatch, overrides: list[str], root: Path, after: Callable[[], tuple[int, float]]
) -> tuple[StudyResult, int]:
    """The study, taken up each time that it dies; how often that was."""
    deaths, folder = 0, root / "mortal"
    while True:
        try:
            with dies(monkeypatch, *after()):
                if not folder.exists():
                    result = run_study([*overrides, "study.name=mortal"], root)
                else:
                    result = resume_study(folder)
            return result, deaths
        except Died:
            deaths += 1


def study_of(method: str, seed: int = 3) -> list[str]:
    """A small study of any method."""
    task = "branin" if "gp" in method else "mixed10"
    return [
        f"method={method}",
        f"task={task}",
        "task.max_resource=4",
        "executor=inprocess",
        f"seed={seed}",
        *small(method),
    ]


AS_TPE = ("gp", "gp_hyperband", "tpe_asha", "cmaes", "tpe_multi")
"""Behind the same searcher, and a scheduler that others have, too."""


@pytest.mark.parametrize(
    "method", [pytest.param(method, marks=pytest.mark.slow if method in AS_TPE else ()) for method in METHODS]
)
def test_law_a_study_that_dies_comes_to_what_it_would_have(
    folder: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    undisturbed = run_study(study_of(method), folder)
    draws = random.Random(method)
    longest = len(read(undisturbed.path / FILE_NAME)) // 2
    for study in range(1 if learns(method) else 2):
        result, deaths = with_deaths(
            monkeypatch, study_of(method), folder / str(study), lambda: (draws.randint(1, longest), draws.random())
        )
        assert deaths > 0 and result.state.resumed in (deaths, deaths - 1)
        check_resumes(undisturbed, result)
        added = [event.number for event in read(result.path / FILE_NAME) if isinstance(event, TrialAdded)]
        assert added == list(range(len(result.records)))
        check_scheduler_is_a_fold(result)
        check_searcher_is_a_fold(result, cuts=(5,))


@pytest.mark.parametrize("method", GRADIENT)
def test_a_descent_in_the_hyperparameters_dies_and_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    overrides = [f"method={method}", "executor=inprocess", *differentiable(method), "task.max_resource=6"]
    overrides.append("store.checkpoint_every=2")
    undisturbed = run_study(overrides, folder)
    draws = random.Random(method)
    result, deaths = with_deaths(monkeypatch, overrides, folder / "0", lambda: (draws.randint(2, 9), draws.random()))
    assert deaths > 0
    check_resumes(undisturbed, result)
    ends = [{t.number: (t.metrics, t.hyperparameters) for t in study.records} for study in (undisturbed, result)]
    assert ends[0] == ends[1], "hyperparameters, residuals, costs: to the digit"


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("hyperband", "class"),
        ("asha", "learns"),
        ("pbt", "function"),
        *(
            pytest.param(method, name, marks=pytest.mark.slow)
            for method, name in [("hyperband", "function"), ("asha", "function"), ("pbt", "class"), ("pbt", "learns")]
        ),
    ],
)
def test_death_at_events_of_every_kind(folder: Path, monkeypatch: pytest.MonkeyPatch, method: str, name: str) -> None:
    overrides = [
        f"method={method}",
        "task=custom",
        f"task.trainable={TRAINABLES[name]}",
        "space={lr: {low: 0.1, high: 1.0}}",
        "task.max_resource=4",
        "executor=inprocess",
        *(["budget.trials=5"] if method == "asha" else []),
        *(["scheduler.on_missing_checkpoint=restart"] if name == "function" else []),  # it saves at every other step
        *small(method),
    ]
    undisturbed = run_study(overrides, folder)
    every = 4 if (method, name) == ("hyperband", "class") else 11
    for events in range(1, len(read(undisturbed.path / FILE_NAME)), every):
        after = iter([(events, 0.5), (10_000, 0.0)]).__next__
        result, deaths = with_deaths(monkeypatch, overrides, folder / str(events), after)
        assert deaths == 1
        check_resumes(undisturbed, result)
        shutil.rmtree(folder / str(events))


@pytest.mark.parametrize(
    "every", ["store.checkpoint_every=2", pytest.param("store.checkpoint_every_s=0", marks=pytest.mark.slow)]
)
def test_no_more_is_trained_again_than_between_two_checkpoints(
    folder: Path, monkeypatch: pytest.MonkeyPatch, every: str
) -> None:
    overrides = [
        "method=random",
        "task=custom",
        "task.trainable=mine.DictCheckpoint",
        "space={lr: {low: 0.1, high: 1.0}}",
        "task.max_resource=9",
        "budget.trials=3",
        "executor=inprocess",
    ]
    undisturbed = run_study([*overrides, every], folder)
    events = read(undisturbed.path / FILE_NAME)
    again = []
    for number in range(2, len(events) - 1, 3 if every.endswith("=2") else 5):
        after = iter([(number, 0.0), (10_000, 0.0)]).__next__
        result, _ = with_deaths(monkeypatch, [*overrides, every], folder / str(number), after)
        check_resumes(undisturbed, result)
        again.append(result.state.trained - undisturbed.state.trained)
    assert 0 == min(again) < max(again) <= (2 if every.endswith("=2") else 1)
    without = run_study([*overrides, "store.checkpoint_every_s=null"], folder)
    saved = [event for event in read(without.path / FILE_NAME) if isinstance(event, CheckpointSaved)]
    assert [event.resource for event in saved] == [9, 9, 9], "at the end only"


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("method", ["hyperband", pytest.param("asha", marks=pytest.mark.slow), "pbt"])
def test_on_ray_with_several_workers(folder: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Workers report in an order of their own; what each rung decided is what a fresh scheduler makes of the log."""
    overrides = [
        f"method={method}",
        "task=custom",
        "task.trainable=mine.Learns",
        "space={lr: {low: 0.1, high: 1.0}}",
        "task.max_resource=4",
        "executor=ray",
        "budget.concurrency=2",
        *(["budget.trials=6"] if method == "asha" else []),
        *small(method),
    ]
    after = iter([(9, 0.5), (7, 0.0), (10_000, 0.0)]).__next__
    result, deaths = with_deaths(monkeypatch, overrides, folder, after)
    assert deaths == 2 and result.state.ended is not None and result.state.ended.state == "finished"
    trials = len(result.records)
    assert trials == {"hyperband": 10, "asha": 6, "pbt": 4}[method]
    assert result.state.states["completed"] + result.state.states["stopped"] == trials
    check_scheduler_is_a_fold(result)
    check_searcher_is_a_fold(result, cuts=(3,))
