"""An experiment of Ray Tune becomes a study: exactly what its files say, and nothing of its pickles."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

from hpo_ray import load_study
from hpo_ray.__main__ import main
from hpo_ray.errors import ConfigError, StudyError
from hpo_ray.events import FILE_NAME, Reported, TrialEnded, read
from hpo_ray.importers.spaces import conditions, infer, plain, space_of
from hpo_ray.results import StudyResult
from hpo_ray.resume import reopen
from hpo_ray.space import Categorical, Fixed, Float, Int, Space

DATA = Path(__file__).parent / "data"


@pytest.fixture
def experiment(folder: Path) -> Path:
    """Of a real run of Ray 2.60 four trials: two ended, two failed."""
    return Path(shutil.copytree(DATA / "experiment", folder / "ray_results" / "experiment"))


def loaded(path: Path, **more: Any) -> StudyResult:
    return load_study(path, **{"metric": "loss", "mode": "min", **more})


def trial_folder(experiment: Path, number: int) -> Path:
    return next(path for path in experiment.iterdir() if f"_{number}_lr" in path.name)


def made(root: Path, trials: dict[str, list[dict[str, Any]]], params: dict[str, Any] | None = None) -> Path:
    """An experiment as Ray Tune would write it, from the reports of its trials."""
    for name, lines in trials.items():
        (root / name).mkdir(parents=True)
        (root / name / "params.json").write_text(json.dumps({"lr": 0.1} if params is None else params))
        (root / name / "result.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def line(iteration: int, loss: float, **more: Any) -> dict[str, Any]:
    return {
        "loss": loss,
        "training_iteration": iteration,
        "timestamp": 100 + iteration,
        "time_this_iter_s": 1.0,
        **more,
    }


def test_a_real_experiment_to_the_digit(experiment: Path) -> None:
    result = loaded(experiment)
    assert result.path == Path("outputs/experiment")
    assert [(t.number, t.trial_id, t.state, t.history, t.trained) for t in result.records] == [
        (0, "153f6_00000", "completed", [(1, 0.1), (2, 0.2), (3, 0.30000000000000004)], 3),
        (1, "153f6_00005", "failed", [], 0),
        (2, "153f6_00006", "failed", [(1, 0.1)], 1),
        (3, "153f6_00011", "completed", [(1, 0.3), (2, 0.6), (3, math.inf)], 3),
    ]
    assert result.records[0].config == {"name": "a", "opt": {"lr": 0.1}, "units": 1}
    assert result.records[0].metrics == {"loss": 0.30000000000000004, "n": 3, "info/acc": 1.5}
    assert result.records[0].seconds == 0.0011141300201416016 + 0.0009036064147949219 + 0.006386280059814453
    assert result.records[0].tags == {"folder": "train_153f6_00000_0_lr=0.1000,units=1_2026-11-22_15-05-05"}
    assert result.records[1].error == (
        '  File "/home/me/train.py", line 9, in train\n    raise ValueError("too large")\nValueError: too large'
    )
    started, ended = result.state.started, result.state.ended
    assert started is not None and ended is not None
    assert (started.method, started.max_resource, started.versions) == ("imported", 3, {})
    assert started.source == f"Ray Tune, {experiment}"
    assert started.command == f"python -m hpo_ray report {experiment} task.metric=loss task.mode=min"
    assert ended.reason == (
        f"imported from Ray Tune, {experiment}; its space is inferred from the values that were tried"
    )
    reports = [event for event in read(result.path / FILE_NAME) if isinstance(event, Reported)]
    assert [event.time for event in reports] == sorted(event.time for event in reports)
    assert started.time == pytest.approx(1795359921, abs=2) and ended.time == pytest.approx(45, abs=2)


def test_the_folder_is_a_study_like_any_other(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Reported, listed, projected into the store, and not resumed."""
    report = ["report", str(experiment), "task.metric=loss", "task.mode=min"]
    assert main(report) == 0
    out = capsys.readouterr().out
    assert "4 trials (2 completed, 2 failed), 7 of 7 iterations" in out and "best       loss 0.3 at iteration 3" in out
    files = {path.name: path.read_bytes() for path in Path("outputs/experiment").iterdir()}
    assert sorted(files) == ["config.yaml", "events.jsonl", "report.html", "result.json", "trials.jsonl"]
    assert main(["report", "outputs/experiment"]) == 0
    assert capsys.readouterr().out == out
    assert main(["list"]) == 0
    assert "finished: loss 0.3, 4 trials" in capsys.readouterr().out
    assert main(["report", "outputs", "--rebuild-store"]) == 0
    assert "1 study, 4 trials" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=f"experiment: it was imported from Ray Tune, {experiment}; there is nothing"):
        reopen("outputs/experiment")
    assert loaded(experiment).path == Path("outputs/experiment")
    assert {path.name: path.read_bytes() for path in Path("outputs/experiment").iterdir()} == files


