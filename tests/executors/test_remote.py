"""Studies whose checkpoints lie on an object store: they come to the same as on a disk, and leave what they should."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from objectstore import Server

import hpo_ray
from hpo_ray.__main__ import main
from hpo_ray.errors import ConfigError, StudyError
from hpo_ray.events import FILE_NAME, StudyEnded, TrialAdded, TrialEnded, parse, read
from hpo_ray.executors.inprocess import InProcessExecutor
from hpo_ray.executors.mirror import Mirror
from hpo_ray.executors.outage import StoreDown, find_outage
from hpo_ray.executors.recorder import Recorder
from hpo_ray.location import Location
from hpo_ray.results import StudyResult, fold, load_study
from hpo_ray.testing import check_resumes, check_same_decisions, check_same_events, resume_study, run_study

SPACE = "space={lr: {low: 0.01, high: 1.0}}"
METHODS = {
    "hyperband": ["method=hyperband", "scheduler.eta=2"],
    "asha": ["method=asha", "scheduler.eta=2", "budget.trials=5"],
    "pbt": ["method=pbt", "scheduler.population=4", "scheduler.interval=1"],
}
FILES = ["best/best.json", "config.yaml", "events.jsonl", "report.html", "result.json", "trials.jsonl"]


def own(name: str, method: str, *more: str) -> list[str]:
    """The overrides that tune a function or class of the user's, one trial at a time."""
    task = ["task=custom", f"task.trainable=mine.{name}", SPACE, "task.max_resource=4", "scheduler.max_resource=4"]
    return [*task, "executor=inprocess", *METHODS[method], *more]


def left(result: StudyResult, store: Location) -> tuple[list[str], list[str]]:
    """The files of a study: on the disk, and in the store."""
    here = sorted(path.relative_to(result.path).as_posix() for path in result.path.rglob("*") if path.is_file())
    return here, store.join(result.path.name).files()


def check_left(result: StudyResult, store: Location) -> None:
    """The store holds the checkpoint of the best trial and what the folder has; the folder has no other than best's."""
    here, there = left(result, store)
    checkpoints = [path for path in there if path.startswith("trials/") and not path.endswith(".log")]
    assert result.best is not None and result.best.checkpoint is not None
    assert {path.rpartition("/")[0] for path in checkpoints} == {result.best.checkpoint}
    assert sorted([*here, *checkpoints]) == there
    assert not [path for path in here if "checkpoint_" in path] and set(FILES) <= set(here)
    for name in FILES:
        assert store.join(result.path.name, name).read() == (result.path / name).read_bytes(), name


@pytest.mark.parametrize(
    ("method", "name"),
    [
        # Each once, all pairs with the slow tests.
        pytest.param(method, name, marks=() if (method == "hyperband") == (name == "train") else pytest.mark.slow)
        for method in METHODS
        for name in ("DictCheckpoint", "train")
    ],
)
def test_a_study_comes_to_the_same_as_on_a_disk(folder: Path, store: Location, method: str, name: str) -> None:
    overrides = own(name, method)
    remote = run_study([*overrides, f"store.root={store}"], folder / "remote")
    check_same_events(run_study(overrides, folder / "disk"), remote)
    check_left(remote, store)
    assert hpo_ray.load_best(remote.path) is not None


@pytest.mark.ray
@pytest.mark.parametrize(("method", "name"), [("hyperband", "train"), ("asha", "DictCheckpoint"), ("pbt", "Learns")])
def test_on_ray(folder: Path, store: Location, ray_cluster: None, method: str, name: str) -> None:
    """Each worker has its checkpoints from the store and puts them there; what it printed is there, too."""
    overrides = own(name, method)
    ray = ["executor=ray", "budget.concurrency=1", f"store.root={store}"]
    remote = run_study([*overrides, *ray], folder / "remote")
    disk = run_study(overrides, folder / "disk")
    check_same_events(disk, remote)
    here, there = left(remote, store)
    assert not [path for path in here if path.startswith("trials/")]
    kept = [path for path in there if path.startswith("trials/") and not path.endswith("/output.log")]
    assert remote.best is not None and {path.rpartition("/")[0] for path in kept} == {remote.best.checkpoint}
    for path in disk.path.glob("trials/*/output.log"):
        printed = store.join(remote.path.name, path.relative_to(disk.path).as_posix()).read()
        lines = [line for line in printed.splitlines() if line.startswith(b"starts at")]
        assert lines == path.read_bytes().splitlines(), "whole, over all the workers that the trial was on"


