"""What cluster=kuberay does with kubectl: create a RayJob, read its name, and follow it to its end."""

from __future__ import annotations

import json
import re
import subprocess
import time
from dataclasses import dataclass

from hpo_ray.errors import ConfigError

POLL_S = 5.0
"""Seconds between two looks at a RayJob."""
PATIENCE = 12
"""Looks in a row that may fail."""


def send(text: str) -> str:
    """Creates what the manifest says, and gives kubectl's reply.

    Raises:
        ConfigError: kubectl is missing or refuses.
    """
    # Strict: a KubeRay that knows no tokens would otherwise drop that field without a word.
    reply = _kubectl(["create", "--validate=strict", "-f", "-"], text)
    if reply.returncode != 0:
        raise ConfigError(f"cluster=kuberay: kubectl refuses the RayJob: {reply.stderr.strip()}", key="cluster")
    return reply.stdout


def parse(reply: str) -> str:
    """The name of the RayJob that kubectl created.

    Raises:
        ConfigError: the reply has none.
    """
    found = re.search(r"^rayjob\.ray\.io/(\S+) created", reply, re.MULTILINE)
    if not found:
        raise ConfigError(f"cluster=kuberay: kubectl replied {reply.strip()!r}, without a name", key="cluster")
    return found[1]


def hints(name: str, namespace: str | None) -> str:
    """The commands to follow a RayJob, to look at it and to stop it."""
    kubectl = " ".join(["kubectl", *_where(namespace)])
    return (
        f"  follow  {kubectl} logs -f job/{name}\n"
        f"  look    {kubectl} get rayjob {name}\n"
        f"  stop    {kubectl} delete rayjob {name}"
    )


def follow(name: str, namespace: str | None) -> int:
    """Shows a RayJob's states and its log until it is done.

    Returns:
        0 if the study succeeded; 1 if not, or if the RayJob is out of sight.
    """
    shown, failures, log = "", 0, _Log([*_where(namespace), "logs", "-f", f"job/{name}"])
    try:
        while True:
            reply = _kubectl([*_where(namespace), "get", "rayjob", name, "-o", "json"])
            if reply.returncode == 0:
                failures, state = 0, State.of(reply.stdout)
                if str(state) != shown:
                    shown = str(state)
                    print(f"RayJob {name}: {shown}", flush=True)
                log.follow(state.deployment == "Running")
                if state.done:
                    log.finish()
                    return 0 if state.job == "SUCCEEDED" else 1
            else:
                failures += 1
                if failures == PATIENCE:
                    print(f"RayJob {name} is out of sight: {reply.stderr.strip()}", flush=True)
                    return 1
            time.sleep(POLL_S)
    finally:
        log.close()


@dataclass(frozen=True)
class State:
    """What a RayJob says of itself.

    Attributes:
        deployment: KubeRay's `jobDeploymentStatus`: `Initializing`, `Running`, `Complete`, `Failed` and others.
        job: Ray's `jobStatus`: `PENDING`, `RUNNING`, `STOPPED`, `SUCCEEDED`, `FAILED`, or nothing yet.
        message: what it says of a failure.
    """

    deployment: str
    job: str
    message: str = ""

    @classmethod
    def of(cls, text: str) -> State:
        """Reads what `kubectl get rayjob NAME -o json` wrote."""
        status = json.loads(text).get("status") or {}
        return cls(status.get("jobDeploymentStatus") or "", status.get("jobStatus") or "", status.get("message") or "")

    @property
    def done(self) -> bool:
        """Whether it won't change."""
        return self.deployment in ("Complete", "Failed", "ValidationFailed")

    def __str__(self) -> str:
        told = ", ".join(part for part in (self.deployment, self.job) if part) or "new"
        return f"{told}: {self.message}" if self.message and self.job != "SUCCEEDED" else told


class _Log:
    """`kubectl logs -f`, taken up again when it breaks off, without what it had shown."""

    def __init__(self, arguments: list[str]) -> None:
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None
        self._shown = False

    def follow(self, runs: bool) -> None:
        """Starts it if the study runs and it doesn't."""
        if self._process is not None and self._process.poll() is not None:
            self._shown = self._shown or self._process.returncode == 0
            self._process = None
        if runs and self._process is None:
            arguments = [*self._arguments, "--tail=0"] if self._shown else self._arguments
            # What it says while the container isn't up is no news.
            self._process = subprocess.Popen(["kubectl", *arguments], stderr=subprocess.DEVNULL)

    def finish(self) -> None:
        """Gives it time to show the rest; all of it, if the study was over before its log was looked at."""
        self.follow(not self._shown)
        if self._process is not None:
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                pass

    def close(self) -> None:
        """Ends it."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait()


def _where(namespace: str | None) -> list[str]:
    return [] if namespace is None else ["-n", namespace]


def _kubectl(arguments: list[str], text: str | None = None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(["kubectl", *arguments], input=text, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ConfigError(
            "cluster=kuberay: there is no kubectl here; install it, or write the manifest with --render and use "
            "`kubectl create -f` where it is",
            key="cluster",
        ) from None
