"""A cluster that runs already: jobs sent to it, followed, stopped and resumed; and studies that attach to it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from hpo_ray.events import FILE_NAME, StudyResumed, read
from hpo_ray.results import load_study
from hpo_ray.testing import check_resumes, run_study

pytestmark = pytest.mark.ray

TOKEN = "0123456789abcdef" * 4
CHECKOUT = Path(__file__).parents[2]
SPACE = "space={lr: {low: 0.1, high: 1.0}}"
STUDY = ["task=custom", SPACE, "method=random", "budget.trials=4", "study.name=s"]


def ports(number: int) -> list[int]:
    """Ports that are free."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(closing(socket.create_server(("127.0.0.1", 0)))) for _ in range(number)]
        return [one.getsockname()[1] for one in sockets]


def environment(**more: str) -> dict[str, str]:
    """That of all processes here: another one's cluster is not found, and nobody gets in without the token."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {"PATH": path, "PYTHONPATH": str(CHECKOUT), "no_proxy": "127.0.0.1", "RAY_USAGE_STATS_ENABLED": "0"}
    own |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    return {**{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}, **own, **more}


def until(condition: Callable[[], object], running: subprocess.Popen[str], seconds: float = 90.0) -> None:
    """Waits for what must come while a process runs."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert running.poll() is None, "it has ended"
        assert time.monotonic() < deadline, "it has not come"
        time.sleep(0.05)


@dataclass
class Head:
    """A head.

    Attributes:
        address: where drivers attach.
        dashboard: where jobs are sent.
        process: `ray start`.
    """

    address: str
    dashboard: str
    process: subprocess.Popen[str]

    def ask(self, path: str) -> dict[str, object]:
        request = urllib.request.Request(self.dashboard + path, headers={"Authorization": f"Bearer {TOKEN}"})
        with urllib.request.urlopen(request, timeout=10) as reply:
            answer = json.loads(reply.read())
        assert isinstance(answer, dict)
        return answer

    def is_up(self) -> bool:
        try:
            return bool(self.ask("/api/version"))
        except OSError:
            return False


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """One for all tests here, with two cores."""
    temp = tempfile.mkdtemp(prefix="hr", dir="/tmp")
    gcs, dashboard, client, agent, grpc = ports(5)
    options = ["--head", "--block", "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--port={gcs}"]
    options += [f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}", f"--temp-dir={temp}"]
    options += [f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={grpc}"]
    options += ["--min-worker-port=0", "--max-worker-port=0", "--num-cpus=2", "--num-gpus=0"]
    with Path(temp, "start.log").open("w") as output:
        started = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", *options],
            env=environment(),
            stdout=output,
            stderr=output,
            text=True,
            start_new_session=True,
        )
    try:
        up = Head(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", started)
        until(up.is_up, started)
        yield up
    finally:
        started.terminate()  # it ends the others
        with suppress(subprocess.TimeoutExpired):
            started.wait(10)
        with suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()
        shutil.rmtree(temp, ignore_errors=True)


def hpo_ray(folder: Path, *words: str, within: Sequence[str] = (), **more: str) -> subprocess.CompletedProcess[str]:
    """`python -m hpo_ray WORDS`, run to its end; by another command, if one is given."""
    command = [*within, sys.executable, "-m", "hpo_ray", *words]
    done = subprocess.run(command, cwd=folder, env=environment(**more), capture_output=True, text=True, timeout=150)
    assert TOKEN not in done.stdout + done.stderr
    return done


def test_a_job_is_sent_followed_and_done(folder: Path, head: Head) -> None:
    """Its study lies in the folder that was named, and is the one that it would have been here."""
    overrides = [*STUDY, "task.trainable=mine.DictCheckpoint", "task.max_resource=3"]
    done = hpo_ray(folder, "submit", "cluster=ray_job", f"cluster.address={head.dashboard}", *overrides, "view=plain")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"uploads    {folder}: 1 file, ") and re.fullmatch(r"job        s-[0-9a-f]{8}", lines[1])
    assert "finished: all trials are done" in lines
    result = load_study(folder / "outputs/s")
    assert {path.name for path in (folder / "outputs").iterdir()} == {"s", "hpo_ray.journal"}, "no mark has stayed"
    assert (result.path / "result.json").is_file() and (result.path / "best").is_dir()
    check_resumes(run_study([*overrides, "executor=inprocess"], folder / "clean"), result)


def test_the_exit_code_is_that_of_the_job(folder: Path, head: Head) -> None:
    """What can't be checked without the cluster fails there, with its own message."""
    words = ["submit", "cluster=ray_job", f"cluster.address={head.dashboard}", *STUDY]
    done = hpo_ray(folder, *words, "task.trainable=mine.trian")
    assert done.returncode == 2 and "task.trainable=mine.trian" in done.stdout and "nearest: train" in done.stdout
    assert not (folder / "outputs/s").exists()