@pytest.mark.reports
def test_its_report_says_that_the_space_is_inferred(experiment: Path) -> None:
    from hpo_ray.report.writing import write_report

    page = write_report(loaded(experiment)).read_text()
    assert "its space is inferred from the values that were tried" in page
    assert f"python -m hpo_ray report {experiment} task.metric=loss task.mode=min" in page


def test_a_population_with_its_schedules_and_who_copied_whom(folder: Path) -> None:
    result = load_study(DATA / "population", metric="score", mode="max")
    assert [(t.config, t.value, t.trained) for t in result.records] == [
        ({"lr": 0.48}, 2.72, 6),
        ({"lr": 0.384}, 2.528, 6),
        ({"lr": 0.3}, 1.8, 6),
        ({"lr": 0.4}, 2.4, 6),
    ]
    assert [t.schedule for t in result.records] == [
        [(0, {"lr": 0.4}), (2, {"lr": 0.48})],
        [(0, {"lr": 0.4}), (2, {"lr": 0.48}), (4, {"lr": 0.384})],
        [(0, {"lr": 0.3})],
        [(0, {"lr": 0.4})],
    ]
    assert [t.lineage for t in result.records] == [[(2, 3)], [(4, 0)], None, None]


def test_configurations_that_change_without_a_log_of_who_copied_whom(folder: Path) -> None:
    source = shutil.copytree(DATA / "population", folder / "population")
    (source / "pbt_global.txt").write_text('["0_lr')
    result = load_study(source, metric="score", mode="max")
    assert [t.schedule for t in result.records][:2] == [
        [(0, {"lr": 0.1}), (2, {"lr": 0.48})],
        [(0, {"lr": 0.2}), (4, {"lr": 0.384})],
    ]
    assert [t.lineage for t in result.records] == [None] * 4


def test_a_trial_that_goes_back_to_copy_another(folder: Path) -> None:
    """What it goes on from is told by its next report. Of a trial that isn't there yet it can't have copied."""
    old, new = {"lr": 0.1}, {"lr": 0.5}
    after = line(3, 0.25, config=new, iterations_since_restore=1, timestamp=110)
    copies = [*(line(i, 1 / i, config=old) for i in (1, 2, 3, 4)), after]
    for later, lineage, reached in ((0, [(2, 1)], 3), (900, None, 4)):
        copied = [line(i, i / 8, config=old, timestamp=100 + i + later) for i in (1, 2, 3)]
        source = made(folder / f"e{later}", {"t_abcde_00000_0_a": copies, "t_abcde_00001_1_b": copied})
        (source / "pbt_global.txt").write_text(json.dumps(["0_a", "1_b", 4, 1, old, new]) + "\n")
        trial = loaded(source).records[0]
        assert trial.trial_id == "abcde_00000"
        assert trial.schedule == [(0, old), (2, new)] and trial.lineage == lineage
        assert (trial.config, trial.trained, trial.history[-1]) == (new, 5, (3, 0.25))
        assert trial.resource == reached


def test_a_trial_that_leaps_to_where_another_was(folder: Path) -> None:
    after = line(6, 0.25, config={"lr": 0.5}, iterations_since_restore=1)
    copied = [line(i, i / 8, config={"lr": 0.1}) for i in range(1, 6)]
    source = made(folder / "e", {"t_abcde_00000_0_a": [*copied[:2], after], "t_abcde_00001_1_b": copied})
    (source / "pbt_global.txt").write_text(json.dumps(["0_a", "1_b", 2, 5, {"lr": 0.1}, {"lr": 0.5}]) + "\n")
    trial = loaded(source).records[0]
    assert (trial.lineage, trial.trained, trial.schedule) == ([(5, 1)], 3, [(0, {"lr": 0.1}), (5, {"lr": 0.5})])


