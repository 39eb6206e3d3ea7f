"""A study whose disk is full ends with what to do, loses nothing that was recorded, and leaves no half file."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hpo_ray.errors import StudyError
from hpo_ray.events import FILE_NAME, EventLog, StudyEnded, StudyStarted, TrialEnded, TrialRetried, read
from hpo_ray.executors.disk import is_full
from hpo_ray.results import fold, load_study
from hpo_ray.testing import run_study

SPACE = "space={lr: {low: 0.01, high: 1.0}}"


@pytest.fixture
def device(folder: Path) -> Iterator[Callable[[int], Path]]:
    """Makes file systems of some KiB."""
    mounted: list[Path] = []

    def make(size_kib: int) -> Path:
        place = folder / f"device{len(mounted)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", str(place)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no file system can be mounted here: {error}")
        mounted.append(place)
        return place

    yield make
    for place in mounted:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def own(name: str, *more: str) -> list[str]:
    return ["task=custom", f"task.trainable=mine.{name}", SPACE, "task.max_resource=9", *more]


def fails(root: Path, overrides: list[str]) -> Path:
    """Runs a study that must end for want of room; its folder."""
    with pytest.raises(StudyError) as raised:
        run_study(overrides, root)
    (study,) = (path for path in root.iterdir() if path.is_dir())
    said = f"no space left on the device of {study}: free some and go on with `python -m hpo_ray resume {study}`"
    assert str(raised.value) == said
    assert not [path for path in study.rglob("*") if path.name.startswith((".saving", ".best", ".result", ".trials"))]
    assert (study / FILE_NAME).read_bytes().endswith(b"}\n")
    return study


@pytest.mark.parametrize("room_kib", [8, 12, 16, 20, 32, 64])
@pytest.mark.parametrize("name", ["NoCheckpoint", "DictCheckpoint"])
def test_a_log_that_cant_grow_ends_the_study(device: Callable[[int], Path], name: str, room_kib: int) -> None:
    """Whatever is refused first: an event, a checkpoint, a trial's folder."""
    study = fails(device(room_kib), own(name, "method=random", "budget.trials=500", "executor=inprocess"))
    events = read(study / FILE_NAME)
    state = fold(events)
    assert len(events) > 3 and not state.states["failed"]
    assert not isinstance(events[-1], StudyEnded) or events[-1].state == "interrupted"
    if (study / "result.json").exists():
        assert load_study(study).to_json()["totals"]["trials"] == len(state.trials)


@pytest.mark.parametrize("name", ["BigFile", "BigDict", "big"])
@pytest.mark.parametrize("executor", ["inprocess", pytest.param("ray", marks=pytest.mark.ray)])
def test_a_checkpoint_that_finds_no_room_ends_the_study_and_not_its_trial(
    request: pytest.FixtureRequest, device: Callable[[int], Path], name: str, executor: str
) -> None:
    if executor == "ray":
        request.getfixturevalue("ray_cluster")
    overrides = own(name, "method=hyperband", f"executor={executor}", "budget.concurrency=1", "failure.max_retries=2")
    study = fails(device(1000), overrides)
    events = read(study / FILE_NAME)
    assert not [event for event in events if isinstance(event, TrialEnded | TrialRetried)]
    assert isinstance(events[-1], StudyEnded) and events[-1].state == "interrupted"
    state = fold(events)
    saved = [trial for trial in state.trials.values() if trial.checkpoint is not None]
    assert len(saved) == len(state.trials) - 1 > 1, "all but the one that found no room"
    assert all(any((study / str(trial.checkpoint)).iterdir()) for trial in saved)


def test_a_copy_for_a_population_that_finds_no_room(device: Callable[[int], Path]) -> None:
    overrides = own("BigFile", "method=pbt", "scheduler.population=4", "scheduler.interval=1", "executor=inprocess")
    for size_kib in range(1000, 1900, 200):
        study = fails(device(size_kib), [*overrides, "scheduler.max_resource=20"])
        assert not fold(read(study / FILE_NAME)).states["failed"]


def test_a_line_that_finds_no_room_is_not_in_the_log(device: Callable[[int], Path]) -> None:
    log = EventLog(device(8) / FILE_NAME)
    started = StudyStarted("study" * 60, "random", "task", "loss", "min", 0, 9, 0.0)
    written = 0
    with pytest.raises(OSError, match="No space left"):
        while True:
            log.append(started)
            written += 1
    with pytest.raises(OSError, match="No space left"):
        log.append(started)
    log.append(StudyEnded("failed", "", 0.0))  # a shorter one
    log.close()
    lines = log.path.read_text().splitlines(keepends=True)
    assert written > 5 and len(lines) == written + 1 and all(line.endswith("\n") for line in lines)


def test_what_is_a_full_disk_and_what_is_not(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert is_full(full) and is_full(OSError(errno.EDQUOT, "quota"))
    wrapped = RuntimeError("could not be saved")
    wrapped.__cause__ = full
    assert is_full(wrapped) and is_full(RuntimeError(f"ray::save() OSError: {full}"))
    assert not is_full(OSError(errno.ENOENT, "gone")) and not is_full(ValueError("no space left on device"))
    assert not is_full(RuntimeError("PytorchStreamWriter failed writing file"), tmp_path)
