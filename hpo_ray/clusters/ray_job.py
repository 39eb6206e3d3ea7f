"""cluster=ray_job: the command as a job of a Ray cluster that runs already, through its dashboard."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import os
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hpo_ray.clusters.archive import Archive, megabytes
from hpo_ray.clusters.base import SEEN, Remote, RuntimeEnv, Submission, checked_grow_to
from hpo_ray.clusters.rendering import matching
from hpo_ray.errors import ConfigError
from hpo_ray.view import count

_ANSWER_S = 5.0
"""How long the dashboard may take to answer. It is asked twice, so nothing takes longer than ten seconds."""
_AGENT_S = 60.0
"""How long a cluster that has just started may take until it accepts jobs."""
_LOOK_AGAIN_S = 0.5
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
STOPPED = 143
"""The exit code for a job that was stopped."""


class RayJob(Remote):
    """A Ray cluster that runs already, which takes jobs at the address of its dashboard.

    The working directory is uploaded; `python -m hpo_ray` runs in it, on the head unless Ray places it elsewhere, and
    drives the study from there. Needs the packages of the extra `cluster`.

    Args:
        address: of the dashboard, `http://HOST:8265`.
        grow_to: see `Attach`.
        runtime_env: see `RuntimeEnv`; `working_dir` is what is uploaded.
        excludes: patterns of files that are not uploaded, as in a .gitignore. A .gitignore counts, too.
        max_upload_mb: the most that is uploaded, in megabytes before compression.
        stop_grace_s: when the job is stopped, seconds between SIGTERM and the end of its process.
        python: the command there; its environment has `hpo_ray`, unless that is in the working directory.

    Raises:
        ConfigError: an argument can't be.
    """

    name = "ray_job"
    shares_folders = True

    def __init__(
        self,
        address: str = "http://127.0.0.1:8265",
        grow_to: int | None = None,
        runtime_env: Mapping[str, Any] | None = None,
        excludes: Sequence[str] = (),
        max_upload_mb: float = 100,
        stop_grace_s: float = 30,
        python: str = "python",
    ) -> None:
        key = "cluster.address"
        if not isinstance(address, str) or not address.startswith(("http://", "https://")):
            raise ConfigError(
                f"{key}={address}: jobs go to the cluster's dashboard, {key}=http://HOST:8265; for HOST:6379, its "
                f"head, use run with cluster=attach",
                key,
            )
        if "@" in address.partition("://")[2].partition("/")[0]:
            raise ConfigError(f"{key}: has a password in it, which logs would show; use RAY_AUTH_TOKEN", key)
        if not isinstance(excludes, Sequence) or isinstance(excludes, str):
            raise ConfigError(f"cluster.excludes={excludes!r}: must be a list of patterns", key="cluster.excludes")
        for name, value in (("max_upload_mb", max_upload_mb), ("stop_grace_s", stop_grace_s)):
            if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
                raise ConfigError(f"cluster.{name}={value!r}: must be a number > 0", key=f"cluster.{name}")
        self.address = address.rstrip("/")
        self.grow_to = checked_grow_to(grow_to)
        self.runtime_env = RuntimeEnv.of(runtime_env or {})
        self.excludes = tuple(str(pattern) for pattern in excludes)
        self.max_upload_mb = max_upload_mb
        self.stop_grace_s = stop_grace_s
        self.python = matching("cluster.python", python, r"\S+", "/opt/venv/bin/python")

    def render(self, submission: Submission) -> str:
        """The request for the job, as JSON; without secrets, and before a folder becomes an archive."""
        request = self._request(submission, self.runtime_env.shown())
        return json.dumps({"address": self.address, **request}, indent=2) + "\n"

    def _request(self, submission: Submission, variables: Mapping[str, str]) -> dict[str, Any]:
        environment: dict[str, Any] = {}
        if self.runtime_env.working_dir is not None:
            environment["working_dir"] = self.runtime_env.working_dir
        if self.runtime_env.pip:
            environment["pip"] = list(self.runtime_env.pip)
        environment["env_vars"] = {
            "PYTHONUNBUFFERED": "1",
            "RAY_JOB_STOP_WAIT_TIME_S": f"{self.stop_grace_s:g}",
            **submission.env_vars,
            **variables,
        }
        return {
            "entrypoint": submission.entrypoint(self.grow_to, self.python),
            "runtime_env": environment,
            "metadata": {"job_name": submission.name, "hpo_ray": version("hpo_ray")},
        }

    def submit(self, submission: Submission, detach: bool) -> int:
        """Uploads, sends, follows; see `Remote`. The exit code is the job's, 143 of one that was stopped."""
        request = self._request(submission, self.runtime_env.variables(os.environ))
        archive = None
        folder = self.runtime_env.working_dir
        if folder is not None and "://" not in folder:
            home = Path(folder).resolve()
            inside = Path(submission.root).is_relative_to(home) and Path(submission.root) != home
            studies = [f"/{Path(submission.root).relative_to(home)}/"] if inside else []
            archive = Archive.of(home, [*self.excludes, *studies], int(self.max_upload_mb * 1e6))
        client = self._client()
        job = f"{submission.name}-{uuid.uuid4().hex[:8]}"
        if archive is not None:
            print(
                f"uploads    {archive.folder}: {count(len(archive.files), 'file')}, {megabytes(archive.size)}",
                flush=True,
            )
        send(client, job, request, archive)
        print(f"job        {job}\n{self._hints(job)}", flush=True)
        if detach:
            return 0
        try:
            return follow(client, job)
        except KeyboardInterrupt:
            print(f"\ndetached: {job} goes on\n{self._hints(job)}", flush=True)
            return 0

    def _client(self) -> Any:
        """Ray's client of the dashboard, once that has answered and turned out to be one that will do."""
        running = reach(self.address)
        ours = version("ray")
        if running.split(".")[:2] != ours.split(".")[:2]:
            raise ConfigError(
                f"cluster.address={self.address}: the cluster runs Ray {running}, and here is {ours}; install the "
                f"cluster's here, pip install 'ray[default]=={running}', or a cluster of this one",
                key="cluster.address",
            )
        try:
            from ray.job_submission import JobSubmissionClient

            for module in ("dashboard_sdk", "job.sdk"):  # their own words of uploads and connections
                logging.getLogger(f"ray.dashboard.modules.{module}").setLevel(logging.WARNING)
            return JobSubmissionClient(self.address)
        except (ImportError, RuntimeError) as error:  # Ray's, of ray[tune] alone
            raise ConfigError(
                f"submit needs more packages: pip install 'hpo_ray[cluster]' ({error})", key="cluster"
            ) from None

    def _hints(self, job: str) -> str:
        """The commands to follow a job, to look at it and to stop it."""
        token = "RAY_AUTH_MODE=token " if os.environ.get("RAY_AUTH_MODE") == "token" else ""
        return "\n".join(
            f"  {what:<8} {token}ray job {command} {job} --address {self.address}"
            for what, command in (("follow", "logs --follow"), ("look", "status"), ("stop", "stop"))
        )


