"""Each tracker has of a study what its log says: once, and also after an interruption or a death."""

from __future__ import annotations

import importlib
import json
import os
import struct
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from readers import READERS, STATUS, Content

from hpo_ray.best import load_best
from hpo_ray.events import FILE_NAME, Decided, Reported, TrialAdded, read
from hpo_ray.results import StudyResult
from hpo_ray.testing import resume_study, run_study
from hpo_ray.trackers import Tracker
from hpo_ray.trackers.copying import Copy
from hpo_ray.trackers.following import follow
from hpo_ray.trials import TrialRecord, flat

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("own_home")]  # theirs are not ours to mend

MODULES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb", "aim": "aim"}
COMMON = ["executor=inprocess", "store=none"]
STUDIES = {
    "hyperband": ["task=parabola", "method=hyperband", "scheduler.max_resource=3", "budget.rounds=1"],
    "pbt": [
        *("task=parabola", "method=pbt", "scheduler.population=4"),
        *("scheduler.max_resource=6", "scheduler.interval=2"),
    ],
    "failing": [
        *("task=custom", "task.trainable=mine.not_finite", "space={lr: {low: 0.01, high: 1.0}}"),
        *(
            "method=random",
            "budget.trials=3",
            "scheduler.max_resource=3",
            "searcher.initial=[{lr: 0.2}, {lr: 0.6}, {lr: 0.9}]",
        ),
    ],
}


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What trackers keep of a user goes nowhere."""
    for name in ("HOME", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    for name in ("MLFLOW_TRACKING_URI", "WANDB_API_KEY", "WANDB_BASE_URL", "NETRC", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where MLflow's database and Aim's repository are: one for all studies, as a team has it."""
    return tmp_path_factory.mktemp("trackers")


@pytest.fixture(params=MODULES)
def name(request: pytest.FixtureRequest) -> str:
    """Of each tracker that is installed."""
    module = MODULES[request.param]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(module, reason=f"{module} is not installed: pip install 'hpo_ray[{request.param}]'")
    return str(request.param)


def tracker(name: str, home: Path) -> Tracker:
    """One that needs nobody's login."""
    from hpo_ray import trackers

    if name == "tensorboard":
        return trackers.TensorBoardTracker()
    if name == "mlflow":
        return trackers.MLflowTracker(uri=f"sqlite:///{home}/mlflow.db")
    return trackers.WandbTracker(mode="offline") if name == "wandb" else trackers.AimTracker(repo=str(home))


def tell(result: StudyResult, name: str, home: Path) -> Content:
    """Tells all of a study to a tracker, and reads it back."""
    problems: list[str] = []
    assert follow(result.path, tracker(name, home), lambda seconds: True, problems.append), problems
    return READERS[name](result.path, home)