def test_ctrl_c_leaves_the_job_and_what_is_stopped_is_resumed_by_another(folder: Path, head: Head) -> None:
    hurry = folder / "hurry"
    overrides = [*STUDY, "task.trainable=mine.SlowUntil", f"task.args.path={hurry}", "task.max_resource=100"]
    words = ["submit", "cluster=ray_job", f"cluster.address={head.dashboard}"]
    log = folder / "outputs/s" / FILE_NAME

    def reported() -> int:
        return log.read_text().count('"event": "reported"') if log.exists() else 0

    following = subprocess.Popen(
        [sys.executable, "-m", "hpo_ray", *words, *overrides, "view=plain"],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    until(lambda: reported() >= 2, following)
    following.send_signal(signal.SIGINT)
    said, _ = following.communicate(timeout=30)
    assert following.returncode == 0 and re.search(r"\ndetached: s-\w+ goes on\n", said), said
    before, stop = reported(), re.findall(r"^  stop     (.*)$", said, re.MULTILINE)[-1]
    until(lambda: reported() > before, head.process)
    subprocess.run(stop, shell=True, env=environment(), check=True, timeout=120, capture_output=True)
    job = str(re.search(r"^job        (\S+)$", said, re.MULTILINE)[1])  # type: ignore[index]
    until(lambda: head.ask(f"/api/jobs/{job}")["status"] == "STOPPED", head.process)
    stopped = load_study(folder / "outputs/s").state
    assert stopped.ended is not None and (stopped.ended.state, stopped.ended.reason) == (
        "interrupted",
        "SIGTERM received",
    )
    running = [trial for trial in stopped.trials.values() if trial.state == "running" and trial.position]
    assert running and all(trial.checkpoint_resource == trial.position for trial in running), "there was time to save"

    hurry.touch()
    done = hpo_ray(folder, "submit", "resume", "outputs/s", *words[1:])
    assert done.returncode == 0 and "resumes s: " in done.stdout, done.stdout + done.stderr
    result = load_study(folder / "outputs/s")
    assert sum(isinstance(event, StudyResumed) for event in read(log)) == 1
    check_resumes(run_study([*overrides, "executor=inprocess"], folder / "clean"), result)


def test_attach(folder: Path, head: Head) -> None:
    """`auto` is the cluster that RAY_ADDRESS names, as in a job."""
    words = [*STUDY, "task.trainable=mine.DictCheckpoint", "task.max_resource=3", "cluster=attach", "view=none"]
    variables = f"cluster.runtime_env.env_vars.PYTHONPATH='{folder}:{CHECKOUT}'"
    done = hpo_ray(folder, *words, variables, RAY_ADDRESS=head.address)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert load_study(folder / "outputs/s").state.states["completed"] == 4


@pytest.mark.parametrize(
    ("words", "more", "message"),
    [
        (
            ["submit", "cluster=ray_job", "cluster.address={dashboard}"],
            {"RAY_AUTH_TOKEN": "other" * 8},
            "does not take the token",
        ),
        (
            ["cluster=attach", "cluster.address={address}"],
            {"RAY_AUTH_TOKEN": "other" * 8},
            "lets nobody in with this token",
        ),
        (
            ["cluster=attach", "cluster.address={address}", "resources.gpu=4"],
            {},
            "a trial asks for 1 CPU, 4 GPU, and the cluster will never have that: no node has 4 GPUs, the largest has "
            "0; use resources=cpu",
        ),
    ],
)
def test_what_cannot_be(folder: Path, head: Head, words: list[str], more: dict[str, str], message: str) -> None:
    typed = [word.format(address=head.address, dashboard=head.dashboard) for word in words]
    done = hpo_ray(folder, *typed, *STUDY, "task.trainable=mine.DictCheckpoint", **more)
    # Ray's own core has warned of a wrong token by then.
    said = [line for line in done.stderr.splitlines() if " gcs_client.cc:" not in line]
    assert done.returncode == 2 and len(said) == 1 and message in said[0], done.stderr
    assert not any((folder / "outputs").glob("*")), "nothing was written"


def test_a_folder_that_a_node_does_not_see_is_told_before_anything_starts(folder: Path, head: Head) -> None:
    """The driver has its own file system at that place, as each of two machines has its own disk."""
    disk = folder / "disk"
    disk.mkdir()
    alone = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(disk)]
    if subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    words = [*STUDY, "task.trainable=mine.DictCheckpoint", "cluster=attach", f"cluster.address={head.address}"]
    done = hpo_ray(folder, *words, f"study.root={disk}/studies", within=alone)
    assert done.returncode == 2, done.stdout + done.stderr
    assert re.fullmatch(
        rf"hpo_ray: node \S+ \(127\.0\.0\.1\): does not see the folder of here {disk}/studies: there is no such "
        rf"folder\. Checkpoints move between nodes, .* store\.root=s3://bucket/folder\n",
        done.stderr,
    ), done.stderr