def test_a_restored_experiment_repeats_lines(folder: Path) -> None:
    lines = [line(1, 0.9), line(2, 0.8), line(3, 0.7), line(2, 0.8, timestamp=120), line(3, 0.7), line(4, 0.6)]
    result = loaded(made(folder / "e", {"t_0": lines}))
    assert result.records[0].history == [(1, 0.9), (2, 0.8), (3, 0.7), (2, 0.8), (3, 0.7), (4, 0.6)]
    reports = [event for event in read(result.path / FILE_NAME) if isinstance(event, Reported)]
    assert [event.again for event in reports] == [False, False, False, True, True, False]
    assert [event.time for event in reports] == [1.0, 2.0, 3.0, 20.0, 20.0, 20.0], "the clock doesn't go back"
    assert (result.state.trained, result.state.again) == (6, 2)


def test_what_was_reported_between_two_values_counts_for_the_next(folder: Path) -> None:
    lines = [line(1, 0.9), {**line(2, 0.0), "loss": None, "note": "x"}, line(3, math.nan), line(4, 0.5)]
    trial = loaded(made(folder / "e", {"t_0": lines})).records[0]
    assert [resource for resource, _ in trial.history] == [1, 3, 4] and math.isnan(trial.history[1][1])
    assert (trial.trained, trial.seconds, trial.state, trial.value) == (4, 4.0, "completed", 0.5)


def test_another_count_of_resource(folder: Path) -> None:
    lines = [line(1, 0.9, epoch=10), line(2, 0.8, epoch=20)]
    source = made(folder / "e", {"t_0": lines, "t_1": lines[:1]})
    result = loaded(source, time_attr="epoch")
    assert [(t.state, t.resource, t.trained) for t in result.records] == [("completed", 20, 20), ("stopped", 10, 10)]
    with pytest.raises(ConfigError, match=r"t_0/result\.json, line 1: epochs is missing; it has to count resource"):
        loaded(source, time_attr="epochs")
    with pytest.raises(ConfigError, match=r"line 1: loss is 0\.9; it has to count resource in whole numbers from 1"):
        loaded(source, time_attr="loss")


def test_ends_of_trials(experiment: Path) -> None:
    """By the experiment's own state; by their files where that is missing or torn."""
    state = next(experiment.glob("experiment_state-*"))
    running = state.read_text().replace("TERMINATED", "RUNNING")
    expected = ["completed", "failed", "failed", "completed"]
    for text, states in ((running, ["running", "failed", "failed", "running"]), (running[:200], expected)):
        state.write_text(text)
        assert [t.state for t in loaded(experiment).records] == states
    state.unlink()
    (trial_folder(experiment, 6) / "error.txt").rename(trial_folder(experiment, 6) / "error.pkl")
    result = loaded(experiment)
    assert [t.state for t in result.records] == expected
    assert result.records[2].error == "failed; what with is in error.pkl, which is not read"
    (trial_folder(experiment, 5) / "error.txt").unlink()
    assert [t.state for t in loaded(experiment).records] == ["completed", "running", "failed", "completed"]


def test_only_a_table_of_progress(experiment: Path) -> None:
    for number in (0, 5, 6, 11):
        (trial_folder(experiment, number) / "result.json").unlink()
    (trial_folder(experiment, 0) / "progress.csv").write_text(
        "loss,info/acc,good,timestamp,training_iteration,time_this_iter_s,config/opt/lr,config/units,config/name\n"
        "0.25,0.5,True,1795359921,1,0.5,0.1,1,a\n0.125,,False,1795359922,2,0.5,0.1,1,a\n0.1,1"
    )
    result = loaded(experiment)
    assert result.records[0].history == [(1, 0.25), (2, 0.125)]
    assert result.records[0].metrics == {"loss": 0.125, "good": False}
    assert result.records[0].config == {"name": "a", "opt": {"lr": 0.1}, "units": 1}


