"""The command line: verbs, exit codes, and every mistake that we know of."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hpo_ray.__main__ import main

OWN = ["task=custom", "space={lr: {low: 0.1, high: 1.0}}", "executor=inprocess"]

# What was typed, and what the message must say: the key, the value, the fix.
BAD_INPUT = [
    (["method=hyperbnd"], ["method=hyperbnd", "nearest: hyperband", "random"]),
    (["task=digit_mlp"], ["task=digit_mlp", "nearest: digits_mlp"]),
    (["executor=ry"], ["executor=ry", "nearest: ray"]),
    (["experiment=nope"], ["experiment=nope", "digits_hyperband_81"]),
    (["schedular.eta=4"], ["schedular.eta=4", "nearest: scheduler.eta"]),
    (["scheduler.etaa=4"], ["scheduler.etaa=4", "nearest: scheduler.eta"]),
    (["+scheduler.foo=4"], ["scheduler.foo=4"]),
    (["metod=random"], ["metod=random", "nearest: method"]),
    (["+foo=1"], ["unknown key 'foo'"]),
    (["+budget.trails=1"], ["unknown key 'budget.trails'", "nearest: trials"]),
    (["runn"], ["runn: no such verb", "nearest: run"]),
    (["plan", "--jsn"], ["--jsn", "--help"]),
    (["hyperband"], ["hyperband: no such verb", "run, plan, resume, submit, compare, report, fetch, list"]),
    (["plan", "hyperband"], ["hyperband", "key=value"]),
    (["--config-dir", ".", "plan"], ["plan: the verb comes first"]),
    (["~study.name"], ["~study.name"]),
    (["-m", "method=random"], ["-m", "compare"]),
    (["--multirun"], ["compare"]),
    (["method=random,hyperband"], ["method=random,hyperband", "compare methods="]),
    (["space={lr: {low: 1}"], ["can't be parsed", "quote"]),
    (["space=3"], ["space=3", "choice"]),
    (["method=null"], ["method=null", "choice"]),
    (["seed=abc"], ["seed=abc", "Integer"]),
    (["seed=-1"], ["seed=-1", ">= 0"]),
    (["view=fancy"], ["view=fancy", "auto, live, plain, none"]),
    (["task.mode=mn"], ["task.mode=mn", "nearest: min"]),
    (["task.tradeoff.accuracy=most"], ["task.tradeoff.accuracy=most", "min, max"]),
    (["task.tradeoff={accuracy: [max]}"], ["task.tradeoff.accuracy=['max']", "min, max"]),
    (["task.tradeoff=[accuracy]"], ["task.tradeoff=['accuracy']", "mapping by the names of metrics"]),
    (["task.reference.accuracy=nan"], ["task.reference.accuracy=nan", "finite value of accuracy"]),
    (["task.reference.accuracy=low"], ["task.reference.accuracy=low", "finite value of accuracy"]),
    (["task.reference=3"], ["task.reference=3", "mapping by the names of metrics"]),
    # spaces
    (["task=parabola", "space.x={lo: 1, high: 2}"], ["space.x", "'lo'", "low"]),
    (["task=parabola", "space.x.lo=1"], ["space.x.lo=1", "nearest: space.x.low"]),
    (["task=parabola", "space.y=1"], ["space.y=1", "space.x"]),
    (["task=parabola", "space.x.low=4"], ["space.x", "low=4.0", "high=4.0"]),
    (["task=parabola", "space.x.low=9"], ["space.x", "low=9", "high=4.0"]),
    (["task=parabola", "space.x.log=true"], ["space.x", "low=0", "log"]),
    (["task=parabola", "space.x=[]"], ["space.x", "empty"]),
    (["task=parabola", "~space.z"], ["space.z", "space.x"]),
    (["task=parabola", "+space.x=[1,2]"], ["space.x", "there already"]),
    (["space.activation.low=1"], ["space.activation", "list"]),
    (["task=parabola", "searcher.initial=[{x: 9}]"], ["searcher.initial[0].x", "9", "4.0"]),
    (["task=parabola", "searcher.initial=[{y: 1}]"], ["searcher.initial[0].y", "x"]),
    (["task=parabola", "space.x={lo: 1, hi: 2}"], ["space.x", "'lo'", "nearest: 'low'"]),
    (["task=parabola", "space.x={min: 1, max: 2}"], ["space.x", "'min'", "nearest: 'low'"]),
    (["task=parabola", "searcher.initial=3"], ["searcher.initial=3", "list of configurations"]),
    (["task=parabola", "searcher.initial=[3]"], ["searcher.initial=[3]", "list of configurations"]),
    (["plan", "task=parabola", "searcher.initial=[{x: 9}]"], ["searcher.initial[0].x", "9", "4.0"]),
    (["task=parabola", "space.x=range(1,4)"], ["space.x=range(1,4)", "compare methods="]),
    (["task=parabola", "scheduler=null"], ["scheduler=null: must be"]),
    (["task=custom", "task.trainable=mine.train"], ["space is empty", "space={lr:"]),
    # trainables
    (["task=custom"], ["task.trainable is not set", "def train(config)"]),
    ([*OWN, "task.trainable=mine.trian"], ["task.trainable=mine.trian", "nearest: train"]),
    ([*OWN, "task.trainable=mien.train"], ["task.trainable=mien.train", "no module 'mien'", "nearest: mine"]),
    ([*OWN, "task.trainable=broken.train"], ["broken", "SyntaxError", "line 2"]),
    ([*OWN, "task.trainable=raising.train"], ["raising", "ZeroDivisionError", "line 1"]),
    ([*OWN, "task.trainable=needy.train"], ["needy needs a_package_that_is_not_there", "not installed"]),
    ([*OWN, "task.trainable=train"], ["task.trainable=train", "dotted path"]),
    ([*OWN, "task.trainable=mine.SPACE"], ["mine.SPACE", "str"]),
    ([*OWN, "task.trainable=mine.no_argument"], ["mine.no_argument", "def no_argument(config)", "nothing"]),
    ([*OWN, "task.trainable=mine.two_arguments"], ["mine.two_arguments", "one argument", "config, data"]),
    ([*OWN, "task.trainable=mine.Plain"], ["mine.Plain", "ray.tune.Trainable"]),
    ([*OWN, "task.trainable=mine.NoCheckpoint"], ["no save_checkpoint", "on_missing_checkpoint=restart"]),
    ([*OWN, "task.trainable=mine.CantSayWhatItNeeds"], ["mine.CantSayWhatItNeeds", "KeyError: 'cores'"]),
    # searchers
    (["searcher=tpe", "searcher.sampler=Best"], ["searcher.sampler=Best", "TPESampler"]),
    (["searcher=tpe", "searcher.random_fraction=1.5"], ["searcher.random_fraction=1.5", "below 1"]),
    (["searcher=tpe", "searcher.settings={candidates: 3}", "executor=inprocess"], ["searcher.settings", "candidates"]),
    (["searcher=tpe", "searcher.nothing=3"], ["searcher.nothing", "unknown key"]),
    (["method=grid", "budget.trials=20"], ["11664 points", "20 trials", "searcher.sample=true"]),
    (["method=grid", "budget.resource=270"], ["11664 points", "10 trials", "searcher.sample=true"]),
    (["method=grid", "scheduler=hyperband", "task=branin"], ["searcher: it has 9 configurations", "take 49"]),
    (["method=grid", "searcher.sample=maybe"], ["searcher.sample='maybe'", "true or false"]),
    (["method=sobol", "searcher.scramble=7"], ["searcher.scramble=7", "true or false"]),
    (["searcher=tpe", "searcher.random_fraction=abc"], ["searcher.random_fraction=abc"]),
    (["searcher=tpe", "searcher.settings=3"], ["searcher.settings=3", "mapping"]),
    (["searcher=tpe", "searcher.startup=true"], ["searcher.startup=True"]),
    (["method=nsga2", "searcher.settings.population_size=2"], ["population_size=2", "at least 4"]),
    (["method=pbt", "scheduler.frozen=null"], ["scheduler.frozen=None", "list of names"]),
    (["method=pbt_replay", "scheduler.path=3"], ["scheduler.path=3", "path"]),
    (["method=tpe_multi", "scheduler._target_=ray.tune.schedulers.AsyncHyperBandScheduler"], ["ranks trials"]),
    (["method=tpe_multi", "task.metrics={accuracy: max, loss: min}", "task.mode=min"], ["task.mode=min", "says max"]),
    (["method=tpe_multi", "task.metrics={a: max, loss: min}", "task.metric=accuracy"], ["task.metric=accuracy"]),
    (["method=tpe", "task.constraints={p: {high: true}}"], ["task.constraints.p", "finite numbers"]),
    (["method=grid", "searcher.grid_points=0"], ["searcher.grid_points=0", ">= 1"]),
    (["method=grid", "searcher.grid_points={rate: 3}"], ["searcher.grid_points.rate", "no hyperparameter"]),
    (["method=pbt", "searcher=tpe"], ["searcher=OptunaSearcher", "searcher=random"]),
    (["method=pb2", "searcher=evolution"], ["searcher=EvolutionSearcher", "searcher=random"]),
    (["method=sobol", "searcher.initial=[{lr: 9}]"], ["searcher.initial[0].lr", "0.3"]),
    # several metrics
    (["method=nsga2", "scheduler=hyperband"], ["task.metrics", "Hyperband ranks trials", "scheduler=fifo"]),
    (["method=asha", "task.metrics={accuracy: max, loss: min}"], ["task.metrics", "ASHA ranks trials"]),
    (["method=median", "task.metrics={accuracy: max, loss: min}"], ["task.metrics", "ranks trials"]),
    (["method=cmaes", "task.metrics={accuracy: max, loss: min}"], ["task.metrics", "CmaEsSampler takes none"]),
    (["method=evolution", "task.metrics={accuracy: max, loss: min}"], ["task.metrics", "EvolutionSearcher", "nsga2"]),
    (["method=nsga2", "task=hartmann6"], ["method=nsga2", "task.metrics=", "names none"]),
    (["method=tpe_multi", "task=parabola"], ["method=tpe_multi", "task.metrics="]),
    (["method=nsga2", "task.metrics={accuracy: max}"], ["task.metrics={'accuracy': 'max'}", "names one metric"]),
    (["method=nsga2", "task.metrics={accuracy: more, loss: min}"], ["task.metrics.accuracy=more", "min, max"]),
    (["method=nsga2", "task.metrics=[accuracy]"], ["task.metrics=['accuracy']", "must be a mapping"]),
    (["method=tpe", "task.constraints={parameters: 3}"], ["task.constraints.parameters=3", "low, high"]),
    (["method=tpe", "task.constraints={parameters: {max: 3}}"], ["task.constraints.parameters", "low, high"]),
    (["method=cmaes", "task.constraints={parameters: {high: 3}}"], ["task.constraints", "CmaEsSampler"]),
    (["method=hyperband", "task.constraints={parameters: {high: 3}}"], ["task.constraints", "Hyperband ranks trials"]),
    (["method=evolution", "searcher.population=3"], ["searcher.population=3", "whole number >= 4"]),
    (["method=evolution", "searcher.crossover=sxb"], ["searcher.crossover=sxb", "uniform, sbx, blx, none"]),
    (["method=evolution", "searcher.sigma=0"], ["searcher.sigma=0", "> 0"]),
    (["method=dehb", "searcher.population=3"], ["searcher.population=3", "whole number >= 4", "null"]),
    (["method=de", "searcher.cr=1.5"], ["searcher.cr=1.5", ">= 0 and <= 1"]),
    # fidelities
    (["fidelity=epoch"], ["fidelity=epoch", "nearest: epochs", "data_fraction"]),
    (["fidelity.name=step"], ["fidelity.name=step", "nearest: steps"]),
    (["fidelity=steps", "fidelity.steps_per_unit=0"], ["fidelity.steps_per_unit=0", ">= 1"]),
    (["fidelity=steps", "fidelity.steps_per_unit=many"], ["fidelity.steps_per_unit=many", "Integer"]),
    (["fidelity.name=steps"], ["fidelity.steps_per_unit is not set", "fidelity.steps_per_unit=10"]),
    (["fidelity.steps_per_unit=5"], ["fidelity.steps_per_unit=5", "use fidelity=steps"]),
    (["fidelity=steps", "task=branin"], ["fidelity=steps", "Branin follows epochs only", "use fidelity=epochs"]),
    (["fidelity=data_fraction", "task=mixed10"], ["fidelity=data_fraction", "Mixed10 follows epochs only"]),
    ([*OWN, "task.trainable=mine.train", "fidelity=steps"], ["fidelity=steps", "mine.train", "fidelities ="]),
    ([*OWN, "task.trainable=mine.DictCheckpoint", "fidelity=steps"], ["fidelity=steps", "DictCheckpoint follows"]),
    # schedulers and budgets
    (["scheduler.eta=1"], ["scheduler.eta=1", ">= 2"]),
    (["scheduler.eta=2.5"], ["scheduler.eta=2.5", "whole number"]),
    (["scheduler.eta=three"], ["scheduler.eta='three'", "whole number"]),
    (["scheduler.min_resource=100"], ["scheduler.min_resource=100", "scheduler.max_resource=27"]),
    (["scheduler.min_resource=0"], ["scheduler.min_resource=0", ">= 1"]),
    (["scheduler.max_resource=abc"], ["scheduler.max_resource='abc'", "whole number"]),
    (["task.max_resource=abc"], ["task.max_resource=abc", "Integer"]),
    (["task.max_resource=0"], ["task.max_resource=0", ">= 1"]),
    (["method=random", "scheduler.max_resource=0"], ["scheduler.max_resource=0", ">= 1"]),
    (["scheduler.on_missing_checkpoint=maybe"], ["scheduler.on_missing_checkpoint='maybe'", "error or restart"]),
    (["method=random", "budget.trials=0"], ["budget.trials=0", ">= 1"]),
    (["method=random", "budget.trials=-5"], ["budget.trials=-5", ">= 1"]),
    (["method=random", "budget.trials=many"], ["budget.trials=many", "Integer"]),
    (["method=random", "budget.rounds=2"], ["budget.rounds=2", "budget.trials"]),
    (["budget.trials=5"], ["budget.trials=5", "budget.rounds"]),
    (["budget.rounds=0"], ["budget.rounds=0", ">= 1"]),
    (["method=successive_halving", "budget.trials=5", "budget.rounds=2"], ["budget.trials=5", "budget.rounds=2"]),
    (["budget.time_s=-1"], ["budget.time_s=-1", "> 0"]),
    (["budget.target=nan"], ["budget.target=nan", "finite"]),
    (["budget.resource=0"], ["budget.resource=0", ">= 1"]),
    (["method=asha", "budget.rounds=2"], ["budget.rounds=2", "budget.trials"]),
    (["method=asha", "scheduler.brackets=9"], ["scheduler.brackets=9", "from 1 to 4"]),
    (["method=asha", "scheduler.variant=stop"], ["scheduler.variant='stop'", "promotion or stopping"]),
    (["method=median", "scheduler.min_trials=0"], ["scheduler.min_trials=0", ">= 1"]),
    (["method=median", "scheduler.min_resource=28"], ["scheduler.min_resource=28", "scheduler.max_resource=27"]),
    (["method=median", "scheduler.eta=3"], ["scheduler.eta=3", "min_trials"]),
    (["method=median", "budget.rounds=2"], ["budget.rounds=2", "budget.trials"]),
    (["method=pbt", "budget.trials=9"], ["budget.trials=9", "scheduler.population=8"]),
    (["method=pbt", "scheduler.population=3"], ["scheduler.population=3", ">= 4"]),
    (["method=pbt", "scheduler.space=3"], ["scheduler.space"]),
    (["method=pbt", "task=parabola", "space.x={low: 1.0, high: 1.1}"], ["space.x", "scheduler.factors=[0.8, 1.2]"]),
    (["method=pbt", "task=parabola", "task.architecture=[x]"], ["scheduler.frozen=[x]", "nothing"]),
    (["method=pb2", "task=parabola", "space.x=[1, 2]"], ["PB2 models numbers", "method=pbt"]),
    (["method=pbt_replay"], ["scheduler.path is not set", "scheduler.path=outputs/"]),
    (["method=pbt_replay", "scheduler.path=nowhere"], ["scheduler.path=nowhere", "No such file"]),
    (["budget.concurrency=0"], ["budget.concurrency=0", ">= 1"]),
    (["failure.max_retries=-1"], ["failure.max_retries=-1", ">= 0"]),
    (["store.checkpoint_every=0"], ["store.checkpoint_every=0", ">= 1"]),
    (["store.checkpoint_every_s=-1"], ["store.checkpoint_every_s=-1", ">= 0", "null"]),
    (["store.keep_checkpoints=bst"], ["store.keep_checkpoints=bst", "nearest: best", "completed", "all"]),
    (["failure.max_failed_fraction=1.5"], ["failure.max_failed_fraction=1.5", "from 0 to 1"]),
    (["failure.max_failed_fraction=-0.1"], ["failure.max_failed_fraction=-0.1", "from 0 to 1"]),
    (["failure.max_failed_fraction=nan"], ["failure.max_failed_fraction=nan", "from 0 to 1"]),
    (["failure.max_failed_fraction=most"], ["failure.max_failed_fraction=most", "Float"]),
    (["budget.trial_timeout_s=0"], ["budget.trial_timeout_s=0", "> 0"]),
    (["budget.trial_timeout_s=-1"], ["budget.trial_timeout_s=-1", "> 0"]),
    (["budget.trial_timeout_s=inf"], ["budget.trial_timeout_s=inf", "> 0"]),
    (["budget.trial_timeout_s=nan"], ["budget.trial_timeout_s=nan", "> 0"]),
    (["budget.trial_timeout_s=long"], ["budget.trial_timeout_s=long", "Float"]),
    # where and on what
    (["executor=inprocess", "executor.workers=0"], ["executor.workers=0", ">= 1"]),
    (["executor=simulated", "executor.workers=0"], ["executor.workers=0", ">= 1"]),
    (["executor=simulated", "executor.workers=-8"], ["executor.workers=-8", ">= 1"]),
    (["executor=simulated", "executor.step_s=-1"], ["executor.step_s=-1", "seconds >= 0"]),
    (["executor=simulated", "executor.step_s=nan"], ["executor.step_s=nan", "finite"]),
    (["executor=simulated", "executor.startup_s=inf"], ["executor.startup_s=inf", "finite"]),
    (["executor=simulated", "executor.speeds=[1,0]"], ["executor.speeds=[1, 0]", "> 0"]),
    (["executor=simulated", "executor.failures=-1"], ["executor.failures=-1", "in an hour >= 0"]),
    (["executor=simulated", "task.cost=mine.nothing"], ["task.cost=mine.nothing", "mine has no 'nothing'"]),
    (["executor=simulated", "task.cost=mine.no_argument"], ["task.cost=mine.no_argument", "cost(config, resource)"]),
    (["task=recorded", "space=branin"], ["task.args.path is not set", "trials.jsonl"]),
    (["task=recorded", "space=branin", "task.args.path=nowhere"], ["task.args.path=nowhere", "no such file"]),
    (["executor.num_cpus=-2"], ["executor.num_cpus=-2"]),
    (["executor.report_every_s=-1"], ["executor.report_every_s=-1", "seconds >= 0"]),
    (["executor.report_every_s=inf"], ["executor.report_every_s=inf", "seconds >= 0"]),
    (["executor.report_every_s=true"], ["executor.report_every_s=True", "seconds >= 0"]),
    (["resources.cpu=-1"], ["resources.cpu=-1", ">= 0"]),
    (["resources.cpu=0"], ["resources.cpu=0", "use 1"]),
    (["trainable.precision=fp8"], ["trainable.precision=fp8", "bf16"]),
    (["trainable.precision=fp16"], ["trainable.precision=fp16", "resources=gpu"]),
    (["study.name=taken", "executor=inprocess", "task=parabola"], ["study.name=taken", "another name"]),
    (["study.name=taken", "executor=ray", "task=parabola"], ["study.name=taken", "another name"]),
    (["study.name=a/b"], ["study.name='a/b'", "study.root"]),
    (["tracker.callbacks=[3]", "executor=inprocess"], ["tracker.callbacks[0]=3", "_target_"]),
    (["--config-name", "bare", "--config-dir", "own"], ["--config-name bare", "defaults: [config, _self_]"]),
    (["--config-name", "config", "--config-dir", "own"], ["--config-name config"]),
    (["study.root=mine.py", "executor=inprocess", "task=parabola"], ["study.root=mine.py", "can't be written"]),
    (["study.root=s3://b/x"], ["study.root=s3://b/x", "store.root=s3://b/x"]),
    (["store.root=s3:/b/x"], ["store.root=s3:/b/x", "neither a folder nor a URI", "s3://bucket/prefix", "./s3:/b/x"]),
    (["store.root=gs//b"], ["store.root=gs//b", "neither a folder nor a URI"]),
    (["study.root=file:/tmp/x"], ["study.root=file:/tmp/x", "neither a folder nor a URI"]),
    (["store.root=here", "study.root=there"], ["store.root=here", "study.root=there", "give one"]),
    (["cluster=ray_job"], ["cluster=ray_job", "python -m hpo_ray submit cluster=ray_job"]),
    (["cluster=attach", "executor=inprocess"], ["cluster=attach", "executor=ray", "in this process"]),
    (["cluster=attach", "executor.num_cpus=2"], ["executor.num_cpus=2", "cluster=attach", "leave it out"]),
    # the store
    (["store.url=outputs/my.journal"], ["store.url=outputs/my.journal", "can't be parsed", "in study.root"]),
    (["store.url=postgres://h/d"], ["store.url=postgres://h/d", "nearest: postgresql"]),
    (["store.url=postgresql+psycopg://me:hush@h:port/d"], ["store.url=postgresql+psycopg://me@h:port/d", "'port'"]),
    (["store.url=sqlite://"], ["store.url=sqlite://", "in memory only", "sqlite:///studies.db"]),
    (["store.url=sqlite:///no/where.db"], ["store.url=sqlite:///no/where.db", "no folder no"]),
    (["task=parabola", "store.url=mysql+pymysql://me:hush@h/d"], ["mysql+pymysql://me@h/d", "pip install 'pymysql'"]),
    (["task=parabola", "store.url=postgresql+nope://h/d"], ["postgresql+nope://h/d", "no driver 'postgresql+nope'"]),
    (["store.url=postgresql://me:hush#1@h/d"], ["store.url=postgresql://me@h/d", "can't be parsed"]),
    (["store=sqlite"], ["store=sqlite", "journal"]),
    (["report", "nowhere"], ["report nowhere", "no such folder"]),
    (["report", "outputs", "outputs"], ["report outputs: is no study, it has no events.jsonl"]),
    (["report", "outputs", "nowhere"], ["report nowhere: no such folder"]),
    (["report", "outputs", "outputs", "--follow"], ["report --follow outputs outputs: takes one study's folder"]),
    (["report", "outputs", "--rebuild-store", "store=none"], ["store=none", "no store to rebuild"]),
    (["report", "outputs", "--rebuild-store", "store.url=here"], ["store.url=here", "can't be parsed"]),
    (["--config-dir", "nowhere"], ["--config-dir nowhere", "no such folder"]),
    (["--config-name", "nothing"], ["--config-name nothing", "config"]),
    (["--config-dir"], ["--config-dir", "--help"]),
]  # fmt: skip


@pytest.fixture
def mistakes(folder: Path) -> Path:
    """A working folder with a study and with modules that can't be imported."""
    (folder / "broken.py").write_text("x = 1\nx = = 2\n")
    (folder / "raising.py").write_text("1 / 0\n")
    (folder / "needy.py").write_text("import a_package_that_is_not_there\n")
    (folder / "outputs" / "taken").mkdir(parents=True)
    (folder / "own").mkdir()
    (folder / "own" / "bare.yaml").write_text("seed: 3\n")
    (folder / "own" / "config.yaml").write_text("defaults: [config, _self_]\nseed: 3\n")
    return folder


