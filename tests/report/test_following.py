"""`report --follow`: a study that runs elsewhere, step by step, while its log grows."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from datetime import datetime
from functools import cache
from pathlib import Path

import pytest

from hpo_ray.__main__ import main
from hpo_ray.best import save_config
from hpo_ray.config import load
from hpo_ray.errors import ConfigError, StudyError
from hpo_ray.events import (
    Event,
    EventLog,
    LogError,
    Reported,
    StudyEnded,
    StudyResumed,
    StudyStarted,
    TrialAdded,
    TrialEnded,
    to_line,
)
from hpo_ray.report.following import follow, study_folder
from hpo_ray.study import Draft, draft
from hpo_ray.view import PlainView, View

T0 = datetime(2026, 3, 4, 12, 0).timestamp()


@cache
def drafted(*overrides: str) -> Draft:
    return draft(load(["method=random", "task=parabola", "task.max_resource=2", *overrides]))


def added(number: int) -> TrialAdded:
    return TrialAdded(str(number), number, {"x": 1.5 + number}, {}, 0.0)


def reported(number: int, resource: int, loss: float, at_s: float) -> Reported:
    return Reported(str(number), resource, 1, {"loss": loss}, 1.0, at_s)


def completed(number: int, at_s: float) -> TrialEnded:
    return TrialEnded(str(number), "completed", "", None, at_s)


class Elsewhere:
    """The process of a study, of which each step happens while the follower sleeps; and the clock of the wall."""

    def __init__(self, root: Path, *overrides: str, trials: int = 2) -> None:
        self.overrides = overrides
        self.folder, self.date = root / "s", T0
        self.folder.mkdir()
        self.configure(trials)
        self.log = EventLog(self.folder / "events.jsonl")
        self.steps: list[Callable[[], object]] = []
        self.slept: list[float] = []
        self.out = io.StringIO()
        self.view = PlainView(self.out, now=lambda: self.date, date=lambda: self.date)

    def configure(self, trials: int) -> None:
        save_config(self.folder, drafted(f"budget.trials={trials}", *self.overrides).config)

    def append(self, *events: Event) -> None:
        for event in events:
            self.log.append(event)

    def write(self, data: bytes) -> None:
        with self.log.path.open("ab") as file:
            file.write(data)

    def then(self, *steps: Callable[[], object]) -> None:
        self.steps += steps

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.steps.pop(0)()

    def pass_(self, seconds: float) -> None:
        self.date += seconds

    def follow(self) -> int:
        return follow(self.folder, self.view, self.sleep, lambda: self.date)

    @property
    def lines(self) -> list[str]:
        return self.out.getvalue().splitlines()


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Elsewhere:
    monkeypatch.chdir(tmp_path)
    made = Elsewhere(tmp_path)
    made.append(StudyStarted("s", "random", "parabola", "loss", "min", 0, 2, T0), added(0))
    return made


END = StudyEnded("finished", "all trials are done", 9.0)
HEAD = "random on parabola: 2 trials, 4 steps -> {}/s"


def test_it_shows_a_study_to_its_end_and_sums_it_up(
    elsewhere: Elsewhere, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = to_line(reported(0, 2, 0.25, 2.0)).encode()
    elsewhere.then(
        lambda: elsewhere.append(reported(0, 1, 0.5, 1.0)),
        lambda: elsewhere.write(line[:20]),  # not whole yet
        lambda: elsewhere.write(line[20:] + to_line(completed(0, 2.0)).encode()),
        lambda: elsewhere.append(added(1), reported(1, 1, 0.1, 3.0)),
        lambda: elsewhere.pass_(61.0),
        lambda: elsewhere.append(reported(1, 2, 0.2, 62.0), completed(1, 62.0), END),
        lambda: None,  # the other process writes its results
        lambda: elsewhere.log.close(),
    )
    assert elsewhere.follow() == 0
    assert elsewhere.slept == [0.25] * 8
    assert elsewhere.lines == [
        HEAD.format(tmp_path),
        "0:01  best loss 0.5 at step 1 (trial 0): x=1.5",
        # 3 units in 3 s, the next late by all but the second that one takes: 20 s for one, less that second.
        "1:01  1 running, 1 completed; 3 of 4 steps, 1 to go; about 0:19 left, until 12:01; "
        "best loss 0.25 at step 2 (trial 0)",
        "1:02  best loss 0.2 at step 2 (trial 1): x=2.5",
    ]
    summary = capsys.readouterr().out.splitlines()
    assert summary[:4] == [
        "",
        "finished: all trials are done",
        "2 trials (2 completed), 4 of 4 steps, 0:09",
        "best       loss 0.2 at step 2 (trial 1)",
    ]


def test_a_study_that_is_not_running_is_summed_up_at_once(
    elsewhere: Elsewhere, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere.append(reported(0, 1, 0.5, 1.0), END)
    elsewhere.log.close()
    assert elsewhere.follow() == 0 and elsewhere.slept == [] and elsewhere.lines == []
    assert "finished: all trials are done" in capsys.readouterr().out


@pytest.mark.parametrize(("state", "code"), [("finished", 0), ("failed", 1), ("interrupted", 1)])
def test_the_exit_code_tells_how_it_ended(elsewhere: Elsewhere, state: str, code: int) -> None:
    elsewhere.then(lambda: elsewhere.append(StudyEnded(state, "so", 9.0)), lambda: elsewhere.log.close())
    assert elsewhere.follow() == code


def test_a_process_that_died_is_told_with_the_command_that_goes_on(
    elsewhere: Elsewhere, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere.then(lambda: elsewhere.append(reported(0, 1, 0.5, 1.0)), lambda: elsewhere.write(b'{"event"'))
    elsewhere.then(lambda: elsewhere.log.close())
    with pytest.raises(StudyError, match=r"^s: its process has died; to go on: \S+ -m hpo_ray resume s$"):
        elsewhere.follow()
    assert "1 trial (1 left unfinished), 1 of 4 steps" in capsys.readouterr().out


def test_a_study_that_is_resumed_goes_on_under_its_new_budget(elsewhere: Elsewhere, tmp_path: Path) -> None:
    def resume() -> None:
        """The process dies, and another one takes the study up before anybody has looked."""
        elsewhere.log.close()
        elsewhere.date += 1000.0
        elsewhere.configure(trials=3)
        elsewhere.log = EventLog(elsewhere.folder / "events.jsonl")
        elsewhere.append(StudyResumed(5.0, elsewhere.date))

    elsewhere.then(
        lambda: elsewhere.append(reported(0, 1, 0.5, 1.0)),
        lambda: elsewhere.pass_(5.0),
        resume,
        lambda: elsewhere.pass_(60.0),
        lambda: elsewhere.append(END),
        lambda: elsewhere.log.close(),
    )
    assert elsewhere.follow() == 0
    assert elsewhere.lines == [
        HEAD.format(tmp_path),
        "0:01  best loss 0.5 at step 1 (trial 0): x=1.5",
        "random on parabola: 3 trials, 6 steps -> " + str(elsewhere.folder),
        "0:05  1 running; 1 of 6 steps, 5 to go; best loss 0.5 at step 1 (trial 0)",
        "1:05  1 running; 1 of 6 steps, 5 to go; best loss 0.5 at step 1 (trial 0)",
    ]


def test_what_was_there_before_is_told_and_the_clock_goes_on(elsewhere: Elsewhere, tmp_path: Path) -> None:
    """Somebody looks 100 s after the study has begun, which then has the speed that its log tells."""
    elsewhere.append(reported(0, 1, 0.5, 50.0))
    elsewhere.date = T0 + 90.0
    elsewhere.view = PlainView(elsewhere.out, now=lambda: elsewhere.date, date=lambda: elsewhere.date)
    elsewhere.then(lambda: elsewhere.pass_(60.0), lambda: elsewhere.append(END), lambda: elsewhere.log.close())
    assert elsewhere.follow() == 0
    assert elsewhere.lines[1] == "0:50  best loss 0.5 at step 1 (trial 0): x=1.5"
    assert elsewhere.lines[2].startswith("2:30  1 running; 1 of 4 steps, 3 to go; about ")


def test_a_simulated_study_has_its_own_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    elsewhere = Elsewhere(tmp_path, "executor=simulated", "executor.workers=3")
    elsewhere.append(StudyStarted("s", "random", "parabola", "loss", "min", 0, 2, T0), added(0))
    elsewhere.then(
        lambda: elsewhere.append(reported(0, 1, 0.5, 7200.0)),
        lambda: elsewhere.pass_(61.0),
        lambda: elsewhere.append(END),
        lambda: elsewhere.log.close(),
    )
    assert elsewhere.follow() == 0
    assert elsewhere.lines[2].startswith("2:00:00 (virtual)  1 running; 1 of 4 steps, 3 to go; ")


def test_ctrl_c_leaves_the_study_alone(elsewhere: Elsewhere, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    elsewhere.then(interrupt)
    before = elsewhere.log.path.read_bytes()
    assert elsewhere.follow() == 130
    assert capsys.readouterr().out == "no longer followed; the study goes on\n"
    assert elsewhere.log.path.read_bytes() == before
    elsewhere.log.close()


def test_a_folder_that_vanishes(elsewhere: Elsewhere) -> None:
    elsewhere.then(lambda: shutil.rmtree(elsewhere.folder))
    with pytest.raises(StudyError, match=r"s/events.jsonl: can't be read any longer.*No such file"):
        elsewhere.follow()
    elsewhere.log.close()


def test_another_study_in_its_place(elsewhere: Elsewhere) -> None:
    def replace() -> None:
        elsewhere.log.path.rename(elsewhere.folder / "old")
        elsewhere.log.path.write_bytes((elsewhere.folder / "old").read_bytes())

    elsewhere.then(replace)
    with pytest.raises(StudyError, match="another log has taken its place"):
        elsewhere.follow()
    elsewhere.log.close()


def test_a_line_that_is_damaged_is_named(elsewhere: Elsewhere) -> None:
    elsewhere.then(lambda: elsewhere.write(b"{}\n"))
    with pytest.raises(LogError, match=r"events.jsonl, line 3: not an event of a study"):
        elsewhere.follow()
    elsewhere.log.close()


def test_silently_it_waits_for_the_end(elsewhere: Elsewhere, capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere.view = View()  # type: ignore[assignment]
    elsewhere.then(lambda: elsewhere.append(END), lambda: elsewhere.log.close())
    assert elsewhere.follow() == 0 and capsys.readouterr().out == ""


def test_a_log_of_many_chunks_is_read_whole(elsewhere: Elsewhere, capsys: pytest.CaptureFixture[str]) -> None:
    """Lines of 3 kB, so that none ends where a chunk of 256 kB does."""
    for number in range(1, 200):
        elsewhere.append(TrialAdded(str(number), number, {"x": "y" * 3000}, {}, 0.0))
    elsewhere.append(END)
    elsewhere.log.close()
    assert elsewhere.follow() == 0
    assert "200 trials (200 left unfinished)" in capsys.readouterr().out


def test_what_can_not_be_followed(elsewhere: Elsewhere, tmp_path: Path) -> None:
    for name, files, said in (
        ("nowhere", None, "no such folder; `python -m hpo_ray list`"),
        ("empty", [], "is no study, it has no config.yaml"),
        ("new", ["config.yaml"], "it has no log yet; if it is just being started, try again"),
        ("dead", ["config.yaml", "events.jsonl"], "it has no log yet"),
        ("compared", ["comparison.json"], "is a comparison; follow one of the studies in it"),
        (".", None, "is no study, it has no config.yaml; running in it: s"),
    ):
        for file in files or []:
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / file).touch()
        if files == []:
            (tmp_path / name).mkdir()
        with pytest.raises(ConfigError) as error:
            study_folder(Path(name))
        assert said in str(error.value) and f"report --follow {name}" in str(error.value)
    elsewhere.log.close()


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("--follow nowhere", "report --follow nowhere: no such folder"),
        ("--follow --serve", "report --follow --serve: one at a time"),
        ("--serve --rebuild-store", "report --serve --rebuild-store: one at a time"),
        ("--follow a b", "report --follow a b: takes one study's folder"),
        ("--follow s3://bucket/s", "report s3://bucket/s: bring it here first: python -m hpo_ray fetch s3://bucket/s"),
        ("--follow --port 1", "report --port: is the port of --serve"),
        ("--follow=s", "ignored explicit argument"),
    ],
)
def test_what_can_not_be_typed(
    typed: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", *typed.split()]) == 2
    assert said in capsys.readouterr().err
