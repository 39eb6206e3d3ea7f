"""cluster=launcher: the cluster.yaml of Ray's cluster launcher, `ray up`, for nodes on AWS or GCP.

Only its text comes from here: `ray up` starts nodes that cost money until `ray down`. Once they run, the study is sent
to them with `cluster=ray_job`.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from hpo_ray.clusters.base import Remote, Submission
from hpo_ray.clusters.rendering import matching, name_of, section, to_yaml, truth, version_of, whole
from hpo_ray.clusters.workers import Workers, bounds, check_root, folder_of, node_labels
from hpo_ray.errors import ConfigError

LONGEST_NAME = 40
"""Of a cluster: the clouds append to it for their nodes, whose names are at most 63."""
_PROVIDERS: dict[str, dict[str, tuple[str, str]]] = {
    "aws": {"type": (r"[a-z][\w-]*\.[\w-]+", "g5.2xlarge"), "region": (r"[a-z]+(-[a-z]+)+-\d", "us-west-2")},
    "gcp": {"type": (r"[a-z]\w*-[\w-]+", "g2-standard-8"), "region": (r"[a-z]+-[a-z]+\d+", "us-west1")},
}
"""By cloud: what its names look like, with an example."""


class Launcher(Remote):
    """A Ray cluster on machines of a cloud, by `ray up`.

    Args:
        provider: `aws` or `gcp`.
        region: of the nodes.
        availability_zone: of the nodes; on AWS several with commas between them, tried in turn.
        project_id: of GCP.
        head: `{type, node_config}`: the machine that drives the study; no trial runs on it. `node_config` is for what
            has no key here, by the names of the cloud's own interface: a subnet, an identity.
        worker: `{type, cpu, gpu, node_config}` of each worker; `cpu` and `gpu` are what its type has.
        machine_image: what nodes start from: an AMI (by default Ray's own choice for the region), or an image of GCP.
        disk_gb: of each node.
        min_workers: workers that are there from the start to the end.
        max_workers: the most workers.
        spot: whether workers are spot machines, which the cloud may take back. The head never is.
        idle_timeout_minutes: after how long without a trial a worker is removed.
        docker_image: what everything runs in; it holds Ray and PyTorch. By default they are installed on the nodes.
        ray_version: by default the one installed here.
        torch_version: by default the one installed here.
        pip: further packages for all nodes.
        setup_commands: further commands for all nodes.
        file_mounts: files and folders of here that all nodes get, `{THERE: HERE}`.
        volume: `{server, path}`: an NFS file system, `SERVER:/EXPORT`, and where all nodes mount it.
        ssh_user: of the machine image.
        token: whether who talks to the cluster needs the token in `~/.ray/auth_token`, which all nodes get.
        stop_grace_s: seconds that a stopped study has to write its last events.

    Raises:
        ConfigError: an argument can't be.
    """

    name = "launcher"

    def __init__(
        self,
        provider: str = "aws",
        region: str = "us-west-2",
        availability_zone: str | None = None,
        project_id: str | None = None,
        head: Mapping[str, Any] | None = None,
        worker: Mapping[str, Any] | None = None,
        machine_image: str | None = None,
        disk_gb: int = 200,
        min_workers: int = 0,
        max_workers: int = 4,
        spot: bool = True,
        idle_timeout_minutes: int = 5,
        docker_image: str | None = None,
        ray_version: str | None = None,
        torch_version: str | None = None,
        pip: Sequence[str] = (),
        setup_commands: Sequence[str] = (),
        file_mounts: Mapping[str, str] | None = None,
        volume: Mapping[str, Any] | None = None,
        ssh_user: str = "ubuntu",
        token: bool = True,
        stop_grace_s: int = 60,
    ) -> None:
        if provider not in _PROVIDERS:
            raise ConfigError(
                f"cluster.provider={provider!r}: must be one of {', '.join(_PROVIDERS)}", key="cluster.provider"
            )
        self.provider = provider
        self.region = matching("cluster.region", region, *_PROVIDERS[provider]["region"])
        self.availability_zone = availability_zone
        self.project_id = project_id
        if provider == "gcp":
            for key, value, example in (
                ("availability_zone", availability_zone, f"{region}-a"),
                ("project_id", project_id, "my-project"),
                ("machine_image", machine_image, "projects/PROJECT/global/images/family/FAMILY"),
            ):
                if not value:
                    raise ConfigError(f"cluster.{key} is missing: GCP needs it, {example}", key=f"cluster.{key}")
        self.head = self._machine("cluster.head", section("cluster.head", head, _HEAD))
        worker = section("cluster.worker", worker, _WORKER)
        self.worker = self._machine("cluster.worker", worker)
        self.cpu = whole("cluster.worker.cpu", worker["cpu"], 1)
        self.gpu = whole("cluster.worker.gpu", worker["gpu"])
        self.machine_image = machine_image
        self.disk_gb = whole("cluster.disk_gb", disk_gb, 30)
        self.min_workers, self.max_workers = bounds(min_workers, max_workers)
        self.spot = truth("cluster.spot", spot)
        self.idle_timeout_minutes = whole("cluster.idle_timeout_minutes", idle_timeout_minutes, 1)
        self.docker_image = docker_image
        self.ray_version = version_of("ray", "cluster.ray_version", ray_version)
        self.torch_version = version_of("torch", "cluster.torch_version", torch_version)
        self.pip = _texts("cluster.pip", pip)
        self.setup_commands = _texts("cluster.setup_commands", setup_commands)
        self.file_mounts = dict(section("cluster.file_mounts", file_mounts, file_mounts or {}))
        volume = section("cluster.volume", volume, {"server": None, "path": "/mnt/hpo_ray"})
        self.server = volume["server"]
        if self.server is not None:
            matching("cluster.volume.server", self.server, r"[^\s:]+:/\S*", f"fs-ID.efs.{region}.amazonaws.com:/")
        self.path = folder_of("cluster.volume.path", volume["path"])
        self.ssh_user = matching("cluster.ssh_user", ssh_user, r"[a-z_][\w-]*", "ubuntu")
        self.token = truth("cluster.token", token)
        self.stop_grace_s = whole("cluster.stop_grace_s", stop_grace_s, 1)

    def render(self, submission: Submission) -> str:
        """The cluster.yaml, which opens with the commands that use it.

        Raises:
            ConfigError: the trials never fit, or the nodes don't see the studies.
        """
        check_root(submission.root, self.path if self.server else None, "cluster.volume.server=SERVER:/EXPORT")
        lines = self._commands(submission)
        if not (self.pip or self.setup_commands or self.file_mounts or self.docker_image):
            lines = [
                *lines,
                "",
                "WARNING: nothing here brings hpo_ray to the nodes. cluster.pip=[URL of its wheel], or an",
                "image (cluster.docker_image), or file_mounts and setup_commands do.",
            ]
        return to_yaml(self._cluster(submission), "\n".join(lines))

    def submit(self, submission: Submission, detach: bool) -> int:
        """Starts nothing: nodes cost money until someone ends them, so the commands are the user's.

        Raises:
            ConfigError: always; it holds the commands.
        """
        self.render(submission)  # what can't be is said first
        commands = "\n  ".join(self._commands(submission))
        raise ConfigError(
            "cluster=launcher: starts no machines by itself. Write the file with --render, then type its commands:\n"
            f"  python -m hpo_ray submit --render cluster=launcher … > cluster.yaml\n  {commands}",
            key="cluster",
        )

    def _machine(self, key: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """The part of a node that says what machine it is, in the cloud's own words."""
        kind = matching(f"{key}.type", given["type"], *_PROVIDERS[self.provider]["type"])
        extra = section(f"{key}.node_config", given["node_config"], given["node_config"] or {})
        return {"InstanceType" if self.provider == "aws" else "machineType": kind, **extra}

    def _commands(self, submission: Submission) -> list[str]:
        grow_to = Workers(self.cpu, self.gpu, self.max_workers).trials(submission)
        job = ["python", "-m", "hpo_ray", "submit", "cluster=ray_job"]
        if grow_to is not None:
            job.append(f"cluster.grow_to={grow_to}")
        commands = [
            "ray up cluster.yaml",
            "ray dashboard cluster.yaml   # leave it open: it forwards port 8265 of the head by ssh",
            shlex.join([*job, *submission.arguments]),
            "ray down cluster.yaml   # nodes cost money until then",
        ]
        if self.token:
            commands.insert(0, "ray get-auth-token --generate   # once: ~/.ray/auth_token, which all nodes get")
            commands.insert(1, "export RAY_AUTH_MODE=token")
        return commands

    def _cluster(self, submission: Submission) -> dict[str, Any]:
        provider: dict[str, Any] = {"type": self.provider, "region": self.region}
        if self.availability_zone is not None:
            provider["availability_zone"] = self.availability_zone
        if self.provider == "gcp":
            provider["project_id"] = self.project_id
        else:
            provider["cache_stopped_nodes"] = False  # stopped nodes would go on costing their disks
        worker: dict[str, Any] = {
            "min_workers": self.min_workers,
            "max_workers": self.max_workers,
            "resources": {"CPU": self.cpu, **({"GPU": self.gpu} if self.gpu else {})},
        }
        if labels := node_labels(submission.resources):
            worker["labels"] = labels  # the autoscaler knows nodes by them that aren't there yet
        cluster: dict[str, Any] = {
            "cluster_name": name_of(submission.name, LONGEST_NAME),
            "max_workers": self.max_workers,
            "idle_timeout_minutes": self.idle_timeout_minutes,
            "provider": provider,
            "auth": {"ssh_user": self.ssh_user},
            "head_node_type": "head",
            "available_node_types": {
                "head": {"resources": {"CPU": 0}, "node_config": self._node(self.head, gpu=0, spot=False)},
                "worker": {**worker, "node_config": self._node(self.worker, self.gpu, self.spot)},
            },
        }
        if self.docker_image is not None:
            mounts = [f"--volume={self.path}:{self.path}"] if self.server else []
            cluster["docker"] = {
                "image": self.docker_image,
                "container_name": "hpo_ray",
                "pull_before_run": True,
                "run_options": ["--ulimit=nofile=65536:65536", *mounts],
            }
        token = {"~/.ray/auth_token": "~/.ray/auth_token"} if self.token else {}
        return {
            **cluster,
            "file_mounts": {**token, **self.file_mounts},
            "initialization_commands": self._mounting(),
            "setup_commands": self._setup(),
            **self._starting(),
        }

    def _node(self, machine: Mapping[str, Any], gpu: int, spot: bool) -> dict[str, Any]:
        """A node in the words of EC2's `create_instances` or of Compute Engine's `instances.insert`."""
        if self.provider == "aws":
            disk = {"VolumeSize": self.disk_gb, "VolumeType": "gp3"}
            return {
                **({"ImageId": self.machine_image} if self.machine_image is not None else {}),
                "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": disk}],
                **({"InstanceMarketOptions": {"MarketType": "spot"}} if spot else {}),
                **machine,
            }
        start = {"diskSizeGb": self.disk_gb, "sourceImage": self.machine_image}
        scheduling: dict[str, Any] = {}
        if spot:
            scheduling = {"provisioningModel": "SPOT", "instanceTerminationAction": "DELETE"}
        if spot or gpu:
            # Machines with GPUs, and spot machines, can't be moved while they run.
            scheduling |= {"onHostMaintenance": "TERMINATE", "automaticRestart": False}
        node = {"disks": [{"boot": True, "autoDelete": True, "type": "PERSISTENT", "initializeParams": start}]}
        return {**node, **({"scheduling": scheduling} if scheduling else {}), **machine}

    def _mounting(self) -> list[str]:
        """Commands that mount the volume, on each node and outside of a container; they may run twice."""
        if self.server is None:
            return []
        server, path = shlex.quote(self.server), self.path
        options = "nfsvers=4.1,rsize=1048576,wsize=1048576,hard,timeo=600,retrans=2,noresvport"  # as AWS advises
        return [
            "which mount.nfs4 || (sudo apt-get update && sudo apt-get install -y nfs-common)",
            f"sudo mkdir -p {path}",
            f"mountpoint -q {path} || sudo mount -t nfs4 -o {options} {server} {path}",
        ]

    def _setup(self) -> list[str]:
        own = [] if self.docker_image else [f"ray[default]=={self.ray_version}", f"torch=={self.torch_version}"]
        packages = [*own, *self.pip]
        commands = [f"pip install {shlex.join(packages)}"] if packages else []
        if self.token:
            # For those who look in by ssh.
            commands.append("grep -q RAY_AUTH_MODE ~/.bashrc || echo 'export RAY_AUTH_MODE=token' >> ~/.bashrc")
        return [*commands, *self.setup_commands]

    def _starting(self) -> dict[str, list[str]]:
        """The commands that start Ray. The dashboard listens on the head alone: it is reached by ssh."""
        mode = "token" if self.token else "disabled"
        before = f"export RAY_AUTH_MODE={mode} RAY_JOB_STOP_WAIT_TIME_S={self.stop_grace_s}; ulimit -n 65536"
        head = (
            "ray start --head --port=6379 --object-manager-port=8076 --autoscaling-config=~/ray_bootstrap_config.yaml"
        )
        worker = "ray start --address=$RAY_HEAD_IP:6379 --object-manager-port=8076"
        return {
            "head_start_ray_commands": ["ray stop", f"{before}; {head} --dashboard-host=127.0.0.1"],
            "worker_start_ray_commands": ["ray stop", f"{before}; {worker}"],
        }


_HEAD: dict[str, Any] = {"type": "m5.xlarge", "node_config": {}}
_WORKER: dict[str, Any] = {"type": "g5.2xlarge", "cpu": 8, "gpu": 1, "node_config": {}}


def _texts(key: str, given: Any) -> list[str]:
    if isinstance(given, str) or not isinstance(given, Sequence) or not all(isinstance(text, str) for text in given):
        raise ConfigError(f"{key}={given!r}: must be a list of texts, ['rich>=13']", key=key)
    return list(given)
