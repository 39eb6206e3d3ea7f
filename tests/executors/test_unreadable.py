"""A checkpoint that can't be read costs a trial what it has trained since the one before, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpo_ray.events import FILE_NAME, CheckpointSaved, Decided, Reported, TrialRetried, read
from hpo_ray.executors.recorder import Recorder
from hpo_ray.results import StudyResult
from hpo_ray.testing import run_study

SPACE = "space={lr: {low: 0.01, high: 1.0}}"
METHODS = {
    "hyperband": ["method=hyperband", "scheduler.max_resource=9"],
    "asha": ["method=asha", "scheduler.max_resource=9", "budget.trials=12"],
    "pbt": ["method=pbt", "scheduler.max_resource=10", "scheduler.interval=2", "scheduler.population=4"],
}


def own(name: str, *more: str) -> list[str]:
    return ["task=custom", f"task.trainable=mine.{name}", SPACE, "task.max_resource=9", *more]


def truncate(checkpoint: Path) -> None:
    for path in checkpoint.iterdir():
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = {"truncated": truncate, "gone": shutil.rmtree}


def damages(
    monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], Any], when: Callable[[Recorder, Any], bool]
) -> list[Path]:
    """Damages the last checkpoint of the first trial for whose `promote` or `exploit` `when` holds."""
    damaged: list[Path] = []
    real = Recorder.append

    def append(self: Recorder, event: Any) -> None:
        if not damaged and when(self, event):
            damaged.append(self._folder / str(self.state.trials[event.trial_id].checkpoint))
            damage(damaged[0])
        real(self, event)

    monkeypatch.setattr(Recorder, "append", append)
    return damaged


def moves_up_again(recorder: Recorder, event: Any) -> bool:
    """A trial goes on that has two checkpoints of its own."""
    if not isinstance(event, Decided) or event.action != "promote":
        return False
    trial = recorder.state.trials[event.trial_id]
    return not trial.lineage and int(str(trial.checkpoint)[-6:]) > 0


def check_went_back(result: StudyResult, damaged: list[Path]) -> None:
    """The trial goes on from the checkpoint before, and ends as if nothing had been."""
    assert len(damaged) == 1
    events = read(result.path / FILE_NAME)
    (retried,) = [event for event in events if isinstance(event, TrialRetried)]
    bad = str(damaged[0].relative_to(result.path))
    before = f"{bad[:-6]}{int(bad[-6:]) - 1:06d}"
    assert retried.error.startswith(f"checkpoint {bad} can't be read: ")
    assert retried.error.endswith(f"; goes on from {before}")
    at = events.index(retried)
    again = events[at + 1]
    assert isinstance(again, CheckpointSaved) and (again.trial_id, again.path) == (retried.trial_id, before)
    trial = result.state.trials[retried.trial_id]
    assert not result.state.states["failed"] and trial.state in ("completed", "stopped")
    first = next(e for e in events[at:] if isinstance(e, Reported) and e.trial_id == trial.trial_id)
    assert first.resource == again.resource + 1 and first.trained == 1
    reported = dict(trial.history)
    repeated = [(r, v) for r, v in trial.history if trial.history.count((r, v)) > 1]
    assert repeated and all(reported[r] == v for r, v in trial.history), "the same weights give the same values"
    assert trial.trained == len(trial.history)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["DictCheckpoint", "TensorCheckpoint", "FileCheckpoint", "train"])
@pytest.mark.parametrize("method", METHODS)
def test_the_one_before_is_taken(
    folder: Path, monkeypatch: pytest.MonkeyPatch, method: str, name: str, damage: str
) -> None:
    damaged = damages(monkeypatch, DAMAGES[damage], moves_up_again)
    result = run_study([*own(name), *METHODS[method], "executor=inprocess"], folder)
    check_went_back(result, damaged)


@pytest.mark.parametrize("method", ["hyperband", "asha"])
def test_it_decides_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    overrides = [*own("DictCheckpoint"), *METHODS[method], "executor=inprocess"]
    plain = run_study(overrides, folder / "a")
    damages(monkeypatch, truncate, moves_up_again)
    result = run_study(overrides, folder / "b")

    def outcome(study: StudyResult) -> list[Any]:
        return [(t.config, t.state, t.resource, t.value, t.tags) for t in study.records]

    assert outcome(result) == outcome(plain)


@pytest.mark.parametrize("retries", [0, 1])
@pytest.mark.parametrize("name", ["DictCheckpoint", "FileCheckpoint", "train"])
def test_without_one_before_the_trial_fails_or_starts_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, retries: int
) -> None:
    damaged = damages(
        monkeypatch,
        truncate,
        lambda recorder, event: isinstance(event, Decided) and event.action == "promote",
    )
    overrides = [*own(name), *METHODS["hyperband"], "executor=inprocess", f"failure.max_retries={retries}"]
    result = run_study(overrides, folder)
    trial = result.records[int(damaged[0].parent.name)]
    retried = [event for event in read(result.path / FILE_NAME) if isinstance(event, TrialRetried)]
    assert len(retried) == retries and all("UnreadableCheckpoint" in event.error for event in retried)
    if retries:
        assert trial.state in ("completed", "stopped") and [r for r, _ in trial.history][:3] == [1, 1, 2]
    else:
        assert trial.state == "failed" and "UnreadableCheckpoint" in str(trial.error)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_copy_does_not_fall_back_on_the_weights_before_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """The last checkpoint is another trial's; the one before, which is there, has other weights."""
    damaged: list[Path] = []
    real = Recorder._changed

    def changed(self: Recorder, trial: Any, change: Any) -> None:
        real(self, trial, change)
        if not damaged and change.action == "exploit":
            assert len(list(Path(change.checkpoint.path).parent.glob("checkpoint_*"))) == 2
            damaged.append(Path(change.checkpoint.path))
            DAMAGES[damage](damaged[0])

    monkeypatch.setattr(Recorder, "_changed", changed)
    overrides = [*own("Learns"), *METHODS["pbt"], "executor=inprocess"]
    result = run_study(overrides, folder)
    trial = result.records[int(damaged[0].parent.name)]
    assert trial.state == "failed" and "UnreadableCheckpoint" in str(trial.error)
    assert not [event for event in read(result.path / FILE_NAME) if isinstance(event, TrialRetried)]


def test_an_error_of_training_is_none_of_reading(folder: Path) -> None:
    """A function that fails after it has read its checkpoint fails as ever."""
    result = run_study([*own("reads_then_fails"), *METHODS["hyperband"], "executor=inprocess"], folder)
    failed = [trial for trial in result.records if trial.state == "failed"]
    assert failed and all("ValueError: fails at 4" in str(trial.error) for trial in failed)
    assert not [event for event in read(result.path / FILE_NAME) if isinstance(event, TrialRetried)]


@pytest.mark.ray
@pytest.mark.parametrize("name", ["FileCheckpoint", pytest.param("train", marks=pytest.mark.slow)])
def test_the_one_before_is_taken_on_ray(
    folder: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    damaged = damages(monkeypatch, truncate, moves_up_again)
    overrides = [*own(name), *METHODS["hyperband"], "executor=ray", "executor.num_cpus=4", "budget.concurrency=1"]
    check_went_back(run_study(overrides, folder), damaged)