def test_half_written(experiment: Path) -> None:
    """Cut off anywhere: a torn last line is left out, a torn configuration is that of the first report."""
    path = trial_folder(experiment, 0)
    text = (path / "result.json").read_text()
    (path / "result.json").write_text(text[:-50])
    (path / "params.json").write_text('{"name": "a", "opt')
    trial = loaded(experiment).records[0]
    assert trial.history == [(1, 0.1), (2, 0.2)]
    assert trial.config == {"name": "a", "opt": {"lr": 0.1}, "units": 1}
    (path / "result.json").write_text(text.rstrip("\n"))
    assert loaded(experiment).records[0].resource == 3, "it lacks only the newline"
    (path / "result.json").write_text("")
    (path / "params.json").write_text("")
    assert loaded(experiment).records[0].config == {}


def test_nothing_is_unpickled(experiment: Path) -> None:
    bomb = pickle.dumps(_Bomb())
    for path in (experiment / "tuner.pkl", trial_folder(experiment, 0) / "params.pkl"):
        path.write_bytes(bomb)
    (trial_folder(experiment, 5) / "error.pkl").write_bytes(bomb)
    state = next(experiment.glob("experiment_state-*"))
    content = json.loads(state.read_text())
    for entry in content["trial_data"]:
        pickled = {"_type": "CLOUDPICKLE_FALLBACK", "value": bomb.hex()}
        entry[0] = json.dumps({**json.loads(entry[0]), "storage": pickled})
    state.write_text(json.dumps(content))
    assert len(loaded(experiment).records) == 4
    assert not Path("went_off").exists()
    pickle.loads(bomb)
    assert Path("went_off").exists(), "it would have"


class _Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str, ...]]:
        return Path.touch, (Path("went_off"),)  # type: ignore[return-value]


def test_a_source_that_grows(folder: Path) -> None:
    source = made(folder / "e", {"t_0": [line(1, 0.5)]})
    first = loaded(source)
    (first.path / "report.html").write_text("of what it was")
    assert loaded(source).path == first.path and (first.path / "report.html").exists(), "nothing has changed"
    with (source / "t_0" / "result.json").open("a") as file:
        file.write(json.dumps(line(2, 0.25)) + "\n")
    second = loaded(source)
    assert second.path == first.path and second.records[0].history == [(1, 0.5), (2, 0.25)]
    assert json.loads((first.path / "result.json").read_text())["best"]["value"] == 0.25
    assert not (first.path / "report.html").exists() and not list(Path("outputs").glob(".*"))


def test_never_over_what_is_not_an_import_of_the_same(folder: Path) -> None:
    one = made(folder / "1" / "e", {"t_0": [line(1, 0.5, acc=0.1)]})
    two = made(folder / "2" / "e", {"t_0": [line(1, 0.75)]})
    (folder / "outputs" / "e").mkdir(parents=True)
    assert [str(loaded(path).path) for path in (one, two, one, two)] == ["outputs/e-2", "outputs/e-3"] * 2
    assert str(loaded(one, metric="acc", mode="max").path) == "outputs/e-4", "by another metric it is another study"
    assert str(loaded(one, name="mine").path) == "outputs/mine"
    for name in ("e", "mine"):
        with pytest.raises(
            ConfigError, match=f"study.name={name}: outputs/{name} is there already, and is no import of"
        ):
            loaded(two, name=name)
    assert not list((folder / "outputs" / "e").iterdir())
    with pytest.raises(ConfigError, match=r"study.name='../x': must be a plain folder name"):
        loaded(one, name="../x")
    (folder / "file").write_text("")
    with pytest.raises(ConfigError, match=r"study.root=file: can't be written: "):
        loaded(one, root="file")
    with pytest.raises(ConfigError, match=r"metric=acc: outputs/mine is a study by loss; leave it out"):
        load_study("outputs/mine", metric="acc")


def test_metric_and_mode_have_to_be_said(experiment: Path) -> None:
    with pytest.raises(ConfigError, match=r"which metric counts; give .*; its trials report loss, n, info/acc$"):
        load_study(experiment)
    with pytest.raises(ConfigError, match=r"task.metric=info/ac: no trial .*; nearest: info/acc; its trials report"):
        loaded(experiment, metric="info/ac")
    with pytest.raises(ConfigError, match=r"doesn't say whether more of loss is better; give task.mode=min or max"):
        loaded(experiment, mode=None)
    with pytest.raises(ConfigError, match=r"mode='least': must be min or max"):
        loaded(experiment, mode="least")
    assert not Path("outputs").exists()


