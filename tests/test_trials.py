"""The table of trials: all of them by number, those that ended on disk."""

from __future__ import annotations

import gc
import tracemalloc

import pytest

from hpo_ray.events import Reported, StudyStarted, TrialAdded, TrialEnded
from hpo_ray.results import StudyState
from hpo_ray.trials import TrialRecord, Trials

START = StudyStarted("s", "m", "t", "loss", "min", 0, 9, 0.0)


def filled(count: int) -> Trials:
    trials = Trials()
    for number in range(count):
        trials.add(TrialRecord(f"{number:05d}", number, {"x": number}))
    return trials


def test_trials_that_ended_read_the_same_and_in_order() -> None:
    trials = filled(5)
    trials.live("00001").value = 0.5
    for number in (3, 1):
        trials.store(f"{number:05d}")
    assert [trial.number for trial in trials.values()] == [0, 1, 2, 3, 4] and len(trials) == 5
    assert list(trials) == [f"{number:05d}" for number in range(5)]
    assert trials["00001"] == TrialRecord("00001", 1, {"x": 1}, value=0.5)
    assert trials["00000"] is trials["00000"] and trials["00001"] is not trials["00001"]
    trials.live("00001").value = 0.25  # it comes back to be changed
    assert trials["00001"].value == 0.25 and trials["00001"] is trials["00001"]
    trials.store("00001")
    assert [trial.value for trial in trials.values()] == [None, 0.25, None, None, None]


def test_unknown_ids_are_not_there() -> None:
    trials = filled(2)
    trials.store("00000")
    assert "00000" in trials and "00001" in trials
    assert "00002" not in trials and "0" not in trials and "x" not in trials
    with pytest.raises(KeyError):
        trials["00002"]


def test_ids_need_not_be_numbers() -> None:
    trials = Trials()
    for number, name in enumerate(("a", "b", "7")):
        trials.add(TrialRecord(name, number, {}))
        trials.store(name)
    assert [trials[name].number for name in ("a", "b", "7")] == [0, 1, 2] and list(trials) == ["a", "b", "7"]


def test_a_number_is_the_next_one() -> None:
    with pytest.raises(ValueError, match="trial b has the number 3; the next one is 1"):
        trials = Trials()
        trials.add(TrialRecord("a", 0, {}))
        trials.add(TrialRecord("b", 3, {}))


def test_memory_is_that_of_the_live_trials() -> None:
    def study(trials: int) -> int:
        """Bytes held after so many trials of nine reports, one after another."""
        gc.collect()
        tracemalloc.start()
        state = StudyState()
        state.apply(START)
        for number in range(trials):
            trial_id = f"{number:05d}"
            config = {f"x{i}": number + i / 10 for i in range(6)}
            state.apply(TrialAdded(trial_id, number, config, {"bracket": 0, "rung": 0}, 0.0))
            for resource in range(1, 10):
                state.apply(Reported(trial_id, resource, 1, {"loss": float(-resource)}, 0.0, 0.0))
            state.apply(TrialEnded(trial_id, "completed", "", None, 0.0))
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(state.trials) == trials and state.trials[f"{trials - 1:05d}"].resource == 9
        return held

    study(10)  # what is made once
    # Eight bytes a trial, of an array that grows by an eighth at a time; a record is more than a kilobyte.
    assert study(4000) - study(1000) < 3000 * 20
