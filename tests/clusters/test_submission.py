"""`submit`: what becomes of the words, and what is wrong with them before anything is sent."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from hpo_ray.clusters import KubeRay, RayJob
from hpo_ray.clusters.base import Submission
from hpo_ray.clusters.submission import submission_of
from hpo_ray.config import load
from hpo_ray.errors import ConfigError
from hpo_ray.location import Location
from hpo_ray.resources import Resources
from hpo_ray.testing import run_study

RAY_JOB = ["cluster=ray_job", "cluster.address=http://127.0.0.1:1"]


def submission(*words: str, config_dir: str | None = None, config_name: str | None = None) -> Submission:
    return submission_of(words, config_dir, config_name)[1]


@pytest.mark.parametrize(
    ("words", "name", "arguments", "root", "of_here"),
    [
        (
            ["task=parabola", "study.root=/mnt/s"],
            "parabola-hyperband",
            ("task=parabola", "study.root=/mnt/s"),
            "/mnt/s",
            False,
        ),
        (
            ["run", "study.name=mine", "study.root=/mnt/s"],
            "mine",
            ("study.name=mine", "study.root=/mnt/s"),
            "/mnt/s",
            False,
        ),
        (["method=asha"], "digits_mlp-asha", ("method=asha", "study.root={here}/outputs"), "{here}/outputs", True),
        (
            ["study.root=my/s", "seed=3"],
            "digits_mlp-hyperband",
            ("seed=3", "study.root={here}/my/s"),
            "{here}/my/s",
            True,
        ),
        (
            ["~space.momentum", "study.root=/s"],
            "digits_mlp-hyperband",
            ("~space.momentum", "study.root=/s"),
            "/s",
            False,
        ),
        (
            ["compare", "methods=[random, asha]", "seeds=2", "study.root=/s", "study.name=c", "budget.resource=100"],
            "c",
            ("compare", "methods=[random, asha]", "seeds=2", "study.root=/s", "study.name=c", "budget.resource=100"),
            "/s",
            False,
        ),
        (
            ["resume", "/mnt/s/there", "budget.rounds=2"],
            "there",
            ("resume", "/mnt/s/there", "budget.rounds=2"),
            "/mnt/s",
            False,
        ),
    ],
)
def test_what_becomes_of_the_words(
    folder: Path, words: list[str], name: str, arguments: tuple[str, ...], root: str, of_here: bool
) -> None:
    """Words of the cluster are taken out wherever they stand; a relative folder is said whole."""
    verb = words[:1] if words[0] in ("run", "compare") else words[:2] if words[0] == "resume" else []
    mixed = [*verb, RAY_JOB[0], *words[len(verb) :], RAY_JOB[1], "+cluster.excludes=[data]", "++cluster.grow_to=4"]
    mixed.remove("+cluster.excludes=[data]")
    cluster, made = submission_of(mixed, None, None)
    assert isinstance(cluster, RayJob) and (cluster.address, cluster.grow_to) == ("http://127.0.0.1:1", 4)
    assert made == Submission(
        name,
        tuple(text.format(here=folder) for text in arguments),
        root.format(here=folder),
        of_here=of_here,
    )
    assert {path.name for path in folder.iterdir()} == {"mine.py"}, "nothing was written"


def test_a_study_of_here_is_resumed_by_its_whole_path(folder: Path) -> None:
    overrides = ["task=parabola", "method=random", "budget.trials=2", "executor=inprocess"]
    run_study([*overrides, "study.name=s"], folder / "outputs")
    made = submission("resume", "outputs/s", *RAY_JOB, "budget.trials=4", "budget.concurrency=2", "resources.gpu=0.5")
    arguments = ("resume", f"{folder}/outputs/s", "budget.trials=4", "budget.concurrency=2", "resources.gpu=0.5")
    assert (made.name, made.arguments, made.root) == ("s", arguments, f"{folder}/outputs")
    assert (made.resources, made.concurrency, made.drives) == (Resources(gpu=0.5), 2, False)
    assert submission("resume", "outputs/s", *RAY_JOB, "executor=ray").drives


@pytest.mark.parametrize(
    ("words", "ends", "drives"),
    [
        ([], "study.root=/s cluster=attach cluster.address=auto", True),
        (["cluster.grow_to=8"], "study.root=/s cluster=attach cluster.address=auto cluster.grow_to=8", True),
        (["executor=inprocess"], "study.root=/s executor=inprocess cluster=local", False),
        (["executor=simulated", "cluster.grow_to=8"], "study.root=/s executor=simulated cluster=local", False),
    ],
)
def test_a_job_attaches_where_its_trials_are_rays(folder: Path, words: list[str], ends: str, drives: bool) -> None:
    cluster, made = submission_of([*RAY_JOB, "study.root=/s", *words], None, None)
    assert isinstance(cluster, RayJob) and made.drives is drives
    assert made.entrypoint(cluster.grow_to) == f"exec python -m hpo_ray {ends}"


def test_words_reach_the_shell_of_the_job_as_they_were_typed() -> None:
    made = submission(*RAY_JOB, "study.root=/a b", "space={lr: {low: 1e-4, high: 0.3}}", "task.args.note='$(rm -r .)'")
    assert made.entrypoint(None, "/opt/my venv/bin/python") == (
        "exec '/opt/my venv/bin/python' -m hpo_ray 'study.root=/a b' 'space={lr: {low: 1e-4, high: 0.3}}' "
        "'task.args.note='\"'\"'$(rm -r .)'\"'\"'' cluster=attach cluster.address=auto"
    )


def test_what_a_trial_asks_for_is_known() -> None:
    made = submission(
        "cluster=kuberay", "cluster.image=i", "study.root=/s", "resources.gpu=0.5", "budget.concurrency=3"
    )
    assert (made.resources, made.concurrency) == (Resources(gpu=0.5), 3)
    assert isinstance(submission_of(["cluster=kuberay", "cluster.image=i", "study.root=/s"], None, None)[0], KubeRay)


def test_ones_own_configuration(folder: Path) -> None:
    """It may choose the cluster by a file of the group, with keys of its own."""
    own = folder / "own"
    (own / "cluster").mkdir(parents=True)
    (own / "cluster/here.yaml").write_text(
        "# @package cluster\n_target_: hpo_ray.clusters.RayJob\naddress: http://127.0.0.1:1\nexcludes: [data]\n"
    )
    (own / "my.yaml").write_text("defaults: [config, override /cluster: here, _self_]\nseed: 3\n")
    where = {"config_dir": "own", "config_name": "my"}
    made = submission("study.root=/s", **where)
    assert made.arguments == ("--config-dir=own", "--config-name=my", "study.root=/s") and made.drives
    assert submission("study.root=/s", "executor=inprocess", **where).arguments[-1] == "cluster=local"
    (own / "my.yaml").write_text("defaults: [config, override /cluster: here, _self_]\ncluster: {excludes: [x]}\n")
    with pytest.raises(ConfigError, match=r"cluster\.excludes: stands in --config-name my itself.*own/cluster/NAME"):
        submission("study.root=/s", **where)


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        ([], ["cluster=local: submit sends", "cluster=ray_job", "cluster=kuberay", "cluster=launcher"]),
        (["cluster=attach"], ["cluster=attach: submit sends"]),
        (["cluster=ray_jb"], ["cluster=ray_jb", "nearest: ray_job"]),
        ([*RAY_JOB, "cluster.excldes=[a]"], ["cluster.excldes", "nearest: cluster.excludes"]),
        ([*RAY_JOB, "method=ashaa"], ["method=ashaa", "nearest: asha"]),
        ([*RAY_JOB, "scheduler.eta=1"], ["scheduler.eta=1", ">= 2"]),
        ([*RAY_JOB, "resources.gpu=1.5"], ["resources.gpu=1.5", "whole number"]),
        ([*RAY_JOB, "run"], ["run: not an override", "run, resume, compare"]),
        (["plan", *RAY_JOB], ["plan: not an override", "run, resume, compare"]),
        (["resume", *RAY_JOB], ["submit resume: which study?"]),
        (["resume", "nowhere", *RAY_JOB], ["nowhere"]),
        (["compare", *RAY_JOB], ["methods="]),
        (["compare", *RAY_JOB, "methods=[random, ashaa]"], ["ashaa", "nearest: asha"]),
    ],
)
def test_what_cannot_be_is_said_here(folder: Path, words: list[str], messages: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        submission_of(words, None, None)
    assert [message for message in messages if message not in str(error.value)] == [], str(error.value)
    assert {path.name for path in folder.iterdir()} == {"mine.py"}, "nothing was written"


def test_a_study_on_an_object_store_is_resumed_with_what_it_has_there() -> None:
    """Its resources decide what nodes there have to be; what would make it another study is found here."""
    place = Location.of("memory://studies/mine").join("custom-asha-1")
    config = load(["task=parabola", "method=asha", "resources=gpu", "store.root=memory://studies/mine"])
    place.join("config.yaml").write(OmegaConf.to_yaml(config, resolve=True).encode())
    uri = "memory://studies/mine/custom-asha-1"
    sent = submission("resume", uri, "budget.trials=50", *RAY_JOB)
    assert sent.name == "custom-asha-1" and sent.root == "memory://studies/mine"
    assert sent.arguments == ("resume", uri, "budget.trials=50") and sent.drives
    assert sent.resources == Resources(gpu=1.0)
    with pytest.raises(ConfigError, match="trialz"):
        submission("resume", uri, "budget.trialz=50", *RAY_JOB)
    with pytest.raises(ConfigError, match=r"is no study, it has no config\.yaml"):
        submission("resume", "memory://studies/other", *RAY_JOB)
    with pytest.raises(ConfigError, match="can't be read from here"):  # and isn't taken for an override
        submission("resume", "s3://b/x/asha-1?endpoint_override=http://127.0.0.1:1", *RAY_JOB)


def test_a_study_that_only_the_cluster_sees_is_resumed_with_what_is_typed() -> None:
    assert submission("resume", "/only/there/asha-1", "resources=gpu", *RAY_JOB).resources == Resources(gpu=1.0)
    assert not submission("resume", "/only/there/asha-1", "executor=inprocess", *RAY_JOB).drives


def test_a_database_in_the_jobs_own_folder_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"store.url=sqlite:///my.db: is a file in the folder that the job runs in"):
        submission("task=parabola", "study.root=/s", "store.url=sqlite:///my.db", *RAY_JOB)
    submission("task=parabola", "study.root=/s", "store.url=sqlite:////tmp/my.db", *RAY_JOB)