def tree(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts)


@pytest.mark.parametrize(("typed", "says"), BAD_INPUT, ids=lambda value: " ".join(value)[:60])
def test_a_mistake_is_one_message_with_the_fix_and_nothing_is_written(
    mistakes: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    typed: list[str],
    says: list[str],
) -> None:
    monkeypatch.syspath_prepend(str(mistakes))
    before = tree(mistakes)
    assert main(typed) == 2
    out, err = capsys.readouterr()
    assert err.startswith("hpo_ray: ") and err.count("\n") == 1 and "Traceback" not in err and "hush" not in err
    for part in says:
        assert part in err
    assert out == ""
    assert tree(mistakes) == before


@pytest.mark.parametrize("executor", ["inprocess", "simulated", pytest.param("ray", marks=pytest.mark.ray)])
def test_more_gpus_than_there_are_fails_at_once(
    folder: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], executor: str
) -> None:
    if executor == "ray":
        request.getfixturevalue("ray_cluster")
    elif (torch := pytest.importorskip("torch")).cuda.device_count() >= 64:
        pytest.skip(f"{torch.cuda.device_count()} GPUs are here")
    assert main(["task=parabola", "resources=gpu", "resources.gpu=64", f"executor={executor}"]) == 2
    err = capsys.readouterr().err
    assert ("64 GPU" in err if executor == "ray" else "resources.gpu=64" in err) and "resources=cpu" in err
    assert not (folder / "outputs").exists()


