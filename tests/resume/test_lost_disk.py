"""Studies on an object store whose driver dies together with its disk: they go on from what the store holds."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from test_resume import Died, dies

from hpo_ray.__main__ import main
from hpo_ray.errors import ConfigError
from hpo_ray.events import FILE_NAME, EventLog, read
from hpo_ray.executors.mirror import Mirror
from hpo_ray.executors.recorder import Recorder
from hpo_ray.location import Location
from hpo_ray.results import StudyResult, load_study
from hpo_ray.testing import check_resumes, check_same_events, resume_study, run_study

METHODS = {
    "hyperband": ["method=hyperband", "scheduler.eta=2"],
    "asha": ["method=asha", "scheduler.eta=2", "budget.trials=6"],
    "pbt": ["method=pbt", "scheduler.population=4", "scheduler.interval=1"],
}


def own(name: str, method: str, *more: str) -> list[str]:
    task = ["task=custom", f"task.trainable=mine.{name}", "space={lr: {low: 0.1, high: 1.0}}", "task.max_resource=4"]
    return [*task, "scheduler.max_resource=4", "executor=inprocess", *METHODS[method], *more]


@pytest.fixture
def memory() -> Location:
    """A store in this process: its files outlive a study that dies in it."""
    location = Location.of("memory://studies")
    location.delete()
    return location


def copy_every(monkeypatch: pytest.MonkeyPatch, events: int) -> None:
    """The mirror copies after so many events, and not by the clock."""
    monkeypatch.setattr("hpo_ray.executors.mirror.EVERY_S", 1e6)
    running: list[Mirror] = []
    enter, append, count = Mirror.__enter__, Recorder.append, [0]

    def note(self: Mirror) -> Mirror:
        running[:] = [self]
        return enter(self)

    def append_and_copy(self: Recorder, event: object) -> None:
        append(self, event)  # type: ignore[arg-type]
        count[0] += 1
        if count[0] % events == 0 and running:
            running[0].copy()

    monkeypatch.setattr(Mirror, "__enter__", note)
    monkeypatch.setattr(Recorder, "append", append_and_copy)


def checkpoints(store: Location) -> set[str]:
    found = (path.rpartition("/")[0] for path in store.join("mortal", "trials").files() if "checkpoint_" in path)
    return {f"trials/{path}" for path in found}


def run_mortal(
    monkeypatch: pytest.MonkeyPatch,
    overrides: list[str],
    store: Location,
    here: Path,
    draws: random.Random,
    longest: int,
) -> tuple[StudyResult, int]:
    """The study, taken up from the store each time that the driver dies, on a new disk; how often that was."""
    losses, begun = 0, False
    while True:
        root = here / str(losses)
        try:
            with dies(monkeypatch, draws.randint(2, longest), draws.random()):
                if not begun:
                    begun = True
                    return run_study([*overrides, f"store.root={store}", "study.name=mortal"], root), losses
                return resume_study(str(store.join("mortal")), root=root), losses
        except Died:
            losses += 1
            shutil.rmtree(root)


@pytest.mark.parametrize("behind", [1, 4])
@pytest.mark.parametrize(
    ("method", "name"), [("hyperband", "DictCheckpoint"), ("hyperband", "train"), ("asha", "Learns"), ("pbt", "Learns")]
)
def test_a_study_that_loses_its_disk_comes_to_what_it_would_have(
    folder: Path, memory: Location, monkeypatch: pytest.MonkeyPatch, method: str, name: str, behind: int
) -> None:
    overrides = own(name, method)
    undisturbed = run_study(overrides, folder / "disk")
    longest = len(read(undisturbed.path / FILE_NAME)) // 2
    draws = random.Random(f"{method} {name} {behind}")
    copy_every(monkeypatch, behind)
    result, losses = run_mortal(monkeypatch, overrides, memory, folder / "lost", draws, longest)
    assert losses > 1
    check_resumes(undisturbed, result)
    assert result.best is not None and checkpoints(memory) == {result.best.checkpoint}, "nothing is left lying about"
    assert (result.path / "best" / "checkpoint").is_dir()
    assert not [event for event in read(result.path / FILE_NAME) if "is gone" in str(getattr(event, "error", ""))]


def test_on_a_server(folder: Path, store: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = own("DictCheckpoint", "hyperband")
    undisturbed = run_study(overrides, folder / "disk")
    copy_every(monkeypatch, 3)
    result, losses = run_mortal(monkeypatch, overrides, store, folder / "lost", random.Random(5), 40)
    assert losses > 1 and result.best is not None
    check_resumes(undisturbed, result)
    assert checkpoints(store) == {result.best.checkpoint}


def finished(folder: Path, store: Location) -> Path:
    overrides = own("DictCheckpoint", "asha", f"store.root={store}", "study.name=s")
    return run_study(overrides, folder / "outputs").path


def test_the_longer_log_counts(folder: Path, memory: Location) -> None:
    study = finished(folder, memory)
    data = (study / FILE_NAME).read_bytes()
    lines = data.splitlines(keepends=True)
    whole = load_study(study)
    # The disk is behind: what the store has is brought.
    (study / FILE_NAME).write_bytes(b"".join(lines[:9]))
    for path in ("best", "result.json"):
        shutil.rmtree(study / path) if (study / path).is_dir() else (study / path).unlink()
    resume_study(study)
    assert (study / FILE_NAME).read_bytes() == data and (study / "best/checkpoint").is_dir()
    # The store is behind: it gets what the disk has.
    memory.join("s", FILE_NAME).write(b"".join(lines[:9]))
    assert main(["resume", str(memory.join("s"))]) == 0
    assert memory.join("s", FILE_NAME).read() == data
    check_same_events(whole, load_study(study))


def test_what_was_to_be_removed_when_the_driver_died_goes(folder: Path, memory: Location) -> None:
    study = finished(folder, memory)
    kept = memory.join("s", "trials").files()
    for number in range(5):
        memory.join("s", f"trials/{number}/checkpoint_000077/weights").write(b"x")
    assert main(["resume", str(study)]) == 0
    assert memory.join("s", "trials").files() == kept


def test_logs_that_have_gone_different_ways(folder: Path, memory: Location) -> None:
    study = finished(folder, memory)
    data = (study / FILE_NAME).read_bytes()
    lines = data.splitlines(keepends=True)
    (study / FILE_NAME).write_bytes(b"".join([*lines[:9], *lines[10:]]))
    before = {path: path.read_bytes() for path in study.rglob("*") if path.is_file()}
    for path in (str(memory.join("s")), str(study)):
        with pytest.raises(ConfigError, match=r"outputs/s and memory://studies/s are two studies since line 10 of"):
            resume_study(path)
    assert {path: path.read_bytes() for path in study.rglob("*") if path.is_file()} == before
    assert memory.join("s", FILE_NAME).read() == data


def test_a_study_that_runs_here_isnt_replaced(folder: Path, memory: Location) -> None:
    study = finished(folder, memory)
    (study / FILE_NAME).write_bytes((study / FILE_NAME).read_bytes().splitlines(keepends=True)[0])
    log = EventLog(study / FILE_NAME)
    with pytest.raises(ConfigError, match="is running, in another process"):
        resume_study(str(memory.join("s")))
    log.close()


@pytest.mark.parametrize("path", ["memory://studies/s", "outputs/s"])
@pytest.mark.parametrize("typed", ["store.root=memory://other", "store.root=shared"])
def test_a_study_stays_where_it_is(
    folder: Path, memory: Location, capsys: pytest.CaptureFixture[str], path: str, typed: str
) -> None:
    finished(folder, memory)
    assert main(["resume", path, typed]) == 2
    assert f"{typed}: a study keeps what it is; here store.root is memory://studies" in capsys.readouterr().err
    assert main(["resume", path, "store=none", "store.root=memory://studies", "budget.trials=8"]) == 0
    assert "root: memory://studies\n" in (folder / "outputs/s/config.yaml").read_text()
    assert memory.join("s", FILE_NAME).read() == (folder / "outputs/s" / FILE_NAME).read_bytes()


def test_a_study_that_was_copied_to_another_store_goes_on_there(folder: Path, memory: Location) -> None:
    study = finished(folder, memory)
    other = Location.of("memory://others")
    other.delete()
    other.join("t").copy_from(memory.join("s"))
    before = memory.join("s", FILE_NAME).read()
    grown = resume_study(str(other.join("t")), ["budget.trials=8"])
    assert grown.path == (folder / "outputs/t").resolve() and len(grown.records) == 8
    assert memory.join("s", FILE_NAME).read() == before == (study / FILE_NAME).read_bytes()
    assert other.join("t", FILE_NAME).read() == (grown.path / FILE_NAME).read_bytes()


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("memory://studies/none", ["memory://studies/none: is no study, it has no config.yaml"]),
        ("memory://studies", ["memory://studies: is no study", "it holds the studies s"]),
        ("nosuch://studies/s", ["nosuch://studies/s: can't be used", "Protocol not known"]),
        ("s3://KEY:HUSH@b/s", ["a key or password is in the URI"]),
    ],
)
def test_uris(folder: Path, memory: Location, capsys: pytest.CaptureFixture[str], uri: str, words: list[str]) -> None:
    finished(folder, memory)
    shutil.rmtree(folder / "outputs")
    for verb in ("resume", "fetch"):
        assert main([verb, uri]) == 2
        err = capsys.readouterr().err
        assert all(word in err for word in words) and "HUSH" not in err, err
    assert not (folder / "outputs").exists()
