"""The checkpoints of a study: nothing in its folder is unpickled, and those that nobody needs are removed."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ray import cloudpickle

import hpo_ray
from hpo_ray.errors import StudyError
from hpo_ray.events import StudyStarted, TrialAdded, TrialEnded
from hpo_ray.executors.keeper import Keeper
from hpo_ray.executors.recorder import Recorder
from hpo_ray.results import StudyResult, StudyState
from hpo_ray.testing import run_study

SPACE = "space={lr: {low: 0.01, high: 1.0}}"


def own(name: str, *more: str) -> list[str]:
    """The overrides that tune a function or class of the user's, here, one trial at a time."""
    return ["task=custom", f"task.trainable=mine.{name}", SPACE, "task.max_resource=9", "executor=inprocess", *more]


class Harmful:
    """What unpickling it would do."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("harmed"),)


@pytest.fixture
def no_pickle(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Unpickling a file below the working folder, or what was read from one, raises."""

    def refuse_file(file: Any, *args: Any, real: Any = pickle.load, **kwargs: Any) -> Any:
        name = str(getattr(file, "name", ""))
        assert not Path(name).is_absolute() or not Path(name).is_relative_to(folder), f"{name} was unpickled"
        return real(file, *args, **kwargs)

    def refuse_bytes(data: Any, *args: Any, real: Any = pickle.loads, **kwargs: Any) -> Any:
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert not [path for path in files if path.read_bytes() == data], "a file's content was unpickled"
        return real(data, *args, **kwargs)

    class Refusing(pickle.Unpickler):
        def __init__(self, file: Any, *args: Any, **kwargs: Any) -> None:
            refuse_file(file, real=lambda *_: None)
            super().__init__(file, *args, **kwargs)

    for module in (pickle, cloudpickle):
        monkeypatch.setattr(module, "load", refuse_file)
        monkeypatch.setattr(module, "loads", refuse_bytes)
    monkeypatch.setattr(pickle, "Unpickler", Refusing)
    with pytest.raises(AssertionError, match="was unpickled"):
        torch.save({"a": 1}, folder / "a.pt")
        with (folder / "a.pkl").open("wb") as file:
            pickle.dump({}, file)
        with (folder / "a.pkl").open("rb") as file:
            pickle.load(file)
    yield


KINDS = ["DictCheckpoint", "TensorCheckpoint", "FileCheckpoint", "train", "Learns"]


@pytest.mark.parametrize("method", ["hyperband", "pbt"])
@pytest.mark.parametrize("name", KINDS)
def test_nothing_in_a_studys_folder_is_unpickled(folder: Path, no_pickle: None, name: str, method: str) -> None:
    overrides = own(name, f"method={method}", "scheduler.max_resource=9")
    overrides += ["scheduler.interval=2", "scheduler.population=4"] if method == "pbt" else []
    result = run_study(overrides, folder)
    assert result.state.states["completed"] and not result.state.states["failed"]
    assert not [path for path in result.path.rglob("*") if path.suffix in (".pkl", ".tune_metadata")]
    best = hpo_ray.load_best(result.path)
    if name in ("DictCheckpoint", "TensorCheckpoint", "FileCheckpoint"):
        assert best.steps == best.iteration == 9  # type: ignore[union-attr]
        assert best.train()["training_iteration"] == 10  # type: ignore[union-attr]


def test_a_harmful_file_in_a_checkpoint_is_not_run(folder: Path) -> None:
    result = run_study(own("DictCheckpoint", "method=random", "budget.trials=2"), folder)
    for name in (".tune_metadata", "dict_checkpoint.pkl", "_dict_checkpoint.pkl", ".hpo_ray.pt"):
        (result.path / "best" / "checkpoint" / name).write_bytes(pickle.dumps(Harmful()))
    assert hpo_ray.load_best(result.path).steps == 9  # type: ignore[union-attr]
    (result.path / "best" / "checkpoint" / ".hpo_ray.json").unlink()
    with pytest.raises(StudyError, match=r"best trial's checkpoint can't be read: .*\.hpo_ray\.json is not in it"):
        hpo_ray.load_best(result.path)
    assert not Path("harmed").exists()


def test_a_dict_that_could_not_be_loaded_ends_the_study_when_it_is_saved(folder: Path) -> None:
    message = r"ObjectCheckpoint\.save_checkpoint: its dict\['model'\] \(a mine\.Called\) .*checkpoint_dir yourself"
    with pytest.raises(StudyError, match=message):
        run_study(own("ObjectCheckpoint", "method=hyperband"), folder)
    assert not list(folder.glob("*/trials/0/.saving*"))


@pytest.mark.ray
def test_on_ray_copies_and_promotions_need_no_pickle(folder: Path, ray_cluster: None) -> None:
    """A population copies checkpoints from trial to trial, and reads each in the process of an actor."""
    overrides = [*own("Learns", "method=pbt", "scheduler.max_resource=9", "scheduler.interval=2"), "executor=ray"]
    result = run_study([*overrides, "scheduler.population=4", "executor.num_cpus=4", "budget.concurrency=1"], folder)
    assert any(trial.lineage for trial in result.records) and not result.state.states["failed"]
    saved = [path.name for path in result.path.glob("trials/*/checkpoint_*/*")]
    assert saved and set(saved) == {".hpo_ray.json"}