@pytest.mark.ray
def test_what_a_trial_that_failed_has_printed_is_brought_here(folder: Path, store: Location, ray_cluster: None) -> None:
    overrides = own(
        "Faulty", "hyperband", "executor=ray", f"store.root={store}", "+task.args.faults=3-1-raise_5-0-raise"
    )
    result = run_study(overrides, folder / "remote")
    failed = [trial for trial in result.records if trial.state == "failed"]
    assert [trial.number for trial in failed] == [3, 5]
    for trial in failed:
        assert "went wrong" in str(trial.error) and f"trials/{trial.number}/output.log" in str(trial.error)
        assert "about to raise" in (result.path / f"trials/{trial.number}/output.log").read_text()


def test_a_simulated_study_is_mirrored(folder: Path, store: Location) -> None:
    overrides = own("DictCheckpoint", "asha", "executor=simulated", "executor.workers=4")
    remote = run_study([*overrides, f"store.root={store}"], folder / "remote")
    check_same_decisions(run_study(overrides, folder / "disk"), remote)
    here, there = left(remote, store)
    assert here == there == [*FILES[:1], *FILES[1:]]


def test_keeping_more_is_a_choice(folder: Path, store: Location) -> None:
    overrides = own("DictCheckpoint", "hyperband", f"store.root={store}")
    completed = run_study([*overrides, "store.keep_checkpoints=completed"], folder)
    kept = {path.split("/")[1] for path in left(completed, store)[1] if "checkpoint_" in path}
    assert kept == {str(trial.number) for trial in completed.records if trial.state == "completed"}


@pytest.fixture
def every_event(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any], None]], None]:
    """Calls a function after each event that is recorded."""

    def install(after: Callable[[Any], None]) -> None:
        append = Recorder.append

        def append_and_call(self: Recorder, event: Any) -> None:
            append(self, event)
            after(event)

        monkeypatch.setattr(Recorder, "append", append_and_call)

    return install


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> list[Mirror]:
    """The mirror of the study that runs, which copies only when it is asked to, and at the end."""
    monkeypatch.setattr("hpo_ray.executors.mirror.EVERY_S", 1e6)
    running: list[Mirror] = []
    enter = Mirror.__enter__

    def note(self: Mirror) -> Mirror:
        running[:] = [self]
        return enter(self)

    monkeypatch.setattr(Mirror, "__enter__", note)
    return running


def needed(log: bytes) -> set[str]:
    """The checkpoints that a study goes on from, by its log: the last two of each living trial, and the best one's."""
    saved: dict[str, list[str]] = {}
    events = list(parse(Path(FILE_NAME), log))
    for event in events:
        path = getattr(event, "path", None) or getattr(event, "checkpoint", None)
        if path is not None:
            exploits = getattr(event, "action", "") == "exploit"
            saved[event.trial_id] = [path] if exploits else [*saved.get(event.trial_id, []), path]
        elif getattr(event, "action", "") == "replay":
            saved[event.trial_id] = saved[event.trial_id][-1:]
    state = fold(events)
    ended = [trial for trial in state.trials.values() if trial.state in ("completed", "stopped")]
    best = None
    for trial in ended:
        best = state.better(best, trial)
    living = {path for trial in state.trials.unfinished() for path in saved.get(trial.trial_id, [])[-2:]}
    return living | ({str(best.checkpoint)} if best is not None else set())


@pytest.mark.parametrize("method", ["pbt", *(pytest.param(m, marks=pytest.mark.slow) for m in METHODS if m != "pbt")])
def test_nothing_goes_that_the_log_in_the_store_needs(
    folder: Path,
    store: Location,
    monkeypatch: pytest.MonkeyPatch,
    mirror: list[Mirror],
    every_event: Callable[[Callable[[Any], None]], None],
    method: str,
) -> None:
    """The mirror copies every seventh event only, so that it is far behind."""
    gone: list[str] = []
    delete, count = Location.delete, [0]

    def delete_and_look(self: Location) -> None:
        _, place = str(self.path).split("/study/")
        if self.files():
            gone.append(place)
            assert place not in needed(store.join("study", FILE_NAME).read())
        delete(self)

    def copy(event: Any) -> None:
        count[0] += 1
        if count[0] % 7 == 0 and mirror:
            mirror[0].copy()

    every_event(copy)
    monkeypatch.setattr(Location, "delete", delete_and_look)
    result = run_study(own("Learns", method, f"store.root={store}", "study.name=study"), folder)
    assert len(gone) == len(set(gone)) > 5
    check_left(result, store)


