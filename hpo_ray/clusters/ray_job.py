"""cluster=ray_job: the command as a job of a Ray cluster that runs already, through its dashboard."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hpo_ray.clusters.archive import Archive, megabytes
from hpo_ray.clusters.base import SEEN, WAIT_S, Remote, RuntimeEnv, Submission, checked_grow_to, checked_wait_s
from hpo_ray.clusters.dashboard import is_url, reach
from hpo_ray.clusters.rendering import matching, whole
from hpo_ray.errors import ConfigError, StudyError
from hpo_ray.store.urls import without_password
from hpo_ray.view import count

_AGENT_S = 60.0
"""How long a cluster that has just started may take until it accepts jobs."""
_LOST_S = 60.0
"""How long a dashboard that has answered before may stay away."""
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
        wait_s: see `Attach`.
        runtime_env: see `RuntimeEnv`; `working_dir` is what is uploaded.
        excludes: patterns of files that are not uploaded, as in a .gitignore. A .gitignore counts, too.
        max_upload_mb: the most that is uploaded, in megabytes before compression.
        stop_grace_s: when the job is stopped, seconds between SIGTERM and the end of its process.
        python: the command there; its environment has `hpo_ray`, unless that is in the working directory.

    Raises:
        ConfigError: an argument can't be.
    """

    name = "ray_job"

    def __init__(
        self,
        address: str = "http://127.0.0.1:8265",
        grow_to: int | None = None,
        wait_s: float = WAIT_S,
        runtime_env: Mapping[str, Any] | None = None,
        excludes: Sequence[str] = (),
        max_upload_mb: float = 100,
        stop_grace_s: int = 30,
        python: str = "python",
    ) -> None:
        key = "cluster.address"
        if not isinstance(address, str) or not is_url(address):
            raise ConfigError(
                f"{key}={address}: jobs go to the cluster's dashboard, {key}=http://HOST:8265; for HOST:6379, its "
                f"head, use run with cluster=attach",
                key,
            )
        if "@" in urlsplit(address).netloc:
            raise ConfigError(f"{key}: has a password in it, which logs would show; use RAY_AUTH_TOKEN", key)
        if not isinstance(excludes, Sequence) or isinstance(excludes, str):
            raise ConfigError(f"cluster.excludes={excludes!r}: must be a list of patterns", key="cluster.excludes")
        number = isinstance(max_upload_mb, int | float) and not isinstance(max_upload_mb, bool)
        if not number or not 0 < max_upload_mb < math.inf:
            raise ConfigError(
                f"cluster.max_upload_mb={max_upload_mb!r}: must be a number > 0", key="cluster.max_upload_mb"
            )
        self.address = address.rstrip("/")
        self.grow_to = checked_grow_to(grow_to)
        self.wait_s = checked_wait_s(wait_s)
        self.runtime_env = RuntimeEnv.of(runtime_env or {})
        self.excludes = tuple(str(pattern) for pattern in excludes)
        self.max_upload_mb = max_upload_mb
        self.stop_grace_s = whole("cluster.stop_grace_s", stop_grace_s, least=1)  # Ray takes no parts of seconds
        self.python = matching("cluster.python", python, r"\S+", "/opt/venv/bin/python")

    def render(self, submission: Submission) -> str:
        """The request for the job, as JSON; without secrets, and before a folder becomes an archive."""
        shown = replace(submission, arguments=tuple(map(without_password, submission.arguments)))
        return json.dumps({"address": self.address, **self._request(shown, self.runtime_env.shown())}, indent=2) + "\n"

    def _request(self, submission: Submission, variables: Mapping[str, str]) -> dict[str, Any]:
        environment: dict[str, Any] = {}
        if self.runtime_env.working_dir is not None:
            environment["working_dir"] = self.runtime_env.working_dir
        if self.runtime_env.pip:
            environment["pip"] = list(self.runtime_env.pip)
        environment["env_vars"] = {
            "PYTHONUNBUFFERED": "1",
            "RAY_JOB_STOP_WAIT_TIME_S": str(self.stop_grace_s),
            **submission.env_vars,
            **variables,
        }
        return {
            "entrypoint": submission.entrypoint(self.grow_to, self.python, self.wait_s),
            "runtime_env": environment,
            "metadata": {"job_name": submission.name, "hpo_ray": version("hpo_ray")},
        }

    def submit(self, submission: Submission, detach: bool) -> int:
        """Uploads, sends, follows; see `Remote`. The exit code is the job's, 143 of one that was stopped."""
        variables = self.runtime_env.variables(os.environ)
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
        seen = mark(Path(submission.root)) if submission.of_here else None
        if seen is not None:
            submission = replace(submission, env_vars={SEEN: str(seen)})
        try:
            send(client, job, self._request(submission, variables), archive)
        except BaseException:
            if seen is not None:
                seen.unlink(missing_ok=True)
            raise
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
            for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):  # Ray's client takes them before its argument
                os.environ.pop(name, None)
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
    """Prints what a job prints, until it has ended; its exit code.

    Raises:
        StudyError: the dashboard has gone, and with it what it knows of the job.
    """
    log, heard = _Log(client, job), time.monotonic()
    while True:
        # Ray raises RuntimeError, its libraries many others, when a connection breaks or the dashboard starts again.
        try:
            asyncio.run(log.show())
        except BrokenPipeError:  # nobody reads what is shown
            raise
        except Exception:
            pass
        try:
            info = client.get_job_info(job)
        except Exception as error:
            if time.monotonic() - heard > _LOST_S:
                said = (str(error).strip().splitlines() or [type(error).__name__])[-1]
                raise StudyError(
                    f"{job}: its cluster has not answered for {_LOST_S:g} s, so it can't be followed: {said}"
                ) from None
        else:
            heard = time.monotonic()
            if str(getattr(info.status, "value", info.status)) in _ENDED:
                return parse(info)
        time.sleep(_LOOK_AGAIN_S)


class _Log:
    """What a job prints. It comes from its start with each connection; what was shown of it is skipped."""

    def __init__(self, client: Any, job: str) -> None:
        self._client, self._job = client, job
        self._shown = 0

    async def show(self) -> None:
        """Prints what is new, as it comes."""
        place = 0
        async for text in self._client.tail_job_logs(self._job):
            new = text[max(0, self._shown - place) :]
            place += len(text)
            if new:
                self._shown = place
                print(new, end="", flush=True)


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


def mark(root: Path) -> Path:
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
    return path


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