@pytest.mark.ray
def test_more_cores_than_there_are_fails_at_once(
    folder: Path, ray_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["task=parabola", "resources.cpu=64"]) == 2
    assert capsys.readouterr().err == (
        "hpo_ray: resources: a trial asks for 64 CPU, and Ray here will never have that: no node has 64 CPUs, the "
        "largest has 4; lower resources.cpu to 4 or less\n"
    )


def test_a_failed_study_exits_with_1_and_names_the_metrics(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*OWN, "task.trainable=mine.other_metric", "view=none"]) == 1
    err = capsys.readouterr().err
    assert "task.metric=loss" in err and "accuracy, perplexity" in err and "Traceback" not in err


def test_run_prints_the_incumbent_where_it_lies_and_what_next(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["method=hyperband", "task=parabola", "executor=inprocess"]
    assert main(typed) == 0
    out = capsys.readouterr().out
    result = json.loads((folder / "outputs/parabola-hyperband-1/result.json").read_text())
    assert f"best       loss {result['best']['value']:.6g} at step 27 (trial {result['best']['number']})" in out
    assert f"  x: {result['best']['config']['x']}" in out
    assert "outputs/parabola-hyperband-1" in out
    assert "-m hpo_ray method=hyperband task=parabola executor=inprocess scheduler.max_resource=81" in out
    load = next(line for line in out.splitlines() if line.startswith("load it")).split(None, 2)[2]
    subprocess.run(load, shell=True, check=True, cwd=folder, capture_output=True)


def test_names_count_up(folder: Path) -> None:
    for _ in range(2):
        assert main(["task=parabola", "method=random", "budget.trials=1", "executor=inprocess", "view=none"]) == 0
    names = {"parabola-random-1", "parabola-random-2", "hpo_ray.journal"}
    assert {p.name for p in (folder / "outputs").iterdir()} == names


def test_plan_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "method=hyperband", "scheduler.max_resource=81", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["method"] == "hyperband" and plan["trials"] == 143
    assert plan["total_resource"] == 1581 and plan["total_resource_restarting"] == 1902
    assert plan["full_trainings"] == pytest.approx(1581 / 81, abs=1e-4)
    assert [(b["s"], [(r["n"], r["r"]) for r in b["rungs"]]) for b in plan["brackets"]] == [
        (4, [(81, 1), (27, 3), (9, 9), (3, 27), (1, 81)]),
        (3, [(34, 3), (11, 9), (3, 27), (1, 81)]),
        (2, [(15, 9), (5, 27), (1, 81)]),
        (1, [(8, 27), (2, 81)]),
        (0, [(5, 81)]),
    ]
    assert main(["plan", "--json", "method=random", "budget.trials=50"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["trials"], plan["total_resource"], plan["brackets"]) == (50, 50 * 27, [])
    assert not list(folder.glob("outputs*"))


def test_plan_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "method=hyperband", "scheduler.max_resource=9", "budget.rounds=2"]) == 0
    out = capsys.readouterr().out
    assert "34 trials, 138 epochs" in out and "2 rounds" in out
    assert "s=2      9 to 1  3 to 3  1 to 9" in out