def test_a_store_that_is_down_for_a_while(
    folder: Path,
    store: Location,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    mirror: list[Mirror],
    every_event: Callable[[Callable[[Any], None]], None],
) -> None:
    """What must be there is tried again; what the mirror couldn't copy or remove comes with the next copy."""
    waited: list[float] = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        with pytest.raises(OSError):
            mirror[0].copy()
        server.start()
        mirror[0].copy()

    def fail(event: Any) -> None:
        if isinstance(event, TrialEnded) and event.trial_id == "00001":
            server.stop()

    overrides = own("DictCheckpoint", "hyperband")
    disk = run_study(overrides, folder / "disk")
    monkeypatch.setattr("hpo_ray.executors.outage.sleep", wait)
    every_event(fail)
    remote = run_study([*overrides, f"store.root={store}"], folder / "remote")
    assert waited == [0.5]
    check_same_events(disk, remote)
    check_left(remote, store)


@pytest.mark.parametrize("name", ["DictCheckpoint", pytest.param("train", marks=pytest.mark.slow)])
def test_a_store_that_stays_down_interrupts_the_study_and_fails_no_trial(
    folder: Path,
    store: Location,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    every_event: Callable[[Callable[[Any], None]], None],
    name: str,
) -> None:
    monkeypatch.setattr("hpo_ray.executors.outage.PATIENCE_S", 0.0)
    monkeypatch.setattr("hpo_ray.executors.mirror.PATIENCE_S", 0.0)
    overrides = own(name, "hyperband")
    disk = run_study(overrides, folder / "disk")
    every_event(lambda event: server.stop() if isinstance(event, TrialAdded) and event.number == 4 else None)
    with pytest.raises(StudyError) as raised:
        run_study([*overrides, f"store.root={store}", "study.name=study"], folder / "remote")
    study = (folder / "remote/study").resolve()
    advice = f"{study} is whole: go on with `python -m hpo_ray resume {study}`"
    assert str(raised.value).startswith(f"store.root={store}: can't be reached: ") and advice in str(raised.value)
    state = load_study(study).state
    assert state.ended is not None and state.ended.state == "interrupted" and not state.states["failed"]
    server.start()
    resumed = resume_study(study)
    check_resumes(disk, resumed)
    check_left(resumed, store)