def rounded(name: str, curve: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """As the tracker keeps numbers: TensorBoard in 32 bits."""
    return [(r, struct.unpack("f", struct.pack("f", v))[0]) for r, v in curve] if name == "tensorboard" else curve


def line(result: StudyResult, trial: TrialRecord) -> Mapping[str, Any]:
    """That of trials.jsonl."""
    lines = map(json.loads, (result.path / "trials.jsonl").read_text().splitlines())
    return next(line for line in lines if line["number"] == trial.number)


def check_is_the_study(content: Content, result: StudyResult, name: str) -> None:
    """Compares with trials.jsonl and result.json."""
    started = result.state.started
    assert started is not None and result.best is not None
    assert set(content.trials) == {trial.number for trial in result.records}
    configs = _configs(result)
    for trial in result.records:
        told, said = content.trials[trial.number], line(result, trial)
        study = result.path.name
        assert told.name == (str(trial.number) if name == "tensorboard" else f"{study}/{trial.number}")
        begun = configs[trial.trial_id, 0]
        assert told.params == flat(begun), "the user's hyperparameters, and nothing else"
        assert told.status == STATUS[name][said["state"]]
        curve = [(resource, value) for resource, value in said["history"] if value is not None]
        curve = curve if "schedule" in said else list(dict(curve).items())  # not what a resumed trial trained again
        assert told.curves.get("loss", []) == rounded(name, curve), "each point once"
        wanted = {**trial.tags, "study": study, "method": started.method, "task": started.task, "seed": started.seed}
        wanted |= {"trial": trial.number, "state": said["state"], "resource": said["resource"], "value": said["value"]}
        shown = {key: value for key, value in told.tags.items() if key not in ("error", "schedule", "lineage")}
        assert shown == {key: str(value) for key, value in wanted.items()}
        assert ("error" in told.tags) == (said["state"] == "failed")
        if "schedule" in said:
            assert json.loads(told.tags["schedule"]) == said["schedule"]
            for key in flat(begun):
                in_force = [configs[trial.trial_id, i] for i in range(1, len(curve) + 1)]
                wanted_curve = [(at, flat(config)[key]) for (at, _), config in zip(curve, in_force, strict=True)]
                assert told.curves[f"config/{key}"] == rounded(name, wanted_curve)
        assert set(told.curves) <= {"loss"} | {f"config/{key}" for key in flat(begun)}
    assert content.tags is not None
    assert content.tags["best_trial"] == str(result.best.number) and content.tags["state"] == "finished"
    assert float(content.tags["best_value"]) == result.best.value and content.tags["method"] == started.method
    if name != "aim":
        wanted_curve = [(best.trained, best.value) for best in result.state.incumbents]
        assert content.incumbent == rounded(name, wanted_curve)


def _configs(result: StudyResult) -> dict[tuple[str, int], Mapping[str, Any]]:
    """The configuration of a trial at its start, 0, and at each of its reports, from 1."""
    found: dict[tuple[str, int], Mapping[str, Any]] = {}
    now: dict[str, tuple[int, Mapping[str, Any]]] = {}
    for event in read(result.path / FILE_NAME):
        if isinstance(event, TrialAdded):
            now[event.trial_id], found[event.trial_id, 0] = (0, event.config), event.config
        elif isinstance(event, Decided) and event.config is not None:
            now[event.trial_id] = now[event.trial_id][0], event.config
        elif isinstance(event, Reported):
            reports, config = now[event.trial_id]
            now[event.trial_id], found[event.trial_id, reports + 1] = (reports + 1, config), config
    return found


# The next two tests see the other studies, too.
@pytest.mark.parametrize("study", ["failing", *(pytest.param(s, marks=pytest.mark.slow) for s in ("hyperband", "pbt"))])
def test_a_tracker_has_what_the_log_says(name: str, study: str, folder: Path, home: Path) -> None:
    result = run_study([*STUDIES[study], *COMMON], folder / "outputs")
    content = tell(result, name, home)
    check_is_the_study(content, result, name)
    if study == "failing":
        failed = [trial.number for trial in result.records if trial.state == "failed"]
        assert failed == [0] and content.trials[0].tags["error"] == "loss is nan at 2"
        assert content.best_files is not None
        assert [path.name for path in content.best_files.iterdir()] == ["best.json"], "it reports no checkpoints"
        return
    check_best_loads(content, result, folder)


def check_best_loads(content: Content, result: StudyResult, folder: Path) -> None:
    """From what the tracker has of the best trial."""
    assert content.best_files is not None and result.best is not None
    assert json.loads((content.best_files / "best.json").read_text())["number"] == result.best.number
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "best").symlink_to(content.best_files)
    (elsewhere / "config.yaml").symlink_to(result.path / "config.yaml")
    assert load_best(elsewhere).step()["loss"] == result.best.value


def test_a_process_that_dies_leaves_nothing_that_is_told_twice(name: str, folder: Path, home: Path) -> None:
    """The next one takes over at any line, here in the middle of a population's life."""
    result = run_study([*STUDIES["pbt"], *COMMON], folder / "outputs")
    log = result.path / FILE_NAME
    lines = log.read_bytes().splitlines(keepends=True)
    for share in (0.35, 0.7):
        log.write_bytes(b"".join(lines[: int(share * len(lines))]) + b'{"event": "torn')
        died = Copy(result.path, tracker(name, home))
        died.catch_up()
        died.close()  # for the locks and files that a process gives back when it dies
    log.write_bytes(b"".join(lines))
    check_is_the_study(tell(result, name, home), result, name)
    again = tell(result, name, home)
    check_is_the_study(again, result, name)


def test_a_resumed_study_goes_on_in_the_same_runs(name: str, folder: Path, home: Path) -> None:
    typed = [*STUDIES["hyperband"], *COMMON]
    undisturbed = run_study([*typed, "budget.resource=12"], folder / "a" / "outputs")
    interrupted = run_study([*typed, "budget.resource=4"], folder / "b" / "outputs")
    assert interrupted.state.states["running"] + interrupted.state.states["paused"] > 0
    before = tell(interrupted, name, home)
    result = resume_study(interrupted.path, ["budget.resource=12"])
    after = tell(result, name, home)
    check_is_the_study(after, result, name)
    assert 0 < len(before.trials) < len(after.trials)
    wanted = tell(undisturbed, name, home)
    plain, wanted = (replace(content, tags={}, best_files=None, incumbent=None) for content in (after, wanted))
    assert plain == wanted
    check_best_loads(after, result, folder)


class Remembers(Tracker):
    """A tracker of a user's own: each of its sessions, and what it was told."""

    name, module = "remembers", "json"

    def __init__(self, fails: int = 0) -> None:
        self.fails, self.sessions = fails, list[list[Any]]()

    def place(self, root: Path) -> str:
        return "memory"

    def open(self, study: Any) -> Any:
        told: list[Any] = []
        self.sessions.append(told)
        outer = self

        class Session:
            def write(self, news: Any) -> None:
                told.append(news)
                if outer.fails and len(told) == 2:
                    outer.fails -= 1
                    raise OSError("postgresql://me:hush@host refused")

            def finish(self, state: Any) -> None:
                told.append(state)

            def close(self) -> None:
                told.append("closed")

        return Session()


