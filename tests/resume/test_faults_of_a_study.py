"""What ends a study, and what `resume` makes of it: damaged logs, changed settings, signals, its own death."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hpo_ray.__main__ import main
from hpo_ray.errors import ConfigError, HpoRayError
from hpo_ray.events import FILE_NAME, EventLog, LogError, StudyResumed, TrialAdded, TrialRetried, read, to_line
from hpo_ray.results import load_study
from hpo_ray.testing import check_resumes, check_time_never_goes_back, outcomes, resume_study, run_study

SMALL = ["task=parabola", "task.max_resource=4", "method=hyperband", "scheduler.eta=2", "executor=inprocess"]


@pytest.fixture
def finished(folder: Path) -> Path:
    """The folder of a small study that has finished."""
    return run_study([*SMALL, "study.name=s"], folder / "outputs").path


def cut(study: Path, lines: int) -> Path:
    """The study as it was after so many events."""
    log = study / FILE_NAME
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:lines]))
    for name in ("result.json", "trials.jsonl"):
        (study / name).unlink(missing_ok=True)
    return study


def test_a_finished_study_says_so(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (finished / FILE_NAME).read_bytes()
    assert main(["resume", str(finished)]) == 0
    assert "s has finished: all 10 trials are done" in capsys.readouterr().out
    assert (finished / FILE_NAME).read_bytes() == before


def test_the_command_goes_on(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = outcomes(load_study(finished))
    cut(finished, 30)
    assert main(["resume", str(finished)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("resumes s: ") and "finished: all trials are done" in out
    assert outcomes(load_study(finished)) == whole
    result = json.loads((finished / "result.json").read_text())
    assert result["state"] == "finished" and result["totals"]["trials"] == 10


def test_any_cut_of_the_last_three_records(finished: Path) -> None:
    data = (finished / FILE_NAME).read_bytes()
    whole = outcomes(load_study(finished))
    start = data[:-1].rfind(b"\n")
    for _ in range(2):
        start = data[:start].rfind(b"\n")
    for end in range(start + 1, len(data), 19):
        (finished / FILE_NAME).write_bytes(data[:end])
        result = resume_study(finished)
        assert outcomes(result) == whole and result.state.ended is not None


def test_a_flipped_byte_anywhere(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Damage is named by its line, or, in the last one, cut off; never a traceback, never a silent restart."""
    data = (finished / FILE_NAME).read_bytes()
    events, last = read(finished / FILE_NAME), data[:-1].rfind(b"\n")
    for place in range(0, len(data), 97):
        (finished / FILE_NAME).write_bytes(data[:place] + bytes([data[place] ^ 0x15]) + data[place + 1 :])
        code = main(["resume", str(finished)])
        err = capsys.readouterr().err
        if place < last and code == 0:  # the name of the checksum itself: nothing is lost
            assert read(finished / FILE_NAME) == events, place
        elif place <= last:
            assert code == 1 and err.startswith("hpo_ray: ") and "line" in err and "Traceback" not in err, place
            assert "keep a copy" in err
        else:
            assert code == 0, place
        assert len(read_or_none(finished)) in (0, len(data.splitlines()), len(data.splitlines()) + 1)


def read_or_none(study: Path) -> list[object]:
    try:
        return list(read(study / FILE_NAME))
    except LogError:
        return []


def test_a_log_that_is_empty_or_gone(finished: Path) -> None:
    for data in (b"", b'{"event": "study_st', None):
        if data is None:
            (finished / FILE_NAME).unlink()
        else:
            (finished / FILE_NAME).write_bytes(data)
        with pytest.raises(LogError, match=r"holds no event, but the study has left .*its log is lost"):
            resume_study(finished)
    for path in finished.iterdir():
        if path.name != "config.yaml":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert len(resume_study(finished).records) == 10, "it had not come to its first event"