def reach(address: str) -> str:
    """The version of Ray that a dashboard runs; asks with the token only where one is asked for.

    Raises:
        ConfigError: nothing answers, or it is no dashboard, or it doesn't take the token.
    """
    key = "cluster.address"
    token = ""
    for _ in range(2):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            with urllib.request.urlopen(
                urllib.request.Request(f"{address}/api/version", headers=headers), timeout=_ANSWER_S
            ) as reply:
                return str(json.loads(reply.read())["ray_version"])
        except urllib.error.HTTPError as error:
            if error.code == 401 and not token:
                token = _token(address)
                os.environ["RAY_AUTH_MODE"] = "token"  # read when Ray is imported, which comes later
                continue
            if error.code in (401, 403):
                raise ConfigError(
                    f"{key}={address}: does not take the token that is set here, in RAY_AUTH_TOKEN, the file "
                    f"RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token; set the cluster's",
                    key,
                ) from None
            raise ConfigError(
                f"{key}={address}: answers {error.code} to /api/version; is it a dashboard?", key
            ) from None
        except (ValueError, KeyError, TypeError, http.client.HTTPException):
            raise ConfigError(f"{key}={address}: answers, but is no dashboard of Ray (8265 by default)", key) from None
        except OSError as error:
            why = getattr(error, "reason", error)
            raise ConfigError(
                f"{key}={address}: can't be reached: {getattr(why, 'strerror', None) or why} (tried GET /api/version "
                f"for {_ANSWER_S:g} s). Is the cluster up, and a port forwarded: ssh -L 8265:localhost:8265 HEAD, or "
                f"kubectl port-forward service/HEAD 8265?",
                key,
            ) from None
    raise AssertionError("unreachable")