def _no_results(path: Path) -> None:
    for number in (0, 5, 6, 11):
        (trial_folder(path, number) / "result.json").unlink()


def _damage(path: Path) -> None:
    file = trial_folder(path, 0) / "result.json"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], lines[1][:40], lines[2]]) + "\n")


def _no_object(path: Path) -> None:
    (trial_folder(path, 0) / "result.json").write_text("3\n4\n")


def _last_line(path: Path) -> None:
    with (trial_folder(path, 0) / "result.json").open("a") as file:
        file.write('{"loss": 0.1, "tr\n')


def _binary(path: Path) -> None:
    (trial_folder(path, 0) / "result.json").write_bytes(b'{"a": "\xff"}\n{}\n')


def _params(path: Path) -> None:
    (trial_folder(path, 5) / "params.json").write_text("{lr: 3}")


def _unreadable(path: Path) -> None:
    (trial_folder(path, 0) / "result.json").unlink()
    (trial_folder(path, 0) / "result.json").mkdir()


def _nothing_to_tune(path: Path) -> None:
    shutil.rmtree(path)
    made(path, {"t_0": [line(1, 0.5)]}, params={})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_no_results, r"experiment: none of its 4 trials has reported a number; there is nothing to load"),
        (_damage, r"units=1_.*/result\.json, line 2: damaged: .*; mend or remove that line"),
        (_no_object, r"result\.json, line 1: damaged: not a JSON object"),
        (_last_line, r"result\.json, line 4: damaged: "),
        (_binary, r"result\.json, line 1: damaged: .* can't decode"),
        (_params, r"params\.json: damaged: Expecting property name.*; mend it, or remove .*units=2_"),
        (_unreadable, r"result\.json: can't be read: Is a directory"),
        (_nothing_to_tune, r"experiment: its trials have no hyperparameters, so there is no search to load"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_an_experiment(experiment: Path, change: Any, message: str) -> None:
    change(experiment)
    with pytest.raises(ConfigError, match=message):
        loaded(experiment)
    assert not Path("outputs").exists()


def test_what_is_no_experiment(experiment: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"is the folder of one trial of Ray Tune; give the experiment's, .*experiment$"
    ):
        loaded(trial_folder(experiment, 0))
    with pytest.raises(ConfigError, match=r"holds 1 experiments of Ray Tune; give one, for example .*/experiment \("):
        loaded(experiment.parent)
    with pytest.raises(StudyError, match=r"nowhere: no such folder or file"):
        loaded(Path("nowhere"))
    other = Path("syne-tune")
    other.mkdir()
    with pytest.raises(
        StudyError, match=r"syne-tune: is no study .* and no experiment of Ray Tune .*; it holds nothing"
    ):
        loaded(other)
    (other / "metadata.json").write_text("{}")
    with pytest.raises(StudyError, match=r"it holds metadata\.json$"):
        loaded(other)
    with pytest.raises(
        ConfigError, match=r"s3://bucket/x: is not the URL of a database; .* hpo_ray fetch s3://bucket/x"
    ):
        load_study("s3://bucket/x")
    assert main(["report", str(experiment), "task.metric=lss", "task.mode=min"]) == 2
    assert main(["report", str(trial_folder(experiment, 0)), "task.metric=loss", "task.mode=min"]) == 2


def test_a_folder_of_our_studies_is_no_experiment(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each of them has a result.json, too, and with Ray's loggers files of its trials below."""
    ours = loaded(experiment)
    shutil.copytree(trial_folder(experiment, 0), ours.path / "0")
    for path in ("outputs", "outputs/experiment"):
        assert main(["report", path]) == 0
        assert "finished: " in capsys.readouterr().out
    assert load_study("outputs/experiment").records == ours.records
    with pytest.raises(StudyError, match=r"outputs: is no study \(it has no events\.jsonl\)"):
        load_study("outputs")


def test_domains_from_values() -> None:
    assert infer([0.01, 1]) == Float(0.01, 1.0, log=True) and infer([0.011, 1]) == Float(0.011, 1.0)
    assert infer([0, 1000]) == Int(0, 1000) and infer([-1.0, 5.0]) == Float(-1.0, 5.0)
    assert infer([1, 100, 7]) == Int(1, 100, log=True)
    assert infer([True, False]) == Categorical((True, False)) and infer([None, 3]) == Categorical((None, 3))
    assert infer([2**60, 1]) == Categorical((2**60, 1)) and infer(["a", "a"]) == Fixed("a")
    assert [plain(v) for v in (math.nan, [1, 2], {"a": ()}, "${x}", None, 1)] == [
        "nan", "[1, 2]", '{"a": []}', "$ {x}", None, 1]  # fmt: skip


def test_conditions_are_read_off() -> None:
    configs: list[dict[str, Any]] = [
        {"opt": "sgd", "momentum": 0.1 * i, "seed": i} if i % 2 else {"opt": "adam", "beta": 0.1 * i, "seed": i, "x": 1}
        for i in range(8)
    ]
    domains = {
        name: infer([c[name] for c in configs if name in c]) for name in ("opt", "momentum", "beta", "seed", "x")
    }
    told = conditions(domains, configs)
    assert {name: dict(domain.conditions) for name, domain in told.items()} == {
        "opt": {}, "momentum": {"opt": ("sgd",)}, "beta": {"opt": ("adam",)}, "seed": {}, "x": {"opt": ("adam",)}
    }  # fmt: skip
    assert not conditions({"a": infer([1, 2]), "b": infer([3])}, [{"a": 1}, {"a": 2, "b": 3}])["b"].conditions, (
        "two trials show nothing"
    )


def test_names_that_a_space_has_other_uses_for(folder: Path) -> None:
    assert space_of({"a.b": Fixed(1), "step": Fixed(2)}) == (
        Space({"a.b": 1, "step_": 2}), {"a.b": "a.b", "step": "step_"})  # fmt: skip
    assert list(space_of({"a": Fixed(1), "a.b": Fixed(2), "step_": Fixed(3), "step": Fixed(4)})[0].names) == [
        "a", "a/b", "step_", "step__"]  # fmt: skip
    params = {"layers": [64, 64], "env": {"min": 0, "max": 1}, "value": 3, "deep": {"low": 1, "x": float("inf")}}
    result = loaded(made(folder / "e", {"t_0": [line(1, 0.5)]}, params))
    assert result.records[0].config == {
        "layers": "[64, 64]", "env/min": 0, "env/max": 1, "value_": 3, "deep/low": 1, "deep/x": "inf"
    }  # fmt: skip


@pytest.mark.ray
def test_a_tuner_of_today(ray_cluster: None, folder: Path) -> None:
    """Whatever Ray is installed writes what is read here."""
    from ray import tune

    def train(config: dict[str, Any]) -> None:
        for i in range(1, 4):
            if config["opt"]["units"] == 3 and i == 3:
                raise ValueError("three is too many")
            tune.report({"loss": config["opt"]["units"] / i, "inner": {"i": i}})

    tuner = tune.Tuner(
        train,
        param_space={"opt": {"units": tune.grid_search([1, 2, 3, 4])}, "name": "a"},
        tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=1),
        run_config=tune.RunConfig(name="today", storage_path=str(folder / "results"), verbose=0),
    )
    grid = tuner.fit()
    result = loaded(folder / "results" / "today")
    assert [(t.config, t.state, t.history) for t in result.records] == [
        ({"opt": {"units": 1}, "name": "a"}, "completed", [(1, 1.0), (2, 0.5), (3, 1 / 3)]),
        ({"opt": {"units": 2}, "name": "a"}, "completed", [(1, 2.0), (2, 1.0), (3, 2 / 3)]),
        ({"opt": {"units": 3}, "name": "a"}, "failed", [(1, 3.0), (2, 1.5)]),
        ({"opt": {"units": 4}, "name": "a"}, "completed", [(1, 4.0), (2, 2.0), (3, 4 / 3)]),
    ]
    assert result.records[0].metrics == {"loss": 1 / 3, "inner/i": 3}
    assert str(result.records[2].error).endswith("ValueError: three is too many")
    assert result.best is not None and result.best.value == grid.get_best_result("loss", "min").metrics["loss"]
    ids = {frame["trial_id"].iloc[0] for frame in (one.metrics_dataframe for one in grid) if frame is not None}
    assert {t.trial_id for t in result.records} == ids
    assert [e.state for e in read(result.path / FILE_NAME) if isinstance(e, TrialEnded)].count("completed") == 3