def test_logs_of_other_versions(finished: Path) -> None:
    lines = (finished / FILE_NAME).read_text().splitlines(keepends=True)
    first = json.loads(lines[0])
    del first["crc32"]
    for schema, message in ((99, "newer hpo_ray .schema 99"), (1, "older hpo_ray .schema 1")):
        (finished / FILE_NAME).write_text("".join([json.dumps({**first, "schema_version": schema}) + "\n", *lines[1:]]))
        before = (finished / FILE_NAME).read_bytes()
        with pytest.raises(LogError, match=message):
            resume_study(finished)
        assert (finished / FILE_NAME).read_bytes() == before


def test_a_log_that_its_scheduler_would_not_have_written(finished: Path) -> None:
    lines = (finished / FILE_NAME).read_text().splitlines(keepends=True)
    number = next(i for i, line in enumerate(lines) if '"promote"' in line and '"decided"' in line)
    events = read(finished / FILE_NAME)
    last = [event for event in events[:number] if isinstance(event, TrialAdded)][-1]
    other = type(events[number])(**{**vars(events[number]), "trial_id": last.trial_id})
    (finished / FILE_NAME).write_text("".join([*lines[:number], to_line(other)]))
    with pytest.raises(HpoRayError, match=f"line {number + 1} of the log: .*another version"):
        resume_study(finished)


CHANGES = [
    (["space.lr.low=0.5"], ["space.lr.low=0.5", "here space.lr.low is not in it", "start a new study"]),
    (["space.x.low=0.7"], ["space.x.low=0.7", "here space.x.low is 0.0"]),
    (["task=hartmann6"], ["task=hartmann6", "here task is parabola"]),
    (["method=random"], ["method=random", "here method is hyperband"]),
    (["seed=7"], ["seed=7", "here seed is 0"]),
    (["scheduler.eta=3"], ["scheduler.eta=3", "here scheduler.eta is 2"]),
    (["budget.trials=50"], ["budget.trials=50", "budget.rounds"]),
    (["budget.trial=50"], ["budget.trial", "budget.trials"]),
    (["executor=simulated"], ["executor", "real time", "start a new study"]),
    (["budget.resource=5"], ["budget.resource=5 is used up", "Grow"]),
]


@pytest.mark.parametrize(("typed", "words"), CHANGES, ids=lambda part: part[0])
def test_what_would_make_it_another_study(
    finished: Path, capsys: pytest.CaptureFixture[str], typed: list[str], words: list[str]
) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert main(["resume", str(finished), *typed]) == 2
    err = capsys.readouterr().err
    assert all(word in err for word in words), err
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_what_is_as_it_was_may_be_typed_again(finished: Path) -> None:
    cut(finished, 30)
    result = resume_study(finished, ["method=hyperband", "task=parabola", "scheduler.eta=2", "executor=inprocess"])
    assert result.state.ended is not None and result.state.ended.state == "finished"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ([], ["which study?"]),
        (["outputs/none"], ["outputs/none: no such folder"]),
        (["outputs"], ["outputs: is no study", "it holds the studies s"]),
        (["outputs/s", "view"], ["view: not an override"]),
    ],
)
def test_paths(finished: Path, capsys: pytest.CaptureFixture[str], path: list[str], words: list[str]) -> None:
    assert main(["resume", *path]) == 2
    err = capsys.readouterr().err
    assert all(word in err for word in words), err


@pytest.mark.parametrize("method", ["random", "tpe", "asha", "evolution"])
def test_a_budget_may_grow(folder: Path, method: str) -> None:
    """The study goes on as if it had had the larger budget, where nothing was decided by its end."""
    overrides = [f"method={method}", "task=parabola", "task.max_resource=4", "executor=inprocess", "seed=2"]
    first = run_study([*overrides, "budget.trials=8", "study.name=grows"], folder)
    grown = resume_study(first.path, ["budget.trials=20"])
    assert len(grown.records) == 20 and grown.state.ended is not None and grown.state.ended.state == "finished"
    assert json.loads((grown.path / "result.json").read_text())["totals"]["trials"] == 20
    if method != "asha":  # its paused trials ended with the first budget
        check_resumes(run_study([*overrides, "budget.trials=20"], folder), grown)
    with pytest.raises(ConfigError, match="can only grow"):
        resume_study(first.path, ["budget.trials=19"])