def test_plan_of_what_may_end_early(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "method=median", "task=parabola"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "median on parabola: 20 trials, at most 540 steps",
        "at most as many steps as 20 full trainings of 27 steps",
        "at most: how many trials end early depends on what they report",
    ]
    assert main(["plan", "method=median", "task=parabola", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["total_resource"], plan["exact"], plan["at_most"]) == (540, False, True)


def test_plan_without_an_end_but_time(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for method in ("random", "hyperband"):
        assert main(["plan", f"method={method}", "budget.time_s=90", "--json"]) == 0
        plan = json.loads(capsys.readouterr().out)
        assert plan["trials"] is None and plan["total_resource"] is None


def test_list_names_everything_with_its_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["task=parabola", "method=random", "budget.trials=1", "executor=inprocess", "view=none"]) == 0
    (folder / "outputs" / "half").mkdir()
    (folder / "outputs" / "half" / "events.jsonl").write_text("")
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    conf = Path(__file__).parents[1] / "conf"
    for group in ("method", "task", "searcher", "scheduler"):
        for path in (conf / group).glob("*.yaml"):
            line = next(line for line in out.splitlines() if line.split()[:1] == [path.stem])
            assert len(line.split()) > 3, "a name without its line"
    assert "parabola-random-1" in out and "finished: loss" in out
    assert "half" in out and "cut off: " in out


def test_cfg_prints_what_will_be_composed(folder: Path) -> None:
    command = [sys.executable, "-m", "hpo_ray", "--cfg", "job", "task=parabola", "space.x.low=1", "space={y: [1, 2]}"]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder).stdout
    assert "space:\n  'y':\n  - 1\n  - 2\n" in out and "  name: parabola\n" in out


