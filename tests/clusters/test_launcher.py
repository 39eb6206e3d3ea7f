"""cluster=launcher: the cluster.yaml for `ray up`. No test needs a cloud."""

from __future__ import annotations

import copy
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from golden import GOLDEN, check_golden

from hpo_ray.clusters import Launcher
from hpo_ray.clusters.base import Submission
from hpo_ray.errors import ConfigError
from hpo_ray.resources import ACCELERATOR_LABEL, Resources

VERSIONS = {"ray_version": "2.60.0", "torch_version": "2.13.0"}
GCP = {
    "provider": "gcp",
    "region": "us-west1",
    "availability_zone": "us-west1-a",
    "project_id": "my-project",
    "head": {"type": "n2-standard-4"},
    "worker": {"type": "g2-standard-8", "cpu": 8, "gpu": 1},
    "machine_image": "projects/my-project/global/images/family/pytorch",
}
CASES: dict[str, tuple[dict[str, Any], Submission]] = {
    "launcher_aws_spot.yaml": (
        {
            "availability_zone": "us-west-2a,us-west-2b",
            "worker": {"node_config": {"IamInstanceProfile": {"Name": "hpo-worker"}}},
            "max_workers": 8,
            "pip": ["/home/ubuntu/hpo_ray-0.1.0-py3-none-any.whl"],
            "file_mounts": {"/home/ubuntu/hpo_ray-0.1.0-py3-none-any.whl": "dist/hpo_ray-0.1.0-py3-none-any.whl"},
        },
        Submission(
            "Digits_CNN asha",
            ("method=asha", "space={lr: {low: 1e-4, high: 0.3}}", "store.root=s3://bucket/studies"),
            "s3://bucket/studies",
            Resources(gpu=0.5, labels={ACCELERATOR_LABEL: ("A10G",)}),
        ),
    ),
    "launcher_gcp_spot.yaml": (
        {**GCP, "min_workers": 1},
        Submission("digits", ("study.root=gs://bucket/s",), "gs://bucket/s", Resources(gpu=1), concurrency=3),
    ),
    "launcher_aws_cpu_efs_docker.yaml": (
        {
            "worker": {"type": "m5.2xlarge", "gpu": 0},
            "machine_image": "ami-0123456789abcdef0",
            "spot": False,
            "token": False,
            "docker_image": "ghcr.io/me/study:1",
            "setup_commands": ["nvidia-smi || true"],
            "volume": {"server": "fs-0123.efs.us-west-2.amazonaws.com:/", "path": "/mnt/studies"},
        },
        Submission("digits", ("study.root=/mnt/studies/a",), "/mnt/studies/a", Resources(cpu=2)),
    ),
}


def launcher(**keys: Any) -> Launcher:
    return Launcher(**{**VERSIONS, **keys})


def study(root: str = "s3://bucket/studies", **asked: Any) -> Submission:
    return Submission("digits", ("task=digits_mlp",), root, Resources(**asked))


def config(cluster: Launcher, submission: Submission) -> dict[str, Any]:
    rendered = yaml.safe_load(cluster.render(submission))
    assert isinstance(rendered, dict)
    return rendered


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str) -> None:
    keys, submission = CASES[case]
    check_golden(case, launcher(**keys).render(submission))