def test_more_rounds_and_more_time(folder: Path) -> None:
    first = run_study([*SMALL, "study.name=grows"], folder)
    check_resumes(run_study([*SMALL, "budget.rounds=2"], folder), resume_study(first.path, ["budget.rounds=2"]))
    part = run_study([*SMALL, "budget.resource=9", "study.name=part"], folder)
    check_resumes(load_study(first.path), resume_study(part.path, ["budget.resource=null", "budget.rounds=2"]))


def test_what_a_finished_study_has_not_left_is_made_up_for(finished: Path) -> None:
    """Its process died after its last event, or in the middle of the last test."""
    before = json.loads((finished / "result.json").read_text())
    for lost in (["result.json", "trials.jsonl", "best"], ["best"], ["result.json"]):
        for name in lost:
            path = finished / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        with (finished / FILE_NAME).open("ab") as log:
            log.write(b"garbage, as a machine that lost its power may leave it\n")
        assert main(["resume", str(finished)]) == 0
        assert json.loads((finished / "result.json").read_text()) == before
        assert (finished / "best/checkpoint").is_dir() and read(finished / FILE_NAME)


def test_a_simulated_study_does_not_grow(folder: Path) -> None:
    study = run_study(
        ["method=random", "task=parabola", "executor=simulated", "budget.trials=5", "study.name=s"], folder
    )
    before = (study.path / "config.yaml").read_bytes()
    with pytest.raises(ConfigError, match="simulated again from its start"):
        resume_study(study.path, ["budget.trials=9"])
    assert (study.path / "config.yaml").read_bytes() == before and resume_study(study.path).state.ended is not None


def test_what_is_trained_again_is_not_of_the_budget(folder: Path) -> None:
    overrides = ["method=random", "task=parabola", "task.max_resource=6", "budget.resource=40", "executor=inprocess"]
    whole = run_study([*overrides, "study.name=s"], folder)
    lines = (whole.path / FILE_NAME).read_bytes().splitlines(keepends=True)
    for kept in range(5, len(lines) - 2, 9):
        (whole.path / FILE_NAME).write_bytes(b"".join(lines[:kept]))
        check_resumes(whole, resume_study(whole.path))


def test_paths_in_a_configuration_are_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = run_study([*SMALL, "study.name=s", "store.url=sqlite:///team.db"], folder)
    assert f"sqlite:///{folder}/team.db" in (study.path / "config.yaml").read_text()
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    resume_study(study.path, ["budget.rounds=2"])
    assert not (folder / "elsewhere/team.db").exists() and (folder / "team.db").exists()


def test_a_population_whose_copy_is_gone(folder: Path) -> None:
    """Nobody can train the weights again that a trial had copied: it has failed, and says why."""
    overrides = ["method=pbt", "scheduler.population=4", "scheduler.interval=1", "executor=inprocess", "study.name=s"]
    own = ["task=custom", "task.trainable=mine.Learns", "space={lr: {low: 0.1, high: 1.0}}", "task.max_resource=9"]
    study = run_study([*overrides, *own], folder)
    events = read(study.path / FILE_NAME)
    exploit = next(i for i, event in enumerate(events) if getattr(event, "action", "") == "exploit")
    cut(study.path, exploit + 1)
    for path in study.path.glob("trials/*/checkpoint_*"):
        shutil.rmtree(path)
    result = resume_study(study.path)
    copied = result.records[int(events[exploit].trial_id)]  # type: ignore[union-attr]
    assert copied.state == "failed" and "is gone, whose weights came from other" in str(copied.error)
    retried = [event for event in read(study.path / FILE_NAME) if isinstance(event, TrialRetried)]
    assert retried and all("starts from the beginning" in event.error and not event.counted for event in retried)