@pytest.mark.parametrize(
    ("typed", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["list"], 0),
        (["plan", "method=hyperband", "--json"], 0),
        (["method=hyperbnd"], 2),
        (["space.lr.low=9"], 2),
        (["scheduler.eta=1"], 2),
    ],
)
def test_what_needs_no_trial_is_cold(folder: Path, typed: list[str], code: int) -> None:
    """Neither Ray nor torch is imported, on which a second and more would be spent."""
    program = (
        "import sys\nfrom hpo_ray.__main__ import main\n"
        f"code = main({typed!r})\n"
        "heavy = {'ray', 'torch', 'optuna', 'sklearn', 'pandas', 'pyarrow'} & sys.modules.keys()\n"
        f"sys.exit(f'{{code}} {{heavy}}' if heavy or code != {code} else 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=folder, capture_output=True)


def test_a_target_that_is_reached_shows_who_reached_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`best` is the best at the highest resource, which need not be the trial that reached the target."""
    typed = ["task=parabola", "method=random", "task.mode=max", "budget.target=3.5", "executor=inprocess"]
    assert main(typed) == 0
    out = capsys.readouterr().out
    seen = json.loads((folder / "outputs/parabola-random-1/result.json").read_text())["best_seen"]
    assert seen["value"] >= 3.5
    assert f"best seen  loss {seen['value']:.6g} at step {seen['resource']} (trial {seen['number']})" in out


def test_a_method_whose_parts_were_changed_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "task=parabola", "scheduler=fifo"]) == 0
    assert "hyperband+fifo on parabola: 20 trials" in capsys.readouterr().out
    assert main(["plan", "task=parabola", "scheduler=fifo", "method.name=mine"]) == 0
    assert "mine on parabola" in capsys.readouterr().out


@pytest.mark.parametrize("executor", ["inprocess", "simulated", pytest.param("ray", marks=pytest.mark.ray)])
def test_a_trainable_that_asks_for_more_than_there_is_fails_at_once(
    folder: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], executor: str
) -> None:
    if executor == "ray":
        request.getfixturevalue("ray_cluster")
    assert main([*OWN, "task.trainable=mine.wants_gpus", f"executor={executor}"]) == 2
    err = capsys.readouterr().err
    assert "mine.wants_gpus asks for its own resources" in err and "64" in err and "GPUs" in err
    assert not (folder / "outputs").exists()


def test_ctrl_c_in_the_middle_of_a_step_ends_the_study_at_once(folder: Path) -> None:
    program = [sys.executable, "-m", "hpo_ray", *OWN, "task.trainable=mine.interrupts_itself", "method=random"]
    done = subprocess.run(program, cwd=folder, capture_output=True, text=True, timeout=50)
    assert done.returncode == 130, done.stderr
    assert "interrupted: SIGINT received" in done.stdout and "1 left unfinished" in done.stdout
    content = json.loads((folder / "outputs/custom-random-1/result.json").read_text())
    assert content["state"] == "interrupted" and content["totals"]["unfinished"] == 1


def test_interrupted_studies_say_so(folder: Path) -> None:
    """SIGTERM in the middle: results are written, the exit code is that of the signal."""
    program = (
        "import os, signal, sys\nfrom hpo_ray.__main__ import main\nfrom hpo_ray.executors import recorder\n"
        "old = recorder.Recorder.on_trial_result\n"
        "def result(self, *a):\n"
        "    len(self.state.trials) == 5 and os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return old(self, *a)\n"
        "recorder.Recorder.on_trial_result = result\n"
        "sys.exit(main(['task=parabola', 'executor=inprocess']))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 143, done.stderr
    assert "interrupted: SIGTERM received" in done.stdout
    content = json.loads((folder / "outputs/parabola-hyperband-1/result.json").read_text())
    assert content["state"] == "interrupted" and content["best"] is not None and content["totals"]["trials"] == 5