def test_a_session_that_fails_is_replaced_by_one_that_is_told_everything(folder: Path) -> None:
    result = run_study([*STUDIES["failing"], *COMMON], folder / "outputs")
    own, problems = Remembers(fails=2), list[str]()
    waits = iter([False, False, False, False, False, False])
    assert follow(result.path, own, lambda seconds: next(waits, True), problems.append)
    problem = "OSError: postgresql://me@host refused"
    assert problems == [problem, problem, ""], "said without the password, and that it is over"
    assert [len(told) for told in own.sessions] == [3, 3, 5]
    assert all(told[-1] == "closed" for told in own.sessions)
    points = {news.trial.number: news.points for news in own.sessions[-1][:3]}
    assert {number: [p.number for p in points[number]] for number in points} == {0: [1], 1: [1, 2, 3], 2: [1, 2, 3]}
    assert all(p.time > 1.6e9 for told in points.values() for p in told)
    own = Remembers(fails=9)
    assert not follow(result.path, own, lambda seconds: True), "at the end it is tried once, and given up"
    assert len(own.sessions) == 1


@pytest.mark.parametrize("missing", MODULES)
def test_a_package_that_lacks_is_named_before_anything_starts(
    missing: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda module, *rest: None if module == MODULES[missing] else find(module, *rest)
    )
    message = rf"^tracker={missing} needs {MODULES[missing]}: pip install 'hpo_ray\[{missing}\]'$"
    with pytest.raises(ValueError, match=message):
        run_study([*STUDIES["failing"], *COMMON, f"tracker={missing}"], folder / "outputs")
    assert not (folder / "outputs").exists()


WRONG = [
    (
        ["mlflow", "tracker.uri=./mlruns"],
        ["tracker.uri=./mlruns", "given up", "http://HOST:5000", "sqlite:///mlflow.db"],
    ),
    (["mlflow", "tracker.uri=htp://a:1"], ["tracker.uri=htp://a:1", "nearest: http"]),
    (["mlflow", "tracker.uri=http://a:b"], ["tracker.uri=http://a:b", "can't be parsed", "http://HOST:5000"]),
    (["mlflow", "tracker.uri=http://me:hush@a:1"], ["tracker.uri=http://me@a:1", "MLFLOW_TRACKING_PASSWORD"]),
    (["mlflow", "tracker.uri=sqlite:///no/where/a.db"], ["tracker.uri=sqlite:///no/where/a.db", "no folder no/where"]),
    (["mlflow", "tracker.experiment=''"], ["tracker.experiment=''", "name"]),
    (
        ["wandb"],
        ["tracker.mode=online", "https://api.wandb.ai", "wandb login", "WANDB_API_KEY", "tracker.mode=offline"],
    ),
    (["wandb", "tracker.mode=of"], ["tracker.mode=of", "online or offline"]),
    (["wandb", "tracker.mode=offline", "tracker.project=a/b"], ["tracker.project=a/b", "without /"]),
    (["wandb", "tracker.api_key=hush"], ["tracker.api_key", "unknown key", "mode"]),
    (["aim", "tracker.repo=aim://host"], ["tracker.repo=aim://host", "aim://HOST:53800"]),
    (["aim", "tracker.repo=nowhere"], ["tracker.repo=nowhere", "no such folder"]),
    (["none", "tracker.callbacks=all"], ["tracker=", "a list of Ray Tune callbacks"]),
    (["none", "+tracker.uri=http://a:1"], ["tracker=", "one of its choices"]),
]


@pytest.mark.parametrize(("typed", "parts"), WRONG, ids=lambda value: " ".join(value) if "=" in value[-1] else "")
def test_settings_that_cant_be_are_named_before_anything_starts(
    typed: list[str], parts: list[str], folder: Path
) -> None:
    module = MODULES.get(typed[0])
    if module is not None and importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    with pytest.raises(ValueError) as raised:
        run_study([*STUDIES["failing"], *COMMON, f"tracker={typed[0]}", *typed[1:]], folder / "outputs")
    assert all(part in str(raised.value) for part in parts), str(raised.value)
    assert "hush" not in str(raised.value) or "api_key" in typed[-1]
    assert not (folder / "outputs").exists()


def test_who_has_logged_in_at_wandb_is_known_without_asking_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed: pip install 'hpo_ray[wandb]'")
    from hpo_ray.trackers import WandbTracker

    (folder / "home").mkdir()
    (folder / "home" / ".netrc").write_text("machine wandb.mine.org login user password hush\n")
    os.chmod(folder / "home" / ".netrc", 0o600)
    with pytest.raises(ValueError, match=r"nobody is logged in at https://api\.wandb\.ai"):
        WandbTracker().check(folder)
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.mine.org/api")
    WandbTracker().check(folder)
    monkeypatch.delenv("WANDB_BASE_URL")
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    WandbTracker().check(folder)