def test_list_tells_what_runs_and_what_was_cut_off(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def line() -> str:
        assert main(["list"]) == 0
        return capsys.readouterr().out.splitlines()[-1]

    assert "finished: loss" in line()
    log = EventLog(finished / FILE_NAME)
    assert line().split() == ["s", "running"]
    log.close()
    data = (finished / FILE_NAME).read_bytes().splitlines(keepends=True)
    (finished / FILE_NAME).write_bytes(b"".join(data[:-3]))  # with the results of before
    assert "cut off: " in line() and "resume" in line()


def test_a_log_that_cant_be_written(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("hpo_ray.events.os.open", refuse)
    with pytest.raises(LogError, match="can't be written: Permission denied"):
        EventLog(finished / FILE_NAME)


def test_a_folder_may_have_any_name(finished: Path) -> None:
    whole = outcomes(load_study(finished))
    moved = finished.with_name("my study (copy)")
    cut(finished, 30).rename(moved)
    assert outcomes(resume_study(moved)) == whole


def test_a_study_that_runs_is_left_alone(finished: Path) -> None:
    log = EventLog(finished / FILE_NAME)
    with pytest.raises(LogError, match="is running, in another process"):
        resume_study(cut(finished, 30))
    log.close()


def test_a_study_may_move(finished: Path) -> None:
    whole = outcomes(load_study(finished))
    moved = finished.parent / "elsewhere"
    cut(finished, 40).rename(moved)
    assert outcomes(resume_study(moved)) == whole


def test_missing_checkpoints_cost_time_and_nothing_else(folder: Path) -> None:
    study = run_study([*SMALL, "study.name=s"], folder)
    whole = outcomes(study)
    cut(study.path, 30)
    for path in study.path.glob("trials/*/checkpoint_*"):
        shutil.rmtree(path)
    assert outcomes(resume_study(study.path)) == whole


def test_what_a_dead_process_left_half_done_is_cleared(finished: Path) -> None:
    cut(finished, 6)
    unfinished = [trial.number for trial in load_study(finished).records if trial.state == "running"]
    running = finished / "trials" / str(unfinished[0])
    (running / ".saving-123").mkdir(parents=True)
    (running / "checkpoint_000077").mkdir()
    resume_study(finished, ["store.keep_checkpoints=all"])  # otherwise it goes when the trial ends
    assert not (running / ".saving-123").exists() and not (running / "checkpoint_000077").exists()


def test_a_simulated_study_runs_again_and_must_come_to_the_same(folder: Path) -> None:
    overrides = ["method=asha", "task=hartmann6", "executor=simulated", "executor.workers=4", "budget.trials=20"]
    study = run_study([*overrides, "study.name=s"], folder)
    lines = (study.path / FILE_NAME).read_bytes().splitlines(keepends=True)
    resumed = resume_study(cut(study.path, len(lines) // 2))
    again = (study.path / FILE_NAME).read_bytes().splitlines(keepends=True)
    kept = [line for line in again if b"study_resumed" not in line]
    assert len(again) == len(lines) + 1 and kept[:-1] == lines[:-1], "to the byte, virtual times too"
    check_time_never_goes_back(resumed)
    events = read(cut(study.path, 30) / FILE_NAME)
    changed = type(events[20])(**{**vars(events[20]), "time": 1e6})
    (study.path / FILE_NAME).write_text("".join(map(to_line, [*events[:20], changed, *events[21:]])))
    before = (study.path / FILE_NAME).read_bytes()
    with pytest.raises(HpoRayError, match="does otherwise than its log"):
        resume_study(study.path)
    assert (study.path / FILE_NAME).read_bytes() == before


def test_a_users_own_scheduler_is_not_in_the_log(folder: Path) -> None:
    own = ["scheduler._target_=ray.tune.schedulers.FIFOScheduler", "~scheduler.max_resource", "~scheduler.time_attr"]
    own += ["~scheduler.metric", "~scheduler.mode"]
    overrides = ["method=random", "task=parabola", "budget.trials=4", "executor=inprocess", "study.name=s", *own]
    study = run_study(overrides, folder)
    with pytest.raises(ConfigError, match="scheduler: FIFOScheduler is not one of hpo_ray's"):
        resume_study(cut(study.path, 8))


def process(folder: Path, *typed: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hpo_ray", *typed]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE)


def lines_of(study: Path) -> int:
    return (study / FILE_NAME).read_bytes().count(b"\n") if (study / FILE_NAME).exists() else 0


@pytest.mark.parametrize(
    ("number", "code"),
    [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143), (signal.SIGKILL, -9)],
)
def test_signals(folder: Path, number: int, code: int) -> None:
    """What runs is saved, the command to go on is printed, and going on comes to the same."""
    slow = [*SMALL, "task=custom", "task.trainable=mine.Sluggish", "space={lr: {low: 0.1, high: 1.0}}"]
    whole = run_study([*slow, "study.name=whole"], folder)
    running = process(folder, *slow, "study.name=s", "study.root=.", "view=plain")
    while lines_of(folder / "s") < 12:
        assert running.poll() is None
    running.send_signal(number)
    out, _ = running.communicate(timeout=60)
    assert running.returncode == code
    if number != signal.SIGKILL:
        assert "resume s" in out.splitlines()[-1]
        state = load_study(folder / "s").state
        assert state.ended is not None and state.ended.state == "interrupted"
        cut_off = [trial for trial in state.trials.values() if trial.state == "running" and trial.position]
        assert all(trial.checkpoint_resource == trial.position for trial in cut_off)
    check_resumes(whole, resume_study(folder / "s"))


def test_the_second_signal_ends_it_at_once(folder: Path) -> None:
    running = process(
        folder,
        *["task=custom", "task.trainable=mine.Endless", "space={lr: {low: 0.1, high: 1.0}}", "method=random"],
        *["executor=inprocess", "study.name=s", "study.root=.", "view=plain"],
    )
    while not (folder / "s/trials/0/output.log").exists():
        assert running.poll() is None
    running.send_signal(signal.SIGINT)
    running.send_signal(signal.SIGINT)
    out, _ = running.communicate(timeout=60)
    assert running.returncode == 130 and "resume s" in out.splitlines()[-1]


def test_a_step_that_does_not_end_is_left(folder: Path) -> None:
    running = process(
        folder,
        *["task=custom", "task.trainable=mine.Endless", "space={lr: {low: 0.1, high: 1.0}}", "method=random"],
        *["executor=inprocess", "study.name=s", "study.root=.", "view=plain"],
    )
    while not (folder / "s/trials/0/output.log").exists():
        assert running.poll() is None
    running.send_signal(signal.SIGTERM)
    out, _ = running.communicate(timeout=60)
    assert running.returncode == 143 and "resume s" in out.splitlines()[-1]
    assert load_study(folder / "s").state.ended is not None, "in time to say so"


def test_a_trial_that_kills_its_process_every_time_fails_in_the_end(folder: Path) -> None:
    """In-process it takes the study with it; when that is taken up for the third time, the trial has failed."""
    overrides = [*SMALL, "task=custom", "task.trainable=mine.Suicidal", "space={lr: {low: 0.1, high: 1.0}}"]
    typed, codes = [*overrides, "study.name=s", "study.root=."], []
    while not codes or (codes[-1] == -signal.SIGKILL and len(codes) < 9):
        running = process(folder, *typed, "view=none")
        running.communicate(timeout=120)
        codes.append(running.returncode)
        typed = ["resume", "s"]
    assert codes == [-signal.SIGKILL] * 3 + [0]
    result = load_study(folder / "s")
    failed = [trial.number for trial in result.records if trial.state == "failed"]
    assert failed == [2] and "has died 3 times in a row" in str(result.records[2].error)
    resumed = [event for event in read(folder / "s" / FILE_NAME) if isinstance(event, StudyResumed)]
    assert [list(event.cut_off) for event in resumed] == [["00002"]] * 3