@pytest.mark.parametrize("case", CASES)
def test_golden_files_validate_against_rays_schema(case: str) -> None:
    autoscaler = pytest.importorskip("ray.autoscaler")
    schema = json.loads((Path(autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(yaml.safe_load((GOLDEN / case).read_text()), schema)


@pytest.mark.parametrize("case", CASES)
def test_ray_up_takes_the_golden_files(case: str) -> None:
    """What `ray up` does first, before it asks the cloud: its own defaults below the file, and its checks."""
    util = pytest.importorskip("ray.autoscaler._private.util")
    given = yaml.safe_load((GOLDEN / case).read_text())
    filled = util.prepare_config(copy.deepcopy(given))
    util.validate_config(filled)
    assert all(filled[key] == given[key] for key in ("provider", "auth", "file_mounts", "worker_start_ray_commands"))
    assert filled["worker_setup_commands"] == given["setup_commands"], "nothing of Ray's, which would install another"
    assert filled["head_setup_commands"][: len(given["setup_commands"])] == given["setup_commands"]


def test_only_ssh_is_open_and_everyone_needs_the_token() -> None:
    rendered = config(launcher(), study())
    head, worker = (rendered[f"{kind}_start_ray_commands"][-1] for kind in ("head", "worker"))
    assert "RAY_AUTH_MODE=token" in head and "RAY_AUTH_MODE=token" in worker
    assert head.endswith("--dashboard-host=127.0.0.1")
    assert rendered["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    assert "security_group" not in rendered["provider"], "Ray's own opens port 22 only"


def test_no_value_of_here_is_in_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN", "HF_TOKEN"):
        monkeypatch.setenv(name, "hunter2")
    text = launcher().render(study())
    assert "hunter2" not in text and text == launcher().render(study())


def test_the_versions_are_those_installed_here() -> None:
    commands = config(Launcher(), study())["setup_commands"]
    assert commands[0] == f"pip install 'ray[default]=={version('ray')}' torch=={version('torch').partition('+')[0]}"


def test_an_argument_of_several_lines_stays_a_comment() -> None:
    submission = Submission("digits", ("task.args.note=one\ncluster_name: two",), "s3://b/s")
    assert config(launcher(), submission)["cluster_name"] == "digits"


def test_submit_starts_nothing_and_says_what_to_type() -> None:
    with pytest.raises(ConfigError) as error:
        launcher().submit(study(gpu=0.5), detach=False)
    assert str(error.value) == (
        "cluster=launcher: starts no machines by itself. Write the file with --render, then type its commands:\n"
        "  python -m hpo_ray submit --render cluster=launcher … > cluster.yaml\n"
        "  ray get-auth-token --generate   # once: ~/.ray/auth_token, which all nodes get\n"
        "  export RAY_AUTH_MODE=token\n"
        "  ray up cluster.yaml\n"
        "  ray dashboard cluster.yaml   # leave it open: it forwards port 8265 of the head by ssh\n"
        "  python -m hpo_ray submit cluster=ray_job cluster.grow_to=8 task=digits_mlp\n"
        "  ray down cluster.yaml   # nodes cost money until then"
    )


@pytest.mark.parametrize(
    "keys, key, message",
    [
        ({"provider": "azure"}, "provider", "'azure': must be one of aws, gcp"),
        ({"region": "us-west1"}, "region", "must be like us-west-2"),
        ({**GCP, "region": "us-west-2"}, "region", "must be like us-west1"),
        ({**GCP, "availability_zone": None}, "availability_zone", "GCP needs it, us-west1-a"),
        ({**GCP, "project_id": None}, "project_id", "GCP needs it"),
        ({**GCP, "machine_image": None}, "machine_image", "GCP needs it, projects/PROJECT"),
        ({"head": {"type": "n2-standard-4"}}, "head.type", "must be like g5.2xlarge"),
        ({**GCP, "worker": {}}, "worker.type", "'g5.2xlarge': must be like g2-standard-8"),
        ({"worker": {"cpus": 8}}, "worker.cpus", "no such key; nearest: cpu"),
        ({"worker": {"cpu": 0}}, "worker.cpu", "must be a whole number >= 1"),
        ({"worker": {"gpu": 0.5}}, "worker.gpu", "must be a whole number >= 0"),
        ({"worker": {"node_config": []}}, "worker.node_config", "must be a mapping"),
        ({"disk_gb": 8}, "disk_gb", "must be a whole number >= 30"),
        ({"min_workers": 5}, "min_workers", r"5: more than cluster\.max_workers=4"),
        ({"spot": "yes"}, "spot", "must be true or false"),
        ({"idle_timeout_minutes": 0}, "idle_timeout_minutes", "must be a whole number >= 1"),
        ({"torch_version": "latest"}, "torch_version", "must be like 2.60.0"),
        ({"pip": "rich"}, "pip", "must be a list of texts"),
        ({"setup_commands": [1]}, "setup_commands", "must be a list of texts"),
        ({"file_mounts": ["a"]}, "file_mounts", "must be a mapping"),
        ({"volume": {"server": "fs-1"}}, "volume.server", r"must be like fs-ID\.efs\.us-west-2\.amazonaws\.com:/"),
        ({"volume": {"path": "/"}}, "volume.path", "must be like /mnt/studies"),
        ({"ssh_user": "me; rm"}, "ssh_user", "must be like ubuntu"),
        ({"stop_grace_s": 0}, "stop_grace_s", "must be a whole number >= 1"),
    ],
)
def test_keys_that_cannot_be(keys: dict[str, Any], key: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        launcher(**keys)
    assert error.value.key == f"cluster.{key}" and str(error.value).startswith(f"cluster.{key}")


@pytest.mark.parametrize(
    "keys, submission, key, message",
    [
        ({}, study("/mnt/hpo_ray/a"), "study.root", r"volume \(cluster\.volume\.server=SERVER:/EXPORT\), or a URI"),
        ({"volume": {"server": "nfs:/x"}}, study("/home/me"), "study.root", "use a folder below /mnt/hpo_ray"),
        ({}, study(cpu=9), "resources.cpu", r"9: a worker has 8 .* cluster\.worker\.cpu=9"),
        ({}, study(gpu=2), "resources.gpu", r"2: a worker has 1 .* cluster\.worker\.gpu=2"),
        ({}, study(labels={"zone": ("a", "b")}), "resources.labels", "of one kind; use one value"),
    ],
)
def test_studies_that_cannot_run(keys: dict[str, Any], submission: Submission, key: str, message: str) -> None:
    for act in (launcher(**keys).render, lambda given: launcher(**keys).submit(given, detach=True)):
        with pytest.raises(ConfigError, match=message) as error:
            act(submission)
        assert error.value.key == key
