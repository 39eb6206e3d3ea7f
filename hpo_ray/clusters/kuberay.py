"""cluster=kuberay: a RayJob of KubeRay, a Ray cluster on Kubernetes that lives as long as the study.

The head runs the study, workers with GPUs run its trials, and Ray's autoscaler adds and removes them. Facts of KubeRay
are from its API reference (docs.ray.io, "KubeRay CRD API reference") and the checks of its operator.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hpo_ray.clusters.base import WAIT_S, Remote, RuntimeEnv, Submission, checked_wait_s
from hpo_ray.clusters.kubectl import follow, hints, parse, send
from hpo_ray.clusters.rendering import matching, name_of, section, to_yaml, truth, version_of, whole
from hpo_ray.clusters.workers import Workers, bounds, check_root, folder_of, node_labels
from hpo_ray.errors import ConfigError

LONGEST_NAME = 47
"""Of a RayJob: KubeRay appends to it for its cluster and services, whose names are at most 63."""
_SUFFIX = 5  # what Kubernetes appends to a generateName
_GPU = "nvidia.com/gpu"
_MEMORY = r"[1-9]\d*(Mi|Gi|Ti|M|G|T)"
_NAME = r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?"  # DNS-1123
_FIRST_WITH_TOKENS = (2, 52)


class KubeRay(Remote):
    """A Ray cluster on Kubernetes for one study, by KubeRay 1.5.1 or newer.

    Args:
        image: of head and workers; it holds `hpo_ray`, the user's code and Ray of `ray_version`.
        namespace: by default that of kubectl's current context.
        ray_version: by default the one installed here.
        head: `{cpu, memory}` of the node that drives the study; no trial runs on it.
        worker: `{cpu, memory, gpu, node_selector}` of each worker. `gpu: null` is what one process of a trial asks for,
            rounded up. `node_selector` are labels of Kubernetes nodes.
        wait_s: see `Attach`.
        min_workers: workers that are there from the start to the end.
        max_workers: the most workers; the autoscaler runs if they are more than `min_workers`.
        idle_timeout_s: after how many seconds without a trial a worker is removed.
        volume: `{claim, path}`: a claim of a volume that many nodes write (ReadWriteMany), and where they mount it.
        token: whether who talks to the cluster needs a token, which KubeRay makes and keeps in a Secret.
        secret: the Secret that holds the environment variables without a value.
        stop_grace_s: seconds that a stopped study has to write its last events.
        ttl_s: seconds for which the cluster is kept after the study's end, to look at it.
        keep_cluster: whether the cluster is kept for good.
        runtime_env: see `RuntimeEnv`. There is no upload: `working_dir` can only be a URI.

    Raises:
        ConfigError: an argument can't be.
    """

    name = "kuberay"

    def __init__(
        self,
        image: str | None = None,
        namespace: str | None = None,
        ray_version: str | None = None,
        head: Mapping[str, Any] | None = None,
        worker: Mapping[str, Any] | None = None,
        wait_s: float = WAIT_S,
        min_workers: int = 0,
        max_workers: int = 4,
        idle_timeout_s: int = 60,
        volume: Mapping[str, Any] | None = None,
        token: bool = True,
        secret: str | None = None,
        stop_grace_s: int = 60,
        ttl_s: int = 600,
        keep_cluster: bool = False,
        runtime_env: Mapping[str, Any] | None = None,
    ) -> None:
        def named(key: str, value: Any, example: str) -> str | None:
            return None if value is None else matching(f"cluster.{key}", value, _NAME, example)

        self.image = None if image is None else matching("cluster.image", image, r"\S+", "ghcr.io/me/study:1")
        self.namespace = named("namespace", namespace, "default")
        self.ray_version = version_of("ray", "cluster.ray_version", ray_version)
        self.head = _node("cluster.head", section("cluster.head", head, {"cpu": 2, "memory": "8Gi"}))
        worker = section("cluster.worker", worker, {"cpu": 4, "memory": "16Gi", "gpu": None, "node_selector": {}})
        self.worker = _node("cluster.worker", worker)
        self.worker_gpu = None if worker["gpu"] is None else whole("cluster.worker.gpu", worker["gpu"])
        self.node_selector = _texts("cluster.worker.node_selector", worker["node_selector"])
        self.wait_s = checked_wait_s(wait_s)
        self.min_workers, self.max_workers = bounds(min_workers, max_workers)
        self.idle_timeout_s = whole("cluster.idle_timeout_s", idle_timeout_s, 1)
        volume = section("cluster.volume", volume, {"claim": None, "path": "/mnt/hpo_ray"})
        self.claim = named("volume.claim", volume["claim"], "studies")
        self.path = folder_of("cluster.volume.path", volume["path"])
        self.token = truth("cluster.token", token)
        if self.token and tuple(int(part) for part in self.ray_version.split(".")[:2]) < _FIRST_WITH_TOKENS:
            raise ConfigError(
                f"cluster.ray_version={self.ray_version}: Ray has tokens since 2.52; use a newer one, or "
                f"cluster.token=false",
                key="cluster.ray_version",
            )
        self.secret = named("secret", secret, "hpo-keys")
        self.stop_grace_s = whole("cluster.stop_grace_s", stop_grace_s, 1)
        self.ttl_s = whole("cluster.ttl_s", ttl_s)
        self.keep_cluster = truth("cluster.keep_cluster", keep_cluster)
        self.runtime_env = RuntimeEnv.of(runtime_env or {})

    def render(self, submission: Submission) -> str:
        """The manifest of the RayJob, for `kubectl create`.

        Raises:
            ConfigError: the trials never fit, the nodes don't see the studies, or what a pod needs is missing.
        """
        self._check(submission)
        return to_yaml(self._rayjob(submission), "kubectl create -f rayjob.yaml   # KubeRay >= 1.5.1")

    def submit(self, submission: Submission, detach: bool) -> int:
        """Creates the RayJob by kubectl, and follows it unless detached.

        Returns:
            0 if the study succeeded, also for one that isn't followed to its end; otherwise 1.

        Raises:
            ConfigError: kubectl is missing, or refuses the RayJob.
        """
        name = parse(send(self.render(submission)))
        print(f"RayJob {name} is created\n{hints(name, self.namespace)}", flush=True)
        if detach:
            return 0
        try:
            return follow(name, self.namespace)
        except KeyboardInterrupt:
            print(f"detached; RayJob {name} goes on\n{hints(name, self.namespace)}", flush=True)
            return 0

    def _check(self, submission: Submission) -> None:
        if self.image is None:
            raise ConfigError(
                "cluster.image is missing: there is no upload, so name an image that holds hpo_ray, your code and "
                f"Ray {self.ray_version}, cluster.image=REGISTRY/NAME:TAG",
                key="cluster.image",
            )
        folder = self.runtime_env.working_dir
        if folder is not None and "://" not in folder:
            raise ConfigError(
                f"cluster.runtime_env.working_dir={folder}: a RayJob uploads no folder; put the code into the image "
                "(cluster.image), or use the URI of an archive, s3://BUCKET/code.zip",
                key="cluster.runtime_env.working_dir",
            )
        check_root(submission.root, self.path if self.claim else None, "cluster.volume.claim=NAME")
        missing = [name for name, value in self.runtime_env.env_vars.items() if value is None]
        if missing and self.secret is None:
            raise ConfigError(
                f"cluster.runtime_env.env_vars.{missing[0]} has no value, and no value of here is written into a "
                f"manifest; name a Secret that holds it, cluster.secret=NAME",
                key=f"cluster.runtime_env.env_vars.{missing[0]}",
            )
        if submission.drives and node_labels(submission.resources) and not self.node_selector:
            name, value = next(iter(node_labels(submission.resources).items()))
            raise ConfigError(
                f"resources: trials want nodes with {name}={value}; say how Kubernetes labels them, for example "
                f"'cluster.worker.node_selector={{cloud.google.com/gke-accelerator: nvidia-tesla-a100}}'",
                key="cluster.worker.node_selector",
            )

    def _rayjob(self, submission: Submission) -> dict[str, Any]:
        gpu = math.ceil(submission.resources.gpu) if self.worker_gpu is None else self.worker_gpu
        grow_to = Workers(self.worker["cpu"], gpu, self.max_workers).trials(submission)
        cluster: dict[str, Any] = {"rayVersion": self.ray_version}
        if self.token:
            cluster["authOptions"] = {"mode": "token"}
        if submission.drives and self.max_workers > self.min_workers:
            cluster["enableInTreeAutoscaling"] = True
            cluster["autoscalerOptions"] = {"upscalingMode": "Default", "idleTimeoutSeconds": self.idle_timeout_s}
        cluster["headGroupSpec"] = {
            "rayStartParams": {"num-cpus": "0"},  # Ray runs no trial there
            "template": {"spec": self._pod("ray-head", self.head)},
        }
        if submission.drives:
            cluster["workerGroupSpecs"] = [self._group(submission, gpu)]
        spec: dict[str, Any] = {
            # KubeRay's default, whose log is that of a Kubernetes Job
            "submissionMode": "K8sJobMode",
            # A study that is tried again as it is would only meet its own name; `resume` goes on.
            "backoffLimit": 0,
            "shutdownAfterJobFinishes": not self.keep_cluster,
        }
        if not self.keep_cluster:
            spec["ttlSecondsAfterFinished"] = self.ttl_s
        spec["entrypoint"] = submission.entrypoint(grow_to, wait_s=self.wait_s)
        if environment := self._environment(submission):
            spec["runtimeEnvYAML"] = to_yaml(environment)
        metadata = {"generateName": name_of(submission.name, LONGEST_NAME - _SUFFIX - 1) + "-"}
        if self.namespace is not None:
            metadata["namespace"] = self.namespace
        return {
            "apiVersion": "ray.io/v1",
            "kind": "RayJob",
            "metadata": metadata,
            "spec": {**spec, "rayClusterSpec": cluster},
        }

    def _group(self, submission: Submission, gpu: int) -> dict[str, Any]:
        pod = self._pod("ray-worker", self.worker, gpu)
        if self.node_selector:
            pod["nodeSelector"] = self.node_selector
        if gpu:
            # Nodes with GPUs are often kept free of pods without this.
            pod["tolerations"] = [{"key": _GPU, "operator": "Exists", "effect": "NoSchedule"}]
        group: dict[str, Any] = {
            "groupName": "trials",
            "replicas": self.min_workers,
            "minReplicas": self.min_workers,
            "maxReplicas": self.max_workers,
        }
        if labels := node_labels(submission.resources):
            group["labels"] = labels  # the autoscaler knows nodes by them that aren't there yet
        return {**group, "rayStartParams": {}, "template": {"spec": pod}}

    def _pod(self, name: str, node: Mapping[str, Any], gpu: int = 0) -> dict[str, Any]:
        amounts = {"cpu": str(node["cpu"]), "memory": node["memory"], **({_GPU: str(gpu)} if gpu else {})}
        variables: list[dict[str, Any]] = [{"name": "RAY_JOB_STOP_WAIT_TIME_S", "value": str(self.stop_grace_s)}]
        if not self.token:
            variables.append({"name": "RAY_AUTH_MODE", "value": "disabled"})  # otherwise the study would look for one
        for variable, value in self.runtime_env.env_vars.items():
            if value is None:
                source = {"secretKeyRef": {"name": self.secret, "key": variable}}
                variables.append({"name": variable, "valueFrom": source})
        container: dict[str, Any] = {
            "name": name,
            "image": self.image,
            "env": variables,
            "resources": {"requests": amounts, "limits": amounts},
        }
        pod: dict[str, Any] = {
            "restartPolicy": "Never",  # the autoscaler replaces workers itself
            "terminationGracePeriodSeconds": self.stop_grace_s,
            "containers": [container],
        }
        if self.claim is not None:
            container["volumeMounts"] = [{"name": "studies", "mountPath": self.path}]
            pod["volumes"] = [{"name": "studies", "persistentVolumeClaim": {"claimName": self.claim}}]
        return pod

    def _environment(self, submission: Submission) -> dict[str, Any]:
        """Ray's runtime environment of the job. Variables without a value are those of its pods."""
        environment: dict[str, Any] = {}
        if self.runtime_env.working_dir is not None:
            environment["working_dir"] = self.runtime_env.working_dir
        if self.runtime_env.pip:
            environment["pip"] = list(self.runtime_env.pip)
        given = {name: value for name, value in self.runtime_env.env_vars.items() if value is not None}
        if variables := {**submission.env_vars, **given}:
            environment["env_vars"] = variables
        return environment


def _node(key: str, node: Mapping[str, Any]) -> dict[str, Any]:
    """Cores and memory of a kind of node."""
    return {
        "cpu": whole(f"{key}.cpu", node["cpu"], 1),
        "memory": matching(f"{key}.memory", node["memory"], _MEMORY, "16Gi"),
    }


def _texts(key: str, given: Any) -> dict[str, str]:
    if not isinstance(given, Mapping):
        raise ConfigError(f"{key}={given!r}: must be a mapping of labels, {{NAME: VALUE}}", key=key)
    return {str(name): str(value) for name, value in given.items()}