def _token(address: str) -> str:
    """The token for Ray clusters, from where Ray itself takes it."""
    if text := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return text
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        raise ConfigError(
            f"cluster.address={address}: asks for a token, and there is none here; set RAY_AUTH_TOKEN, or put the "
            f"cluster's into {path}",
            key="cluster.address",
        ) from None


def send(client: Any, job: str, request: Mapping[str, Any], archive: Archive | None) -> None:
    """Uploads the archive and starts the job.

    Raises:
        ConfigError: the cluster doesn't take it.
    """
    with tempfile.TemporaryDirectory() as scratch:
        environment = dict(request["runtime_env"])
        if archive is not None:
            path = Path(scratch, "working_dir.zip")
            archive.write(path)
            environment["working_dir"] = str(path)
        until = time.monotonic() + _AGENT_S
        while True:
            try:
                client.submit_job(**{**request, "runtime_env": dict(environment)}, submission_id=job)
                return
            except Exception as error:  # Ray raises RuntimeError for whatever the cluster replies
                starting = "No available agent" in str(error)
                if not starting or time.monotonic() > until:
                    raise ConfigError(
                        f"cluster.address: the cluster does not take the job: {str(error).strip().splitlines()[-1]}",
                        key="cluster.address",
                    ) from None
                time.sleep(_LOOK_AGAIN_S)


def follow(client: Any, job: str) -> int:
    """Prints what a job prints, until it has ended; its exit code."""
    shown = 0
    while True:
        try:
            shown = asyncio.run(_tail(client, job, shown))
        except (OSError, RuntimeError):  # the connection broke; what was printed comes again, and is skipped
            pass
        info = client.get_job_info(job)
        if str(getattr(info.status, "value", info.status)) in _ENDED:
            return parse(info)
        time.sleep(_LOOK_AGAIN_S)


async def _tail(client: Any, job: str, shown: int) -> int:
    """Prints a job's log from a place on; how far it came."""
    place = 0
    async for text in client.tail_job_logs(job):
        if place + len(text) > shown:
            print(text[max(0, shown - place) :], end="", flush=True)
            shown = place + len(text)
        place += len(text)
    return shown


def parse(info: Any) -> int:
    """The exit code of a job that has ended, from what Ray tells of it; prints why if it never came to run."""
    status = str(getattr(info.status, "value", info.status))
    if status == "SUCCEEDED":
        return 0
    if status == "STOPPED":
        print("stopped: the study can be resumed, with submit resume PATH", flush=True)
        return STOPPED
    if info.driver_exit_code is None:
        print(f"the job failed before it ran: {info.message}", flush=True)
        return 1
    if "No module named hpo_ray" in str(info.message):
        print(
            "the Python of the job has no hpo_ray: install it there, start Ray in an environment that has it, or say "
            "which Python has it, cluster.python=/opt/venv/bin/python",
            flush=True,
        )
    return int(info.driver_exit_code) or 1


def mark(root: Path) -> dict[str, str]:
    """Leaves a file in a folder of here, for the job to find.

    A relative `study.root` means a folder of this machine. Where the cluster is this machine, or shares its file
    system, the job finds the file; elsewhere it must not make a folder of its own, which would go with the cluster.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        path = root / f".hpo_ray-{uuid.uuid4().hex}"
        path.touch()
    except OSError as error:
        raise ConfigError(f"study.root={root}: can't be written: {error.strerror}", "study.root") from None
    return {SEEN: str(path)}


def check_mark() -> None:
    """In a job: raises `ConfigError` if this machine does not see the folder of the one that submitted it."""
    if (path := os.environ.pop(SEEN, None)) is None:
        return
    try:
        os.unlink(path)
    except OSError:
        raise ConfigError(
            f"study.root={os.path.dirname(path)}: is a folder of the machine that submitted the job, and the cluster "
            f"does not see it; give one that all nodes see, study.root=/mnt/shared/outputs, or "
            f"store.root=s3://bucket/outputs",
            key="study.root",
        ) from None
