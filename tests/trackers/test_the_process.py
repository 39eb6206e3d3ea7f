"""The process that tells a tracker: what it costs the study it follows, and what is said at its end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpo_ray.__main__ import main
from hpo_ray.executors import loop
from hpo_ray.testing import run_study
from hpo_ray.trackers import following
from hpo_ray.trackers.following import LOCK

TYPED = ["task=parabola", "method=random", "budget.trials=2", "scheduler.max_resource=2", "store=none"]
TYPED += ["executor=inprocess"]
OWN = ["--config-dir", "own", "tracker=own"]
SOURCE = '''
"""A tracker of a user's own: appends what it is told to a file."""
import json, os, time
from pathlib import Path
from hpo_ray.trackers import Session, Tracker

class Own(Tracker):
    name, module = "own", "json"
    def place(self, root):
        return "own at https://tracker.mine.org"
    def open(self, study):
        if os.path.exists("down"):
            raise ConnectionError("https://me:hush@tracker.mine.org refused")
        if os.path.exists("hangs"):
            time.sleep(600)
        print("packages print what they like", flush=True)
        return Told(study)

class Told(Session):
    def __init__(self, study):
        self.study = study
    def _say(self, *what):
        with open("told.jsonl", "a") as file:
            file.write(json.dumps([self.study.name, *what]) + "\\n")
    def write(self, news):
        self._say(news.trial.number, news.trial.state, [p.resource for p in news.points])
    def finish(self, state):
        files = self.study.best_files(state.best)
        self._say("end", state.ended and state.ended.state, state.best.number, files and sorted(os.listdir(files)))
    def close(self):
        if os.path.exists("pipe"):
            open("pipe", "w").close()
'''


@pytest.fixture(autouse=True)
def own_tracker(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's module, and as much patience as it takes: how quick a machine is, is not what is tested."""
    (folder / "own_tracker.py").write_text(SOURCE)
    (folder / "own" / "tracker").mkdir(parents=True)
    (folder / "own" / "tracker" / "own.yaml").write_text("# @package tracker\n_target_: own_tracker.Own\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(loop, "_TRACKER_S", 120.0)
    monkeypatch.setattr(following, "FAILED_S", 120.0)


@pytest.fixture(autouse=True)
def forget() -> None:
    """The module of this test, not of the one before."""
    sys.modules.pop("own_tracker", None)


def told(folder: Path) -> list[list[object]]:
    """What the tracker was told, without what came in between."""
    path = folder / "told.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def check_all_told(folder: Path, study: str) -> None:
    """Each trial's end, and that of the study with its best checkpoint, last."""
    lines = [line[1:] for line in told(folder) if line[0] == study]
    assert lines[-1][:2] == ["end", "finished"] and lines[-1][3] == ["best.json", "checkpoint"]
    assert [line[:2] for line in lines if line[1] == "completed"] == [[0, "completed"], [1, "completed"]]
    assert [resource for line in lines[:-1] for resource in line[2]] == [1, 2, 1, 2]


def test_a_tracker_is_told_all_of_a_study(folder: Path) -> None:
    result = run_study([*TYPED, OWN[-1]], folder / "outputs", OWN[1])
    assert result.tracker_note is None
    check_all_told(folder, "parabola-random-1")
    assert (result.path / LOCK).exists() and "own_tracker.Own" in (result.path / "config.yaml").read_text()


def test_a_tracker_that_is_down_costs_a_note_and_gets_the_rest_later(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "down").touch()
    assert main([*TYPED, *OWN, "view=plain", "report=false"]) == 0
    out, err = capsys.readouterr()
    (line,) = [line for line in out.splitlines() if line.startswith("tracker ")]
    assert line.startswith(
        "tracker    own at https://tracker.mine.org lacks a part of this study: ConnectionError: "
        "https://me@tracker.mine.org refused; to send it: "
    )
    assert line.endswith("-m hpo_ray resume outputs/parabola-random-1") and "hush" not in out + err
    assert told(folder) == []
    assert main(["resume", "outputs/parabola-random-1"]) == 0
    assert "tracker    own at https://tracker.mine.org lacks a part" in capsys.readouterr().out
    (folder / "down").unlink()
    assert main(["resume", "outputs/parabola-random-1", "view=none"]) == 0
    check_all_told(folder, "parabola-random-1")


def test_a_tracker_that_hangs_is_not_waited_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_TRACKER_S", 0.0)
    (folder / "hangs").touch()
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def remembered(*arguments: object, **options: object) -> subprocess.Popen[bytes]:
        started.append(popen(*arguments, **options))  # type: ignore[call-overload]
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", remembered)
    result = run_study([*TYPED, OWN[-1]], folder / "outputs", OWN[1])
    (process,) = [process for process in started if "hpo_ray.trackers.following" in process.args]
    try:
        assert result.best is not None and result.tracker_note is not None
        assert "a process goes on with it for 10 minutes at most" in result.tracker_note
    finally:
        os.kill(process.pid, 9)
        os.waitpid(process.pid, 0)


def test_a_tracker_that_a_study_had_not_is_told_all_of_it_on_resume(folder: Path) -> None:
    run_study(TYPED, folder / "outputs")
    assert main(["resume", "outputs/parabola-random-1", *OWN, "view=none"]) == 0
    check_all_told(folder, "parabola-random-1")


def test_a_study_whose_process_was_killed_is_told_as_far_as_it_came(folder: Path) -> None:
    (folder / "dies.py").write_text(
        "import os\nfrom ray import tune\n"
        "def train(config):\n    tune.report({'loss': config['x']})\n    os.kill(os.getpid(), 9)\n"
    )
    os.mkfifo(folder / "pipe")
    typed = ["task=custom", "task.trainable=dies.train", "space={x: {low: 0.0, high: 1.0}}", *TYPED[1:], *OWN]
    done = subprocess.run(
        [sys.executable, "-m", "hpo_ray", *typed, "view=none", "study.name=killed"],
        cwd=folder,
        stdout=subprocess.PIPE,
    )
    assert done.returncode == -9
    (folder / "pipe").read_bytes()  # until the process that goes on has opened and closed it
    assert told(folder) == [["killed", 0, "running", [1]], ["killed", "end", None, 0, None]]


def test_each_study_of_a_comparison_is_told_under_its_name(folder: Path) -> None:
    typed = ["methods=[random]", "seeds=2", "task=parabola", "scheduler.max_resource=2", "budget.trials=2"]
    assert main(["compare", *typed, "executor=inprocess", "view=none", *OWN]) == 0
    for seed in range(2):
        name = f"parabola-compare-1/random-seed{seed}"
        lines = [line[1:] for line in told(folder) if line[0] == name]
        assert lines[-1][:2] == ["end", "finished"]
        assert sorted({line[0] for line in lines[:-1]}) == [0, 1]