def test_a_store_that_is_down_at_the_end(
    folder: Path,
    store: Location,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    every_event: Callable[[Callable[[Any], None]], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    for module in ("outage", "mirror"):
        monkeypatch.setattr(f"hpo_ray.executors.{module}.PATIENCE_S", 0.0)
    every_event(lambda event: server.stop() if isinstance(event, StudyEnded) else None)
    overrides = [*own("DictCheckpoint", "asha"), "study.root=remote", f"store.root={store}", "study.name=study"]
    assert main(overrides) == 1
    assert "go on with `python -m hpo_ray resume" in capsys.readouterr().err
    study = folder / "remote/study"
    assert read(study / FILE_NAME)[-1] == load_study(study).state.ended
    assert json.loads((study / "result.json").read_text())["state"] == "finished"
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    for name, value in {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none"}.items():
        monkeypatch.setenv(name, value)
    server.start()
    assert main(["resume", "remote/study"]) == 0
    assert "study has finished" in capsys.readouterr().out
    check_left(load_study(study), store)


REFUSED = [
    ("s3://nobucket/x?endpoint_override=http://127.0.0.1:{port}&region=us-east-1", ["NO_SUCH_BUCKET", "Check that"]),
    ("s3://studies/x?endpoint_override=http://127.0.0.1:1", ["can't be used", "Could not connect"]),
    ("gs://anonymous@b/x?scheme=http&endpoint_override=127.0.0.1:1&retry_limit_seconds=1", ["Could not connect"]),
    ("s3://studies/x?no_such=1", ["no_such"]),
    ("nosuch://studies/x", ["Protocol not known: nosuch"]),
    ("s3://KEY:HUSH@studies/x", ["a key or password is in the URI", "AWS_ACCESS_KEY_ID"]),
    ("s3://KEY@studies/x", ["a key or password is in the URI", "AWS_SECRET_ACCESS_KEY"]),
    ("s3://studies/x?secret_key=HUSH", ["secret_key= is in the URI", "machine's role"]),
    ("ftp://me:HUSH@studies/x", ["a key or password is in the URI"]),
    ("s3:///x", ["names no bucket; write s3://bucket/prefix"]),
]


@pytest.mark.parametrize(("uri", "words"), REFUSED, ids=lambda part: str(part)[:24])
def test_a_store_that_cant_be_used_is_refused_before_anything_starts(
    folder: Path,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    uri: str,
    words: list[str],
) -> None:
    monkeypatch.setattr(InProcessExecutor, "start", lambda *_: pytest.fail("it was started"))
    assert main([*own("DictCheckpoint", "asha"), f"store.root={uri.format(port=server.port)}"]) == 2
    err = capsys.readouterr().err
    assert "store.root=" in err and all(word in err for word in words), err
    assert "HUSH" not in err and "Traceback" not in err and len(err.splitlines()) == 1
    assert not (folder / "outputs").exists()


@pytest.mark.slow
def test_a_server_that_says_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(ConfigError, match="Timeout was reached"):
            run_study([*own("train", "asha"), f"store.root=s3://b/x?endpoint_override=http://127.0.0.1:{port}"], folder)
    assert not [path for path in folder.iterdir() if path.is_dir() and path.name != "__pycache__"]


def test_names_are_taken_here_and_there(folder: Path, store: Location, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = own("DictCheckpoint", "asha", "budget.trials=1", f"store.root={store}")
    first = run_study(overrides, folder / "a")
    assert first.path.name == "custom-asha-1"
    assert run_study(overrides, folder / "b").path.name == "custom-asha-2", "on another machine"
    store.join("custom-asha-7", "config.yaml").write(b"")
    assert run_study(overrides, folder / "a").path.name == "custom-asha-8"
    assert main([*overrides, "study.name=custom-asha-2", f"study.root={folder}/a"]) == 2
    assert f"{store.join('custom-asha-2')} is there already" in capsys.readouterr().err


def test_a_folder_is_where_studies_lie(folder: Path) -> None:
    for number, root in enumerate(["shared", f"file://{folder}/shared"], 1):
        assert main([*own("DictCheckpoint", "asha", f"store.root={root}"), "view=none"]) == 0
        study = folder / "shared" / f"custom-asha-{number}"
        assert "root: null" in (study / "config.yaml").read_text().partition("store:")[2]
    assert not (folder / "outputs").exists()


@pytest.mark.parametrize("executor", ["inprocess", pytest.param("ray", marks=pytest.mark.ray)])
def test_a_worker_that_doesnt_see_the_folder(
    request: pytest.FixtureRequest,
    folder: Path,
    every_event: Callable[[Callable[[Any], None]], None],
    executor: str,
) -> None:
    """As on another node, it finds no configuration there: it says so, and the trial is none the worse."""
    if executor == "ray":
        request.getfixturevalue("ray_cluster")
    study = folder / "study"
    every_event(lambda event: (study / "config.yaml").replace(folder / "kept") if isinstance(event, TrialAdded) else 0)
    overrides = own("DictCheckpoint", "asha", f"executor={executor}", "study.name=study", "budget.concurrency=1")
    with pytest.raises(StudyError) as raised:
        run_study(overrides, folder)
    told = f"{study.resolve()}: node {socket.gethostname()} doesn't see this folder of the study. Set store.root to a"
    assert told in str(raised.value)
    assert [event.kind for event in read(study / FILE_NAME)] == ["study_started", "trial_added", "study_ended"]
    assert not list(study.glob("trials/*/*"))


def test_what_comes_from_a_worker_is_an_outage_too() -> None:
    down = StoreDown("store.root=s3://b: can't be reached: no answer")
    wrapped = RuntimeError("could not be saved")
    wrapped.__cause__ = down
    told = RuntimeError(f"ray::X.save()\n  File ...\nhpo_ray.executors.outage.StoreDown: {down}\nmore")
    assert find_outage(down) is find_outage(wrapped) is down and str(find_outage(told)) == str(down)
    assert find_outage(ValueError("StoreDown: no")) is find_outage(None) is None
