"""cluster=ray_job against a dashboard that is played: what is asked, sent, followed, printed, and what goes wrong."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from golden import check_golden

from hpo_ray.__main__ import main
from hpo_ray.clusters import RayJob, dashboard, ray_job
from hpo_ray.clusters.base import SEEN, Submission
from hpo_ray.clusters.ray_job import STOPPED, check_mark, follow, mark, parse, send
from hpo_ray.errors import ConfigError, StudyError
from hpo_ray.resources import Resources

SECRET = "hunter2"
JOB = "digits-0a1b2c3d"


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What Ray reads, as it was before each test; and no token of the machine's."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")


class Dashboard(ThreadingHTTPServer):
    """Answers each request with what `answer` gives for the token that came with it: a status and a text."""

    daemon_threads = True
    answer = staticmethod(lambda token: (200, json.dumps({"ray_version": version("ray")})))

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Asked)
        self.asked: list[tuple[str, str]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Asked(BaseHTTPRequestHandler):
    server: Dashboard

    def do_GET(self) -> None:
        token = self.headers.get("Authorization", "")
        self.server.asked.append((self.path, token))
        status, text = self.server.answer(token)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def played() -> Iterator[Dashboard]:
    with Dashboard() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def asks_for(token: str) -> Any:
    """Answers like a cluster that has this token: 401 without any, 403 for another."""
    good = 200, json.dumps({"ray_version": version("ray")})
    return lambda given: good if given == f"Bearer {token}" else (403 if given else 401, "no")


# Who is asked.


def test_a_dashboard_without_token_is_asked_once(played: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", SECRET)
    assert dashboard.reach(played.address) == version("ray")
    assert played.asked == [("/api/version", "")], "a token goes to nobody who doesn't ask for one"


@pytest.mark.parametrize("where", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "home"])
def test_a_token_is_found_where_ray_has_it(
    played: Dashboard, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str
) -> None:
    played.answer = asks_for(SECRET)
    if where == "RAY_AUTH_TOKEN":
        monkeypatch.setenv(where, f" {SECRET}\n")
    else:
        path = tmp_path / (".ray/auth_token" if where == "home" else "token")
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{SECRET}\n")
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "" if where == "home" else str(path))
    assert dashboard.reach(played.address) == version("ray")
    assert played.asked == [("/api/version", ""), ("/api/version", f"Bearer {SECRET}")]
    assert os.environ["RAY_AUTH_MODE"] == "token", "Ray's own client sends it then"


@pytest.mark.parametrize(
    ("answer", "token", "messages"),
    [
        (asks_for(SECRET), None, ["asks for a token", "RAY_AUTH_TOKEN", "no_token"]),
        (asks_for(SECRET), "other", ["does not take the token", "RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token"]),
        (lambda token: (401, "no"), "other", ["does not take the token"]),
        (lambda token: (404, "no"), None, ["answers 404 to /api/version", "is it a dashboard?"]),
        (lambda token: (502, "no"), None, ["answers 502"]),
        (lambda token: (200, "<html>"), None, ["is no dashboard of Ray", "8265"]),
        (lambda token: (200, "[]"), None, ["is no dashboard of Ray"]),
        (lambda token: (200, '{"version": 1}'), None, ["is no dashboard of Ray"]),
    ],
)
def test_what_a_dashboard_must_not_answer(
    played: Dashboard, monkeypatch: pytest.MonkeyPatch, answer: Any, token: str | None, messages: list[str]
) -> None:
    played.answer = answer
    if token is not None:
        monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    with pytest.raises(ConfigError) as error:
        dashboard.reach(played.address)
    text = str(error.value)
    assert error.value.key == "cluster.address" and text.startswith(f"cluster.address={played.address}: ")
    assert [message for message in messages if message not in text] == [], text
    assert "other" not in text and len(played.asked) <= 2


def test_an_empty_token_is_none(played: Dashboard, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    played.answer = asks_for(SECRET)
    (tmp_path / "no_token").write_text("\n")
    with pytest.raises(ConfigError, match="asks for a token, and there is none here"):
        dashboard.reach(played.address)


def test_nobody_there() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(ConfigError) as error:
        dashboard.reach(address)
    assert str(error.value) == (
        f"cluster.address={address}: can't be reached: Connection refused (tried GET /api/version for 5 s). Is the "
        f"cluster up, and a port forwarded: ssh -L 8265:localhost:8265 HEAD, or kubectl port-forward service/HEAD 8265?"
    )


def test_who_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dashboard._ANSWER_S * 2 <= 10
    monkeypatch.setattr(dashboard, "_ANSWER_S", 0.2)
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ConfigError, match=r"can't be reached: timed out \(tried GET /api/version for 0\.2 s\)"):
            dashboard.reach(address)


def test_another_version_of_ray(played: Dashboard, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    played.answer = lambda token: (200, '{"ray_version": "2.9.3"}')
    assert main(["submit", "cluster=ray_job", f"cluster.address={played.address}", "task=parabola"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err == (
        f"hpo_ray: cluster.address={played.address}: the cluster runs Ray 2.9.3, and here is {version('ray')}; install "
        f"the cluster's here, pip install 'ray[default]==2.9.3', or a cluster of this one\n"
    )
    assert {path.name for path in folder.iterdir()} == {"mine.py"}, "nothing was written"


def test_the_cluster_that_was_named_and_not_that_of_the_environment(
    played: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    assert RayJob(played.address)._client().get_address() == played.address


def test_what_submit_needs_more(played: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray.job_submission", None)
    with pytest.raises(ConfigError, match=r"submit needs more packages: pip install 'hpo_ray\[cluster\]'"):
        RayJob(played.address)._client()


# What is sent.

FULL = {
    "address": "https://ray.example.com/",
    "grow_to": 8,
    "runtime_env": {"working_dir": ".", "pip": ["timm==1.0.9"], "env_vars": {"MODE": "fast", "WANDB_API_KEY": None}},
    "stop_grace_s": 45,
    "python": "/opt/venv/bin/python",
}
CASES = {
    "ray_job.json": (
        FULL,
        Submission("digits_cnn-asha", ("method=asha", "study.root=/mnt/s"), "/mnt/s", Resources(gpu=1)),
    ),
    "ray_job_no_upload.json": (
        {"runtime_env": {"working_dir": None}},
        Submission("cheap", ("executor=inprocess", "study.root=/mnt/s", "cluster=local"), "/mnt/s", drives=False),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_job, "version", lambda package: "0.1.0")
    keys, submission = CASES[case]
    text = RayJob(**keys).render(submission)
    json.loads(text)
    check_golden(case, text)


def test_no_secret_is_rendered(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("WANDB_API_KEY", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, SECRET)
    typed = ["submit", "--render", "cluster=ray_job", "cluster.runtime_env.env_vars.WANDB_API_KEY=null"]
    assert main([*typed, f"store.url=postgresql://me:{SECRET}@h/d"]) == 0
    said = capsys.readouterr()
    request = json.loads(said.out)
    assert SECRET not in said.out + said.err
    assert request["runtime_env"]["env_vars"]["WANDB_API_KEY"] == "${WANDB_API_KEY}"
    assert "store.url=postgresql://me@h/d" in request["entrypoint"]
    assert {path.name for path in folder.iterdir()} == {"mine.py"}, "nothing was written, and nobody asked"


class Client:
    """Ray's client of a job, played: what was sent to it, and a log and states that are told in advance.

    Args:
        logs: of each connection the pieces of text that come; an exception among them breaks it off.
        infos: what is said of the job after each connection: a state, or an exception.
    """

    def __init__(self, logs: Any = (), infos: Any = ("SUCCEEDED",), refuses: Any = ()) -> None:
        self.logs, self.infos, self.refuses = list(logs), list(infos), list(refuses)
        self.sent: list[dict[str, Any]] = []

    def submit_job(self, **request: Any) -> None:
        if self.refuses:
            raise self.refuses.pop(0)
        self.sent.append(request)

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        assert job == JOB
        for piece in self.logs.pop(0) if self.logs else ():
            if isinstance(piece, BaseException):
                raise piece
            yield piece

    def get_job_info(self, job: str) -> Any:
        assert job == JOB
        said = self.infos.pop(0) if len(self.infos) > 1 else self.infos[0]
        if isinstance(said, BaseException):
            raise said
        return said if isinstance(said, SimpleNamespace) else info(said)


def info(status: str, code: int | None = 0, message: str = "") -> SimpleNamespace:
    return SimpleNamespace(status=SimpleNamespace(value=status), driver_exit_code=code, message=message)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_job, "_LOOK_AGAIN_S", 0.0)


def submitted(monkeypatch: pytest.MonkeyPatch, client: Client, *words: str, detach: bool = False) -> tuple[int, Client]:
    monkeypatch.setattr(RayJob, "_client", lambda self: client)
    monkeypatch.setattr(ray_job.uuid, "uuid4", lambda: SimpleNamespace(hex="0a1b2c3d" * 4))
    typed = ["submit", *(["--detach"] if detach else []), "cluster=ray_job", "study.name=digits", *words]
    return main(typed), client


def test_a_submission_is_sent_followed_and_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], quick: None
) -> None:
    """Nothing secret is printed; studies that lie in the folder are not uploaded; the job gets what it needs."""
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", SECRET)
    (folder / "outputs/before").mkdir(parents=True)
    (folder / "outputs/before/events.jsonl").touch()
    (folder / "data.csv").touch()
    client = Client([["hello\n", "world\n"]], [info("FAILED", 3)])
    words = ["task=parabola", "cluster.excludes=['*.csv']", "cluster.runtime_env.env_vars={WANDB_API_KEY: null}"]
    code, _ = submitted(monkeypatch, client, *words)
    assert code == 3
    said = capsys.readouterr()
    size = (folder / "mine.py").stat().st_size / 1e6
    assert said.out.splitlines() == [
        f"uploads    {folder}: 1 file, {size:.1f} MB",
        f"job        {JOB}",
        f"  follow   RAY_AUTH_MODE=token ray job logs --follow {JOB} --address http://127.0.0.1:8265",
        f"  look     RAY_AUTH_MODE=token ray job status {JOB} --address http://127.0.0.1:8265",
        f"  stop     RAY_AUTH_MODE=token ray job stop {JOB} --address http://127.0.0.1:8265",
        "hello",
        "world",
    ]
    assert SECRET not in said.out + said.err
    (request,) = client.sent
    environment = request["runtime_env"]["env_vars"]
    seen = Path(environment.pop(SEEN))
    assert seen.parent == folder / "outputs" and seen.is_file(), "for the job to find"
    assert environment == {"PYTHONUNBUFFERED": "1", "RAY_JOB_STOP_WAIT_TIME_S": "30", "WANDB_API_KEY": SECRET}
    assert request["submission_id"] == JOB and request["entrypoint"] == (
        f"exec python -m hpo_ray study.name=digits task=parabola study.root={folder}/outputs cluster=attach "
        f"cluster.address=auto"
    )
    assert request["runtime_env"]["working_dir"].endswith("/working_dir.zip")
    assert request["metadata"] == {"job_name": "digits", "hpo_ray": version("hpo_ray")}


def test_detached_it_is_not_followed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, client = submitted(monkeypatch, Client([["not shown"]], ["RUNNING"]), "study.root=/s", detach=True)
    assert code == 0 and len(client.sent) == 1 and client.logs == [["not shown"]]
    out = capsys.readouterr().out
    assert f"ray job logs --follow {JOB}" in out and f"ray job stop {JOB}" in out
    assert SEEN not in client.sent[0]["runtime_env"]["env_vars"], "an absolute folder is the cluster's"


def test_ctrl_c_detaches(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = submitted(monkeypatch, Client([["one\n", KeyboardInterrupt()]], ["RUNNING"]), "study.root=/s")
    assert code == 0
    end = capsys.readouterr().out.partition("one\n")[2]
    assert end.splitlines()[1] == f"detached: {JOB} goes on"
    assert f"ray job logs --follow {JOB}" in end and f"ray job stop {JOB}" in end


def test_a_job_that_is_not_taken_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client = Client(refuses=[RuntimeError("Request failed with status code 500:\nno such environment")])
    assert submitted(monkeypatch, client)[0] == 2
    assert capsys.readouterr().err.endswith("the cluster does not take the job: no such environment\n")
    assert list((folder / "outputs").iterdir()) == []


def test_a_cluster_that_is_just_starting_is_asked_again(monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    starting = RuntimeError("No available agent to submit job, please try again later.")
    client = Client(refuses=[starting, starting])
    request = {"entrypoint": "x", "runtime_env": {"env_vars": {}}, "metadata": {}}
    send(client, JOB, request, None)
    assert client.sent == [{**request, "submission_id": JOB}]
    monkeypatch.setattr(ray_job, "_AGENT_S", -1.0)
    with pytest.raises(ConfigError, match="does not take the job: No available agent"):
        send(Client(refuses=[starting]), JOB, request, None)


# Following.


@pytest.mark.parametrize(
    ("logs", "shown"),
    [
        ([["a\n", "b\n"]], "a\nb\n"),
        ([["a\n", OSError("reset")], ["a\n", "b\n"]], "a\nb\n"),
        ([["a\n", RuntimeError("closed")], ["a\nb", "\nc\n"]], "a\nb\nc\n"),  # in other pieces
        ([["one\ntwo\n"], ["one\n", "two\n"], ["o", "ne\ntwo\nthree\n"]], "one\ntwo\nthree\n"),
        ([["ab", "cd", ValueError("of a library")], ["a", OSError()], ["abc", "de"]], "abcde"),
        ([[OSError()], [], ["a"]], "a"),
        ([[]], ""),
    ],
)
def test_what_a_job_prints_is_shown_once(
    capsys: pytest.CaptureFixture[str], quick: None, logs: list[list[Any]], shown: str
) -> None:
    client = Client(logs, [*["RUNNING"] * (len(logs) - 1), "SUCCEEDED"])
    assert follow(client, JOB) == 0
    assert capsys.readouterr().out == shown and client.logs == []


def test_a_dashboard_that_stays_away_is_given_up(monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    gone = ConnectionError("Connection refused")
    assert follow(Client([[], []], [gone, gone, info("SUCCEEDED")]), JOB) == 0, "it came back"
    monkeypatch.setattr(ray_job, "_LOST_S", 0.0)
    with pytest.raises(StudyError, match=f"{JOB}: its cluster has not answered for 0 s.*: Connection refused"):
        follow(Client([], [gone]), JOB)


def test_nobody_reads_what_is_shown(monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    with pytest.raises(BrokenPipeError):
        follow(Client([[BrokenPipeError()]], ["RUNNING"]), JOB)


@pytest.mark.parametrize(
    ("ended", "code", "says"),
    [
        (info("SUCCEEDED"), 0, ""),
        (info("FAILED", 1), 1, ""),
        (info("FAILED", 2), 2, ""),
        (info("FAILED", 130), 130, ""),
        (info("FAILED", -9), -9, ""),
        (info("FAILED", 0), 1, ""),
        (info("STOPPED", None), STOPPED, "stopped: the study can be resumed, with submit resume PATH\n"),
        (info("FAILED", None, "no pip"), 1, "the job failed before it ran: no pip\n"),
    ],
)
def test_exit_codes(capsys: pytest.CaptureFixture[str], ended: Any, code: int, says: str) -> None:
    assert parse(ended) == code and capsys.readouterr().out == says


def test_a_job_without_hpo_ray_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(info("FAILED", 1, "/usr/bin/python: No module named hpo_ray")) == 1
    assert "cluster.python=/opt/venv/bin/python" in capsys.readouterr().out


# The folder of the studies, in the job.


def test_a_folder_that_the_cluster_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = mark(tmp_path / "new/outputs")
    monkeypatch.setenv(SEEN, str(seen))
    check_mark()
    assert list((tmp_path / "new/outputs").iterdir()) == []
    check_mark()  # asked once: nobody whom the job starts is asked


def test_a_folder_that_the_cluster_does_not_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(SEEN, str(tmp_path / "there/.hpo_ray-1"))
    assert main(["run", "task=parabola", f"study.root={tmp_path}/there"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"hpo_ray: study.root={tmp_path}/there: is a folder of the machine that submitted the job")
    assert "store.root=s3://bucket/outputs" in said and not (tmp_path / "there").exists()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"study\.root=.*/file/outputs: can't be written: Not a directory"):
        mark(tmp_path / "file/outputs")


# Keys that can't be.


@pytest.mark.parametrize(
    ("keys", "key", "message"),
    [
        (
            {"address": "127.0.0.1:6379"},
            "address",
            r"http://HOST:8265; for HOST:6379, its head, use run with cluster=at",
        ),
        ({"address": "ray://h:10001"}, "address", "jobs go to the cluster's dashboard"),
        ({"address": None}, "address", "jobs go to the cluster's dashboard"),
        ({"address": "http://"}, "address", "jobs go to the cluster's dashboard"),
        ({"address": "http://h:port"}, "address", "jobs go to the cluster's dashboard"),
        ({"address": f"http://me:{SECRET}@h:8265"}, "address", "has a password in it.*RAY_AUTH_TOKEN"),
        ({"grow_to": 0}, "grow_to", "must be a whole number >= 1, or null"),
        ({"excludes": "data"}, "excludes", "must be a list of patterns"),
        ({"max_upload_mb": 0}, "max_upload_mb", "must be a number > 0"),
        ({"max_upload_mb": float("inf")}, "max_upload_mb", "must be a number > 0"),
        ({"max_upload_mb": "much"}, "max_upload_mb", "must be a number > 0"),
        ({"stop_grace_s": 2.5}, "stop_grace_s", "must be a whole number >= 1"),
        ({"stop_grace_s": 0}, "stop_grace_s", "must be a whole number >= 1"),
        ({"python": ""}, "python", "must be like /opt/venv/bin/python"),
        ({"runtime_env": [1]}, "runtime_env", "must be a mapping"),
        ({"runtime_env": {"pips": []}}, "runtime_env.pips", "no such key; nearest: pip"),
        ({"runtime_env": {"pip": "rich"}}, "runtime_env.pip", "must be a list of packages"),
        ({"runtime_env": {"working_dir": 3}}, "runtime_env.working_dir", "must be a folder or null"),
        ({"runtime_env": {"env_vars": [1]}}, "runtime_env.env_vars", "must be a mapping"),
    ],
)
def test_keys_that_cannot_be(keys: dict[str, Any], key: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        RayJob(**keys)
    assert error.value.key == f"cluster.{key}" and SECRET not in str(error.value)


def test_a_variable_that_is_not_set_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    cluster = RayJob(runtime_env={"env_vars": {"WANDB_API_KEY": None}})
    with pytest.raises(ConfigError, match="WANDB_API_KEY has no value, and WANDB_API_KEY is not set here; export it"):
        cluster.submit(Submission("s", (), "/s"), detach=True)


def test_a_folder_over_the_limit(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Said before anybody is asked."""
    (folder / "big.bin").write_bytes(b"x" * 20_000)
    typed = ["submit", "cluster=ray_job", "cluster.address=http://127.0.0.1:1", "cluster.max_upload_mb=0.01"]
    assert main(typed) == 2
    assert "cluster.max_upload_mb=0.01: the working directory" in capsys.readouterr().err
    assert {path.name for path in folder.iterdir()} == {"mine.py", "big.bin"}
