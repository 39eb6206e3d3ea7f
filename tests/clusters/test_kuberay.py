"""cluster=kuberay: the manifest of a RayJob, and what is done with kubectl. No test needs a cluster."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from golden import GOLDEN, check_golden

from hpo_ray.clusters import KubeRay, kubectl
from hpo_ray.clusters.base import Submission
from hpo_ray.errors import ConfigError
from hpo_ray.resources import ACCELERATOR_LABEL, Resources

SCHEMA = yaml.safe_load((Path(__file__).parent / "rayjob.schema.yaml").read_text())
IMAGE = "ghcr.io/me/study:1"
ARGUMENTS = ("method=asha", "task=digits_cnn", "space={lr: {low: 1e-4, high: 0.3, log: true}}")
CASES: dict[str, tuple[dict[str, Any], Submission]] = {
    "rayjob_gpu.yaml": (
        {
            "worker": {
                "cpu": 8,
                "memory": "32Gi",
                "gpu": 2,
                "node_selector": {"cloud.google.com/gke-accelerator": "nvidia-tesla-a100"},
            },
            "namespace": "research",
            "min_workers": 1,
            "max_workers": 8,
            "volume": {"claim": "studies"},
            "secret": "hpo-keys",
            "runtime_env": {"pip": ["timm==1.0.9"], "env_vars": {"OMP_NUM_THREADS": "4", "WANDB_API_KEY": None}},
        },
        Submission(
            "Digits_CNN asha",
            (*ARGUMENTS, "study.root=/mnt/hpo_ray/studies"),
            "/mnt/hpo_ray/studies",
            Resources(cpu=2, gpu=0.5, labels={ACCELERATOR_LABEL: ("A100",)}),
            env_vars={"HPO_RAY_JOB": "1"},
        ),
    ),
    "rayjob_cpu.yaml": (
        {"min_workers": 2, "max_workers": 2, "keep_cluster": True, "token": False},
        Submission("digits", ("task=digits_mlp",), "s3://bucket/studies", Resources(), concurrency=3),
    ),
    "rayjob_no_workers.yaml": (
        {"ttl_s": 0, "runtime_env": {"working_dir": "s3://bucket/code.zip"}},
        Submission("digits", ("executor=inprocess",), "s3://bucket/studies", Resources(), drives=False),
    ),
}


def kuberay(**keys: Any) -> KubeRay:
    return KubeRay(**{"image": IMAGE, "ray_version": "2.60.0", **keys})


def study(root: str = "s3://bucket/studies", name: str = "digits", **asked: Any) -> Submission:
    return Submission(name, ("task=digits_mlp",), root, Resources(**asked))


def manifest(cluster: KubeRay, submission: Submission) -> dict[str, Any]:
    rayjob = yaml.safe_load(cluster.render(submission))
    assert isinstance(rayjob, dict)
    return rayjob


def pods(rayjob: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = rayjob["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", [])]
    return [group["template"] for group in groups]


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str) -> None:
    keys, submission = CASES[case]
    check_golden(case, kuberay(**keys).render(submission))


@pytest.mark.parametrize("case", CASES)
def test_golden_manifests_validate(case: str) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.Draft202012Validator(SCHEMA).validate(yaml.safe_load((GOLDEN / case).read_text()))


@pytest.mark.parametrize("case", CASES)
def test_golden_pods_validate_against_kubernetes_own_schema(case: str) -> None:
    validator = pytest.importorskip("kubernetes_validate")
    for template in pods(yaml.safe_load((GOLDEN / case).read_text())):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **template}
        for version in ("1.30", "1.35"):
            assert validator.validate(pod, version, strict=True) == version


@pytest.mark.parametrize(
    "path, value",
    [
        ("metadata.name", "digits"),  # beside generateName
        ("metadata.generateName", "x" * 43),
        ("metadata.generateName", "1digits-"),
        ("spec.entryPoint", "python"),
        ("spec.submissionMode", "JobMode"),
        ("spec.shutdownAfterJobFinishes", False),  # with a time to live
        ("spec.rayClusterSpec.authOptions.mode", "password"),
        ("spec.rayClusterSpec.autoscalerOptions.idleTimeout", 60),
        ("spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus", 0),  # texts only
        ("spec.rayClusterSpec.headGroupSpec.rayStartParams.labels", "a=b"),
        ("spec.rayClusterSpec.headGroupSpec.template.spec.restartPolicy", "Always"),
        ("spec.rayClusterSpec.workerGroupSpecs", [{"groupName": "trials"}]),
    ],
)
def test_the_schema_refuses(path: str, value: Any) -> None:
    rayjob = yaml.safe_load((GOLDEN / "rayjob_gpu.yaml").read_text())
    *parents, last = path.split(".")
    node = rayjob
    for parent in parents:
        node = node[parent]
    node[last] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(rayjob, SCHEMA)


@pytest.mark.parametrize(
    "asked, keys, concurrency, grow_to",
    [
        ({}, {}, None, 16),  # 4 workers of 4 cores
        ({"cpu": 3}, {}, None, 4),
        ({"cpu": 0.5}, {}, None, 32),
        ({}, {}, 5, 5),
        ({"gpu": 1}, {}, None, 4),  # workers get the one GPU that a trial asks for
        ({"gpu": 0.25}, {}, None, 16),
        ({"gpu": 0.3333, "cpu": 0}, {"worker": {"gpu": 2}}, None, 24),
        ({"gpu": 0.099, "cpu": 0}, {"worker": {"gpu": 10}}, None, 400),  # no trial gets what is left of several GPUs
        ({"gpu": 2}, {"worker": {"gpu": 8, "cpu": 3}}, None, 12),  # 3 cores, 1 for each
        ({"gpu": 1, "workers": 3}, {}, None, 1),  # over 3 of the 4 workers
        ({"gpu": 1, "workers": 3}, {"worker": {"gpu": 4}}, None, 5),
        ({"gpu": 1, "workers": 3, "placement": "STRICT_PACK"}, {"worker": {"gpu": 4}}, None, 4),
        ({"gpu": 1, "workers": 3, "placement": "STRICT_SPREAD"}, {"worker": {"gpu": 4}}, None, 5),
    ],
)
def test_the_autoscaler_is_asked_for_the_trials_that_fit(
    asked: dict[str, Any], keys: dict[str, Any], concurrency: int | None, grow_to: int
) -> None:
    submission = Submission("digits", (), "s3://b/s", Resources(**asked), concurrency=concurrency)
    command = manifest(kuberay(**keys), submission)["spec"]["entrypoint"]
    assert command == f"exec python -m hpo_ray cluster=attach cluster.address=auto cluster.grow_to={grow_to}"


@pytest.mark.parametrize(
    "name, prefix",
    [
        ("Digits_CNN asha", "digits-cnn-asha-"),
        ("7_of_9", "hpo-7-of-9-"),
        ("ä", "hpo-"),
        ("a" * 60, "a" * 41 + "-"),
        ("a" * 40 + "_b", "a" * 40 + "-"),
    ],
)
def test_names_are_kubernetes_names(name: str, prefix: str) -> None:
    rayjob = manifest(kuberay(), study(name=name))
    assert rayjob["metadata"] == {"generateName": prefix}
    jsonschema.validate(rayjob, SCHEMA)


def test_no_value_of_here_is_in_the_manifest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets are named, and their values are Kubernetes' to put in."""
    for name in ("WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN", "HF_TOKEN"):
        monkeypatch.setenv(name, "hunter2")
    cluster = kuberay(secret="keys", runtime_env={"env_vars": {"WANDB_API_KEY": None, "MODE": "fast"}})
    text = cluster.render(study())
    assert "hunter2" not in text and text == cluster.render(study())
    rayjob = yaml.safe_load(text)
    wanted = {"name": "WANDB_API_KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "WANDB_API_KEY"}}}
    assert all(wanted in pod["spec"]["containers"][0]["env"] for pod in pods(rayjob)) and len(pods(rayjob)) == 2
    assert yaml.safe_load(rayjob["spec"]["runtimeEnvYAML"]) == {"env_vars": {"MODE": "fast"}}


@pytest.mark.parametrize("token", [True, False])
def test_tokens_are_asked_for_or_turned_off(token: bool) -> None:
    """Nothing is left to a default: Ray's has changed between versions."""
    rayjob = manifest(kuberay(token=token), study())
    off = {"name": "RAY_AUTH_MODE", "value": "disabled"}
    assert all((off in pod["spec"]["containers"][0]["env"]) != token for pod in pods(rayjob))
    assert rayjob["spec"]["rayClusterSpec"].get("authOptions") == ({"mode": "token"} if token else None)


def test_the_version_of_ray_is_the_one_installed_here() -> None:
    from importlib.metadata import version

    rayjob = manifest(KubeRay(image=IMAGE), study())
    assert rayjob["spec"]["rayClusterSpec"]["rayVersion"] == version("ray")


@pytest.mark.parametrize(
    "keys, key, message",
    [
        ({"image": "two words"}, "image", r"'two words': must be like ghcr\.io/me/study:1"),
        ({"namespace": "My_Space"}, "namespace", "must be like default"),
        ({"ray_version": "nightly"}, "ray_version", r"must be like 2\.60\.0"),
        ({"ray_version": "2.51.1"}, "ray_version", r"tokens since 2\.52; use a newer one, or cluster\.token=false"),
        ({"head": {"cpus": 2}}, "head.cpus", "no such key; nearest: cpu; there are: cpu, memory"),
        ({"head": 4}, "head", "must be a mapping with cpu, memory"),
        ({"head": {"cpu": 1.5}}, "head.cpu", "must be a whole number >= 1"),
        ({"worker": {"cpu": 0}}, "worker.cpu", "must be a whole number >= 1"),
        ({"worker": {"memory": 32}}, "worker.memory", "32: must be like 16Gi"),
        ({"worker": {"memory": "32GB"}}, "worker.memory", "must be like 16Gi"),
        ({"worker": {"gpu": 0.5}}, "worker.gpu", "must be a whole number >= 0"),
        ({"worker": {"node_selector": "a100"}}, "worker.node_selector", "must be a mapping of labels"),
        ({"min_workers": -1}, "min_workers", "must be a whole number >= 0"),
        ({"max_workers": 0}, "max_workers", "must be a whole number >= 1"),
        ({"max_workers": True}, "max_workers", "must be a whole number >= 1"),
        ({"min_workers": 5}, "min_workers", r"5: more than cluster\.max_workers=4"),
        ({"idle_timeout_s": 0}, "idle_timeout_s", "must be a whole number >= 1"),
        ({"volume": {"claim": "Studies"}}, "volume.claim", "must be like studies"),
        ({"volume": {"path": "studies"}}, "volume.path", "must be like /mnt/studies"),
        ({"volume": {"path": "/mnt/.."}}, "volume.path", "must be like /mnt/studies"),
        ({"token": "yes"}, "token", "must be true or false"),
        ({"secret": ""}, "secret", "must be like hpo-keys"),
        ({"stop_grace_s": 0}, "stop_grace_s", "must be a whole number >= 1"),
        ({"ttl_s": -1}, "ttl_s", "must be a whole number >= 0"),
        ({"keep_cluster": 1}, "keep_cluster", "must be true or false"),
        ({"runtime_env": {"conda": "x"}}, "runtime_env.conda", "no such key"),
    ],
)
def test_keys_that_cannot_be(keys: dict[str, Any], key: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        kuberay(**keys)
    assert error.value.key == f"cluster.{key}" and str(error.value).startswith(f"cluster.{key}=")


NO_WORKER = r"so that no trial ever fits; use workers with cluster\.worker"


@pytest.mark.parametrize(
    "keys, submission, key, message",
    [
        ({"image": None}, study(), "cluster.image", "name an image that holds hpo_ray, your code and Ray 2.60.0"),
        ({}, study("/mnt/hpo_ray/x"), "study.root", r"a volume \(cluster\.volume\.claim=NAME\), or a URI"),
        ({"volume": {"claim": "c"}}, study("/home/me"), "study.root", "use a folder below /mnt/hpo_ray, or a URI"),
        ({"volume": {"claim": "c"}}, study("/mnt/hpo_ray/../me"), "study.root", "use a folder below /mnt/hpo_ray"),
        ({"volume": {"claim": "c"}}, study("/mnt/hpo_rays"), "study.root", "use a folder below /mnt/hpo_ray"),
        ({}, study("file:///mnt/hpo_ray"), "study.root", "the nodes of the cluster don't all see it"),
        ({}, study(cpu=5), "resources.cpu", rf"5: a worker has 4 .*{NO_WORKER}\.cpu=5"),
        ({"worker": {"gpu": 0}}, study(gpu=0.5), "resources.gpu", rf"0\.5: a worker has 0 .*{NO_WORKER}\.gpu=1"),
        ({"worker": {"gpu": 1}}, study(gpu=2), "resources.gpu", rf"2: a worker has 1 .*{NO_WORKER}\.gpu=2"),
        ({}, study(gpu=1, workers=5), "resources.workers", r"4 workers .* room for 1 process each never hold"),
        ({}, study(gpu=1, workers=2, placement="STRICT_PACK"), "resources.workers", "=STRICT_PACK; use more or larger"),
        (
            {"worker": {"gpu": 8, "cpu": 8}},
            study(gpu=1, workers=5, placement="STRICT_SPREAD"),
            "resources.workers",
            "4 workers .* room for 8 processes each never hold a trial with resources.placement=STRICT_SPREAD",
        ),
        (
            {},
            study(labels={ACCELERATOR_LABEL: ("A100",)}),
            "cluster.worker.node_selector",
            "trials want nodes with ray.io/accelerator-type=A100; say how Kubernetes labels them",
        ),
        ({}, study(labels={"zone": ("a", "b")}), "resources.labels", r"\['a', 'b'\]: the workers .* of one kind"),
        ({}, study(labels={"zone": ("a b",)}), "resources.labels", "a b: is no value of a label"),
        (
            {"runtime_env": {"working_dir": "."}},
            study(),
            "cluster.runtime_env.working_dir",
            "a RayJob uploads no folder; put the code into the image",
        ),
        (
            {"runtime_env": {"env_vars": {"KEY": None}}},
            study(),
            "cluster.runtime_env.env_vars.KEY",
            r"name a Secret that holds it, cluster\.secret=NAME",
        ),
    ],
)
def test_studies_that_cannot_run(keys: dict[str, Any], submission: Submission, key: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        kuberay(**keys).render(submission)
    assert error.value.key == key


@pytest.mark.parametrize("root", ["/mnt/hpo_ray", "/mnt/hpo_ray/a/../b", "s3://b/s", "gs://b/s"])
def test_studies_lie_where_all_nodes_see_them(root: str) -> None:
    assert kuberay(volume={"claim": "c"}).render(study(root))


# What a kubectl does that answers from `replies`, one line each to `get`, and writes down what it was asked.
KUBECTL = """#!{python}
import json, pathlib, sys
here = pathlib.Path(__file__).parent
with open(here / "asked", "a") as asked:
    print(*sys.argv[1:], file=asked)
words = [word for word in sys.argv[1:] if word not in ("-n", "research")]
if words[0] == "create":
    (here / "sent").write_text(sys.stdin.read())
    if (here / "refusal").exists():
        sys.exit((here / "refusal").read_text())
    print("rayjob.ray.io/digits-x7k2p created")
elif words[0] == "get":
    first, *rest = (here / "replies").read_text().splitlines()
    (here / "replies").write_text("\\n".join(rest or [first]))
    if first == "error":
        sys.exit("Unable to connect to the server")
    deployment, job, message = first.split(",")
    print(json.dumps({{"status": {{"jobDeploymentStatus": deployment, "jobStatus": job, "message": message}}}}))
else:
    print("the log")
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a kubectl that is the only one on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "kubectl"
    script.write_text(KUBECTL.format(python=sys.executable))
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(kubectl, "POLL_S", 0)
    return folder


def asked(folder: Path) -> list[str]:
    return (folder / "asked").read_text().splitlines()


def test_submit_sends_what_it_renders(fake: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cluster = kuberay(namespace="research")
    assert cluster.submit(study(), detach=True) == 0
    assert (fake / "sent").read_text() == cluster.render(study())
    assert asked(fake) == ["create --validate=strict -f -"]
    assert capfd.readouterr().out == (
        "RayJob digits-x7k2p is created\n"
        "  follow  kubectl -n research logs -f job/digits-x7k2p\n"
        "  look    kubectl -n research get rayjob digits-x7k2p\n"
        "  stop    kubectl -n research delete rayjob digits-x7k2p\n"
    )


@pytest.mark.parametrize(
    "replies, code, told",
    [
        (["Initializing,,", "Running,RUNNING,", "error", "Complete,SUCCEEDED,"], 0, "Complete, SUCCEEDED"),
        (["Complete,SUCCEEDED,Job finished successfully."], 0, "Complete, SUCCEEDED"),
        (["Running,RUNNING,", "Failed,FAILED,the metric never came"], 1, "Failed, FAILED: the metric never came"),
        (["Running,RUNNING,", "Complete,STOPPED,"], 1, "Complete, STOPPED"),
        (["ValidationFailed,,rayClusterSpec is missing"], 1, "ValidationFailed: rayClusterSpec is missing"),
    ],
)
def test_follow(replies: list[str], code: int, told: str, fake: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (fake / "replies").write_text("\n".join(replies))
    assert kuberay().submit(study(), detach=False) == code
    lines = capfd.readouterr().out.splitlines()
    states = [line for line in lines if line.startswith("RayJob digits-x7k2p: ")]
    assert states[-1] == f"RayJob digits-x7k2p: {told}"
    assert len(states) == len([reply for reply in replies if reply != "error"])
    assert "the log" in lines, "also of a study that is over before anyone looks"
    assert "get rayjob digits-x7k2p -o json" in asked(fake) and "logs -f job/digits-x7k2p" in asked(fake)


def test_a_rayjob_that_is_out_of_sight(fake: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (fake / "replies").write_text("error")
    assert kuberay(namespace="research").submit(study(), detach=False) == 1
    assert asked(fake)[1:] == ["-n research get rayjob digits-x7k2p -o json"] * kubectl.PATIENCE
    assert "RayJob digits-x7k2p is out of sight: Unable to connect to the server\n" in capfd.readouterr().out


def test_a_rayjob_that_comes_back_into_sight(fake: Path) -> None:
    away = ["error"] * (kubectl.PATIENCE - 1)
    (fake / "replies").write_text("\n".join([*away, "Running,RUNNING,", *away, "Complete,SUCCEEDED,"]))
    assert kuberay().submit(study(), detach=False) == 0


def test_ctrl_c_detaches(fake: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupted)
    (fake / "replies").write_text("Running,RUNNING,")
    assert kuberay().submit(study(), detach=False) == 0
    out = capfd.readouterr().out
    assert out.endswith(f"detached; RayJob digits-x7k2p goes on\n{kubectl.hints('digits-x7k2p', None)}\n")


def test_kubectl_refuses(fake: Path) -> None:
    (fake / "refusal").write_text('no matches for kind "RayJob" in version "ray.io/v1"')
    with pytest.raises(ConfigError, match='cluster=kuberay: kubectl refuses the RayJob: no matches for kind "RayJob"'):
        kuberay().submit(study(), detach=True)


def test_nothing_is_sent_that_cannot_run(fake: Path) -> None:
    with pytest.raises(ConfigError, match="a worker has 4"):
        kuberay().submit(study(cpu=5), detach=True)
    assert os.listdir(fake) == ["kubectl"]


def test_no_kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="there is no kubectl here; install it, or write the manifest with --render"):
        kuberay().submit(study(), detach=True)


@pytest.mark.parametrize("reply", ["", "pod/digits created", "rayjob.ray.io/digits configured"])
def test_replies_without_a_name(reply: str) -> None:
    with pytest.raises(ConfigError, match="without a name"):
        kubectl.parse(reply)


def test_parse_finds_the_name_below_warnings() -> None:
    assert kubectl.parse("Warning: something is old\nrayjob.ray.io/digits-x7k2p created\n") == "digits-x7k2p"


def test_states_without_a_status() -> None:
    state = kubectl.State.of(json.dumps({"kind": "RayJob"}))
    assert (state.deployment, state.job, state.done, str(state)) == ("", "", False, "new")
