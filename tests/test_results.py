"""What is folded from a log: values, the incumbent, what was spent."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from hpo_ray.errors import StudyError
from hpo_ray.events import Decided, Event, EventLog, Reported, StudyEnded, StudyStarted, TrialAdded, TrialEnded
from hpo_ray.results import StudyResult, fold, load_study


def started(mode: str = "min") -> StudyStarted:
    return StudyStarted("s", "m", "t", "loss", mode, 0, 9, 0.0)


def added(number: int) -> TrialAdded:
    return TrialAdded(str(number), number, {"x": number}, {}, 0.0)


def reported(number: int, resource: int, value: float, trained: int = 1) -> Reported:
    return Reported(str(number), resource, trained, {"loss": value}, 0.5, 0.0)


def ended(number: int, state: str, error: str | None = None) -> TrialEnded:
    return TrialEnded(str(number), state, "", error, 0.0)


def test_the_best_is_at_the_highest_resource_that_any_reached() -> None:
    state = fold(
        [started(), added(0), added(1), added(2), reported(0, 1, 0.1), reported(1, 9, 0.5), reported(2, 9, 0.4)]
    )
    assert state.best is state.trials["2"]
    assert state.best_seen is not None and state.best_seen[0] is state.trials["0"] and state.best_seen[1:] == (1, 0.1)


def test_ties_go_to_the_lower_number_and_max_is_max() -> None:
    tie: list[Event] = [added(0), added(1), reported(1, 1, 0.3), reported(0, 1, 0.3)]
    best = fold([started(), *tie]).best
    assert best is not None and best.number == 0
    best = fold([started("max"), added(0), added(1), reported(0, 1, 0.3), reported(1, 1, 0.4)]).best
    assert best is not None and best.number == 1


def test_a_value_is_the_report_at_the_highest_resource_not_the_best_or_last() -> None:
    trial = fold([started(), added(0), reported(0, 1, 0.1), reported(0, 3, 0.9), reported(0, 2, 0.2)]).trials["0"]
    assert (trial.value, trial.resource) == (0.9, 3)
    assert trial.history == [(1, 0.1), (3, 0.9), (2, 0.2)]


def test_the_incumbent_can_become_worse() -> None:
    events = [started(), added(0), added(1), reported(0, 1, 0.1), reported(1, 1, 0.2)]
    assert fold(events).best.number == 0  # type: ignore[union-attr]
    assert fold([*events, reported(0, 2, 0.9), reported(1, 2, 0.3)]).best.number == 1  # type: ignore[union-attr]


def test_failed_trials_and_values_that_are_not_finite_are_never_best() -> None:
    events: list[Event] = [
        started(),
        added(0),
        added(1),
        reported(0, 9, 0.1),
        reported(1, 9, 0.2),
        ended(0, "failed", "x"),
    ]
    state = fold(events)
    assert state.best is state.trials["1"] and state.trials["0"].error == "x"
    assert fold([started(), added(0), reported(0, 1, math.nan)]).best is None
    assert fold([started(), added(0), reported(0, 1, 0.5), reported(0, 2, math.inf)]).trials["0"].value == 0.5


def test_states_and_what_was_spent() -> None:
    events = [started(), added(0), added(1), reported(0, 1, 0.1), Decided("0", "pause", "", {"rung": 0}, 0.0)]
    events += [Decided("0", "promote", "", {"rung": 1}, 0.0), reported(0, 3, 0.1, trained=2), ended(0, "completed")]
    state = fold(events)
    assert state.states == {"running": 1, "paused": 0, "completed": 1}
    assert state.trials["0"].tags == {"rung": 1}
    assert (state.trained, state.seconds, state.trials["0"].trained) == (3, 1.0, 3)


def test_written_files_and_loading(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    events: list[Event] = [
        started(),
        added(0),
        reported(0, 1, 0.1),
        ended(0, "completed"),
        StudyEnded("finished", "", 2.0),
    ]
    for event in events:
        log.append(event)
    log.close()
    result = StudyResult(tmp_path, fold(events), {"loss": 0.2})
    result.write()
    again = load_study(tmp_path)
    assert again.best == result.best and again.records == result.records and again.test_metrics == {"loss": 0.2}
    assert again.to_json() == result.to_json()
    assert not list(tmp_path.glob(".*")), "no temporary file stays"


def test_a_folder_that_is_no_study(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"events\.jsonl"):
        load_study(tmp_path)