def checkpoints(result: StudyResult) -> dict[int, list[str]]:
    """Names of the checkpoint folders of each trial that has some."""
    found: dict[int, list[str]] = {}
    for path in sorted(result.path.glob("trials/*/checkpoint_*")):
        found.setdefault(int(path.parent.name), []).append(path.name)
    return found


METHODS = {
    "hyperband": ["method=hyperband", "scheduler.max_resource=27"],
    "asha": ["method=asha", "scheduler.max_resource=27", "budget.trials=40"],
    "asha_stopping": ["method=asha", "scheduler.variant=stopping", "scheduler.max_resource=27", "budget.trials=40"],
    "pbt": ["method=pbt", "scheduler.max_resource=12", "scheduler.interval=2", "scheduler.population=6"],
    "random": ["method=random", "budget.trials=12"],
}


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, str], dict[int, int]]]:
    """Event by event: the event, the trials' states, and how many checkpoints each has on the disk."""
    seen: list[tuple[Any, dict[str, str], dict[int, int]]] = []
    real = Recorder.append

    def append(self: Recorder, event: Any) -> None:
        real(self, event)
        count: dict[int, int] = {}
        for path in self._folder.glob("trials/*/checkpoint_*"):
            count[int(path.parent.name)] = count.get(int(path.parent.name), 0) + 1
        states = {trial.trial_id: trial.state for trial in self.state.trials.values()}
        seen.append((event, states, count))

    monkeypatch.setattr(Recorder, "append", append)
    return seen


@pytest.mark.parametrize("name", ["DictCheckpoint", "train", "LearnsUntilItFails"])
@pytest.mark.parametrize("method", METHODS)
def test_the_disk_holds_no_more_than_documented(folder: Path, on_disk: list[Any], method: str, name: str) -> None:
    """Two for each trial that runs or is paused, one more for each worker that is writing, and one of the best."""
    result = run_study([*own(name), *METHODS[method], "executor.workers=3"], folder)
    assert on_disk
    for event, states, count in on_disk:
        live = {int(i) for i, state in states.items() if state in ("running", "paused")}
        assert all(count[number] <= 3 for number in live & count.keys()), event
        assert sum(count[number] == 3 for number in live & count.keys()) <= 3, "workers"
        ended = count.keys() - live
        assert len(ended) <= 1 and all(count[number] == 1 for number in ended)
    assert result.best is not None and result.best.checkpoint is not None
    assert checkpoints(result) == {result.best.number: [Path(result.best.checkpoint).name]}
    assert (result.path / "best" / "checkpoint").is_dir()
    hpo_ray.load_best(result.path)


def test_keeping_more_is_a_choice(folder: Path) -> None:
    overrides = [*own("DictCheckpoint"), "method=hyperband"]
    completed = run_study([*overrides, "store.keep_checkpoints=completed"], folder)
    assert sorted(checkpoints(completed)) == [t.number for t in completed.records if t.state == "completed"]
    assert {len(names) for names in checkpoints(completed).values()} == {1}
    everything = run_study([*overrides, "store.keep_checkpoints=all"], folder)
    assert sorted(checkpoints(everything)) == list(range(17))


def test_of_several_metrics_the_front_is_kept(folder: Path) -> None:
    overrides = ["method=nsga2", "task=branin_currin", "budget.trials=30", "searcher.settings.population_size=8"]
    result = run_study([*overrides, "executor=inprocess"], folder)
    front = {trial.number for trial in result.pareto_front()}
    assert result.best is not None and len(front) > 2
    assert checkpoints(result).keys() == front | {result.best.number}


def test_only_checkpoints_of_the_study_are_removed(folder: Path) -> None:
    """Not what a trainable keeps beside them, nor what a link leads to."""
    study, outside = folder / "study", folder / "outside"
    for path in ("trials/0/checkpoint_best", "trials/0/checkpoint_000000", "trials/0/.saving-12", "trials/2"):
        (study / path).mkdir(parents=True)
    (study / "trials/0/output.log").touch()
    (outside / "checkpoint_000000").mkdir(parents=True)
    (study / "trials/1").symlink_to(outside)
    (study / "trials/2/checkpoint_000001").symlink_to(outside / "checkpoint_000000")
    state = StudyState()
    state.apply(StudyStarted("study", "random", "task", "loss", "min", 0, 9, 0.0))
    for number in range(3):
        state.apply(TrialAdded(str(number), number, {}, {}, 0.0))
        state.apply(TrialEnded(str(number), "failed", "", "", 0.0))
    Keeper(study, "best", state)
    left = {str(path.relative_to(folder)) for path in folder.rglob("*check*")}
    assert left == {
        "study/trials/0/checkpoint_best",
        "study/trials/2/checkpoint_000001",
        "outside/checkpoint_000000",
    }
    assert not (study / "trials/0/.saving-12").exists() and (study / "trials/0/output.log").exists()
